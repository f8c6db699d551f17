"""data.h5 and its scaler: packing the features of all mixtures, reading, checks.

A data.h5 holds `x`, (n_segs, n_concat + n_statistics, n_freq), windows of the mixture's log
magnitude with the noise statistics of their centre frames behind them; `y`, (n_segs, n_freq) or
(n_segs, 2, n_freq), the targets of the centre frames; both float32; and `first_rows`,
(n_mixtures,), where each mixture begins. Its attributes say what it was made from.
"""

import contextlib
import errno
import functools
import hashlib
import io
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from config import stft_settings
from speech_enhancement.data.mixture_features import check_features, n_frames_of, read_features
from speech_enhancement.data.mixtures import Mixture, digest_of, read_mixtures
from speech_enhancement.errors import InputError, require_file
from speech_enhancement.features import N_FREQ, RunningStatistics, moments
from speech_enhancement.files import read_npz, replacing, write_at, write_npz
from speech_enhancement.network_input import (
    Scaler,
    frames_and_statistics,
    targets,
    windows_with_statistics,
)
from speech_enhancement.parallel import in_processes, in_threads
from speech_enhancement.progress import track
from speech_enhancement.recipe import Recipe, data_settings, load_recipe, with_n_concat
from speech_enhancement.workspace import features_path, packed_path, scaler_path

if TYPE_CHECKING:
    import h5py

BLOCK_ROWS = 256  # whose moments are computed together; few enough to stay in the processor's cache
MIXTURES_AT_ONCE = 16  # that a process packs before it reports
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError)  # as h5py may meet it
SCALER_ARRAYS = ("mean", "std", "statistics_mean", "statistics_std")


# --- Packing ----------------------------------------------------------------------------------


