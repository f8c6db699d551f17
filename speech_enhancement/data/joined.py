"""Streams of frames or pages (FLAC, Ogg, MP3): a file may hold several, joined byte for byte.

libsndfile reads the first of them, and believes what its header announces. So we look through the
file for others, and decode to its end what is not as long as announced.
"""

import functools
import mmap
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# A first frame of an MP3 holds no sound if it says how many frames follow.
_XING = re.compile(
    rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb].{2}(?:.{9}|.{17}|.{32})(?:Xing|Info)", re.DOTALL
)
_MP3_FRAME = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]")
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9]")
_FLAC_BLOCKS = {2: "application data", 5: "cue sheet", 6: "picture"}
_ID3_FRAMES = {b"APIC": "picture", b"CHAP": "chapters"}
_FLAC_HEAD = 26  # bytes, up to the number of samples
_FLAC_TAIL = 2**17  # bytes that a tag or zeros behind the last frame may have, or a frame itself


def _crc8_of_byte(value: int) -> int:
    """Return the checksum of one byte, by the polynomial x^8 + x^2 + x + 1."""
    for _ in range(8):
        value = (value << 1 ^ (0x107 if value & 0x80 else 0)) & 0xFF
    return value


_CRC8 = [_crc8_of_byte(value) for value in range(256)]


class Part(NamedTuple):
    """A stream in a file: a header to read first, and the bytes [start, end) that follow it."""

    head: bytes
    start: int
    end: int


class Streams(NamedTuple):
    """What a file of frames or pages holds.

    Attributes:
      parts: its streams, in order; empty where libsndfile reads the file as it is.
      announced: samples of each channel that the headers tell of; None where libsndfile knows, or
        nobody.
      is_counted: whether only decoding tells how many there are.
      is_cut: whether the end of the last one is missing.
    """

    parts: list[Part]
    announced: int | None = None
    is_counted: bool = False
    is_cut: bool = False


@functools.lru_cache(1024)
def find_streams(path: str, n_bytes: int, changed: int) -> Streams:
    """Look through a file for its streams.

    Size and time of change tell whether a file that was seen before is still the same.
    """
    if n_bytes == 0:
        return Streams([])
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _streams_in(content)


def _streams_in(content: mmap.mmap) -> Streams:
    start, end = end_of_id3(content, 0), len(content)
    if content[-128:-125] == b"TAG":  # ID3v1
        end -= 128
    magic = content[start : start + 4]
    if magic == b"fLaC":
        return _of_flac(content, start, end)
    if magic == b"OggS":
        return _of_ogg(content, start)
    if _MP3_FRAME.match(magic):
        return _of_mp3(content, start, end)
    return Streams([])


def end_of_id3(content: bytes | mmap.mmap, start: int) -> int:
    """Return where the ID3v2 tag at `start` ends; `start` itself if there is none."""
    head = content[start : start + 10]
    if len(head) < 10 or head[:3] != b"ID3":
        return start
    return start + 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))


def _spans(starts: list[int], end: int) -> Iterator[tuple[int, int]]:
    """Yield from where to where each of some streams reaches."""
    return zip(starts, [*starts[1:], end], strict=True)


def kept_by_nobody(file: BinaryIO) -> list[str]:
    """Name what a FLAC or MP3 holds besides its sound and the texts that soundfile reads."""
    file.seek(0)
    head = file.read(10)
    found = []
    if head[:3] == b"ID3":
        file.seek(0)
        tag = file.read(end_of_id3(head, 0))
        found += [name for mark, name in _ID3_FRAMES.items() if mark in tag]
        head = file.read(10)
    if head[:4] == b"OggS" and b"METADATA_BLOCK_PICTURE" in file.read(2**16).upper():
        found.append("picture")
    if head[:4] != b"fLaC":
        return found

    file.seek(-6, os.SEEK_CUR)
    is_last = False
    while not is_last and len(block := file.read(4)) == 4:
        is_last, kind = bool(block[0] & 128), block[0] & 127
        found += [_FLAC_BLOCKS[kind]] if kind in _FLAC_BLOCKS else []
        file.seek(int.from_bytes(block[1:], "big"), os.SEEK_CUR)
    return found


# --- FLAC -------------------------------------------------------------------------------------


def _of_flac(content: mmap.mmap, start: int, end: int) -> Streams:
    """Return the streams of a FLAC file.

    With a header that leaves the length open, libsndfile decodes to the end.
    """
    starts = [match.start() for match in _FLAC.finditer(content, start)] or [start]
    spans = list(_spans(starts, end))
    announced = [_flac_announced(content, begin) for begin, _ in spans]
    if len(spans) == 1 and announced[0] and announced[0] == _flac_end(content, *spans[0]):
        return Streams([])

    parts = []
    for begin, following in spans:
        head = bytearray(content[begin : begin + _FLAC_HEAD])
        head[21] &= 0xF0  # the number of samples has 36 bits
        head[22:] = bytes(4)
        parts.append(Part(bytes(head), begin + _FLAC_HEAD, following))
    return Streams(parts, sum(announced) if all(announced) else None, is_counted=True)


def _flac_announced(content: mmap.mmap, start: int) -> int:
    """Return how many samples the header of a FLAC stream announces; 0 if it does not know."""
    field = content[start + 21 : start + _FLAC_HEAD].rjust(5, b"\0")
    n_samples = int.from_bytes(field, "big") % 2**36
    return 0 if n_samples == 2**36 - 1 else n_samples


