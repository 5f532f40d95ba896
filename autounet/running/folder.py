"""The output folder: one that nothing of the user's can be lost in, and one command at a time in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autounet.schema.dataset import Dataset
from autounet.schema.errors import OptionError, RecordError


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One command at a time works in an output folder. Raises OptionError while another does."""
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such lock on this system
            pass
        except OSError:
            raise OptionError(f"another autounet is working in {folder}. Wait for it, or give another --out") from None
        yield
