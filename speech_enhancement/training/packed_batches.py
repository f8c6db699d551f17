"""Training batches from data.h5 files of any size, with a bounded buffer."""

from collections.abc import Iterator

import numpy as np

from speech_enhancement.data.mixtures import held_out_speech
from speech_enhancement.data.packed_data import open_packed_file
from speech_enhancement.errors import InputError
from speech_enhancement.network_input import Scaler
from speech_enhancement.recipe import Recipe, data_settings
from speech_enhancement.training.devices import Share
from speech_enhancement.workspace import read_mixtures

BLOCK_ROWS = 32  # neighbouring rows that are read together
POOL_ROWS = 4096  # at most so many rows are shuffled together, but at least a batch: 33 MB with 7 frames of 257 bins
Block = tuple[int, slice]  # which file, and which of its rows
Batch = tuple[list[np.ndarray], np.ndarray]  # the inputs of network.build_network, and the targets


class PackedData:
    """The rows of one or several data.h5 files, read from disk part by part and scaled.

    Args:
      files: open HDF5 files with x and y.
      ranges: for each, pairs (start, stop) of the rows that belong to this set.
      n_concat: how many rows of a window are frames; statistics stand behind them.
      scaler: of frames and statistics.
      batch_size: rows in a batch.
      share: of several processes each takes its part of every batch.
    """

    def __init__(
        self,
        files: list,
        ranges: list[list[tuple[int, int]]],
        n_concat: int,
        scaler: Scaler,
        batch_size: int,
        share: Share = Share(),  # noqa: B008 (it is frozen)
    ):
        self._datasets = {name: [file[name] for file in files] for name in ("x", "y")}
        self._n_concat, self._scaler, self._batch_size, self._share = (
            n_concat,
            scaler,
            batch_size,
            share,
        )
        pairs = [(index, *pair) for index, of_file in enumerate(ranges) for pair in of_file]
        self._ranges = np.array(pairs, np.int64).reshape(-1, 3)
        self.n_segs = int(np.sum(self._ranges[:, 2] - self._ranges[:, 1]))

    def _blocks(self, n_rows: int) -> np.ndarray:
        """Cut the set into blocks of at most n_rows rows, (n_blocks, 3): number of the file, start, stop."""
        n_blocks = -(-(self._ranges[:, 2] - self._ranges[:, 1]) // n_rows)
        index, start, stop = np.repeat(self._ranges, n_blocks, axis=0).T
        within = np.arange(len(index)) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
        begin = start + n_rows * within
        return np.stack([index, begin, np.minimum(begin + n_rows, stop)], axis=1)

    def _batch(self, x: np.ndarray, y: np.ndarray) -> Batch:
        """Scale rows and split them into what the network takes; y gets an axis of one frame."""
        inputs = [self._scaler.frames(x[:, : self._n_concat])]
        if x.shape[1] > self._n_concat:
            inputs.append(self._scaler.statistics(x[:, None, self._n_concat :]))
        return inputs, y[:, None]

    def batches(self, seed: int, first: int = 0) -> Iterator[Batch]:
        """Yield shuffled batches epoch after epoch, without end, from batch number `first` on."""
        per_epoch = self.n_segs // self._batch_size + (
            self.n_segs % self._batch_size >= self._share.n_devices
        )
        epoch = first // per_epoch
        skipped = first % per_epoch
        while True:
            for number, batch in enumerate(self.epoch(np.random.default_rng([seed, epoch]))):
                if number >= skipped:
                    yield batch
            skipped = 0
            epoch += 1

    def epoch(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield each row once, in shuffled batches; the last may be short.

        Blocks of 32 neighbouring rows (about 1.5 s of audio) are shuffled and dealt into pools of
        at most 4096 rows, eight batches of 500. Each run of eight rows of a pool is shared out
        among its batches at random. This is less than a full shuffle in two ways: rows of a block meet in
        the same eight batches, and a batch has one row of each run, neither more nor fewer.

        The rows of a batch have the order of the pool. So each of several processes, which
        take their part of every batch, needs one part of the pool, and reads only that.

        Working set: the part of the pool, 33 MB with 7 frames of 257 bins for a single process; and
        32 bytes for each block, 75 kB an hour (twice that while an epoch begins).
        """
        pool_rows = min(self.n_segs, max(1, POOL_ROWS // self._batch_size) * self._batch_size)
        shapes = {
            name: (pool_rows, *datasets[0].shape[1:]) for name, datasets in self._datasets.items()
        }
        room = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        for pool in self._pools(rng, pool_rows):
            n_rows = sum(block.stop - block.start for _, block in pool)
            batches = [
                batch[self._share.part(len(batch))] for batch in deal(n_rows, self._batch_size, rng)
            ]
            batches = [batch for batch in batches if len(batch)]
            if not batches:
                return
            first, stop = (
                min(batch[0] for batch in batches),
                max(batch[-1] for batch in batches) + 1,
            )
            part = cut(pool, first, stop)
            x, y = (self._read(name, part, room[name]) for name in ("x", "y"))
            for batch in batches:
                yield self._batch(x[batch - first], y[batch - first])

    def _pools(self, rng: np.random.Generator, n_rows: int) -> Iterator[list[Block]]:
        """Yield the blocks of the set in random order, in pools of n_rows rows; the last may be smaller."""
        blocks = self._blocks(BLOCK_ROWS)
        pool, n_missing = [], n_rows
        for number in rng.permutation(len(blocks)):
            index, start, stop = blocks[number].tolist()
            middle = min(stop, start + n_missing)
            pool.append((index, slice(start, middle)))
            n_missing -= middle - start
            if n_missing == 0:
                yield pool
                pool, n_missing = [], n_rows
                if middle < stop:  # the rest of the block
                    pool.append((index, slice(middle, stop)))
                    n_missing -= stop - middle
        if pool:
            yield pool

    def _read(self, name: str, blocks: list[Block], room: np.ndarray) -> np.ndarray:
        """Read the rows of blocks of a dataset, one after the other, into the first rows of `room`; return these."""
        end = 0
        for index, block in blocks:
            begin, end = end, end + block.stop - block.start
            room[begin:end] = self._datasets[name][index][block]
        return room[:end]

    def sample(self, max_batches: int) -> Iterator[Batch]:
        """Yield the same at most `max_batches` batches at each call, evenly spread over the set."""
        blocks = self._blocks(self._batch_size)
        if len(blocks) > max_batches:
            blocks = blocks[np.linspace(0, len(blocks) - 1, max_batches).astype(int)]
        for index, start, stop in blocks.tolist():
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


def cut(blocks: list[Block], first: int, stop: int) -> list[Block]:
    """Return the blocks of the rows from `first` to before `stop`, counted through all blocks."""
    kept, begin = [], 0
    for index, block in blocks:
        rows = slice(
            block.start + max(0, first - begin), min(block.stop, block.start + stop - begin)
        )
        if rows.start < rows.stop:
            kept.append((index, rows))
        begin += block.stop - block.start
    return kept


# --- Opening the files of a workspace -----------------------------------------------------------


def open_packed(stack, workspace: str, data_type: str, snrs: list[float]) -> list:
    """Open the data.h5 of a data set at each SNR for as long as the contextlib.ExitStack `stack` lasts."""
    return [stack.enter_context(open_packed_file(workspace, data_type, snr)) for snr in snrs]


def check_same_recipe(files: list, recipe: Recipe, n_concat: int) -> None:
    """Raise InputError unless all data.h5 were packed for this recipe and with n_concat frames."""
    for file in files:
        if file.attrs["n_concat"] != n_concat:
            raise InputError(
                f"{file.filename} has n_concat {file.attrs['n_concat']}, the training data {n_concat}; "
                f"run pack_features with one --n_concat for all"
            )
        if file.attrs["recipe"] != data_settings(recipe):
            raise InputError(
                f"{file.filename} was packed for another recipe; run pack_features with the same --recipe"
            )


def split_rows(workspace: str, files: list, fraction: float) -> tuple[list, list]:
    """Split the rows of the training files into those to train on and those of held-out speech.

    Returns:
      Two lists with a list for each file: pairs (start, stop) of rows.
    Raises:
      InputError: the mixture CSV is not the one that the files were packed from.
    """
    if fraction == 0:
        return [[(0, len(file["x"]))] for file in files], [[] for _ in files]
    mixtures = read_mixtures(workspace, "train")
    held_out = held_out_speech([mixture.speech_name for mixture in mixtures], fraction)
    train, valid = [], []
    for file in files:
        if file.attrs["n_mixtures"] != len(mixtures):
            raise InputError(
                f"{file.filename} was packed from another train.csv; run pack_features again"
            )
        starts = file["first_rows"][:].tolist()
        pairs = list(zip(starts, [*starts[1:], len(file["x"])], mixtures, strict=True))
        train.append(
            [(start, stop) for start, stop, mixture in pairs if mixture.speech_name not in held_out]
        )
        valid.append(
            [(start, stop) for start, stop, mixture in pairs if mixture.speech_name in held_out]
        )
    return train, valid
