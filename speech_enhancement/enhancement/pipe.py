"""Cleaning a WAV on its way from standard input to standard output."""

import contextlib
import io
import os
import signal
import struct
import sys
import threading
from collections.abc import Iterator

import numpy as np
import soundfile

from speech_enhancement.data.containers import is_unknown
from speech_enhancement.data.sound_file import ENDLESS, check_samples, reason_of
from speech_enhancement.enhancement.blocks import Models, follow_level
from speech_enhancement.enhancement.recordings import check_signal, limited
from speech_enhancement.enhancement.sample_rates import enhanced_at_rate
from speech_enhancement.errors import InputError, foreseen_disk_errors

BLOCK_BYTES = 2**16  # read at a time, at most
# Behind the first four letters of a name.
W64_CHUNK = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
PEAK_UNKNOWN = (
    "enhance: this model scales a recording by its peak, which a pipe tells only at its end: "
    "it is scaled by the peak so far, after 5 s. Give a file to enhance it as the model was trained"
)


def enhance_stream(models: Models, smallest_gain: float) -> None:
    """Enhance a WAV that comes from standard input, and write it to standard output while it comes.

    With the recipe `default` the first samples come out after 5.5 s; then the stream is 3.6 s
    behind, because the noise is judged by what comes before and after. With the two models that
    ship it is 4.1 s.

    Raises:
      InputError: no WAV comes in.
    """
    source, file = opened_input("convert it")
    with file, foreseen_disk_errors("standard output"):
        check_signal("standard input", file.samplerate, file.channels)
        if not follow_level(models):
            print(PEAK_UNKNOWN, file=sys.stderr, flush=True)

        is_float = file.subtype in ("FLOAT", "DOUBLE")
        blocks = stream_blocks(file, file.samplerate // 10)
        enhanced = enhanced_at_rate(models, blocks, file.samplerate, file.channels, smallest_gain)
        output = sys.stdout.buffer
        with contextlib.closing(enhanced):  # before the file that its threads read from
            output.write(wav_header(file.samplerate, file.channels, is_float))
            for samples in enhanced if is_float else limited(enhanced, file.samplerate):
                output.write(sample_bytes(samples, is_float))
                output.flush()
        source.check_end()


def opened_input(advice: str) -> tuple["Source", soundfile.SoundFile]:
    """Open the WAV that comes from standard input; `advice` is for what is none.

    Raises:
      InputError: no WAV comes in, or standard input or output is closed.
    """
    check_connected()
    source = Source(sys.stdin.fileno())
    try:
        return source, soundfile.SoundFile(source.open(), closefd=False)
    except soundfile.SoundFileError as error:
        reason = reason_of(error)
        raise InputError(
            f"standard input is not a WAV that can be read from a pipe ({reason}); {advice}"
        ) from error


def check_connected() -> None:
    """See that standard input and output are open; let Ctrl-C end the process at once.

    A thread that waits for input would keep it alive.
    """
    if sys.stdin is None or sys.stdout is None:
        raise InputError(
            "standard input or output is closed; connect both, or give files and --output_dir"
        )
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stream_blocks(file: soundfile.SoundFile, n_samples: int) -> Iterator[np.ndarray]:
    """Yield n_samples of each channel at a time, until the stream ends."""
    n_read = 0
    try:
        while len(samples := file.read(n_samples, dtype="float32", always_2d=True)):
            check_samples(samples, "standard input")
            n_read += len(samples)
            yield samples
    except soundfile.SoundFileError as error:
        raise InputError(
            f"standard input cannot be decoded ({error}); send an uncompressed WAV"
        ) from error
    if n_read == 0:
        raise InputError("standard input holds no samples")
    if n_read < file.frames < ENDLESS:
        raise InputError(
            f"standard input broke off: {file.frames} samples announced, "
            f"{n_read} came and were enhanced"
        )


class Source:
    """Hands a WAV to libsndfile, through another pipe, without the length in its header.

    Programs that write to a pipe announce 0, the largest number of 32 bits, or what they hope to
    write; so what comes is counted here. Other formats are handed on as they are.

    Args:
      descriptor: the pipe that the WAV comes from.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._announced: int | None = None  # bytes of samples
        self._n_bytes = 0

    def open(self) -> int:
        """Read the header; return the descriptor of the pipe that libsndfile is to read."""
        reading, writing = os.pipe()
        head, is_wav = self._head()
        threading.Thread(target=self._hand_on, args=(writing, head, is_wav), daemon=True).start()
        return reading

    def check_end(self) -> None:
        """Print a line if more came than announced; raise InputError if less did."""
        announced, came = self._announced, self._n_bytes
        if announced is not None and came < announced:
            raise InputError(
                f"standard input broke off: {announced} bytes of samples announced, "
                f"{came} came and were enhanced"
            )
        if announced is not None and came > announced:
            found = f"{came} came and were enhanced"
            print(
                f"standard input announced {announced} bytes of samples, {found}", file=sys.stderr
            )

    def _read(self, n_bytes: int) -> bytes:
        """Read so many bytes, or fewer at the end."""
        parts = []
        while n_bytes > 0 and (part := os.read(self._descriptor, min(n_bytes, BLOCK_BYTES))):
            parts.append(part)
            n_bytes -= len(part)
        return b"".join(parts)

    def _head(self) -> tuple[bytes, bool]:
        """Return what libsndfile shall read first, and whether samples of a WAV come after it.

        As a W64 it can be of any length.
        """
        head = self._read(12)
        if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
            return head, False
        size_in_ds64, fmt = 0, b""
        while len(chunk := self._read(8)) == 8:
            name, size = struct.unpack("<4sI", chunk)
            if name == b"data":
                size = size_in_ds64 if head[:4] == b"RF64" and size == 2**32 - 1 else size
                self._announced = None if is_unknown(size, 0) else size
                return w64_header(fmt), True
            content = self._read(size + size % 2)
            if name == b"fmt ":
                # Of WAVE_FORMAT_EXTENSIBLE a W64 gets the plain form: the format that it names.
                is_extensible = content[:2] == b"\xfe\xff" and len(content) >= 26
                fmt = content[24:26] + content[2:16] if is_extensible else content
            if name == b"ds64" and len(content) >= 16:
                (size_in_ds64,) = struct.unpack("<8xq", content[:16])
        return head, False

    def _hand_on(self, writing: int, head: bytes, is_wav: bool) -> None:
        """Write the head and what comes to a pipe; of a WAV, the samples alone."""
        with open(writing, "wb", buffering=0) as output, contextlib.suppress(BrokenPipeError):
            _write_all(output, head)
            left = self._announced if is_wav else None
            while part := os.read(
                self._descriptor, BLOCK_BYTES if left is None else min(left, BLOCK_BYTES)
            ):
                self._n_bytes += len(part)
                _write_all(output, part)
                left = None if left is None else left - len(part)
                if left == 0:
                    following = self._read(4 + self._announced % 2)
                    if len(following) < 4 or all(32 <= byte < 127 for byte in following[-4:]):
                        break  # the end, or chunks that are no samples
                    self._n_bytes += len(following)
                    _write_all(output, following)
                    left = None
        while os.read(self._descriptor, BLOCK_BYTES):  # so that the program before us does not fail
            pass


def _write_all(output: io.RawIOBase, content: bytes) -> None:
    """Write all bytes to a pipe, which may take some of them at a time."""
    view = memoryview(content)
    while view:
        view = view[output.write(view) :]


def w64_header(fmt: bytes) -> bytes:
    """Return the header of a W64 of unknown length, with the content of a WAV's chunk `fmt `."""

    def chunk(name: bytes, size: int) -> bytes:
        return name + W64_CHUNK + struct.pack("<q", size + 24)

    fmt_chunk = chunk(b"fmt ", len(fmt)) + fmt + bytes(-len(fmt) % 8)
    largest = 2**62
    head = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00" + struct.pack("<q", largest)
    return head + b"wave" + W64_CHUNK + fmt_chunk + chunk(b"data", largest - 1024)


def sample_bytes(samples: np.ndarray, is_float: bool) -> bytes:
    """Return samples as 32-bit floats or 16-bit integers, which clip, in the order of a WAV."""
    if not is_float:
        samples = np.round(np.clip(samples, -1, 1 - 2**-15) * 2**15)
    return samples.astype("<f4" if is_float else "<i2").tobytes()


def wav_header(rate: int, n_channels: int, is_float: bool) -> bytes:
    """Return the header of a WAV of unknown length, of 16-bit integers or 32-bit floats."""
    width = 4 if is_float else 2
    frame = n_channels * width
    fmt = struct.pack(
        "<HHIIHH", 3 if is_float else 1, n_channels, rate, rate * frame, frame, 8 * width
    )
    endless = struct.pack("<I", 0xFFFFFFFF)
    return b"RIFF" + endless + b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + endless
