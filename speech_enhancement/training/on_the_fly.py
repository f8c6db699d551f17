"""Training mixtures made as they are needed: data without end, and only waves on the disk."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from config import n_overlap, n_window
from speech_enhancement.data.audio_files import AudioCache, list_audio
from speech_enhancement.errors import InputError
from speech_enhancement.features import (
    N_HOP,
    RunningStatistics,
    level_gain,
    magnitudes,
    mix_at_snr,
    peak,
    root_mean_square,
    stft,
)
from speech_enhancement.network_input import Scaler, frames_and_statistics, targets
from speech_enhancement.parallel import in_order_ahead, n_cores
from speech_enhancement.recipe import Recipe
from speech_enhancement.training.devices import ALONE, Share
from speech_enhancement.training.options import TrainingOptions
from speech_enhancement.training.packed_batches import Batch, TrainingData, hold_out, open_test_set
from speech_enhancement.training.packed_sequences import SEGMENT_FRAMES
from speech_enhancement.training.training_noise import (
    NoiseSource,
    Recordings,
    chosen,
    narrow_band,
    other_voice,
    segment,
    with_response,
)

RUN_FRAMES = 4  # neighbouring frames that stay together in a batch
RUNS_PER_SEGMENT = 4  # of one segment in a batch
EVALUATION_BATCHES = 16  # they are made anew at each evaluation
SEGMENT_SAMPLES = (SEGMENT_FRAMES - 1) * N_HOP + n_window


@dataclass
class Block:
    """The features of some segments of 5 s, cut into runs of neighbouring frames in random order.

    Attributes:
      frames: (n_segments, SEGMENT_FRAMES + n_around, n_freq), scaled, borders repeated; see
        Input.borders.
      statistics: (n_segments, n_statistics * n_freq), scaled; one for each segment.
      targets: (n_segments, SEGMENT_FRAMES, ...).
      runs: (n_segments, n_runs), the first frame of each run.
      run_frames: frames in a run.
      n_batches: how many batches the runs are shared out among.
    """

    frames: np.ndarray
    statistics: np.ndarray
    targets: np.ndarray
    runs: np.ndarray
    run_frames: int
    n_batches: int

    def batch(self, number: int) -> Batch:
        """Return the inputs of network.build_network and the targets of a batch.

        A batch holds some runs of each segment.
        """
        n_runs = self.runs.shape[1] // self.n_batches
        first = self.runs[:, number * n_runs : (number + 1) * n_runs].reshape(-1, 1)
        segment = np.arange(len(self.runs)).repeat(n_runs)[:, None]
        n_around = self.run_frames + self.frames.shape[1] - SEGMENT_FRAMES
        inputs = [self.frames[segment, first + np.arange(n_around)]]
        if self.statistics.shape[1]:
            inputs.append(self.statistics[segment])
        return inputs, self.targets[segment, first + np.arange(self.run_frames)]


class MixtureStream:
    """Draws speech, noise, onsets and SNR anew for every block, and computes the features.

    Segment s of block k depends on the seed, k and s alone, so blocks can be made in any order, by
    any number of threads and shared among processes, and training can go on from any iteration.

    A block has one segment of 5 s for each 16 frames of a batch: 32 segments, about 32 MB, for a
    batch of 512. Each of its 19 batches takes 4 runs of 4 frames from each segment; a batch size is
    rounded down to a multiple of 16. For a network with memory a block is one batch of whole
    segments, and a batch size is rounded down to a multiple of 312.

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
        share: Share = ALONE,
    ):
        self._speech, self._recipe, self._seed = speech, recipe, seed
        self._noise = NoiseSource(noise, speech, recipe.training_noise, SEGMENT_SAMPLES)
        self.scaler: Scaler | None = None
        has_memory = recipe.network.kind == "memory"
        self._run_frames, n_runs = (
            (SEGMENT_FRAMES, 1) if has_memory else (RUN_FRAMES, RUNS_PER_SEGMENT)
        )
        self._per_block = SEGMENT_FRAMES // self._run_frames // n_runs  # batches
        self._n_segments = max(1, recipe.training.batch_size // (self._run_frames * n_runs))
        if self._n_segments % share.n_devices:
            raise InputError(
                f"a batch of {recipe.training.batch_size} frames cannot be shared "
                f"by {share.n_devices} devices; "
                f"give --batch_size a multiple of {self._run_frames * n_runs * share.n_devices}"
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
        self.scaler = Scaler.of(of_frames, of_statistics)
        return self.scaler

    def block(self, number: int) -> Block:
        """Make this process's part of block `number`."""
        parts = []
        for index in range(self._n_segments)[self._share.part(self._n_segments)]:
            rng = np.random.default_rng([*self._seed, 0, number, index])
            mixture_stft, speech_magnitude = self.mixture(rng)
            frames, statistics = frames_and_statistics(mixture_stft, self._recipe.input)
            borders = self._recipe.input.borders, (0, 0)
            padded = np.pad(self.scaler.frames(frames), borders, mode="edge")
            wanted = targets(mixture_stft, speech_magnitude, self._recipe)
            runs = self._run_frames * rng.permutation(SEGMENT_FRAMES // self._run_frames)
            parts.append((padded, self.scaler.statistics(statistics[0]), wanted, runs))
        arrays = [np.stack(arrays) for arrays in zip(*parts, strict=True)]
        return Block(*arrays, self._run_frames, self._per_block)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield batches without end, from number `first` on; all cores make them ahead of need.

        Working set: a block for each core and two more.
        """
        n_threads = n_cores()
        with ThreadPoolExecutor(n_threads) as makers, ThreadPoolExecutor(n_threads) as cutters:
            numbers = itertools.count(first // self._per_block)
            skipped = first % self._per_block
            for block in in_order_ahead(makers, self.block, numbers, n_threads + 1):
                yield from in_order_ahead(
                    cutters, block.batch, range(skipped, self._per_block), n_threads
                )
                skipped = 0

    def sample(self, max_batches: int = EVALUATION_BATCHES) -> Iterator[Batch]:
        """Yield the same few batches at each call."""
        for number in range(-(-max_batches // self._per_block)):
            block = self.block(number)
            for index in range(min(self._per_block, max_batches - number * self._per_block)):
                yield block.batch(index)

    # --- Drawing a mixture ---

    def mixture(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a mixture of 5 s, made as calculate_mixture_features makes one.

        The SNR is that of the whole utterance to the 5 s of noise.

        Returns:
          mixture_stft, (SEGMENT_FRAMES, n_freq) complex64, and speech_magnitude of the same shape.
        """
        speech, utterance_rms = self._draw_speech(rng)
        noise = self._noise.draw(rng)
        mixed, speech, *_ = mix_at_snr(speech, noise, self._draw_snr(rng), utterance_rms)
        if chosen(rng, self._recipe.training.narrow_band):
            response = narrow_band(rng)
            mixed, speech = with_response(mixed, response), with_response(speech, response)
            gain = level_gain(peak(mixed))  # the filter has changed the peak
            mixed, speech = gain * mixed, gain * speech
        return stft(mixed, n_window, n_overlap), magnitudes(speech)

    def _draw_speech(self, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Draw 5 s of an utterance.

        They begin at its start where the noise is estimated from the first frames.

        Returns:
          (SEGMENT_SAMPLES,) float32, and the root mean square of the whole utterance.
        """
        at_start = self._recipe.input.noise_estimate == "first_frames"
        while True:
            utterance = self._speech.draw(rng)
            if chosen(rng, self._recipe.training.voices):
                speech, change = other_voice(utterance, SEGMENT_SAMPLES, rng, at_start)
            else:
                speech, change = segment(utterance, SEGMENT_SAMPLES, rng, at_start), 1.0
            if at_start or speech.any():  # a long pause is drawn again
                return speech, change * root_mean_square(utterance)

    def _draw_snr(self, rng: np.random.Generator) -> float:
        """Draw one of the recipe's SNRs in dB, or evenly from their range."""
        values, limits = self._recipe.training.snr_db, self._recipe.training.snr_range_db
        return rng.uniform(*limits) if limits else values[rng.integers(len(values))]


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
    paths = [os.path.join(folder, name) for name in names]
    sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in paths]
    content = "\n".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"{len(names)} files of {sum(sizes)} bytes, listed as {digest[:12]}"