def _flac_end(content: mmap.mmap, start: int, end: int) -> int | None:
    """Return where a FLAC stream ends by its last frame, in samples; None if that is not found."""
    largest_frame = int.from_bytes(content[start + 15 : start + 18], "big") or _FLAC_TAIL
    first = max(start + _FLAC_HEAD, end - largest_frame - _FLAC_TAIL)
    tail = content[first:end]
    block_size = int.from_bytes(content[start + 10 : start + 12], "big")  # the largest
    for match in reversed(list(_FLAC_FRAME.finditer(tail))):
        found = _flac_frame(tail[match.start() : match.start() + 16])
        if found is not None:
            number, n_samples = found
            counts_samples = tail[match.start() + 1] & 1
            return number * (1 if counts_samples else block_size) + n_samples
    return None


def _flac_frame(head: bytes) -> tuple[int, int] | None:
    """Return the number of a frame and its samples; None if these bytes begin no frame."""
    head = head.ljust(16, b"\0")
    code, rate_code = head[2] >> 4, head[2] & 15
    if head[4] == 0xFF or head[4] >> 6 == 0b10:
        return None  # no first byte of a number
    # Bytes of the number behind its first, as in UTF-8.
    n_more = max(0, 8 - (head[4] ^ 0xFF).bit_length() - 1)
    number = head[4] & (0x7F if n_more == 0 else 0x3F >> n_more)
    for byte in head[5 : 5 + n_more]:
        number = number << 6 | byte & 0x3F

    end = 5 + n_more
    n_of_size = {6: 1, 7: 2}.get(code, 0)
    size = int.from_bytes(head[end : end + n_of_size], "big") + 1
    if code in (1, *range(8, 16)):
        size = 192 if code == 1 else 256 << code - 8
    elif code in range(2, 6):
        size = 576 << code - 2
    end += n_of_size + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    return (number, size) if code and _crc8(head[:end]) == head[end] else None


def _crc8(content: bytes) -> int:
    """Return the checksum of the header of a FLAC frame."""
    value = 0
    for byte in content:
        value = _CRC8[value ^ byte]
    return value


# --- Ogg --------------------------------------------------------------------------------------


def _of_ogg(content: mmap.mmap, start: int) -> Streams:
    """Return the streams of an Ogg file: each ends at the page that begins the next."""
    starts, position, was_first, is_last = [], start, False, False
    while content[position : position + 4] == b"OggS" and position + 27 <= len(content):
        is_first, is_last = bool(content[position + 5] & 2), bool(content[position + 5] & 4)
        if is_first and not was_first:
            starts.append(position)
        was_first = is_first
        n_segments = content[position + 26]
        position += 27 + n_segments + sum(content[position + 27 : position + 27 + n_segments])

    is_cut = not is_last or position > len(content)
    if is_cut or (len(starts) == 1 and position == len(content)):
        return Streams([], is_cut=is_cut)
    return Streams([Part(b"", *span) for span in _spans(starts, position)])


# --- MP3 --------------------------------------------------------------------------------------


def _of_mp3(content: mmap.mmap, start: int, end: int) -> Streams:
    """Return the streams of an MP3 file.

    One that begins with a Xing frame is as long as that says; any other is read to its end.
    """
    starts = [match.start() for match in _XING.finditer(content, start)]
    if start not in starts:
        starts.insert(0, start)

    parts = []
    for begin, end_of_span in _spans(starts, end):
        end_of_xing = _xing_end(content, begin)
        if end_of_xing is not None:
            parts.append(Part(b"", begin, min(end_of_span, end_of_xing)))
            begin = end_of_id3(content, end_of_xing)
        if begin < end_of_span and _MP3_FRAME.match(content, begin):
            parts.append(Part(_endless_xing(content[begin : begin + 4]), begin, end_of_span))
    return Streams(parts, is_counted=True)


def _xing_end(content: mmap.mmap, start: int) -> int | None:
    """Return where a stream with a Xing frame at its beginning ends; None if it has none."""
    match = _XING.match(content, start)
    if match is None:
        return None
    flags, *numbers = struct.unpack(">3I", content[match.end() : match.end() + 12].ljust(12, b"\0"))
    has_frames, has_bytes = flags & 1, flags & 2
    return start + numbers[1 if has_frames else 0] if has_bytes else len(content)


def _endless_xing(frame: bytes) -> bytes:
    """Return a Xing frame like another frame, announcing more frames than there can be.

    Without one, libsndfile guesses the length by the bitrate of the first frame, and stops there.
    """
    version = frame[1] >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    is_mono, is_first = frame[3] >> 6 == 3, version == 3
    rate = (44100, 48000, 32000, 32000)[frame[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}.get(version, 0)
    # The bitrates are those with the code 8.
    n_bytes = 144 * 112_000 // rate if is_first else 72 * 64_000 // rate
    n_before = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    head = bytes([0xFF, frame[1] | 1, 0x80 | frame[2] & 0x0C, frame[3]])
    xing = head + bytes(n_before) + b"Xing" + struct.pack(">II", 1, 2**31 - 1)
    return xing.ljust(n_bytes, b"\0")
