"""Opening a file of sound so that all of its samples are read, whatever its header says."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from speech_enhancement.data.containers import (
    NOTES_KEPT,
    Container,
    append_notes,
    container_of,
    find_samples,
    head_with_length,
    notes,
)
from speech_enhancement.data.joined import Part, find_streams, kept_by_nobody
from speech_enhancement.errors import InputError, MissingFileError

BLOCK_SAMPLES = 2**16  # of each channel of a file, read together
LARGEST_SAMPLE = 1e10  # also of files that hold integers of 32 bits as floats
ENDLESS = 2**40  # samples; libsndfile says more where it does not know
_WIDTHS = dict.fromkeys(("PCM_S8", "PCM_U8", "ULAW", "ALAW"), 1)  # bytes of a sample
_WIDTHS |= {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


def check_samples(samples: np.ndarray, path: str) -> None:
    """Raise InputError unless samples, of any shape, are numbers that a recording may have."""
    if not np.abs(samples).max(initial=0) <= LARGEST_SAMPLE:  # so written, NaN is found too
        raise InputError(
            f"{path} holds samples that are NaN or infinite or beyond {LARGEST_SAMPLE:.0e}; "
            "expected full scale at 1: replace or remove it"
        )


class View(io.RawIOBase):
    """A Part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, part: Part):
        super().__init__()
        self._file, self._part, self._position = file, part, 0
        self._length = len(part.head) + part.end - part.start

    def seekable(self) -> bool:
        """Return True: any position can be reached."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position, as of any file."""
        self._position = offset + (0, self._position, self._length)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer) -> int:
        """Read as many bytes as there are, up to the length of the buffer."""
        head, start, end = self._part
        if self._position < len(head):
            content = head[self._position : self._position + len(buffer)]
        else:
            position = start + self._position - len(head)
            self._file.seek(position)
            content = self._file.read(max(0, min(len(buffer), end - position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Forward(soundfile.SoundFile):
    """A file that is read from front to end.

    soundfile would seek after each block, which not all codecs can do.
    """

    def seekable(self) -> bool:
        return False


class SoundFile:
    """A file opened to read: one stream, or several that were joined.

    Attributes:
      path: for messages.
      samplerate, channels, format, subtype, endian: as soundfile.SoundFile has them.
      frames: samples of each channel, where they can be told without decoding; otherwise None.
      n_read: samples of each channel that `blocks` read.
      note: what the header says of the length that is not so; "" as long as nothing of the kind was
        found.
    """

    def __init__(self, path: str, file: BinaryIO):
        """Look at a file; see `opened`."""
        self.path, self.note, self.n_read, self._file = path, "", 0, file
        self._parts: list[Part] = []
        self._announced: int | None = None  # samples of each channel
        self._skipped = 0
        is_counted, is_cut, n_bytes = False, False, None

        magic = file.read(16)
        container = self._container = container_of(magic)
        if container is not None:
            n_bytes = self._look_at_chunks(container)
        else:
            status = os.fstat(file.fileno())
            streams = find_streams(path, status.st_size, status.st_mtime_ns)
            self._parts, self._announced, is_counted, is_cut = streams

        self._first = self._open(self._parts[0] if self._parts else None)
        first = self._first
        self.samplerate, self.channels = first.samplerate, first.channels
        self.format, self.subtype, self.endian = first.format, first.subtype, first.endian
        self.frames = None if is_counted else first.frames
        for part in self._parts[1:] if self.frames is not None else []:
            with self._open(part) as stream:
                self.frames += stream.frames
        self._check(magic, n_bytes, is_cut)

    def _look_at_chunks(self, container: Container) -> int | None:
        """Find the samples of a file of chunks; return how many bytes of them there are."""
        samples = find_samples(self._file, container, self.path)
        if samples is None:
            return None
        if not samples.is_right:
            self._file.seek(0)
            head = head_with_length(self._file.read(samples.start), container, samples.found)
            self._parts = [Part(head, samples.start, samples.start + samples.found)]
        if samples.announced not in (None, samples.found):
            announced, found = samples.announced, samples.found
            self.note = (
                f"{self.path} announces {announced} bytes of samples, {found} found: all are read"
            )
        return samples.found

    def _open(self, part: Part | None) -> _Forward:
        """Open a stream of the file, or the file as it is."""
        try:
            return _Forward(self.path if part is None else View(self._file, part))
        except soundfile.SoundFileError as error:
            raise unreadable(self.path, error) from error

    def _check(self, magic: bytes, n_bytes: int | None, is_cut: bool) -> None:
        """Raise InputError if samples are missing, or if libsndfile does not see all of them."""
        found = self._first.frames
        if is_cut or is_cut_voc(self._file, magic):
            raise InputError(
                f"{self.path} is cut short: {found} samples found, "
                "the end is missing; replace or remove it"
            )

        announced = announced_samples(self._file, magic) or found
        if announced > found:
            raise cut_short(self.path, announced, found)
        if announced < found:
            self.note = f"{self.path} announces {announced} samples, {found} found: all are read"

        # Of other subtypes the number of samples does not follow from the bytes.
        width = n_bytes and _WIDTHS.get(self.subtype)
        if width and found != n_bytes // (width * self.channels):
            raise InputError(
                f"{self.path} holds {n_bytes} bytes of samples, "
                f"but only {found} samples can be read; convert it to WAV"
            )
        if self.frames == 0:
            raise InputError(f"{self.path} holds no samples; replace or remove it")

    def close(self) -> None:
        """Close the file for libsndfile."""
        self._first.close()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def texts(self) -> dict[str, str]:
        """Title, artist and the like, by soundfile's names; none where `copy_notes` copies them."""
        if self._keeps_notes:
            return {}
        if not self._parts or self._parts[0].start == 0:
            texts = self._first.copy_metadata()
        else:
            with self._open(None) as whole:  # with the tag before the first stream
                texts = whole.copy_metadata()
        # libsndfile writes no empty ones.
        return {name: text for name, text in texts.items() if text}

    @property
    def _keeps_notes(self) -> bool:
        return self._container is not None and self._container.magic in NOTES_KEPT

    def copy_notes(self, path: str) -> None:
        """Append bext, iXML, cue points and the like to a file of the same format, if it allows."""
        if self._keeps_notes:
            with open(path, "r+b") as target:
                append_notes(self._file, target, self._container)

    def lost_notes(self) -> str:
        """Return a line that names what `copy_notes` and `texts` do not keep, or ""."""
        if self._container is None:
            found = kept_by_nobody(self._file)
        else:
            lost = [] if self._keeps_notes else notes(self._file, self._container)
            found = [chunk.name.decode(errors="replace").strip() for chunk in lost]
        names = ", ".join(dict.fromkeys(found))
        return f"{self.path}: not copied to the output: {names}" if found else ""

    def n_samples(self) -> int:
        """Return the number of samples of each channel; decode them if nothing else tells it."""
        if self.frames is not None:
            return self.frames
        with opened(self.path) as again:
            n_samples = sum(map(len, again.blocks()))
            self.note = again.note
        return n_samples

    def skip(self, n_samples: int) -> int:
        """Skip samples before `blocks` if that needs no decoding; return how many were skipped."""
        if not self._parts:
            with contextlib.suppress(soundfile.SoundFileError):  # some codecs cannot
                self._skipped = self.n_read = self._first.seek(n_samples)
        return self.n_read

    def blocks(self, n_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """Yield all samples, (n_samples, n_channels) float64 at most at a time. Only once.

        Raises:
          InputError: the file cannot be decoded, ends before its announced end, or holds NaN.
        """
        for number, part in enumerate(self._parts or [None]):
            with self._first if number == 0 else self._open(part) as stream:
                if (stream.samplerate, stream.channels) != (self.samplerate, self.channels):
                    raise InputError(
                        f"{self.path} was joined from {self.samplerate} Hz, "
                        f"{self.channels} channels and {stream.samplerate} Hz, "
                        f"{stream.channels} channels; split it"
                    )
                yield from self._blocks_of(stream, n_samples)
        if self.n_read == 0:
            raise InputError(f"{self.path} holds no samples; replace or remove it")
        if self._announced is not None and self.n_read < self._announced:
            raise cut_short(self.path, self._announced, self.n_read)
        if self._announced is not None and self.n_read > self._announced:
            self.note = (
                f"{self.path} announces {self._announced} samples, {self.n_read} found: "
                "all are read"
            )

    def _blocks_of(self, stream: _Forward, n_samples: int) -> Iterator[np.ndarray]:
        """Yield the samples of a stream, and count them."""
        n_before, self._skipped = self.n_read - self._skipped, 0
        announced = n_before + stream.frames
        try:
            # No more than announced: libsndfile would take a tag at the end for damage.
            while n_wanted := min(n_samples, announced - self.n_read):
                block = stream.read(n_wanted, "float64", always_2d=True)
                if not len(block):
                    break
                check_samples(block, self.path)
                self.n_read += len(block)
                yield block
        except soundfile.SoundFileError as error:
            known = announced if announced < ENDLESS else "an unknown number of"
            told = self._announced or known
            raise InputError(
                f"{self.path} is cut short or damaged ({reason_of(error)}): "
                f"{told} samples announced, {n_before + stream.tell()} found; replace or remove it"
            ) from error

        if self.n_read < announced < ENDLESS:
            raise cut_short(self.path, announced, self.n_read)


@contextlib.contextmanager
def opened(path: str) -> Iterator[SoundFile]:
    """Yield an opened file, after a check of what it holds.

    Raises:
      InputError: it is missing, unreadable, without samples, or ends before its announced end.
    """
    # Surrogates are for bytes that are not UTF-8.
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {path!a} is not UTF-8; rename the file") from error
    if not os.path.isfile(path):
        raise MissingFileError(f"{path} is missing; check its name where it was given or listed")
    if path.lower().endswith(".raw"):  # soundfile goes by this name, and asks for a rate
        raise InputError(
            f"{path} is not readable as audio (its name says samples without a header, so that "
            "their rate is unknown); convert it, or rename it if it has a header"
        )
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: no permission; change its permissions") from error
    with file, contextlib.closing(SoundFile(path, file)) as sound:
        yield sound


def announced_samples(file: BinaryIO, magic: bytes) -> int | None:
    """Return the samples that a NIST SPHERE header announces, which libsndfile ignores."""
    if not magic.startswith(b"NIST_1A"):
        return None
    file.seek(0)
    count = re.search(rb"sample_count -i (\d+)", file.read(1024))
    return int(count[1]) if count else None


def is_cut_voc(file: BinaryIO, magic: bytes) -> bool:
    """Return whether a Creative Voice file ends within a block, which libsndfile does not tell."""
    if not magic.startswith(b"Creative Voice"):
        return False
    file.seek(20)
    position = int.from_bytes(file.read(2), "little")
    size = file.seek(0, os.SEEK_END)
    while position + 4 <= size:
        file.seek(position)
        kind, *length = file.read(4)
        if kind == 0:
            return False
        position += 4 + int.from_bytes(bytes(length), "little")
    return position > size


def unreadable(path: str, error: Exception) -> InputError:
    """Return the error of a file that libsndfile cannot open."""
    expected = "expected WAV, FLAC, OGG, MP3, uncompressed SPHERE or another format of libsndfile"
    return InputError(
        f"{path} is not readable as audio ({reason_of(error)}); {expected}: convert or remove it"
    )


def reason_of(error: Exception) -> str:
    """Return what libsndfile says of an error, without the name of the file."""
    return str(error).split(": ", 1)[-1].strip() or "decoding failed"


def cut_short(path: str, announced: int, found: int) -> InputError:
    """Return the error of a file that ends before its announced end."""
    return InputError(
        f"{path} is cut short: {announced} samples announced, {found} found; replace or remove it"
    )
