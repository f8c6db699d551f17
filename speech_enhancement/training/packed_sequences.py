"""Training batches for networks with memory from data.h5: runs of frames instead of single rows."""

import itertools
from collections.abc import Iterator

import numpy as np

from speech_enhancement.errors import InputError
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import Recipe
from speech_enhancement.training.devices import ALONE, Share

SEGMENT_FRAMES = 312  # 5 s, no more than a window of level_window_s = 5: one estimate serves it
EVALUATION_RUNS = 256  # at most so many are evaluated


class PackedSequences:
    """Runs of SEGMENT_FRAMES neighbouring rows of one mixture each, read from disk and scaled.

    The last run of a mixture begins earlier, so that it is full; a mixture that is shorter than a
    run is repeated.

    Args:
      files: open HDF5 files with x and y, packed with each frame.
      ranges: for each, pairs (start, stop) of the rows of mixtures that belong to this set.
      recipe: its batch size, and the frames after a run that the network sees.
      scaler: of frames and statistics.
      seed: of the order of the runs.
      share: of several processes each takes its part of every batch.
    """

    def __init__(
        self,
        files: list,
        ranges: list[list[tuple[int, int]]],
        recipe: Recipe,
        scaler: Scaler | None,
        seed: int = 0,
        share: Share = ALONE,
    ):
        for file in files:
            if file.attrs["n_hop"] != 1:
                raise InputError(
                    f"{file.filename} was packed with n_hop {file.attrs['n_hop']}, a network with "
                    "memory needs every frame; run pack_features with --n_hop 1"
                )
        self._files, self.scaler, self._seed, self._share = files, scaler, seed, share
        self._n_after = recipe.input.borders[1]
        self._n_together = max(1, recipe.training.batch_size // SEGMENT_FRAMES)
        self._runs = [
            (index, start, pair)
            for index, of_file in enumerate(ranges)
            for pair in of_file
            for start in starts_of_runs(*pair)
        ]
        self.n_segs = len(self._runs) * SEGMENT_FRAMES
        if min(self._n_together, len(self._runs)) < share.n_devices:
            raise InputError(
                f"a batch of {self._n_together} runs of {SEGMENT_FRAMES} frames, of "
                f"{len(self._runs)}, cannot be shared by {share.n_devices} devices; "
                "give a larger --batch_size"
            )

    def batches(self, first: int = 0) -> Iterator[tuple[list, np.ndarray]]:
        """Yield shuffled batches epoch after epoch, without end, from batch number `first` on."""
        per_epoch = self._share.n_batches(len(self._runs), self._n_together)
        begun, skipped = divmod(first, per_epoch)
        for epoch in itertools.count(begun):
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._runs))
            for number in range(skipped, per_epoch):
                batch = order[number * self._n_together :][: self._n_together]
                part = batch[self._share.part(len(batch))]
                yield self._batch([self._runs[index] for index in part])
            skipped = 0

    def sample(self) -> Iterator[tuple[list, np.ndarray]]:
        """Yield the same batches at each call, of runs that are evenly spread over the set."""
        n_sampled = min(len(self._runs), EVALUATION_RUNS)
        chosen = np.linspace(0, len(self._runs) - 1, n_sampled).astype(int)
        for start in range(0, n_sampled, self._n_together):
            numbers = chosen[start : start + self._n_together]
            yield self._batch([self._runs[number] for number in numbers])

    def _batch(self, runs: list[tuple]) -> tuple[list, np.ndarray]:
        """Read some runs.

        Returns:
          The inputs of network.build_network, (n_runs, n + n_after, ...) each, and targets (n_runs,
          n, ...).
        """
        frames, statistics = map(np.stack, zip(*(self._seen(*run) for run in runs), strict=True))
        inputs = [self.scaler.frames(frames)]
        if statistics.shape[2]:
            inputs.append(self.scaler.statistics(statistics))
        return inputs, np.stack([self._targets(*run) for run in runs])

    def _seen(self, index: int, start: int, mixture: tuple[int, int]) -> tuple:
        """Read the frames of a run and after it, and for each the statistics n_after frames before.

        Beyond the mixture its last frame and its first statistics are repeated.
        """
        first = max(mixture[0], start - self._n_after)
        stop = min(start + SEGMENT_FRAMES + self._n_after, mixture[1])
        rows = self._files[index]["x"][first:stop]
        numbers = np.arange(SEGMENT_FRAMES + self._n_after)
        frames = filled_up(rows[start - first :, 0])
        frames = frames[np.minimum(numbers, len(frames) - 1)]
        before = np.clip(numbers - self._n_after + start - first, 0, len(rows) - 1)
        return frames, rows[before, 1:]

    def _targets(self, index: int, start: int, mixture: tuple[int, int]) -> np.ndarray:
        """Read the targets of a run."""
        stop = min(start + SEGMENT_FRAMES, mixture[1])
        return filled_up(self._files[index]["y"][start:stop])


def filled_up(rows: np.ndarray) -> np.ndarray:
    """Repeat the rows of a mixture that is shorter than a run until they fill it."""
    if len(rows) >= SEGMENT_FRAMES:
        return rows
    return np.resize(rows, (SEGMENT_FRAMES, *rows.shape[1:]))


def starts_of_runs(start: int, stop: int) -> list[int]:
    """Return where the runs of a mixture begin, whose rows go from `start` to before `stop`."""
    last = max(start, stop - SEGMENT_FRAMES)
    return [min(begin, last) for begin in range(start, stop, SEGMENT_FRAMES)]
