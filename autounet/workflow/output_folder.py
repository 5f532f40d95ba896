"""The output folder: one that nothing of the user's can be lost in, and one command at a time in it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from ..schema.dataset import Dataset
from ..schema.errors import OptionError, RecordError


def require_output_folder(out: Path, data: Path) -> None:
    """Make the folder. Raises OptionError for a file, for the data folder, and for one with another dataset.json."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file. Give a folder")
    if out.resolve() == data.expanduser().resolve():
        raise OptionError(f"--out {out} is the data folder itself. Give another, for example {out / 'autounet'}")
    if not (out / "options.json").exists() and _is_foreign(out / "dataset.json"):
        raise OptionError(f"--out {out} holds a dataset.json that is not AutoUNet's. Give a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)


def _is_foreign(file: Path) -> bool:
    try:
        Dataset.load(file)
    except RecordError:
        return file.exists()
    return False


LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One command at a time works in an output folder. Raises OptionError while another does, or where no locks are."""
    with open(folder / LOCK, "a", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such lock on this system
            pass
        except BlockingIOError:
            raise OptionError(f"another autounet is working in {folder}. Wait for it, or give another --out") from None
        except OSError as error:
            raise OptionError(
                f"{folder} lies on a file system without locks ({error.strerror}). Give an --out on another one"
            ) from None
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()}\n")
        file.flush()
        yield


class Owner(NamedTuple):
    """Who works in an output folder."""

    state: Literal["working", "gone", "elsewhere"]
    """elsewhere: the last command was given on another machine, or locks are unknown here"""
    process: int | None = None
    """its number, while it works on this machine"""


def owner(folder: Path) -> Owner:
    """Of the command that was given last in an output folder."""
    try:
        import fcntl

        with open(folder / LOCK, encoding="utf-8") as file:
            words = file.read().split()
            if len(words) == 2 and words[0] != socket.gethostname():
                return Owner("elsewhere")
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return Owner("working", int(words[1]) if len(words) == 2 and words[1].isdigit() else None)
    except ImportError:
        return Owner("elsewhere")
    except OSError:
        pass
    return Owner("gone")
