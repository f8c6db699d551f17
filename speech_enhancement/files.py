"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import csv
import functools
import hashlib
import io
import mmap
import os
import platform
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from speech_enhancement.errors import InputError, foreseen_disk_errors, require_file

# What reading a damaged zip archive raises, such as an .npz file.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TypeError)
DAMAGED_ARCHIVE += (RuntimeError,)  # it is encrypted, or compressed in an unknown way
MADV_POPULATE_WRITE = 23  # of Linux 5.14 and later


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block succeeds.

    The folder is made where it is missing. The temporary name carries the process, so that two runs
    do not share it, and keeps the extension. What killed runs left in the folder is removed.

    Raises:
      InputError: the disk is full, read-only or closed to us; nothing is left behind.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, _temporary_name(name))
    try:
        with foreseen_disk_errors(path):
            os.makedirs(folder or ".", exist_ok=True)
            _remove_leftovers(os.path.abspath(folder), os.getpid())
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def _temporary_name(name: str) -> str:
    """Return a short name for a file in the making, its own for each machine, process and name."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    extension = os.path.splitext(name)[1]
    if len(os.fsencode(extension)) > 16:
        extension = ""
    return f".tmp-{_machine()}-{os.getpid()}-{digest}{extension}"


@functools.cache
def _machine() -> str:
    """Return some letters for this machine, as other machines may write into the same folder."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


@functools.lru_cache
def _remove_leftovers(folder: str, process: int) -> None:
    """Remove what killed processes of this machine left in a folder.

    Each process looks for that once.
    """
    for name in os.listdir(folder):
        found = re.match(rf"\.tmp-{_machine()}-(\d+)-[0-9a-f]{{12}}(?:\.|$)", name)
        if found and not _is_running(int(found[1])):
            leftover = os.path.join(folder, name)
            if os.path.isdir(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.remove(leftover)


def _is_running(process: int) -> bool:
    """Return whether a process of this machine runs.

    A process that ended does not run, even if its parent has not waited for it yet.
    """
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


@contextlib.contextmanager
def own_temporary_folder(parent: str | None = None) -> Iterator[None]:
    """Let libraries make their temporary files in a folder of their own, removed in any case.

    Args:
      parent: where to make it, under a temporary name like those of `replacing`, so that what a
        killed run left is removed by the next; None takes the system's folder of temporary files.
    """
    before = tempfile.tempdir
    if parent is None:
        folder = tempfile.mkdtemp(prefix=".tmp-")
    else:
        folder = os.path.join(parent, _temporary_name("folder"))
        os.makedirs(folder, exist_ok=True)
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: str, content: bytes | bytearray | memoryview) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_at(path: str, start: int, content: np.ndarray) -> None:
    """Write an array into a file that is long enough, from byte `start` on.

    Through a memory map where the system has one: processes that write() to one file wait for each
    other, and packing took 1.8 times as long.
    """
    with open(path, "r+b") as file:
        if not _copy_into_map(file.fileno(), start, content):
            file.seek(start)
            file.write(content.data)


def _copy_into_map(descriptor: int, start: int, content: np.ndarray) -> bool:
    """Copy an array into a file through a memory map.

    Returns:
      False where the system cannot map the file, or has no space for it; then nothing is copied.
    """
    if sys.platform != "linux":
        return False
    before = start % mmap.ALLOCATIONGRANULARITY
    try:
        with mmap.mmap(descriptor, before + content.nbytes, offset=start - before) as pages:
            # Finds space for all pages now, or says that there is none; copying would end the
            # process for it.
            pages.madvise(MADV_POPULATE_WRITE)
            pages[before:] = content.data.cast("B")
    except OSError:
        return False
    return True


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
    except DAMAGED_ARCHIVE as error:
        raise InputError(
            f"{path} is damaged or not written by {made_by} ({error}); run {made_by} again"
        ) from error
    return {key: value.item() if value.ndim == 0 else value for key, value in found.items()}


# --- CSV -----------------------------------------------------------------------------------------


def csv_text(columns: list[str], rows: list, delimiter: str = ",") -> str:
    """Return a header and rows as the text of a CSV file; a tab-separated one has no quotes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n", **_quoting(delimiter))
    writer.writerows([columns, *rows])
    return buffer.getvalue()


def _quoting(delimiter: str) -> dict:
    """Tab-separated files are the original's, which knows no quotes; names hold no tabs."""
    return {"quoting": csv.QUOTE_NONE, "quotechar": None} if delimiter == "\t" else {}


def read_table(
    path: str, delimiter: str, made_by: str
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Read a CSV file.

    Returns:
      The header, and pairs of ("FILE row 3", for messages; the fields of the row). The header is
      row 1.
    Raises:
      InputError: no such file, no UTF-8, no header, a row with another number of fields.
    """
    require_file(path, made_by)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, delimiter=delimiter, **_quoting(delimiter)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is not a UTF-8 CSV file ({error}); run {made_by} again"
        ) from error
    if not lines:
        raise InputError(f"{path} is empty; run {made_by} again")

    header, *others = lines
    numbered = enumerate(others, start=2)
    rows = [(f"{path} row {number}", fields) for number, fields in numbered if fields]
    for where, fields in rows:
        if len(fields) != len(header):
            raise InputError(
                f"{where}: expected {len(header)} fields, found {len(fields)}; "
                f"fix or remove the row"
            )
    return header, rows


def parse_number(field: str, where: str) -> float:
    """Read a number from a field of a CSV file; `where` names the row for the message."""
    try:
        return float(field)
    except ValueError as error:
        raise InputError(
            f"{where}: expected a number, found {field!r}; fix the row or make the file again"
        ) from error
