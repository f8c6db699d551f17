"""Reading and writing waves: any format, sample rate and channel count in, 16 kHz mono out."""

import contextlib
import io
import os
import re
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import soundfile

from config import n_window, sample_rate
from speech_enhancement.errors import InputError, MissingFileError, require_dir
from speech_enhancement.files import write_bytes
from speech_enhancement.workspace import check_output_names, flat_name

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg")  # in lower case; any case is accepted
BLOCK_SAMPLES = 2**16  # of each channel of a file, read together
_ENDLESS = 0x7FFFF000  # bytes or samples; lengths from here on are what programs announce that stream to a pipe


def list_audio(folder: str, what: str, list_path: str | None = None) -> list[str]:
    """Return the sorted names of the audio files in a folder and below it, as paths relative to it.

    Hidden files (`.name`) are passed over; linked folders are followed, each folder once.

    Args:
      folder: where to look.
      what: "speech" or "noise", for messages.
      list_path: a text file with one name per line; if given, only the files that it names.
    Raises:
      InputError: no folder, no audio in it, a name that is not UTF-8, or two files that would
        share an output name.
    """
    names = find_audio(folder, what)
    for name in names:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise InputError(
                f"{folder}: the name {name!a} has control or undecodable characters; rename the file"
            )
    if list_path is not None:
        names = _keep_listed(names, list_path, folder)
    check_output_names([(flat_name(name), name) for name in sorted(names)], folder)
    return sorted(names)


def find_audio(folder: str, what: str, extensions: tuple[str, ...] = AUDIO_EXTENSIONS) -> list[str]:
    """Return the sorted names of the files with some extensions in a folder and below it; see list_audio."""
    expected = f"{', '.join(extensions[:-1])} or {extensions[-1]}"
    require_dir(folder, f"{what} ({expected})")
    names, seen = [], {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=_cannot_list, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and _is_new(os.path.join(parent, name), seen)
        ]
        names += [
            os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
            for name in files
            if name.lower().endswith(extensions) and not name.startswith(".")
        ]
    if not names:
        raise InputError(f"{folder} holds no {expected} file; put the {what} there")
    return sorted(names)


def _cannot_list(error: OSError) -> None:
    raise InputError(
        f"{error.filename} cannot be listed ({error.strerror}); change its permissions"
    ) from error


def _is_new(folder: str, seen: set[str]) -> bool:
    """Remember a folder by what its links lead to; return whether it was not seen before."""
    real = os.path.realpath(folder)
    is_new = real not in seen
    seen.add(real)
    return is_new


def _keep_listed(names: list[str], list_path: str, folder: str) -> list[str]:
    """Return the names that a list file names, and print which of its entries match no file."""
    if not os.path.isfile(list_path):
        raise MissingFileError(
            f"{list_path} is missing; expected a text file with one name per line"
        )
    try:
        with open(list_path, encoding="utf-8-sig") as lines:
            listed = [line.split("\t")[0].strip() for line in lines]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{list_path} is not a UTF-8 text file ({error}); save it as UTF-8"
        ) from error
    listed = [name for name in listed if name and not name.startswith("#")]
    spellings = {}
    for name in names:
        flat = name.replace("/", "_")
        for spelling in {name, os.path.splitext(name)[0], flat, os.path.splitext(flat)[0]}:
            spellings.setdefault(spelling.lower(), []).append(name)
    found = {entry: spellings.get(entry.lower(), []) for entry in listed}
    # Copies of a corpus differ in the case of letters; where both cases are there, the exact one counts.
    kept = {name for entry, matches in found.items() for name in _exact(matches, entry) or matches}
    missing = [entry for entry, matches in found.items() if not matches]
    print(f"{list_path}: {len(found) - len(missing)} of {len(found)} names found in {folder}")
    if missing:
        print(f"{list_path}: missing in {folder}: {', '.join(missing)}")
    if not kept:
        raise InputError(
            f"{list_path} names none of the files in {folder}; expected one relative path per line"
        )
    return list(kept)


