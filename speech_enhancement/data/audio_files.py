"""Reading and writing waves: any format, sample rate and channel count in, 16 kHz mono out."""

import bisect
import functools
import heapq
import io
import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator

import numpy as np
import soundfile
from cachetools import LRUCache, cached

from config import n_window, sample_rate
from speech_enhancement.data.sound_file import SoundFile, opened
from speech_enhancement.errors import InputError, MissingFileError, require_dir
from speech_enhancement.features import peak
from speech_enhancement.files import write_bytes
from speech_enhancement.workspace import check_output_names, flat_name

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg")  # in lower case; any case is accepted
_PEEK_SAMPLES = 2**13  # of each channel of a noise, to hear whether it is silent
CANCELLED = 1e-3  # of the channels' peak: a mean below it is that of opposite channels
_FORMS = ("NFC", "NFD")  # of accented letters: as typed, and as macOS stores them


def list_audio(folder: str, what: str, list_path: str | None = None) -> list[str]:
    """Return the sorted names of the audio files in a folder and below it, as paths relative to it.

    Which files are skipped is printed; see find_audio.

    Args:
      folder: where to look.
      what: "speech" or "noise", for messages.
      list_path: a text file with one name per line; if given, only the files that it names.
    Raises:
      InputError: no folder, no audio in it, a name that is not UTF-8, or two files that would
        share an output name.
    """
    names, skipped = find_audio(folder, what)
    for line in skipped:
        print(line)
    for name in names:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise InputError(
                f"{folder}: the name {name!a} has control or undecodable characters; "
                "rename the file"
            )
    if list_path is not None:
        names = _keep_listed(names, list_path, folder)
    check_output_names([(flat_name(name), name) for name in sorted(names)], folder)
    return sorted(names)


def find_audio(
    folder: str,
    what: str,
    extensions: tuple[str, ...] = AUDIO_EXTENSIONS,
    left_out: str | None = None,
) -> tuple[list[str], list[str]]:
    """Find the files with some extensions in a folder and below it, and what was skipped.

    Hidden files (`.name`) are skipped. Linked folders are followed, each folder once: its name is
    the one that reaches it through the fewest links. So the names do not depend on the order of a
    disk.

    Args:
      folder, what: as of list_audio.
      extensions: in lower case; any case is accepted.
      left_out: a folder that is not looked into.
    Returns:
      The sorted names, and a line for each folder that cannot be listed and for the files of other
      kinds.
    Raises:
      InputError: no folder, or no audio in it.
    """
    expected = f"{', '.join(extensions[:-1])} or {extensions[-1]}"
    require_dir(folder, f"{what} ({expected})")
    names, skipped, others = [], [], Counter()
    seen = set() if left_out is None else {os.path.realpath(left_out)} - {os.path.realpath(folder)}
    waiting = [(0, "")]  # number of links on the way to a folder, and its name

    while waiting:
        n_links, parent = heapq.heappop(waiting)
        real = os.path.realpath(os.path.join(folder, parent))
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = [entry for entry in os.scandir(real) if not entry.name.startswith(".")]
        except OSError as error:
            skipped.append(
                f"{os.path.join(folder, parent)} cannot be listed ({error.strerror}): skipped"
            )
            continue
        for entry in entries:
            name = f"{parent}/{entry.name}" if parent else entry.name
            if os.path.isdir(entry.path):
                heapq.heappush(waiting, (n_links + entry.is_symlink(), name))
            elif entry.name.lower().endswith(extensions):
                names.append(name)
            else:
                others[os.path.splitext(entry.name)[1].lower() or "no extension"] += 1

    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(8))
        skipped.append(
            f"{folder}: {others.total()} files of other kinds skipped ({kinds}); "
            f"expected {expected}"
        )
    if not names:
        reasons = "".join(f"; {line}" for line in skipped)
        raise InputError(f"{folder} holds no {expected} file; put the {what} there{reasons}")
    return sorted(names), skipped


def audio_path(folder: str, name: str) -> str:
    """Return the path of a file in a folder, however its accented letters are encoded there."""
    names = (name, *(unicodedata.normalize(form, name) for form in _FORMS))
    paths = [os.path.join(folder, spelling) for spelling in names]
    return next((path for path in paths if os.path.exists(path)), paths[0])


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
            spellings.setdefault(_spelling(spelling), []).append(name)

    found = {entry: spellings.get(_spelling(entry), []) for entry in listed}
    # Copies of a corpus differ in the case of letters; where both cases are there, the exact one
    # counts.
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


def _spelling(name: str) -> str:
    """Return a name without what differs between copies of a corpus.

    That is the case of letters, and how accented letters are encoded.
    """
    return unicodedata.normalize("NFC", name).lower()


def _exact(names: list[str], entry: str) -> list[str]:
    """Return the names that a list entry spells with the same case of letters."""
    flat = unicodedata.normalize("NFC", entry).replace("/", "_")
    return [
        name
        for name in names
        if unicodedata.normalize("NFC", name).replace("/", "_").startswith(flat)
    ]


def audio_length(path: str) -> int:
    """Return how many samples at 16 kHz `read_audio` will return, without decoding if possible.

    Only decoding tells the length of some files. Where a header is wrong, that is printed.

    Raises:
      InputError: the file is missing, unreadable, cut short or without samples.
    """
    with opened(path) as file:
        n_samples = file.n_samples()
        if file.note:
            print(file.note)
        return _resampled_length(n_samples, file.samplerate)


def file_rate(path: str) -> int:
    """Return the sample rate of a file in Hz."""
    with opened(path) as file:
        return file.samplerate


