"""Cleaning a WAV on its way from standard input to standard output."""

import contextlib
import signal
import struct
import sys
from collections.abc import Iterator

import numpy as np
import soundfile

from speech_enhancement.enhancement.recordings import check_signal, enhanced_at_rate, limited
from speech_enhancement.errors import InputError, foreseen_disk_error

PEAK_UNKNOWN = (
    "enhance: this model scales a recording by its peak, which a pipe tells only at its end: it is scaled by the "
    "peak so far, after 5 s. Give a file to enhance it as the model was trained"
)


def enhance_stream(model, settings, smallest_gain: float) -> None:
    """Enhance a WAV that comes from standard input, and write it to standard output while it comes.

    With the recipe `default` the first samples come out after 5.5 s; then the stream is 3.6 s behind, because the
    noise is judged by what comes before and after.

    Raises:
      InputError: no WAV comes in.
    """
    if sys.stdin is None or sys.stdout is None:
        raise InputError(
            "standard input or output is closed; connect both, or give files and --output_dir"
        )
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a thread that waits for input would keep this process alive
    try:
        file = soundfile.SoundFile(sys.stdin.fileno(), closefd=False)
    except soundfile.SoundFileError as error:
        raise InputError(
            f"standard input is not a WAV that can be read from a pipe ({error}); convert it"
        ) from error
    with file, foreseen_output_errors():
        check_signal("standard input", file.samplerate, file.channels)
        if settings.recipe.input.level_window_s == 0:
            print(PEAK_UNKNOWN, file=sys.stderr, flush=True)
        is_float = file.subtype in ("FLOAT", "DOUBLE")
        blocks = stream_blocks(file)
        enhanced = enhanced_at_rate(
            model, settings, blocks, file.samplerate, file.channels, smallest_gain
        )
        output = sys.stdout.buffer
        with contextlib.closing(enhanced):  # before the file that its threads read from
            output.write(wav_header(file.samplerate, file.channels, is_float))
            for samples in enhanced if is_float else limited(enhanced, file.samplerate):
                integers = np.round(np.clip(samples, -1, 1 - 2**-15) * 2**15)
                output.write(
                    (samples.astype("<f4") if is_float else integers.astype("<i2")).tobytes()
                )
                output.flush()


@contextlib.contextmanager
def foreseen_output_errors() -> Iterator[None]:
    """Take it that the reader of standard output may go away; turn a full disk into an InputError."""
    try:
        yield
    except BrokenPipeError:
        pass
    except OSError as error:
        foreseen = foreseen_disk_error(error, "standard output")
        if foreseen is None:
            raise
        raise foreseen from error


def stream_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Yield a tenth of a second at a time, until the stream ends."""
    n_read = 0
    try:
        while len(samples := file.read(file.samplerate // 10, dtype="float32", always_2d=True)):
            if not np.isfinite(samples).all():
                raise InputError(
                    "standard input holds samples that are NaN or infinite; replace them"
                )
            n_read += len(samples)
            yield samples
    except soundfile.SoundFileError as error:
        raise InputError(
            f"standard input cannot be decoded ({error}); send an uncompressed WAV"
        ) from error
    if n_read == 0:
        raise InputError("standard input holds no samples, or its header announces none")


def wav_header(rate: int, n_channels: int, is_float: bool) -> bytes:
    """Return the header of a WAV of unknown length, of 16-bit integers or 32-bit floats."""
    width = 4 if is_float else 2
    frame = n_channels * width
    fmt = struct.pack(
        "<HHIIHH", 3 if is_float else 1, n_channels, rate, rate * frame, frame, 8 * width
    )
    endless = struct.pack("<I", 0xFFFFFFFF)
    return b"RIFF" + endless + b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + endless
