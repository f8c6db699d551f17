"""Training mixtures made as they are needed: data without end, and only waves on the disk."""

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from config import n_overlap, n_window, sample_rate
from speech_enhancement.data.audio_files import AudioCache, list_audio
from speech_enhancement.errors import InputError
from speech_enhancement.features import (
    N_FREQ,
    N_HOP,
    RunningStatistics,
    hz_to_bark,
    mix_at_snr,
    root_mean_square,
    stft,
)
from speech_enhancement.network_input import Scaler, frames_and_statistics, targets
from speech_enhancement.parallel import in_order_ahead, n_cores
from speech_enhancement.progress import say
from speech_enhancement.recipe import Recipe
from speech_enhancement.training.devices import Share
from speech_enhancement.training.options import TrainingOptions
from speech_enhancement.training.packed_batches import (
    Batch,
    TrainingData,
    hold_out,
    open_test_set,
)

SEGMENT_FRAMES = 312  # 5 s, no more than a window of level_window_s = 5: one estimate serves it
RUN_FRAMES = 4  # neighbouring frames that stay together in a batch
RUNS_PER_SEGMENT = 4  # of one segment in a batch
BATCHES_PER_BLOCK = SEGMENT_FRAMES // RUN_FRAMES // RUNS_PER_SEGMENT
EVALUATION_BATCHES = 16  # they are made anew at each evaluation
SEGMENT_SAMPLES = (SEGMENT_FRAMES - 1) * N_HOP + n_window
BARK = hz_to_bark(np.arange(N_FREQ) * sample_rate / n_window)
OCTAVES = np.log2(
    np.maximum(np.arange(N_FREQ) * sample_rate / n_window, 62.5) / 1000
)  # above 1 kHz


@dataclass
class Block:
    """The features of some segments of 5 s, cut into runs of neighbouring frames in random order.

    Attributes:
      frames: (n_segments, SEGMENT_FRAMES + n_concat - 1, n_freq), scaled, borders repeated.
      statistics: (n_segments, n_statistics * n_freq), scaled; one for each segment.
      targets: (n_segments, SEGMENT_FRAMES, ...).
      runs: (n_segments, n_runs), the first frame of each run.
    """

    frames: np.ndarray
    statistics: np.ndarray
    targets: np.ndarray
    runs: np.ndarray

    def batch(self, number: int) -> Batch:
        """Return the inputs of network.build_network and the targets of a batch.

        A batch holds some runs of each segment.
        """
        of_batch = slice(number * RUNS_PER_SEGMENT, (number + 1) * RUNS_PER_SEGMENT)
        first = self.runs[:, of_batch].reshape(-1, 1)
        segment = np.arange(len(self.runs)).repeat(RUNS_PER_SEGMENT)[:, None]
        n_around = RUN_FRAMES + self.frames.shape[1] - SEGMENT_FRAMES
        inputs = [self.frames[segment, first + np.arange(n_around)]]
        if self.statistics.shape[1]:
            inputs.append(self.statistics[segment])
        return inputs, self.targets[segment, first + np.arange(RUN_FRAMES)]


