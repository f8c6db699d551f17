"""Training batches from a data.h5 of any size, with a bounded buffer."""

from collections.abc import Iterator

import numpy as np

from errors import InputError
from safe_files import open_hdf5, read_npz
from workspace import packed_path, scaler_path

BLOCK_ROWS = 64  # neighbouring rows that are read together
POOL_ROWS = 8192  # rows that are shuffled together: 66 MB with 7 frames of 257 bins


class PackedData:
    """The packed features of one data set, scaled; read from disk part by part.

    Attributes:
      n_segs, n_concat, n_freq: the shape of x.
    """

    def __init__(self, hdf5, mean: np.ndarray, std: np.ndarray):
        """Take an open HDF5 file with x and y, and the scaler, each (n_freq,)."""
        self._x, self._y = hdf5["x"], hdf5["y"]
        self._mean, self._std = mean.astype(np.float32), std.astype(np.float32)
        self.n_segs, self.n_concat, self.n_freq = self._x.shape

    def scale(self, log_magnitude: np.ndarray) -> np.ndarray:
        """Subtract the mean of each bin and divide by its standard deviation."""
        return (log_magnitude - self._mean) / self._std

    def epoch(self, rng: np.random.Generator, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each row once, in shuffled batches of x (n, n_concat, n_freq) and y (n, n_freq).

        Blocks of 64 neighbouring rows (about 3 s of audio) are shuffled, then the rows of a pool
        of 8192 rows together. A set of up to 8192 rows is fully shuffled. In a larger one, a batch
        of 500 is a random draw from 128 places of the data instead of from all rows: rows of a block
        meet in the same sixteen batches, which is the only order that is left.

        Working set: the pool, 66 MB with 7 frames of 257 bins.
        """
        starts = BLOCK_ROWS * rng.permutation(-(-self.n_segs // BLOCK_ROWS))
        x, y = self._x[:0], self._y[:0]
        for first in range(0, len(starts), POOL_ROWS // BLOCK_ROWS):
            blocks = [slice(start, start + BLOCK_ROWS) for start in starts[first : first + POOL_ROWS // BLOCK_ROWS]]
            x, y = append_blocks(x, self._x, blocks), append_blocks(y, self._y, blocks)
            rows = rng.permutation(len(x))
            n_whole = len(rows) - len(rows) % batch_size
            for start in range(0, n_whole, batch_size):
                chosen = rows[start : start + batch_size]
                yield self.scale(x[chosen]), self.scale(y[chosen])
            x, y = x[rows[n_whole:]], y[rows[n_whole:]]
        if len(x):
            yield self.scale(x), self.scale(y)

    def sample(self, batch_size: int, max_batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the same at most `max_batches` batches at each call, evenly spread over the data set."""
        starts = np.arange(0, self.n_segs, batch_size)
        if len(starts) > max_batches:
            starts = starts[np.linspace(0, len(starts) - 1, max_batches).astype(int)]
        for start in starts:
            rows = slice(start, start + batch_size)
            yield self.scale(self._x[rows]), self.scale(self._y[rows])


def append_blocks(rows: np.ndarray, dataset, blocks: list[slice]) -> np.ndarray:
    """Return the rows followed by blocks of a dataset, read one by one: no second copy of the pool."""
    n_rows = len(rows) + sum(len(range(*block.indices(len(dataset)))) for block in blocks)
    pool = np.empty((n_rows, *dataset.shape[1:]), np.float32)
    pool[: len(rows)] = rows
    end = len(rows)
    for block in blocks:
        part = dataset[block]
        pool[end : end + len(part)] = part
        end += len(part)
    return pool


def open_packed(stack, workspace: str, data_type: str, snr: float, scaler: dict) -> PackedData:
    """Open data.h5 of a data set for as long as the contextlib.ExitStack `stack` lasts.

    Raises:
      InputError: the file is missing, damaged or empty.
    """
    path = packed_path(workspace, data_type, snr)
    hdf5 = stack.enter_context(open_hdf5(path, ("x", "y"), made_by=f"pack_features --data_type {data_type}"))
    data = PackedData(hdf5, scaler["mean"], scaler["std"])
    if data.n_segs == 0:
        raise InputError(f"{path} holds no rows; run pack_features again")
    return data


def read_scaler(workspace: str, tr_snr: float) -> dict:
    """Return the scaler of the training set: mean, std, and n_concat, n_hop, n_segs of the data it is of."""
    keys = ("mean", "std", "n_concat", "n_hop", "n_segs")
    return read_npz(scaler_path(workspace, "train", tr_snr), keys, made_by="compute_scaler --data_type train")


def check_same_data(workspace: str, tr_snr: float, te_snr: float, scaler: dict, train: PackedData, test: PackedData):
    """Raise InputError unless scaler, training and test set were made with the same settings."""
    path = scaler_path(workspace, "train", tr_snr)
    for name in ("n_concat", "n_segs"):
        if scaler[name] != getattr(train, name):
            found = getattr(train, name)
            raise InputError(
                f"{path} is of data with {name} {scaler[name]}, data.h5 has {found}; run compute_scaler again"
            )
    if train.n_concat != test.n_concat:
        path = packed_path(workspace, "test", te_snr)
        raise InputError(
            f"{path} has n_concat {test.n_concat}, the training data {train.n_concat}; "
            f"run pack_features with one --n_concat for both"
        )