def _exact(names: list[str], entry: str) -> list[str]:
    """Return the names that a list entry spells with the same case of letters."""
    flat = entry.replace("/", "_")
    return [name for name in names if name.replace("/", "_").startswith(flat)]


def audio_length(path: str) -> int:
    """Return the length that a file will have at 16 kHz, in samples, from its header alone.

    Raises:
      InputError: the file is missing, unreadable, cut short or without samples.
    """
    with opened(path) as file:
        return _resampled_length(file.frames, file.samplerate)


def read_audio(path: str) -> np.ndarray:
    """Read a file as mono (mean of the channels) at 16 kHz.

    Other sample rates are resampled as librosa.resample does by default (soxr, high quality).

    Working set: the result, 4 bytes for each sample, and a block of the file.

    Returns:
      (n_samples,) float32; full scale is [-1, 1].
    Raises:
      InputError: the file is missing, unreadable, cut short, without samples, or holds NaN.
    """
    with opened(path) as file:
        resampler = None
        if file.samplerate != sample_rate:
            import soxr

            resampler = soxr.ResampleStream(
                file.samplerate, sample_rate, 1, dtype="float64", quality="HQ"
            )
        audio = np.zeros(_resampled_length(file.frames, file.samplerate), np.float32)
        end = 0
        for channels, is_last in sound_blocks(file, path):
            block = channels.mean(axis=1) if channels.shape[1] > 1 else channels[:, 0]
            if resampler is not None:
                block = resampler.resample_chunk(block, last=is_last)
            block = block[: len(audio) - end]
            audio[end : end + len(block)] = block
            end += len(block)
    return audio