class Recordings:
    """Audio files to draw from; what cannot be used is named once, and skipped from then on.

    Args:
      paths: of the files.
      cache: keeps some of them decoded. Several sets and threads may share it.
    """

    def __init__(self, paths: list[str], cache: AudioCache):
        self._paths, self._cache = paths, cache
        self._usable: set[str] = set()
        self._skipped: set[str] = set()
        self._lock = threading.Lock()

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a recording, (n_samples,) float32, not to be written to.

        Raises:
          InputError: none of the files can be used.
        """
        while True:
            path = self._paths[rng.integers(len(self._paths))]
            if path in self._skipped:
                continue
            try:
                audio = self._cache.read(path)
                if path not in self._usable and not audio.any():
                    raise InputError(f"{path} is silent; replace or remove it")
            except InputError as error:
                self._skip(path, error)
                continue
            self._usable.add(path)
            return audio

    def _skip(self, path: str, error: InputError) -> None:
        """Name a file that cannot be used, once; raise InputError when no other is left."""
        with self._lock:
            if path not in self._skipped:
                self._skipped.add(path)
                say(f"skipped: {error}")
            if len(self._skipped) == len(self._paths):
                raise InputError(
                    f"none of {len(self._paths)} files can be used; {error}"
                ) from error


class MixtureStream:
    """Draws speech, noise, onsets and SNR anew for every block, and computes the features.

    Segment s of block k depends on the seed, k and s alone, so blocks can be made in any order, by
    any number of threads and shared among processes, and training can go on from any iteration.

    A block has one segment of 5 s for each 16 frames of a batch: 32 segments, about 32 MB, for a
    batch of 512. Each of its 19 batches takes 4 runs of 4 frames from each segment; a batch size is
    rounded down to a multiple of 16.

    Args:
      speech, noise: what the mixtures are made of.
      recipe: inputs and targets, SNRs, changes to the noise, batch size.
      seed: numbers that set this stream apart from others.
      share: of several processes each makes its part of every block.
    """

    def __init__(
        self,
        speech: Recordings,
        noise: Recordings,
        recipe: Recipe,
        seed: list[int],
        share: Share = Share(),  # noqa: B008 (it is frozen)
    ):
        self._speech, self._noise, self._recipe, self._seed = speech, noise, recipe, seed
        self.scaler: Scaler | None = None
        self._n_segments = max(1, recipe.training.batch_size // (RUN_FRAMES * RUNS_PER_SEGMENT))
        if self._n_segments % share.n_devices:
            raise InputError(
                f"a batch of {recipe.training.batch_size} frames cannot be shared "
                f"by {share.n_devices} devices; "
                f"give --batch_size a multiple of {16 * share.n_devices}"
            )
        self._share = share

    def compute_scaler(self, n_blocks: int = 8) -> Scaler:
        """Set and return the scaler, computed on blocks that training does not see."""
        of_frames, of_statistics = RunningStatistics(), RunningStatistics()
        for number in range(n_blocks):
            rng = np.random.default_rng([*self._seed, 1, number])
            for _ in range(self._n_segments):
                frames, statistics = frames_and_statistics(self.mixture(rng)[0], self._recipe.input)
                of_frames.add(frames)
                of_statistics.add(statistics[:1].reshape(1, -1))
        shape = (self._recipe.input.n_statistics, N_FREQ)
        self.scaler = Scaler(
            of_frames.mean,
            of_frames.std,
            of_statistics.mean.reshape(shape),
            of_statistics.std.reshape(shape),
        )
        return self.scaler

    def block(self, number: int) -> Block:
        """Make this process's part of block `number`."""
        n_side = (self._recipe.input.n_concat - 1) // 2
        parts = []
        for index in range(self._n_segments)[self._share.part(self._n_segments)]:
            rng = np.random.default_rng([*self._seed, 0, number, index])
            mixture_stft, speech_magnitude = self.mixture(rng)
            frames, statistics = frames_and_statistics(mixture_stft, self._recipe.input)
            padded = np.pad(self.scaler.frames(frames), ((n_side, n_side), (0, 0)), mode="edge")
            wanted = targets(mixture_stft, speech_magnitude, self._recipe)
            runs = RUN_FRAMES * rng.permutation(SEGMENT_FRAMES // RUN_FRAMES)
            parts.append((padded, self.scaler.statistics(statistics[0]), wanted, runs))
        return Block(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield batches without end, from number `first` on; all cores make them ahead of need.

        Working set: a block for each core and two more.
        """
        n_threads = n_cores()
        with ThreadPoolExecutor(n_threads) as makers, ThreadPoolExecutor(n_threads) as cutters:
            numbers = itertools.count(first // BATCHES_PER_BLOCK)
            skipped = first % BATCHES_PER_BLOCK
            for block in in_order_ahead(makers, self.block, numbers, n_threads + 1):
                yield from in_order_ahead(
                    cutters, block.batch, range(skipped, BATCHES_PER_BLOCK), n_threads
                )
                skipped = 0

    def sample(self, max_batches: int = EVALUATION_BATCHES) -> Iterator[Batch]:
        """Yield the same few batches at each call."""
        for number in range(-(-max_batches // BATCHES_PER_BLOCK)):
            block = self.block(number)
            for index in range(min(BATCHES_PER_BLOCK, max_batches - number * BATCHES_PER_BLOCK)):
                yield block.batch(index)

    # --- Drawing a mixture ---

    def mixture(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a mixture of 5 s, made as calculate_mixture_features makes one.

        The SNR is that of the whole utterance to the 5 s of noise.

        Returns:
          mixture_stft, (SEGMENT_FRAMES, n_freq) complex64, and speech_magnitude of the same shape.
        """
        speech, utterance_rms = self._draw_speech(rng)
        noise = self._draw_noise(rng)
        mixed, speech, *_ = mix_at_snr(speech, noise, self._draw_snr(rng), utterance_rms)
        return stft(mixed, n_window, n_overlap), np.abs(stft(speech, n_window, n_overlap))

    def _draw_speech(self, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Draw 5 s of an utterance.

        They begin at its start where the noise is estimated from the first frames.

        Returns:
          (SEGMENT_SAMPLES,) float32, and the root mean square of the whole utterance.
        """
        at_start = self._recipe.input.noise_estimate == "first_frames"
        while True:
            utterance = self._speech.draw(rng)
            speech = segment(utterance, SEGMENT_SAMPLES, rng, at_start)
            if at_start or speech.any():  # a long pause is drawn again
                return speech, root_mean_square(utterance)

    def _draw_noise(self, rng: np.random.Generator) -> np.ndarray:
        """Draw 5 s of noise, recorded or made up as the recipe says; (SEGMENT_SAMPLES,) float32."""
        changes = self._recipe.training_noise
        knots = rng.standard_normal(8)
        if rng.random() < changes.synthetic:
            slope = rng.uniform(-10, 3)  # dB per octave
            noise = rng.standard_normal(SEGMENT_SAMPLES, np.float32)
            return with_response(noise, slope * OCTAVES + 4 * smooth_response(knots))
        noise = self._draw_recorded_noise(rng)
        if changes.equalization_db == 0:
            return noise
        return with_response(noise, changes.equalization_db * smooth_response(knots))

    def _draw_recorded_noise(self, rng: np.random.Generator) -> np.ndarray:
        """Draw 5 s of a recording that are not all silent, at a random speed if the recipe asks."""
        while True:
            recording = self._noise.draw(rng)
            speed = 2 ** rng.uniform(-0.5, 0.5) if self._recipe.training_noise.speed else 1.0
            n_samples = SEGMENT_SAMPLES if speed == 1 else round(SEGMENT_SAMPLES * speed) + 1
            noise = played_at(segment(recording, n_samples, rng), speed)[:SEGMENT_SAMPLES]
            if noise.any():
                return noise

    def _draw_snr(self, rng: np.random.Generator) -> float:
        """Draw one of the recipe's SNRs in dB, or evenly from their range."""
        values, limits = self._recipe.training.snr_db, self._recipe.training.snr_range_db
        return rng.uniform(*limits) if limits else values[rng.integers(len(values))]


def segment(
    audio: np.ndarray, n_samples: int, rng: np.random.Generator, at_start: bool = False
) -> np.ndarray:
    """Cut n_samples from a random place; repeat audio that is too short."""
    n_free = len(audio) - n_samples
    onset = 0 if at_start else int(rng.integers(n_free + 1 if n_free >= 0 else len(audio)))
    if onset + n_samples <= len(audio):
        return audio[onset : onset + n_samples]
    return np.resize(np.roll(audio, -onset), n_samples)


def played_at(audio: np.ndarray, speed: float) -> np.ndarray:
    """Return audio as it sounds when it is played `speed` times as fast."""
    if speed == 1:
        return audio
    import soxr

    resampled = soxr.resample(audio, sample_rate * speed, sample_rate, quality="LQ")
    return np.pad(resampled, (0, max(0, SEGMENT_SAMPLES - len(resampled))))


def smooth_response(knots: np.ndarray) -> np.ndarray:
    """Return a frequency response through a few values evenly spaced in Bark, (n_freq,)."""
    return np.interp(BARK / BARK[-1] * (len(knots) - 1), np.arange(len(knots)), knots)


def with_response(audio: np.ndarray, response_db: np.ndarray) -> np.ndarray:
    """Filter audio with a frequency response; its phase is kept, its end meets its beginning.

    Args:
      audio: (n_samples,) float32.
      response_db: (n_freq,) gains in dB, evenly spaced from 0 Hz to half the sample rate.
    """
    spectrum = np.fft.rfft(audio)
    places = np.linspace(0, len(response_db) - 1, len(spectrum))
    gain = np.interp(
        places, np.arange(len(response_db)), 10 ** (np.clip(response_db, -60, 60) / 20)
    )
    return np.fft.irfft(spectrum * gain.astype(np.float32), len(audio)).astype(
        np.float32, copy=False
    )


# --- Opening folders of audio -----------------------------------------------------------------


@contextlib.contextmanager
def open_mixing_on_the_fly(
    options: TrainingOptions, recipe: Recipe, share: Share
) -> Iterator[TrainingData]:
    """List the training speech and noise, and open the packed test set of the workspace.

    Raises:
      InputError: a folder is missing or holds no usable audio, or the test set is not as expected.
    """
    if not options.speech_dir or not options.noise_dir:
        raise InputError(
            "--on_the_fly needs --speech_dir and --noise_dir, folders of training speech and noise"
        )
    with open_test_set(options, recipe) as (test_set, test_data):
        speech_names = list_audio(options.speech_dir, "speech")
        noise_names = list_audio(options.noise_dir, "noise")
        held_out = hold_out(speech_names, options.valid_fraction)
        cache = AudioCache(options.cache_mb * 2**20)

        def recordings(folder: str, names: list[str]) -> Recordings:
            return Recordings([os.path.join(folder, name) for name in names], cache)

        noise = recordings(options.noise_dir, noise_names)
        kept = [name for name in speech_names if name not in held_out]
        speech = recordings(options.speech_dir, kept)
        train_set = MixtureStream(speech, noise, recipe, [options.seed, 0], share)
        tr_sample = MixtureStream(speech, noise, recipe, [options.seed, 1])
        evaluated = {"tr_loss": tr_sample, "te_loss": test_set}
        if held_out:
            other_speech = recordings(options.speech_dir, sorted(held_out))
            valid_set = MixtureStream(other_speech, noise, recipe, [options.seed, 2])
            evaluated["valid_loss"] = valid_set
        scaler = train_set.compute_scaler()
        for data in evaluated.values():
            data.scaler = scaler
        made_from = {
            "training speech": listing(options.speech_dir, speech_names),
            "training noise": listing(options.noise_dir, noise_names),
            "test data": test_data,
        }
        yield TrainingData(train_set, evaluated, scaler, made_from)


def listing(folder: str, names: list[str]) -> str:
    """Describe the files of a folder in words that change with their names and lengths.

    Where the folder lies changes nothing.
    """
    sizes = [os.path.getsize(os.path.join(folder, name)) for name in names]
    content = "\n".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"{len(names)} files of {sum(sizes)} bytes, listed as {digest[:12]}"
