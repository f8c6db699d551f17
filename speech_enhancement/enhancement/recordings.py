"""Cleaning recordings of any format, sample rate and number of channels, each channel alone."""

import contextlib
import os
import time
from collections.abc import Iterator

import numpy as np
import soundfile

from config import n_window, sample_rate
from speech_enhancement.data.audio_files import find_audio
from speech_enhancement.data.sound_file import SoundFile, opened
from speech_enhancement.enhancement.blocks import Models, follow_level
from speech_enhancement.enhancement.sample_rates import Band, enhanced_at_rate
from speech_enhancement.errors import InputError
from speech_enhancement.files import replacing
from speech_enhancement.progress import Progress, say

# In folders; a file that is named may have any.
EXTENSIONS = (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc")
EXTENSIONS += (".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".nist", ".voc")
BLOCK_SAMPLES = 2**18  # of each channel, enhanced together: 16 s at 16 kHz
LOWEST_RATE, HIGHEST_RATE = 8000, 768_000  # Hz
MOST_CHANNELS = 32  # they are kept in memory side by side
FULL_SCALE = 1 - 2**-15  # the largest sample of 16 bits
LARGEST = 2**32 - 2**20  # bytes that lengths of 32 bits can tell, with some for the header
BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24}  # of samples that are rounded here
LIMITER_S = 0.016  # how far before and after a peak the level is lowered


# --- Which files ------------------------------------------------------------------------------


def plan(inputs: list[str], output_dir: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return pairs of input and output file, and what is skipped.

    Files of a folder keep their place below it. The output folder may lie in an input folder; the
    files in it are no inputs.

    Raises:
      InputError: no such file or folder, no folder with audio, or two inputs with one output.
    """
    pairs, skipped, sources = [], [], {}
    for path in dict.fromkeys(inputs):
        if not os.path.isdir(path):
            pairs.append((path, os.path.join(output_dir, os.path.basename(path))))
            continue
        try:
            names, lines = find_audio(path, "recordings", EXTENSIONS, left_out=output_dir)
        except InputError as error:
            if len(inputs) == 1:
                raise
            names, lines = [], [str(error)]
        pairs += [(os.path.join(path, name), os.path.join(output_dir, name)) for name in names]
        skipped += lines

    for source, target in pairs:
        other, _ = sources.setdefault(os.path.normpath(target), (source, target))
        if os.path.normpath(other) != os.path.normpath(source):
            raise InputError(
                f"{other} and {source} would both become {target}; enhance them into two folders"
            )
    return list(sources.values()), skipped


def enhance_files(
    models: Models, inputs: list[str], output_dir: str, overwrite: bool, smallest_gain: float
) -> int:
    """Enhance files and folders of files; name and skip those that cannot be done.

    Args:
      models: one or several together; see turns.TurnGains.
      inputs: files and folders.
      output_dir: folder to write in; the outputs have the names and formats of the inputs.
      overwrite: whether outputs that exist are written anew.
      smallest_gain: no part of the spectrum is attenuated by more than this factor.
    Returns:
      0, or 1 if some of several files could not be done.
    Raises:
      InputError: the only file cannot be done, or the inputs do not fit together.
    """
    pairs, skipped = plan(inputs, output_dir)
    for line in skipped:
        say(line)
    problems, durations = [], {}
    for pair in pairs:
        try:
            durations[pair] = check_pair(*pair, overwrite)
        except InputError as error:
            problems.append(without_traceback(error))

    began = time.perf_counter()
    with Progress(round(sum(durations.values())), "s of audio") as progress:
        for pair in list(durations):
            try:
                enhance_file(models, *pair, smallest_gain, progress)
            except InputError as error:
                problems.append(without_traceback(error))
                del durations[pair]

    if problems and len(pairs) == 1:
        raise problems[0]
    for problem in problems:
        say(f"not enhanced: {problem}")

    elapsed, seconds = time.perf_counter() - began, sum(durations.values())
    factor = f": real-time factor {elapsed / seconds:.4f}" if seconds else ""
    counts = f"{len(durations)} of {len(pairs)} files, {seconds:.0f} s of audio in {elapsed:.1f} s"
    print(f"{counts}{factor} -> {output_dir}")
    return 1 if problems else 0


def without_traceback(error: InputError) -> InputError:
    """Return the same error without its traceback, which holds blocks of samples."""
    return InputError(str(error))


def check_pair(source: str, target: str, overwrite: bool) -> float:
    """Return the duration of a file in seconds, if it can be enhanced.

    Raises:
      InputError: it is missing, unreadable, too short, has too low a rate or too many channels, or
        cannot be written in its format; or the output is the input, or exists.
    """
    with opened(source) as file:
        check_signal(source, file.samplerate, file.channels)
        n_samples = file.n_samples()
        if n_samples * sample_rate < n_window * file.samplerate:
            least = -(-n_window * file.samplerate // sample_rate)
            raise InputError(
                f"{source} is too short: expected {least} samples or more, "
                f"found {n_samples}; remove it"
            )
        output_kind(file)
        if not soundfile.check_format(file.format, file.subtype):
            raise InputError(
                f"{source} is {file.format} {file.subtype}, which can only be read; "
                "convert it to WAV"
            )

        duration = n_samples / file.samplerate
        for note in (file.note, file.lost_notes()):
            if note:
                say(note)

    if os.path.exists(target):
        if os.path.samefile(source, target):
            raise InputError(f"{target} is the input itself; give another --output_dir")
        if not overwrite:
            raise InputError(f"{target} exists; give --overwrite or another --output_dir")
    return duration


def check_signal(source: str, rate: int, n_channels: int) -> None:
    """Raise InputError if a recording's sample rate is none of sound, or has too many channels."""
    if rate < LOWEST_RATE:
        raise InputError(
            f"{source} has {rate} samples a second; expected at least {LOWEST_RATE}: "
            "speech needs 4 kHz"
        )
    if rate > HIGHEST_RATE:
        raise InputError(
            f"{source} has {rate} samples a second; expected at most {HIGHEST_RATE}: "
            "its header may be damaged"
        )
    if n_channels > MOST_CHANNELS:
        raise InputError(
            f"{source} has {n_channels} channels; expected at most {MOST_CHANNELS}: split the file"
        )


# --- One file ---------------------------------------------------------------------------------


def enhance_file(models: Models, source: str, target: str, smallest_gain: float, progress) -> None:
    """Enhance a file; the result keeps its name, format, rate, channels, length and notes.

    The notes are tags, bext and the like.

    Working set: some seconds of each channel, however long the file.

    Raises:
      InputError: the file cannot be read to its end, or the output cannot be written.
    """
    peaks = None if follow_level(models) else peaks_of(source)
    with opened(source) as file, replacing(target) as temporary:
        kind = output_kind(file)
        is_float = file.subtype in ("FLOAT", "DOUBLE")
        blocks = (block.astype(np.float32) for block in file.blocks(BLOCK_SAMPLES))
        enhanced = enhanced_at_rate(
            models, blocks, file.samplerate, file.channels, smallest_gain, peaks
        )

        with open(temporary, "wb"):  # libsndfile does not say why it cannot write
            pass
        try:
            # Closed before the file that its threads read from: libsndfile crashes otherwise.
            with (
                contextlib.closing(enhanced),
                soundfile.SoundFile(
                    temporary, "w", file.samplerate, file.channels, **kind
                ) as output,
            ):
                for name, text in file.texts.items():
                    setattr(output, name, text)
                for samples in enhanced if is_float else limited(enhanced, file.samplerate):
                    output.write(rounded(samples, file.subtype))
                    progress.add(len(samples) / file.samplerate)
            check_written(temporary, file.n_read)
        # soundfile asserts that all was written.
        except (soundfile.SoundFileError, AssertionError) as error:
            raise InputError(
                f"{target} cannot be written ({error or 'the disk is full'}); free some space"
            ) from error
        file.copy_notes(temporary)


def rounded(samples: np.ndarray, subtype: str) -> np.ndarray:
    """Round samples to the nearest steps of a subtype; libsndfile would round them down.

    Args:
      samples: (n_samples, n_channels), full scale is [-1, 1].
      subtype: by libsndfile's name; of those that are not in BITS the samples stay as they are.
    """
    if subtype not in BITS:
        return samples
    steps = np.float32(2 ** (BITS[subtype] - 1))
    # float32, which libsndfile scales by a power of 2: not one step is lost.
    return np.round(samples.astype(np.float32, copy=False) * steps) / steps


def output_kind(file: SoundFile) -> dict[str, str]:
    """Return the format, subtype and endian in which to write the output for a file.

    The output is not longer than the file. Beyond 4 GiB a WAV is written as RF64, which has the
    same chunks and longer lengths.

    Raises:
      InputError: it would be larger than its format allows.
    """
    kind = {"format": file.format, "subtype": file.subtype, "endian": file.endian}
    if file.size > LARGEST and file.format in ("WAV", "WAVEX"):
        return {**kind, "format": "RF64", "endian": "FILE"}
    if file.size > LARGEST and file.format in ("AIFF", "AU", "VOC"):
        raise InputError(
            f"{file.path} is larger than 4 GiB, which {file.format} cannot be; "
            "convert it to W64 or CAF"
        )
    return kind


def peaks_of(source: str) -> list[float]:
    """Return the largest absolute value of each channel of a file at the model's sample rate.

    The file is read to its end, so that enhancing it reads it twice.
    """
    with opened(source) as file:
        blocks = (block.astype(np.float32) for block in file.blocks(BLOCK_SAMPLES))
        if file.samplerate != sample_rate:
            blocks = Band(blocks, file.samplerate, file.channels, keeps_top=False).resampled()
        peaks = np.zeros(file.channels)
        for block in blocks:
            peaks = np.maximum(peaks, np.abs(block).max(axis=0, initial=0))
    return peaks.tolist()


def check_written(path: str, n_samples: int) -> None:
    """Raise soundfile.SoundFileError unless a file that was just written has all its samples."""
    found = soundfile.info(path).frames  # more, where a codec fills up its last block
    if found < n_samples:
        raise soundfile.SoundFileRuntimeError(
            f"{found} of {n_samples} samples written, is the disk full?"
        )


# --- Full scale -------------------------------------------------------------------------------


def limited(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Yield the blocks with peaks above full scale brought down to it.

    This is for formats that would clip such peaks. Around a peak the level of all channels falls
    and rises again within LIMITER_S either way. Everything else passes unchanged.
    """
    n_reach = max(1, round(LIMITER_S * rate))
    held = None  # what is still in reach of later samples, with what may reach it from before
    n_before = 0
    for block in blocks:
        held = block if held is None else np.concatenate([held, block])
        n_ready = len(held) - n_reach
        if n_ready > n_before:
            yield (held * limiter_gain(held, n_reach))[n_before:n_ready]
            first_kept = max(0, n_ready - 2 * n_reach)
            held, n_before = held[first_kept:], n_ready - first_kept
    if held is not None and len(held) > n_before:
        yield (held * limiter_gain(held, n_reach))[n_before:]


def limiter_gain(samples: np.ndarray, n_reach: int) -> np.ndarray:
    """Return the gain of each sample, (n_samples, 1), that keeps all channels in full scale.

    The samples are (n_samples, n_channels).
    """
    peaks = np.abs(samples).max(axis=1)
    gain = np.ones((len(samples), 1), np.float32)
    distance = np.abs(np.arange(-n_reach, n_reach + 1)) / n_reach
    for index in np.flatnonzero(peaks > 1):
        dip = 1 - (1 - FULL_SCALE / peaks[index]) * (1 + np.cos(np.pi * distance)) / 2
        begin, end = max(0, index - n_reach), min(len(samples), index + n_reach + 1)
        part = dip[begin - index + n_reach : end - index + n_reach, None]
        gain[begin:end] = np.minimum(gain[begin:end], part)
    return gain
