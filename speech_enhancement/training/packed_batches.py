"""Training batches from data.h5 files of any size, with a bounded buffer."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from speech_enhancement.data.mixtures import digest_of, held_out_speech, read_mixtures
from speech_enhancement.data.packed_data import open_packed_file, read_scaler
from speech_enhancement.errors import InputError
from speech_enhancement.network_input import Scaler
from speech_enhancement.progress import say
from speech_enhancement.recipe import Recipe, changes_on_the_fly, fits_data
from speech_enhancement.training.devices import ALONE, Share
from speech_enhancement.training.options import TrainingOptions
from speech_enhancement.training.packed_sequences import PackedSequences

if TYPE_CHECKING:
    import h5py

STRETCH_ROWS = 32  # neighbouring rows that are read together
POOL_ROWS = 4096  # at most so many rows are shuffled together, but at least a batch
EVALUATION_BATCHES = 100  # as many rows as so many batches hold are evaluated
Stretch = tuple[int, slice]  # which file, and which of its rows
Batch = tuple[list[np.ndarray], np.ndarray]  # the inputs of network.build_network, and the targets


class BatchSource(Protocol):
    """Where the batches of a training come from: PackedData, or on_the_fly.MixtureStream."""

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield training batches without end, from number `first` on."""

    def sample(self) -> Iterator[Batch]:
        """Yield the batches to evaluate, the same at each call."""


@dataclass
class TrainingData:
    """What a training reads.

    Attributes:
      trained_on: the training mixtures.
      evaluated: what to evaluate, by the name of its loss: tr_loss, te_loss, valid_loss.
      scaler: of what the network sees.
      made_from: of which data all this is, in words; for a training to know what it continues.
    """

    trained_on: BatchSource
    evaluated: dict[str, BatchSource]
    scaler: Scaler
    made_from: dict[str, str]