def pack_features(
    workspace: str,
    data_type: str,
    snr: float,
    n_concat: int | None = None,
    n_hop: int = 3,
    recipe: str = "original",
    n_jobs: int | None = None,
) -> None:
    """Pack the features of all mixtures into one data.h5 of context windows and targets.

    Working set: the windows of one mixture for each job.

    Args:
      workspace: folder with the features.
      data_type: "train" or "test".
      snr: signal-to-noise ratio in dB.
      n_concat: frames in a window, odd; None takes it from the recipe.
      n_hop: frames from one window to the next.
      recipe: name or file of the recipe; its sections [input] and [target] count.
      n_jobs: processes; None takes all cores.
    Raises:
      InputError: n_concat is even, or features are missing or belong to another mixture CSV.
    """
    settings = load_recipe(recipe)
    if n_concat is not None:
        settings = with_n_concat(settings, n_concat)
    if n_hop < 1:
        raise InputError(f"n_hop {n_hop}: expected at least 1 frame")
    if settings.network.kind == "memory" and n_hop != 1:
        raise InputError(
            f"n_hop {n_hop}: the network with memory of recipe {recipe} needs every frame; "
            "give --n_hop 1"
        )
    mixtures = mixtures_with_features(workspace, data_type, snr)

    n_segs = [-(-n_frames_of(mixture) // n_hop) for mixture in mixtures]
    first_rows = np.cumsum([0, *n_segs[:-1]])
    shapes = shapes_of(settings, sum(n_segs))
    attributes = packed_attributes(settings, snr, n_hop, mixtures)
    path = packed_path(workspace, data_type, snr)

    with new_packed(path, shapes, attributes, first_rows) as packed:
        pack = functools.partial(pack_mixture, workspace, data_type, snr, settings, n_hop, packed)
        jobs = zip(mixtures, first_rows.tolist(), strict=True)
        made = in_processes(pack, jobs, n_jobs, MIXTURES_AT_ONCE)
        content = hashlib.sha256(repr(attributes).encode())  # another for any other data
        for made_of in track(made, len(mixtures), "mixtures"):
            content.update(repr(made_of).encode())
        packed.set_fingerprint(content.hexdigest())

    print(f"{len(mixtures)} mixtures: x {shapes['x']}, y {shapes['y']} -> {path}")


def mixtures_with_features(workspace: str, data_type: str, snr: float) -> list[Mixture]:
    """Read the mixture CSV, and see that there are features of each mixture.

    Raises:
      InputError: features are missing, or those of the longest mixture, which decides how much
        disk space is reserved, belong to another CSV.
    """
    mixtures = read_mixtures(workspace, data_type)
    for mixture in mixtures:
        path = features_path(workspace, data_type, snr, mixture.name)
        require_file(path, "calculate_mixture_features")
    check_features(workspace, data_type, snr, max(mixtures, key=n_frames_of))
    return mixtures


def pack_mixture(
    workspace: str,
    data_type: str,
    snr: float,
    recipe: Recipe,
    n_hop: int,
    packed: "NewPacked",
    job: tuple[Mixture, int],
) -> tuple:
    """Write the rows of x and y of a mixture; the job is the mixture and its first row.

    Returns:
      What the rows were made of.
    """
    mixture, first_row = job
    mixture_stft, speech_magnitude, facts = read_features(workspace, data_type, snr, mixture)

    inputs = frames_and_statistics(mixture_stft, recipe.input)
    x = windows_with_statistics(*inputs, recipe.input.n_concat, n_hop)
    packed.write("x", first_row, x)
    packed.write("y", first_row, targets(mixture_stft, speech_magnitude, recipe)[::n_hop])
    return mixture, facts


def shapes_of(recipe: Recipe, n_segs: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of x and y for so many windows."""
    n_rows = recipe.input.n_concat + recipe.input.n_statistics
    target = (N_FREQ,) if recipe.target.output == "log_magnitude" else (2, N_FREQ)
    return {"x": (n_segs, n_rows, N_FREQ), "y": (n_segs, *target)}


def packed_attributes(recipe: Recipe, snr: float, n_hop: int, mixtures: list[Mixture]) -> dict:
    """Return what a data.h5 says about its origin."""
    return {
        "snr_db": float(snr),
        "n_concat": recipe.input.n_concat,
        "n_hop": n_hop,
        **stft_settings,
        "recipe": data_settings(recipe),
        "n_mixtures": len(mixtures),
        "mixtures": digest_of(mixtures),
    }


class NewPacked:
    """A data.h5 in the making, into which any process may write rows.

    The processes write the rows into the file themselves, since h5py lets only one process write,
    and to send all rows to that one takes a third more time. Each dataset lies in one piece.

    Args:
      path: of an HDF5 file with x and y, which nobody has open.
    """

    def __init__(self, path: str):
        import h5py

        self._path, self._places = path, {}
        with h5py.File(path, "r+") as hdf5:
            for name in ("x", "y"):
                hdf5[name][:1] = 0  # the library chooses the place of the dataset
                width = 4 * math.prod(hdf5[name].shape[1:])
                self._places[name] = (hdf5[name].id.get_offset(), width)

    def write(self, name: str, first_row: int, rows: np.ndarray) -> None:
        """Write float32 rows of x or y, from `first_row` on."""
        start, width = self._places[name]
        write_at(self._path, start + int(first_row) * width, np.ascontiguousarray(rows, np.float32))

    def set_fingerprint(self, fingerprint: str) -> None:
        """Say what tells this content from any other: 64 characters."""
        import h5py

        with h5py.File(self._path, "r+") as hdf5:
            hdf5.attrs.modify("fingerprint", fingerprint)


@contextlib.contextmanager
def new_packed(
    path: str, shapes: dict[str, tuple[int, ...]], attributes: dict, first_rows: np.ndarray
) -> Iterator[NewPacked]:
    """Make a data.h5 with empty x and y; yield what fills them; rename it to `path` in the end.

    The HDF5 library may crash the interpreter when the disk fills up while it writes. So the
    file's few structures are made in memory, and the space of the whole file is taken on the disk
    before the library sees the file.
    """
    import h5py

    structures = io.BytesIO()
    with h5py.File(structures, "w") as hdf5:
        hdf5.attrs.update({"fingerprint": "0" * 64, **attributes})
        hdf5["first_rows"] = first_rows
        for name, shape in shapes.items():
            hdf5.create_dataset(name, shape, np.float32)
    n_bytes = len(structures.getvalue()) + sum(4 * math.prod(shape) for shape in shapes.values())

    with replacing(path) as temporary:
        with open(temporary, "w+b") as file:  # also to read, which posix_fallocate may need
            file.write(structures.getvalue())
            file.flush()
            take_space(file, n_bytes + 4096)
        yield NewPacked(temporary)


def take_space(file: BinaryIO, n_bytes: int) -> None:
    """Make a file `n_bytes` long on the disk without changing its content.

    Where the disk is full, that raises an OSError.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    # macOS, and file systems that cannot reserve space.
    file.seek(0, os.SEEK_END)
    while n_bytes > file.tell():
        file.write(bytes(min(2**20, n_bytes - file.tell())))


# --- Reading ----------------------------------------------------------------------------------


@contextlib.contextmanager
def open_packed_file(workspace: str, data_type: str, snr: float) -> Iterator["h5py.File"]:
    """Yield the data.h5 of a data set at an SNR in dB, opened to read.

    Raises:
      MissingFileError: no such file.
      InputError: it is damaged, empty, in use, or was made with another transform than config.py's.
    """
    path, made_by = packed_path(workspace, data_type, snr), f"pack_features --data_type {data_type}"
    require_file(path, made_by)
    with open_hdf5(path, made_by) as packed:
        for name, value in {"snr_db": float(snr), **stft_settings}.items():
            found = packed.attrs.get(name)
            if found != value:
                raise InputError(
                    f"{path}: expected {name} {value}, found {found}; run {made_by} again"
                )

        x, y = packed["x"].shape, packed["y"].shape
        lacks = {"n_concat", "recipe", "n_mixtures", "fingerprint"} - set(packed.attrs)
        if lacks or len(x) != 3 or x[0] != y[0] or x[0] == 0 or {x[-1], y[-1]} != {N_FREQ}:
            raise InputError(f"{path}: x {x} and y {y} are not what {made_by} writes; run it again")
        yield packed


def open_hdf5(path: str, made_by: str) -> "h5py.File":
    """Open an HDF5 file to read, and check that its datasets x, y and first_rows can be read.

    Raises:
      InputError: another program has it open to write, we may not read it, or it is damaged.
    """
    import h5py

    try:
        hdf5 = h5py.File(path, "r")
        for name in ("x", "y", "first_rows"):
            hdf5[name][:1]
        dict(hdf5.attrs)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: no permission; change its permissions") from error
    except DAMAGE as error:
        if isinstance(error, BlockingIOError) or "already open" in str(error):
            raise InputError(
                f"{path} is in use: another program writes to it, or did when it was killed; "
                f"end it and run this step again, or run {made_by} again"
            ) from error
        raise InputError(
            f"{path} is damaged or no file of ours ({error}); run {made_by} again"
        ) from error
    return hdf5


# --- The scaler -------------------------------------------------------------------------------


def compute_scaler(
    workspace: str, data_type: str, snr: list[float], n_jobs: int | None = None
) -> None:
    """Compute the mean and standard deviation of each frequency bin of the packed mixtures.

    Writes scaler.npz beside data.h5, with mean and std, each (n_freq,), of the frames, and
    statistics_mean and statistics_std, each (n_statistics, n_freq), of the rows behind them. The
    scaler of the frames serves x and y. Over several SNRs it goes to a folder named after all.

    Working set: two blocks of 256 windows for each job.

    Args:
      workspace: folder with the packed features.
      data_type: "train" (or "test").
      snr: signal-to-noise ratios in dB, one or several.
      n_jobs: threads; None takes all cores.
    Raises:
      InputError: a data.h5 is missing or damaged, or they were packed for several recipes.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_packed_file(workspace, data_type, one)) for one in snr]
        for name in ("n_concat", "recipe"):
            check_same(files, name)
        of_frames, of_statistics = packed_statistics(files, n_jobs)
        fingerprint = fingerprint_of(files)

    path = scaler_path(workspace, data_type, snr)
    write_npz(path, **vars(Scaler.of(of_frames, of_statistics)), fingerprint=fingerprint)
    print(f"{of_frames.count} frames -> {path}")


def packed_statistics(
    files: list["h5py.File"], n_jobs: int | None = None
) -> tuple[RunningStatistics, RunningStatistics]:
    """Return statistics of all frames in x, by bin, and of the rows of noise statistics there."""
    of_frames, of_statistics = RunningStatistics(), RunningStatistics()
    for packed in files:
        starts = range(0, len(packed["x"]), BLOCK_ROWS)
        of_block = functools.partial(moments_of_block, packed["x"], packed.attrs["n_concat"])
        blocks = in_threads(of_block, starts, n_jobs)
        for frames, statistics in track(blocks, len(starts), "blocks"):
            of_frames.merge(frames)
            of_statistics.merge(statistics)
    return of_frames, of_statistics


def moments_of_block(x: "h5py.Dataset", n_concat: int, start: int) -> tuple[tuple, tuple]:
    """Return the moments of the frames and of the noise statistics in a block of windows."""
    windows = x[start : start + BLOCK_ROWS]
    frames, statistics = windows[:, :n_concat], windows[:, n_concat:]
    return moments(frames.reshape(-1, N_FREQ)), moments(statistics.reshape(len(windows), -1))


def check_same(files: list["h5py.File"], name: str) -> None:
    """Raise InputError unless an attribute is the same in all data.h5."""
    for file in files[1:]:
        first, other = files[0].attrs[name], file.attrs[name]
        if first != other:
            raise InputError(
                f"{file.filename} has {name} {other}, {files[0].filename} has {first}; "
                f"run pack_features with the same --recipe and --n_concat for all"
            )


def fingerprint_of(files: list["h5py.File"]) -> str:
    """Return what tells the content of some data.h5 from any other."""
    return " ".join(file.attrs["fingerprint"] for file in files)


def read_scaler(workspace: str, snrs: list[float], files: list["h5py.File"]) -> Scaler:
    """Read the scaler of the training set, whose data.h5 are `files`.

    Raises:
      MissingFileError: no such file.
      InputError: it is damaged, of other data than these files, or does not fit them.
    """
    path, made_by = scaler_path(workspace, "train", snrs), "compute_scaler --data_type train"
    found = read_npz(path, (*SCALER_ARRAYS, "fingerprint"), made_by)
    if found["fingerprint"] != fingerprint_of(files):
        raise InputError(
            f"{path} is of other data than data.h5 holds now; run compute_scaler again"
        )

    n_statistics = files[0]["x"].shape[1] - files[0].attrs["n_concat"]
    for name in SCALER_ARRAYS:
        expected = (n_statistics, N_FREQ) if name.startswith("statistics") else (N_FREQ,)
        array = np.asarray(found[name])
        if array.shape != expected or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InputError(
                f"{path}: expected {name} to be finite numbers of the shape {expected}, "
                f"found {array.dtype} of the shape {array.shape}; run {made_by} again"
            )
    return Scaler(*(found[name] for name in SCALER_ARRAYS))
