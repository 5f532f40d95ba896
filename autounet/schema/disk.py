"""Errors of the disk and of file systems, as a person reads them: what failed with which path, why, and what helps."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

LITTLE_SPACE = 1 << 16
"""bytes left on a disk on which writing failed without a reason, up to which it counts as full"""
_FREE_SPACE = "Free space there, or give another --out; then give the same command again"
_RIGHTS = "Correct the rights of this path, or give a path that you have the rights to"
_AGAIN = "Check the disk, or the connection to it; then give the same command again"
_CHECK = "Check the path, the rights and the space on the disk"
_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EEXIST, errno.ENOTEMPTY})
"""which reading never gives"""
REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: f"Your share of the disk is used up. {_FREE_SPACE}",
    errno.EFBIG: f"The file system allows no file of this size, or a limit is set (ulimit -f). {_FREE_SPACE}",
    errno.EROFS: "Give another --out, or make the file system writable",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: _AGAIN,
    errno.ESTALE: _AGAIN,
    errno.ENOTCONN: _AGAIN,
    errno.ETIMEDOUT: _AGAIN,
    errno.EMFILE: "Allow more open files, for example with: ulimit -n 4096",
    errno.ENFILE: "Allow more open files, for example with: ulimit -n 4096",
    errno.ENAMETOOLONG: "Give shorter names",
    errno.ENOENT: "Check that it is there, and that nothing removes it meanwhile",
}


TEMPORARY = re.compile(r"\.(?P<known>.+)\.[0-9a-f]{8}\.(?P<process>\d+)(\.\D.*)?")
"""a name that `record.replacing`, `scratch_file` and `new_folder` give"""


def known_name(path: str) -> str:
    """A path with the names that are known to somebody in place of temporary ones."""
    return os.sep.join(match["known"] if (match := TEMPORARY.fullmatch(part)) else part for part in path.split(os.sep))


class WriteError(OSError):
    """A path that could not be written; `filename` is its name, and `strerror` the reason in the system's words."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


@contextmanager
def writing(path: Path, *temporary: Path) -> Iterator[None]:
    """Inside, only `path` is written, perhaps under a `temporary` name. Raises WriteError.

    The system names no file when a write fails that began well. Libraries may also give no reason. Errors that name
    another file, as one that is copied, stay as they are.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        own = {os.fspath(each) for each in (path, *temporary)}
        named = {os.fsdecode(each) for each in (error.filename, error.filename2) if isinstance(each, str | bytes)}
        if named and not named & own:
            raise
        code, reason = error.errno, error.strerror or str(error)
        if code is None and _is_full(path.parent):
            code, reason = errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({reason})"
        raise WriteError(code, reason, os.fspath(path)) from error


def _is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < LITTLE_SPACE
    return False


class DiskProblem(NamedTuple):
    """One line for a person, in two parts without a full stop at their ends."""

    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}"


def disk_problem(error: OSError) -> DiskProblem:
    """What is known of an error of the system: what was being done, the path, the reason and a remedy."""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, _CHECK)
    names = [os.fsdecode(each) for each in (error.filename, error.filename2) if isinstance(each, str | bytes | Path)]
    if not names:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f"Free space on the disk of --out and on that of {tempfile.gettempdir()}, or give another --out"
        return DiskProblem(reason, remedy)
    path = names[-1] if error.errno in _OF_WRITING else names[0]
    return DiskProblem(f"{known_name(path)} {_failed(error, path)}: {reason}", remedy)


def _failed(error: OSError, path: str) -> str:
    """What could not be done with the path, as far as that is known."""
    if isinstance(error, WriteError) or error.errno in _OF_WRITING:
        return "cannot be written"
    if error.errno in (errno.EACCES, errno.EPERM):
        if os.path.exists(path):
            return "cannot be written" if os.access(path, os.R_OK) else "cannot be read"
        return "cannot be written" if os.path.isdir(os.path.dirname(path) or ".") else "cannot be reached"
    return "cannot be read or written" if error.errno in (errno.EIO, errno.ESTALE) else "cannot be opened"
