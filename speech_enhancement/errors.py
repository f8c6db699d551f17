"""The errors that we foresee: something about the user's files, flags or disk.

A command turns these, and only these, into one line and exit status 2. Any other exception is a
bug and keeps its traceback.
"""

import errno
import os


class InputError(ValueError):
    """Something that the user gave is not as expected; the message says what to do next."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that a step needs is not there."""


# What a disk or a file system may answer to a correct program.
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and run this step again",
    errno.EDQUOT: "the disk quota is used up; free some space and run this step again",
    errno.EFBIG: "it would be larger than the file system allows; take less data or another disk",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission; choose another folder or change the permissions",
    errno.EPERM: "no permission; choose another folder or change the permissions",
    errno.ENAMETOOLONG: "the name is too long for the file system; shorten the names of speech and noise",
    errno.ENOTDIR: "a file stands where a folder is needed; move it away",
    errno.EEXIST: "a file stands where a folder is needed; move it away",
    errno.EISDIR: "a folder stands where a file is to be written; move it away",
}


def foreseen_disk_error(error: OSError, path: str) -> InputError | None:
    """Return what an OSError while writing `path` means for the user, or None if it is no disk error."""
    advice = _DISK_ERRORS.get(error.errno)
    return None if advice is None else InputError(f"{path} cannot be written: {advice}")


def require_dir(path: str, what: str) -> None:
    """Raise MissingFileError unless `path` is a folder; `what` says what should be in it."""
    if not os.path.isdir(path):
        found = "is a file" if os.path.exists(path) else "does not exist"
        raise MissingFileError(f"{path} {found}; expected a folder with {what}")


def require_file(path: str, made_by: str) -> None:
    """Raise MissingFileError unless `path` is a file; `made_by` names the step that makes it."""
    if not os.path.isfile(path):
        raise MissingFileError(f"{path} is missing; run {made_by} first")
