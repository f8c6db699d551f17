"""Files of chunks (WAV, RF64, W64, AIFF, CAF, AU): how long their samples are, and their notes.

A header's length is a hint: programs that write to a pipe never come back to it, and 32 bits wrap
around. So we look behind the announced end: either the file ends there, or whole chunks follow, or
there are more samples.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from speech_enhancement.errors import InputError

# What programs announce when they do not know the number of bytes: 0, about the largest number of
# 31 or 32 bits, or SoX's number for AIFF.
_UNKNOWN_32 = (2**31, 2**32, 0x7F000000)
_ABOUT = 2**16
_UNKNOWN_64 = 2**60  # or more


class Container(NamedTuple):
    """How the chunks of a format are written.

    Attributes:
      magic: what the file begins with.
      first: where its first chunk begins.
      n_name: bytes of a chunk's name. Its size follows, written as `size` says (see struct).
      counted: bytes of name and size that the size includes.
      padding: chunks begin at multiples of it.
      data, n_before: the chunk with the samples, and the bytes in it before them.
      own: chunks that describe the samples themselves, and fillers; the others are notes about the
        recording.
    """

    magic: bytes
    first: int
    n_name: int
    size: str
    counted: int
    padding: int
    data: bytes
    n_before: int
    own: tuple[bytes, ...]


class Chunk(NamedTuple):
    """A chunk of a file: its name, where its content begins, and its length by its header."""

    name: bytes
    start: int
    size: int


class Samples(NamedTuple):
    """The samples of a file of chunks.

    Attributes:
      start: where they begin, in bytes.
      announced: bytes of them, as the header says; None where it says that it does not know.
      found: bytes of them that are there.
      is_right: whether libsndfile finds them by the header that the file has.
    """

    start: int
    announced: int | None
    found: int
    is_right: bool


_OF_WAV = (b"fmt ", b"data", b"fact", b"PEAK", b"ds64", b"JUNK", b"junk", b"FLLR", b"PAD ", b"levl")
_OF_CAF = (b"desc", b"data", b"pakt", b"kuki", b"chan", b"free", b"peak", b"info")
WAV = Container(b"RIFF", 12, 4, "<I", 0, 2, b"data", 0, _OF_WAV)
RF64 = WAV._replace(magic=b"RF64")
AIFF = Container(b"FORM", 12, 4, ">I", 0, 2, b"SSND", 8, (b"COMM", b"SSND", b"FVER", b"PEAK"))
CAF = Container(b"caff", 8, 4, ">q", 0, 1, b"data", 4, _OF_CAF)
W64 = Container(b"riff\x2e\x91\xcf\x11", 40, 16, "<q", 24, 8, b"data", 0, _OF_WAV)
AU = Container(b".snd", 0, 8, ">I", 0, 1, b"", 0, ())  # no chunks: an offset, a size and samples
CONTAINERS = (WAV, RF64, WAV._replace(magic=b"RIFX", size=">I"), AIFF, CAF, W64, AU)
NOTES_KEPT = (b"RIFF", b"RF64", b"RIFX", b"FORM")  # chunks can be appended to them as they are


def container_of(magic: bytes) -> Container | None:
    """Return the kind of a file that begins with these bytes; None if it has no chunks."""
    return next((container for container in CONTAINERS if magic.startswith(container.magic)), None)


def chunks(file: BinaryIO, container: Container, position: int) -> Iterator[Chunk]:
    """Yield the chunks from a position on, up to the end of the file or what cannot be a chunk."""
    n_head = container.n_name + struct.calcsize(container.size)
    end = file.seek(0, os.SEEK_END)

    while position + n_head <= end:
        file.seek(position)
        head = file.read(n_head)
        name, (size,) = head[:4], struct.unpack(container.size, head[container.n_name :])
        if not all(32 <= byte < 127 for byte in name):
            return
        yield Chunk(name, position + n_head, size - container.counted)
        if size < container.counted:
            return
        position += n_head + size - container.counted
        position += -position % container.padding


def find_samples(file: BinaryIO, container: Container, path: str) -> Samples | None:
    """Return where the samples of a file are; None where it has none.

    Raises:
      InputError: there are fewer than announced.
    """
    data = _data(file, container)
    n_bytes = file.seek(0, os.SEEK_END)
    if data is None or data.start > n_bytes:
        return None

    found = n_bytes - data.start
    announced = None if is_unknown(data.size, found) else data.size
    if announced is None:
        return Samples(data.start, None, found, is_right=False)
    if announced > found:
        raise InputError(
            f"{path} is cut short: {announced} bytes of samples announced, "
            f"{found} found; replace or remove it"
        )

    # A size of 32 bits may have wrapped around, once for each 4 GiB.
    for end in range(data.start + announced, n_bytes + 1, 2**32):
        if is_end(file, container, end, n_bytes):
            found = end - data.start
            return Samples(data.start, found, found, is_right=found == announced)
    return Samples(data.start, announced, found, is_right=False)


def is_unknown(size: int, found: int) -> bool:
    """Return whether a size in a header means that the program that wrote it did not know it.

    `found` is the size that the file really has.
    """
    about_32_bits = any(abs(size - limit) <= _ABOUT for limit in _UNKNOWN_32)
    return size <= 0 or size >= _UNKNOWN_64 or (size > found and about_32_bits)


def _data(file: BinaryIO, container: Container) -> Chunk | None:
    """Return the chunk of the samples, from where the samples begin in it."""
    if container is AU:
        file.seek(4)
        return Chunk(b"", *struct.unpack(">II", file.read(8).ljust(8, b"\0")))

    size_in_ds64 = 0
    for chunk in chunks(file, container, container.first):
        if chunk.name == b"ds64":
            file.seek(chunk.start + 8)  # behind the size of the file
            (size_in_ds64,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
        if chunk.name == container.data:
            is_in_ds64 = container.magic == b"RF64" and chunk.size == 2**32 - 1
            size = size_in_ds64 if is_in_ds64 else chunk.size - container.n_before
            return Chunk(chunk.name, chunk.start + container.n_before, size)
    return None


def is_end(file: BinaryIO, container: Container, end: int, n_bytes: int) -> bool:
    """Return whether the samples of a file of n_bytes can end at `end`.

    They can if the file ends there, or if whole chunks or a tag follow.
    """
    for position in {end, end + -end % container.padding}:
        if n_bytes - position < 8:
            return True
        file.seek(position)
        if n_bytes - position == 128 and file.read(3) == b"TAG":
            return True

        following = list(chunks(file, container, position)) if container is not AU else []
        if following and abs(following[-1].start + following[-1].size - n_bytes) < 8:
            return True
    return False


def head_with_length(head: bytes, container: Container, n_bytes: int) -> bytes:
    """Return the bytes before the samples with the right length of the samples in them.

    A WAV that is too long for a length of 32 bits becomes an RF64.
    """
    fixed = bytearray(head)
    at_most_32_bits = min(n_bytes + container.n_before, 2**32 - 1)

    if container.magic == b"RF64" or (container.magic == b"RIFF" and n_bytes + len(head) >= 2**32):
        ds64 = struct.pack("<4sIQQQI", b"ds64", 28, len(head) + n_bytes + 28, n_bytes, 0, 0)
        first_is_ds64 = head[12:16] == b"ds64"
        others = head[20 + struct.unpack("<I", head[16:20])[0] if first_is_ds64 else 12 : -8]
        return b"RF64\xff\xff\xff\xffWAVE" + ds64 + others + b"data\xff\xff\xff\xff"
    if container is AU:
        fixed[8:12] = struct.pack(">I", at_most_32_bits)
    elif container is CAF:
        fixed[-12:-4] = struct.pack(">q", n_bytes + 4)
    elif container is W64:
        fixed[-8:] = struct.pack("<q", n_bytes + 24)
    else:
        place = len(head) - container.n_before - 4
        fixed[place : place + 4] = struct.pack(container.size, at_most_32_bits)
    return bytes(fixed)


# --- Notes about a recording ------------------------------------------------------------------


def notes(file: BinaryIO, container: Container) -> list[Chunk]:
    """Return the chunks of a file that tell of the recording, such as bext, iXML and cue points."""
    found = []
    samples = find_samples(file, container, "")
    if samples is None or container is AU:
        return found
    for chunk in chunks(file, container, container.first):
        if chunk.name == container.data:
            break
        found.append(chunk)
    end = samples.start + samples.found
    found += chunks(file, container, end + -end % container.padding)
    return [chunk for chunk in found if chunk.name not in container.own and chunk.size >= 0]


def append_notes(source: BinaryIO, target: BinaryIO, container: Container) -> None:
    """Copy the notes of a WAV, RF64 or AIFF to the end of another one, which was just written."""
    kept = notes(source, container)
    if not kept:
        return
    position = target.seek(0, os.SEEK_END)
    for chunk in kept:
        source.seek(chunk.start)
        content = source.read(chunk.size)
        target.write(
            bytes(position % 2) + chunk.name + struct.pack(container.size, len(content)) + content
        )
        position = target.tell()
    target.write(bytes(position % 2))

    n_bytes = target.tell() - 8
    target.seek(0)
    is_rf64 = target.read(4) == b"RF64"
    target.seek(20 if is_rf64 else 4)
    target.write(struct.pack("<Q", n_bytes) if is_rf64 else struct.pack(container.size, n_bytes))
