"""One command at a time works in an output folder: its lock, which the system frees when its process ends."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from ..schema.errors import OptionError
from ..schema.record import require_no_links, write_text
from .run_folder import RunFolder

log = logging.getLogger(__name__)

LOCK_WAIT_SECONDS = 1.0
"""`autounet status` holds the lock for an instant, to see whether it is free"""


NO_NEW_FILES = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC)
"""why nothing can be written into a folder, with or without locks"""


@contextmanager
def locked(folder: Path, place: Path | None = None) -> Iterator[bool]:
    """One command at a time works in an output folder. Raises OptionError while another does, or where no locks are.

    Gives whether the last one was ended from outside, on this machine. `place` is a folder of our own in it that the
    lock lies in, where others may own the folder itself: of `predict`, which needs a lock less than it needs to go on,
    so that a file system without locks is a warning there.
    """
    from filelock import FileLock, Timeout

    own = RunFolder(place or folder)
    require_no_links(folder, [own.lock / "itself"])
    own.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(own.lock, timeout=LOCK_WAIT_SECONDS, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        holder = _holder(own)
        who = f" (process {holder[1]} on {holder[0]})" if holder else ""
        raise OptionError(
            f"another autounet is working in {folder}{who}", "Wait for it, or give another --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno in NO_NEW_FILES:
            raise
        what = f"{folder} lies on a file system without locks ({error})"
        if place is None:
            raise OptionError(what, "Give an --out on another one") from None
        log.warning("%s: make sure that no other command writes into it at the same time", what)
    holder_file, last = own.lock_holder, _holder(own)
    try:
        write_text(holder_file, f"{socket.gethostname()} {os.getpid()}\n")
        yield last is not None and last[0] == socket.gethostname()
        holder_file.unlink(missing_ok=True)
    except Exception:  # an end of its own; what ends the process from outside leaves the file
        with suppress(OSError):  # a file system that has become read-only: what was raised first says more
            holder_file.unlink(missing_ok=True)
        raise
    finally:
        lock.release()


class Owner(NamedTuple):
    """Who works in an output folder."""

    state: Literal["working", "gone", "elsewhere"]
    """elsewhere: the last command was given on another machine, or the lock cannot be looked at from here"""
    process: int | None = None
    """its number, while it works on this machine"""


def owner(folder: Path) -> Owner:
    """The command that was given last in an output folder."""
    from filelock import FileLock, Timeout

    holder = _holder(RunFolder(folder))
    if holder and holder[0] != socket.gethostname():
        return Owner("elsewhere")
    if not RunFolder(folder).lock.exists():
        return Owner("gone")
    try:
        with FileLock(RunFolder(folder).lock, timeout=0, fallback_to_soft=False):
            return Owner("gone")
    except Timeout:
        return Owner("working", holder[1] if holder else None)
    except (OSError, NotImplementedError):
        return Owner("elsewhere")


def _holder(folder: RunFolder) -> tuple[str, int] | None:
    """Host and process of the command that was given last; None where that is unknown."""
    try:
        host, process = folder.lock_holder.read_text(encoding="utf-8").split()
        return host, int(process)
    except (OSError, ValueError):
        return None