def sound_blocks(
    file: soundfile.SoundFile, path: str, n_samples: int = BLOCK_SAMPLES
) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield the samples of a file that was just opened, (n_samples, n_channels) float64, and whether they are the last.

    Raises:
      InputError: the file cannot be decoded, is cut short, or holds NaN; `path` names it in the message.
    """
    n_read = 0
    try:
        # Not file.blocks(), which wants codecs that can seek; GSM and G.72x cannot.
        while len(channels := file.read(n_samples, dtype="float64", always_2d=True)):
            if not np.isfinite(channels).all():
                raise InputError(
                    f"{path} holds samples that are NaN or infinite; replace or remove it"
                )
            n_read += len(channels)
            yield channels, n_read == file.frames
    except soundfile.SoundFileError as error:
        raise _unreadable(path, error) from error
    if n_read != file.frames:
        raise InputError(
            f"{path} is cut short: {file.frames} samples announced, {n_read} found; replace or remove it"
        )


def _resampled_length(n_samples: int, rate: int) -> int:
    """Return the length at 16 kHz of n_samples at `rate`, rounded up."""
    return -(-n_samples * sample_rate // rate)


def _unreadable(path: str, error: Exception) -> InputError:
    reason = str(error).split(": ", 1)[-1].strip() or "decoding failed"
    expected = "expected WAV, FLAC, OGG, MP3, uncompressed SPHERE or another format of libsndfile"
    return InputError(
        f"{path} is not readable as audio ({reason}); {expected}: convert or remove it"
    )


def _is_utf8(name: str) -> bool:
    """Return whether a file name can be written as UTF-8; Python stands in surrogates for bytes that cannot."""
    return not any(unicodedata.category(character) == "Cs" for character in name)


@contextlib.contextmanager
def opened(path: str) -> Iterator[soundfile.SoundFile]:
    """Yield an opened file, after a look that the samples it announces are there."""
    if not _is_utf8(path):
        raise InputError(f"the name {path!a} is not UTF-8; rename the file")
    if not os.path.isfile(path):
        raise MissingFileError(
            f"{path} is missing; check its name, and the mixture CSV if it stands there"
        )
    try:
        file = soundfile.SoundFile(path)
    except soundfile.SoundFileError as error:
        raise _unreadable(path, error) from error
    with file:
        check_length(file, path)
        yield file


def check_length(info: soundfile.SoundFile, path: str) -> None:
    """Raise InputError unless a file holds samples, and all that it announces."""
    if info.frames >= _ENDLESS:  # a FLAC that was streamed
        raise InputError(f"{path} does not say how long it is; encode it again")
    if re.search(r"^Ogg ?: (File ended|Last page lacks|Junk after)", info.extra_info, re.MULTILINE):
        raise InputError(f"{path} is cut short: its end is missing; replace or remove it")
    announced, found = _announced_length(path, info)
    if found < announced:
        raise InputError(
            f"{path} is cut short: {announced} announced, {found} found; replace or remove it"
        )
    if info.frames == 0:
        raise InputError(f"{path} holds no samples; replace or remove it")


def _announced_length(path: str, info) -> tuple[int, int]:
    """Return how long the header says that the samples are, and how long they are (bytes or samples).

    libsndfile reads what there is of a RIFF or NIST SPHERE file that was cut short, and tells it
    only in its log. Programs that write to a pipe announce the largest length there is.
    """
    lengths = r"^\s*(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"  # WAV, AIFF, AU, W64, RF64
    log = re.search(lengths, info.extra_info, re.MULTILINE)
    if log and int(log[1]) < _ENDLESS:
        return int(log[1]), int(log[2])
    if info.format == "NIST":
        with open(path, "rb") as file:
            count = re.search(rb"sample_count -i (\d+)", file.read(1024))
        if count:
            return int(count[1]), info.frames
    return info.frames, info.frames


def check_speech_length(n_samples: int, path: str) -> None:
    """Raise InputError if speech is too short for one frame of the spectrogram."""
    if n_samples < n_window:
        raise InputError(
            f"{path} is too short: expected at least one frame of {n_window} samples at {sample_rate} Hz, "
            f"found {n_samples}; remove it"
        )


def write_wave(path: str, audio: np.ndarray) -> None:
    """Write (n_samples,) audio as a 16 kHz mono WAV of 32-bit floats, which never clips.

    Equal audio makes equal files: the time of writing that libsndfile puts into the PEAK chunk is set to 0.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, sample_rate, format="WAV", subtype="FLOAT")
    content = bytearray(buffer.getbuffer())
    peak = content.find(b"PEAK", 0, 100)
    if peak >= 0:
        content[peak + 12 : peak + 16] = bytes(4)  # behind the chunk's name, size and version
    write_bytes(path, content)


class AudioCache:
    """Reads audio files, keeping the ones used last: at most `max_bytes`, or one file if that is larger.

    A file that was changed since is read again. Threads may share the cache: a file that one of them is
    decoding is waited for by the others.
    """

    def __init__(self, max_bytes: int = 64 * 2**20):
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._waves: OrderedDict[tuple, Future] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str) -> np.ndarray:
        """Return `read_audio(path)`; the array is shared, so do not write to it."""
        status = os.stat(path) if os.path.isfile(path) else None
        key = (path, status and (status.st_mtime_ns, status.st_size))
        with self._lock:
            is_new = key not in self._waves
            wave = self._waves.setdefault(key, Future())
            self._waves.move_to_end(key)
        if is_new:
            self._decode(key, wave)
        return wave.result()

    def _decode(self, key: tuple, wave: Future) -> None:
        """Read a file for all who wait for it, then forget the waves used longest ago."""
        try:
            audio = read_audio(key[0])
        except BaseException as error:
            with self._lock:
                del self._waves[key]
            wave.set_exception(error)
            return
        wave.set_result(audio)
        with self._lock:
            self._n_bytes += audio.nbytes
            while self._n_bytes > self._max_bytes:
                oldest = next(
                    (name for name, kept in self._waves.items() if kept.done() and name != key),
                    None,
                )
                if oldest is None:
                    break
                self._n_bytes -= self._waves.pop(oldest).result().nbytes