class PackedData:
    """The rows of one or several data.h5 files, read from disk part by part and scaled.

    Args:
      files: open HDF5 files with x and y.
      ranges: for each, pairs (start, stop) of the rows that belong to this set.
      n_concat: how many rows of a window are frames; statistics follow them.
      scaler: of frames and statistics.
      batch_size: rows in a batch.
      seed: of the order of the rows.
      share: of several processes each takes its part of every batch.
    """

    def __init__(
        self,
        files: list,
        ranges: list[list[tuple[int, int]]],
        n_concat: int,
        scaler: Scaler,
        batch_size: int,
        seed: int = 0,
        share: Share = ALONE,
    ):
        self._datasets = {name: [file[name] for file in files] for name in ("x", "y")}
        self._n_concat, self.scaler = n_concat, scaler
        self._batch_size, self._seed, self._share = batch_size, seed, share
        pairs = [(index, *pair) for index, of_file in enumerate(ranges) for pair in of_file]
        self._ranges = np.array(pairs, np.int64).reshape(-1, 3)
        self.n_segs = int(np.sum(self._ranges[:, 2] - self._ranges[:, 1]))

    def _stretches(self, n_rows: int) -> np.ndarray:
        """Cut the set into stretches of at most n_rows rows: (n, 3) of file number, start, stop."""
        n_each = -(-(self._ranges[:, 2] - self._ranges[:, 1]) // n_rows)
        index, start, stop = np.repeat(self._ranges, n_each, axis=0).T
        within = np.arange(len(index)) - np.repeat(np.cumsum(n_each) - n_each, n_each)
        begin = start + n_rows * within
        return np.stack([index, begin, np.minimum(begin + n_rows, stop)], axis=1)

    def _batch(self, x: np.ndarray, y: np.ndarray) -> Batch:
        """Scale rows and split them into what the network takes; y gets an axis of one frame."""
        inputs = [self.scaler.frames(x[:, : self._n_concat])]
        if x.shape[1] > self._n_concat:
            inputs.append(self.scaler.statistics(x[:, None, self._n_concat :]))
        return inputs, y[:, None]

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield shuffled batches epoch after epoch, without end, from batch number `first` on."""
        per_epoch = self._share.n_batches(self.n_segs, self._batch_size)
        begun, skipped = divmod(first, per_epoch)
        for epoch in itertools.count(begun):
            rng = np.random.default_rng([self._seed, epoch])
            yield from itertools.islice(self.epoch(rng), skipped, None)
            skipped = 0

    def epoch(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield each row once, in shuffled batches; the last may be short.

        Stretches of 32 neighbouring rows (about 1.5 s of audio) are shuffled and dealt into pools
        of at most 4096 rows, eight batches of 500. Each eight neighbours of a pool are shared out
        among its batches at random. This is less than a full shuffle in two ways: rows of a stretch
        meet in the same eight batches, and a batch has one of each eight, neither more nor fewer.

        The rows of a batch have the order of the pool. So each of several processes, which
        take their part of every batch, needs one part of the pool, and reads only that.

        Working set: the part of the pool, 33 MB with 7 frames of 257 bins for a single process; and
        32 bytes for each stretch, 75 kB an hour (twice that while an epoch begins).
        """
        pool_rows = min(self.n_segs, max(1, POOL_ROWS // self._batch_size) * self._batch_size)
        shapes = {
            name: (pool_rows, *datasets[0].shape[1:]) for name, datasets in self._datasets.items()
        }
        room = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        for pool in self._pools(rng, pool_rows):
            n_rows = sum(rows.stop - rows.start for _, rows in pool)
            dealt = deal(n_rows, self._batch_size, rng)
            batches = [batch[self._share.part(len(batch))] for batch in dealt]
            batches = [batch for batch in batches if len(batch)]
            if not batches:
                return
            first = min(batch[0] for batch in batches)
            stop = max(batch[-1] for batch in batches) + 1
            part = cut(pool, first, stop)
            x, y = (self._read(name, part, room[name]) for name in ("x", "y"))
            for batch in batches:
                yield self._batch(x[batch - first], y[batch - first])

    def _pools(self, rng: np.random.Generator, n_rows: int) -> Iterator[list[Stretch]]:
        """Yield the stretches in random order, in pools of n_rows rows; the last may be smaller."""
        stretches = self._stretches(STRETCH_ROWS)
        pool, n_missing = [], n_rows
        for number in rng.permutation(len(stretches)):
            index, start, stop = stretches[number].tolist()
            middle = min(stop, start + n_missing)
            pool.append((index, slice(start, middle)))
            n_missing -= middle - start
            if n_missing == 0:
                yield pool
                pool, n_missing = [], n_rows
                if middle < stop:  # the rest of the stretch
                    pool.append((index, slice(middle, stop)))
                    n_missing -= stop - middle
        if pool:
            yield pool

    def _read(self, name: str, stretches: list[Stretch], room: np.ndarray) -> np.ndarray:
        """Read stretches of a dataset one after the other into `room`; return the rows read."""
        end = 0
        for index, rows in stretches:
            begin, end = end, end + rows.stop - rows.start
            room[begin:end] = self._datasets[name][index][rows]
        return room[:end]

    def sample(self, max_batches: int = EVALUATION_BATCHES) -> Iterator[Batch]:
        """Yield the same batches at each call, evenly spread over the set.

        They have about as many rows as `max_batches` whole batches, or all there are. A batch ends
        where its range of rows ends, so that of a set of single mixtures there are more.
        """
        stretches = self._stretches(self._batch_size)
        n_sampled = len(stretches) * max_batches * self._batch_size // self.n_segs
        if len(stretches) > n_sampled:
            stretches = stretches[np.linspace(0, len(stretches) - 1, n_sampled).astype(int)]
        for index, start, stop in stretches.tolist():
            yield self._batch(*(self._datasets[name][index][start:stop] for name in ("x", "y")))


def deal(n_rows: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Share out the numbers below n_rows at random into batches, sorted; the last may be short.

    A run of as many neighbours as there are whole batches gives one to each of them.
    """
    n_whole = n_rows // batch_size
    order = rng.permutation(n_rows)
    whole, short = np.sort(order[: n_whole * batch_size]), np.sort(order[n_whole * batch_size :])
    whole = rng.permuted(whole.reshape(batch_size, n_whole), axis=1)
    return [*whole.T, short] if len(short) else [*whole.T]


def cut(stretches: list[Stretch], first: int, stop: int) -> list[Stretch]:
    """Return the parts of the stretches that hold rows `first` to before `stop`.

    Rows are counted through all stretches.
    """
    kept, begin = [], 0
    for index, rows in stretches:
        start = rows.start + max(0, first - begin)
        end = min(rows.stop, rows.start + stop - begin)
        if start < end:
            kept.append((index, slice(start, end)))
        begin += rows.stop - rows.start
    return kept


# --- Opening the files of a workspace -----------------------------------------------------------


@contextlib.contextmanager
def open_packed_training(
    options: TrainingOptions, recipe: Recipe, share: Share
) -> Iterator[TrainingData]:
    """Open the packed training set and test set of a workspace.

    Raises:
      InputError: one of their files is missing, damaged, or made for another recipe.
    """
    snrs, batch_size = recipe.training.snr_db, recipe.training.batch_size
    if not snrs:
        raise InputError(
            "packed features exist at single SNRs in dB; give --tr_snr, or train --on_the_fly"
        )
    with contextlib.ExitStack() as stack:
        opened = (open_packed_file(options.workspace, "train", snr) for snr in snrs)
        files = [stack.enter_context(file) for file in opened]
        check_packed_for(files, recipe)
        scaler = read_scaler(options.workspace, snrs, files)
        test_set, test_data = stack.enter_context(open_test_set(options, recipe))
        test_set.scaler = scaler

        def rows_of(ranges: list, *order) -> BatchSource:
            return packed_source(files, ranges, recipe, scaler, *order)

        train_rows, valid_rows = split_rows(options.workspace, files, options.valid_fraction)
        train_set = rows_of(train_rows, options.seed, share)
        if min(batch_size, train_set.n_segs) < share.n_devices:
            raise InputError(
                f"a batch of {batch_size} of {train_set.n_segs} windows cannot be shared by "
                f"{share.n_devices} devices; give a larger --batch_size"
            )
        evaluated = {"tr_loss": rows_of(train_rows), "te_loss": test_set}
        if options.valid_fraction > 0:
            evaluated["valid_loss"] = rows_of(valid_rows)
        fingerprints = " ".join(file.attrs["fingerprint"][:12] for file in files)
        made_from = {"training data": f"data.h5 {fingerprints}", "test data": test_data}
        if left_out := changes_on_the_fly(recipe):
            say(
                f"data.h5 holds the mixtures as they are: the recipe's {', '.join(left_out)} "
                "are left out, train --on_the_fly makes them"
            )
        yield TrainingData(train_set, evaluated, scaler, made_from)


@contextlib.contextmanager
def open_test_set(options: TrainingOptions, recipe: Recipe) -> Iterator[tuple[PackedData, str]]:
    """Yield the packed test set, still without a scaler, and in words which it is."""
    with open_packed_file(options.workspace, "test", options.te_snr) as file:
        check_packed_for([file], recipe)
        test_set = packed_source([file], [[(0, len(file["x"]))]], recipe, None)
        yield test_set, f"{options.te_snr:g} dB, data.h5 {file.attrs['fingerprint'][:12]}"


def packed_source(files: list, ranges: list, recipe: Recipe, scaler, *order) -> BatchSource:
    """Return what reads rows of data.h5 as the network of a recipe takes them."""
    if recipe.network.kind == "memory":
        ranges = [of_mixtures(*pair) for pair in zip(files, ranges, strict=True)]
        return PackedSequences(files, ranges, recipe, scaler, *order)
    size = recipe.training.batch_size
    return PackedData(files, ranges, recipe.input.n_concat, scaler, size, *order)


def of_mixtures(file: "h5py.File", ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut ranges of the rows of a data.h5 where its mixtures begin."""
    starts = file["first_rows"][:]
    cuts = [
        np.concatenate([[start], starts[(starts > start) & (starts < stop)], [stop]])
        for start, stop in ranges
    ]
    return [pair for cut in cuts for pair in itertools.pairwise(cut.tolist())]


def check_packed_for(files: list["h5py.File"], recipe: Recipe) -> None:
    """Raise InputError unless all data.h5 were packed for this recipe."""
    for file in files:
        if not fits_data(file.attrs["recipe"], recipe):
            raise InputError(
                f"{file.filename} was packed for another recipe; "
                f"run pack_features with the same --recipe"
            )
        found, expected = int(file.attrs["n_concat"]), recipe.input.n_concat
        if found != expected:
            raise InputError(
                f"{file.filename} was packed with n_concat {found}, the recipe has {expected}; "
                f"give train --n_concat {found}, or run pack_features with --n_concat {expected}"
            )


def split_rows(
    workspace: str, files: list["h5py.File"], fraction: float
) -> tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
    """Split the rows of the training files into those to train on and those of held-out speech.

    Returns:
      Two lists with a list for each file: pairs (start, stop) of rows.
    Raises:
      InputError: the mixture CSV is not the one that the files were packed from, or has one
        speaker.
    """
    if fraction == 0:
        return [[(0, len(file["x"]))] for file in files], [[] for _ in files]
    mixtures = read_mixtures(workspace, "train")
    held_out = hold_out([mixture.speech_name for mixture in mixtures], fraction)
    digest, train, valid = digest_of(mixtures), [], []
    for file in files:
        # What an earlier version packed has no digest.
        if (file.attrs["n_mixtures"], file.attrs.get("mixtures", digest)) != (
            len(mixtures),
            digest,
        ):
            raise InputError(
                f"{file.filename} was packed from another train.csv; run pack_features again"
            )
        starts = file["first_rows"][:].tolist()
        pairs = zip(starts, [*starts[1:], len(file["x"])], strict=True)
        of_file = [[], []]
        for pair, mixture in zip(pairs, mixtures, strict=True):
            of_file[mixture.speech_name in held_out].append(pair)
        train.append(of_file[False])
        valid.append(of_file[True])
    return train, valid


def hold_out(speech_names: list[str], fraction: float) -> set[str]:
    """Choose the speech that is kept out of training, none at a fraction of 0.

    Raises:
      InputError: all speech is of one speaker, so that none would be left to train on.
    """
    held_out = held_out_speech(speech_names, fraction)
    if fraction > 0 and not held_out:
        raise InputError(
            f"--valid_fraction {fraction:g} needs speech of two speakers, found one: a folder is "
            f"taken for a speaker, and so is a file in none; add speech or leave the flag out"
        )
    return held_out
