"""The errors that we foresee: something about the user's files, flags or disk.

A command turns these, and only these, into one line and exit status 2. Any other exception is a
bug and keeps its traceback.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator


class InputError(ValueError):
    """Something that the user gave is not as expected; the message says what to do next."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that a step needs is not there."""


# What a disk or a file system may report to a correct program.
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and run this step again",
    errno.EDQUOT: "the disk quota is used up; free some space and run this step again",
    errno.EFBIG: "it would be larger than the file system allows; take less data or another disk",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission; choose another folder or change the permissions",
    errno.EPERM: "no permission; choose another folder or change the permissions",
    errno.ENAMETOOLONG: "the name is too long for the file system; "
    "shorten the names of speech and noise",
    errno.ENOTDIR: "a file is where a folder must be; move it away",
    errno.EEXIST: "a file is where a folder must be; move it away",
    errno.EISDIR: "a folder is where the file must be; move it away",
}


@contextlib.contextmanager
def foreseen_disk_errors(path: str) -> Iterator[None]:
    """Turn what a disk may report while a block writes `path` into an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        advice = _DISK_ERRORS[error.errno]
        raise InputError(f"{path} cannot be written: {advice}") from error


def foreseen_machine_error(error: OSError) -> InputError | None:
    """Return what an OSError outside our own files means for the user, or None if it may be a bug.

    Libraries write temporary files: their disk may be full, or no folder may be there for them.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or f"a temporary file, perhaps in {_temporary_folder()},"
        return InputError(
            f"{place} cannot be written: {_DISK_ERRORS[error.errno]}, "
            f"or set TMPDIR to another folder"
        )
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename is not None:
        return InputError(f"{error.filename}: no permission; change its permissions")
    if error.errno == errno.ENOENT and error.filename is None and _temporary_folder() is None:
        return InputError(
            "expected a folder for temporary files, found none that can be written; "
            "set TMPDIR to one"
        )
    return None


def _temporary_folder() -> str | None:
    """Return the folder of temporary files, None where no folder serves."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return None


def require_dir(path: str, what: str) -> None:
    """Raise MissingFileError unless `path` is a folder; `what` says what should be in it."""
    if not os.path.isdir(path):
        found = "is a file" if os.path.exists(path) else "does not exist"
        raise MissingFileError(f"{path} {found}; expected a folder with {what}")


def require_file(path: str, made_by: str) -> None:
    """Raise InputError unless a file can be read; `made_by` names the step that makes it."""
    if not os.path.isfile(path):
        raise MissingFileError(f"{path} is missing; run {made_by} first")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: no permission; change its permissions")
