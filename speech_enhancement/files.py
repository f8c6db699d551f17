"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import errno
import functools
import hashlib
import io
import math
import mmap
import os
import platform
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from speech_enhancement.errors import InputError, foreseen_disk_error, require_file

if TYPE_CHECKING:
    import h5py

MADV_POPULATE_WRITE = 23  # of Linux 5.14 and later


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block succeeds.

    The folder is made where it is missing. The temporary name carries the process, so that two runs do not share
    it, and keeps the extension. What killed runs left in the folder is removed.

    Raises:
      InputError: the disk is full, read-only or closed to us; nothing is left behind.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, _temporary_name(name))
    try:
        os.makedirs(folder or ".", exist_ok=True)
        _remove_leftovers(os.path.abspath(folder), os.getpid())
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        foreseen = foreseen_disk_error(error, path)
        if foreseen is None:
            raise
        raise foreseen from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def _temporary_name(name: str) -> str:
    """Return a short name for a file in the making, its own for each machine, process and name."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    extension = os.path.splitext(name)[1]
    return f".tmp-{_machine()}-{os.getpid()}-{digest}{extension if len(os.fsencode(extension)) <= 16 else ''}"


@functools.cache
def _machine() -> str:
    """Return some letters that stand for this machine: other machines may write into the same folder."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


@functools.lru_cache
def _remove_leftovers(folder: str, process: int) -> None:
    """Remove what killed processes of this machine left in a folder; looked for once by each process."""
    for name in os.listdir(folder):
        found = re.match(rf"\.tmp-{_machine()}-(\d+)-[0-9a-f]{{12}}(?:\.|$)", name)
        if found and not _is_running(int(found[1])):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, name))


def _is_running(process: int) -> bool:
    """Return whether a process of this machine runs; one that ended but was not waited for by its parent does not."""
    if os.name != "posix":  # there a signal of 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user; no number of a process
        return True
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # not on Linux
        return True


def write_bytes(path: str, content: bytes | bytearray | memoryview) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_text(path: str, content: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_npz(path: str, **arrays: np.ndarray | float | str) -> None:
    """Write named arrays, numbers and strings to an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getbuffer())


def read_npz(path: str, keys: tuple[str, ...], made_by: str) -> dict[str, np.ndarray]:
    """Read some of the arrays of an .npz file; scalars come back as Python values.

    Raises:
      MissingFileError: no such file; `made_by` names the step to run.
      InputError: the file is damaged or lacks a key.
    """
    require_file(path, made_by)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in keys}
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        NotImplementedError,
    ) as error:
        raise InputError(
            f"{path} is damaged or not written by {made_by} ({error}); run {made_by} again"
        ) from error
    return {key: value.item() if value.ndim == 0 else value for key, value in found.items()}


class Hdf5Rows:
    """Writes rows of the datasets of an HDF5 file, from any process: each knows where they lie in the file.

    Args:
      path: of the file.
      starts: by dataset, where its first row lies, in bytes.
      widths: by dataset, bytes of a row.
    """

    def __init__(self, path: str, starts: dict[str, int], widths: dict[str, int]):
        self._path, self._starts, self._widths = path, starts, widths

    def write(self, name: str, first: int, rows: np.ndarray) -> None:
        """Write float32 rows of the dataset `name` from row `first` on."""
        content = np.ascontiguousarray(rows, np.float32)
        start = self._starts[name] + int(first) * self._widths[name]
        with open(self._path, "r+b") as file:
            if not _copy_into_map(file.fileno(), start, content):
                file.seek(start)
                file.write(content.data)

    def set_attribute(self, name: str, value: str) -> None:
        """Give an attribute of the file another value of the same length."""
        import h5py

        with h5py.File(self._path, "r+") as hdf5:
            hdf5.attrs.modify(name, value)


def _copy_into_map(descriptor: int, start: int, content: np.ndarray) -> bool:
    """Copy an array into a file through a memory map: processes that write() to one file wait for each other.

    Returns:
      False where the system cannot map the file, or has no space for it; then nothing is copied.
    """
    if sys.platform != "linux":
        return False
    before = start % mmap.ALLOCATIONGRANULARITY
    try:
        with mmap.mmap(descriptor, before + content.nbytes, offset=start - before) as pages:
            # Finds space for all pages now, or says that there is none; the copying would end the process for it.
            pages.madvise(MADV_POPULATE_WRITE)
            pages[before:] = content.data.cast("B")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def new_hdf5(
    path: str, shapes: dict[str, tuple[int, ...]], attributes: dict, arrays: dict[str, np.ndarray]
) -> Iterator[Hdf5Rows]:
    """Make an HDF5 file with empty float32 datasets; yield what fills them; rename it to `path` in the end.

    `arrays` are small datasets that are written as they are.

    The HDF5 library may crash the interpreter when the disk fills up while it writes. So the
    file's few structures are made in memory, and the space of the whole file is reserved
    (or found free, where the system cannot reserve) before the library sees the file.
    """
    import h5py

    structures = io.BytesIO()
    with h5py.File(structures, "w") as hdf5:
        hdf5.attrs.update(attributes)
        for name, array in arrays.items():
            hdf5[name] = array
        for name, shape in shapes.items():
            hdf5.create_dataset(name, shape, dtype=np.float32)
    n_bytes = (
        len(structures.getvalue())
        + sum(4 * math.prod(map(int, shape)) for shape in shapes.values())
        + 4096
    )
    with replacing(path) as temporary:
        with open(
            temporary, "w+b"
        ) as file:  # where the system cannot reserve, the C library reads and writes
            file.write(structures.getvalue())
            file.flush()
            _reserve(file.fileno(), n_bytes)
        with h5py.File(temporary, "r+") as hdf5:
            for name in shapes:
                hdf5[name][:1] = 0  # the library chooses the place of the dataset
            starts = {name: hdf5[name].id.get_offset() for name in shapes}
        widths = {name: 4 * math.prod(map(int, shape[1:])) for name, shape in shapes.items()}
        yield Hdf5Rows(temporary, starts, widths)


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Reserve disk space for a file, so that a full disk is found before the file is filled."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, n_bytes)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    # macOS, and file systems that cannot reserve.
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def open_hdf5(path: str, datasets: tuple[str, ...], made_by: str) -> Iterator["h5py.File"]:
    """Yield an HDF5 file opened to read, after a look that it holds the named datasets.

    Raises:
      MissingFileError: no such file; `made_by` names the step to run.
      InputError: the file is damaged, cut short, or lacks a dataset.
    """
    import h5py

    require_file(path, made_by)
    try:
        hdf5 = h5py.File(path, "r")
        for name in datasets:
            hdf5[name][:1]
        dict(hdf5.attrs)
    except (
        OSError,
        KeyError,
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:  # as h5py meets the damage
        raise InputError(
            f"{path} is damaged or no file of ours ({error}); run {made_by} again"
        ) from error
    with hdf5:
        yield hdf5