def read_audio(path: str, rate: int = sample_rate) -> np.ndarray:
    """Read a file as mono (mean of the channels), at 16 kHz if not told otherwise.

    Other sample rates are resampled as librosa.resample does by default (soxr, high quality).

    Working set: the result, 4 bytes for each sample, and a block of the file.

    Returns:
      (n_samples,) float32; full scale is [-1, 1].
    Raises:
      InputError: the file is missing, unreadable, cut short, without samples, or holds NaN; or its
        channels cancel each other.
    """
    with opened(path) as file:
        n_expected = _resampled_length(file.frames or 0, file.samplerate, rate)
        audio, end = np.zeros(n_expected + 64, np.float32), 0  # resampling may overshoot
        for block in _resampled(file, rate):
            if end + len(block) > len(audio):
                audio = np.concatenate([audio[:end], np.zeros(end + len(block) + 64, np.float32)])
            audio[end : end + len(block)] = block
            end += len(block)
        return audio[: _resampled_length(file.n_read, file.samplerate, rate)]


def first_sound(path: str, begin: int, end: int) -> int | None:
    """Return where a file first sounds between two samples at 16 kHz, or None if nowhere.

    It sounds where a sample is not 0. Little is read where sound comes soon.
    """
    with opened(path) as file:
        first, last = (position * file.samplerate // sample_rate for position in (begin, end))
        position = file.skip(first)
        for block in file.blocks(_PEEK_SAMPLES):
            sounding = np.flatnonzero(block.mean(axis=1)) + position
            sounding = sounding[(sounding >= first) & (sounding < last)]
            if len(sounding):
                return max(begin, int(sounding[0]) * sample_rate // file.samplerate)
            position += len(block)
            if position >= last:
                break
    return None


class SoundFinder:
    """Finds sound in files that may be silent in parts; remembers the places that it found."""

    def __init__(self):
        self._known: dict[str, list[int]] = {}  # sorted places of sound by file

    @functools.cache  # noqa: B019 (lives as long as one list of mixtures is made)
    def first_sound(self, path: str, begin: int, end: int) -> int | None:
        """Return where a file sounds between two samples at 16 kHz; None if nowhere."""
        known = self._known.setdefault(path, [])
        place = bisect.bisect_left(known, begin)
        if place < len(known) and known[place] < end:
            return known[place]
        found = first_sound(path, begin, end)
        if found is not None:
            known.insert(place, found)
        return found


def _resampled(file: SoundFile, rate: int) -> Iterator[np.ndarray]:
    """Yield the mean of the channels at another sample rate, in blocks of (n_samples,)."""
    mono = mean_of_channels(file)
    if file.samplerate == rate:
        yield from mono
        return
    import soxr

    resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float64", quality="HQ")
    for block in mono:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.empty(0), last=True)


def mean_of_channels(file: SoundFile) -> Iterator[np.ndarray]:
    """Yield the mean of the channels in blocks of (n_samples,).

    Raises:
      InputError: the channels cancel each other; and as of SoundFile.blocks.
    """
    loudest = loudest_mean = 0.0
    for block in file.blocks():
        if block.shape[1] == 1:
            yield block[:, 0]
            continue
        mean = block.mean(axis=1)
        loudest, loudest_mean = max(loudest, peak(block)), max(loudest_mean, peak(mean))
        yield mean
    if loudest_mean < CANCELLED * loudest:
        raise InputError(
            f"{file.path}: its channels cancel each other, so that their mean is silent; "
            "keep one of them, or reverse one's sign"
        )


def _resampled_length(n_samples: int, from_rate: int, rate: int = sample_rate) -> int:
    """Return the length at another sample rate of n_samples, rounded up."""
    return -(-n_samples * rate // from_rate)


def check_speech_length(n_samples: int, path: str) -> None:
    """Raise InputError if speech is too short for one frame of the spectrogram."""
    if n_samples < n_window:
        raise InputError(
            f"{path} is too short: expected at least one frame of {n_window} samples "
            f"at {sample_rate} Hz, found {n_samples}; remove it"
        )


def write_wave(path: str, audio: np.ndarray) -> None:
    """Write (n_samples,) audio as a 16 kHz mono WAV of 32-bit floats, which never clips.

    Equal audio makes equal files: the time of writing that libsndfile puts into the PEAK chunk is
    set to 0.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, sample_rate, format="WAV", subtype="FLOAT")
    content = bytearray(buffer.getbuffer())
    peak = content.find(b"PEAK", 0, 100)
    if peak >= 0:
        content[peak + 12 : peak + 16] = bytes(4)  # behind the chunk's name, size and version
    write_bytes(path, content)


def write_pcm16(path: str, audio: np.ndarray, rate: int = sample_rate) -> None:
    """Write (n_samples,) audio as a mono WAV of 16 bits, scaled down where it exceeds full scale.

    Audio of 16 bits that was read as floats comes out unchanged.
    """
    peak = float(np.max(np.abs(audio)))
    samples = audio * (32767 / 32768 / peak) if peak > 1 else audio
    integers = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, integers, rate, format="WAV", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


class AudioCache:
    """Reads audio files, keeping the ones used last: `max_bytes` of them, or one larger file.

    A file that was changed since is read again. Threads may share the cache: a file that one of
    them is decoding is waited for by the others.
    """

    def __init__(self, max_bytes: int = 64 * 2**20):
        waves = LRUCache(max_bytes, getsizeof=lambda audio: min(audio.nbytes, max_bytes))
        self._read = cached(waves, condition=threading.Condition())(self._decode)

    def read(self, path: str) -> np.ndarray:
        """Return `read_audio(path)`; the array is shared, so do not write to it."""
        status = os.stat(path) if os.path.isfile(path) else None
        return self._read(path, status and (status.st_mtime_ns, status.st_size))

    @staticmethod
    def _decode(path: str, _status: tuple | None) -> np.ndarray:
        return read_audio(path)
