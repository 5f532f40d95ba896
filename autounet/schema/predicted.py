"""What `predict` and `ensemble` have written into a folder: it may be replaced, and is no image to predict.

OUT/.predicted/<case>.json    what was written for the case, by which model and options, from which files
OUT/.predicted/<case>.claim   while a process works on it: who, and what it may write
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import OptionError, RecordError
from .record import Part, Record

RECORDS = ".predicted"


class PredictedFile(Part):
    """A file that was written for a case."""

    name: str
    """relative to the output folder"""
    bytes: int


class PredictedCase(Record):
    """`OUT/.predicted/<case>.json`, written after all files of the case."""

    key: str
    """of the model, the options and the image files, see `prediction/work_queue.py`"""
    run: str
    """identifies the command that predicted it; several processes of one command share it"""
    files: tuple[PredictedFile, ...] = ()
    earlier: tuple[str, ...] = ()
    """names of files that earlier commands wrote for the case, such as maps, or that were begun"""
    problem: str | None = None
    """why it could not be predicted; the processes of the same command skip it, a later command tries again"""


def record_of(out: Path, case: str) -> Path:
    return out / RECORDS / f"{case}.json"


def recorded_names(out: Path, case: str) -> frozenset[str] | None:
    """Names that a case's record says were written, relative to `out`; None where the record is damaged."""
    file = record_of(out, case)
    if not file.exists():
        return frozenset()
    try:
        record = PredictedCase.load(file)
    except RecordError:
        return None
    return frozenset((*(each.name for each in record.files), *record.earlier))


def written_names(out: Path, case: str) -> frozenset[str]:
    """Names that were written for a case, or begun, as far as its record and its claim say."""
    return (recorded_names(out, case) or frozenset()) | _claimed_names(out, case)


def is_written(out: Path, case: str, name: str) -> bool:
    """Whether AutoUNet wrote the file of this name for the case, or is writing it.

    A damaged record vouches for all files of its case. The record is read before the claim and after it: whoever
    predicts a case again claims it, removes the record, writes another, and gives the claim back, in this order.
    """
    for look in (recorded_names, _claimed_names, recorded_names):
        names = look(out, case)
        if names is None or name in names:
            return True
    return False


def _claimed_names(out: Path, case: str) -> frozenset[str]:
    with suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):  # released, or being written
        return frozenset(json.loads((out / RECORDS / f"{case}.claim").read_text(encoding="utf-8")).get("files", ()))
    return frozenset()


def is_result(file: Path) -> bool:
    """Whether AutoUNet wrote this file into its folder: `<case>.<ext>`, or a map `<case>.<what it is>.<ext>`."""
    if not (file.parent / RECORDS).is_dir():
        return False
    parts = file.name.split(".")
    cases = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return any(is_written(file.parent, case, file.name) for case in cases)


def require_replaceable(
    out: Path, may_write: Mapping[str, Iterable[Path]], others: Iterable[Path], remedy: str
) -> None:
    """Raises OptionError for files that AutoUNet did not write and that would be replaced, before any is.

    `may_write` is what may be written, by case; `others` is there and known not to be AutoUNet's.
    """
    foreign = [*others]
    for case, paths in may_write.items():
        there = [path for path in paths if os.path.lexists(path)]
        foreign += [path for path in there if not is_written(out, case, path.relative_to(out).as_posix())]
    if foreign:
        shown = ", ".join(str(path) for path in foreign[:3])
        more = f" and {len(foreign) - 3} more" if foreign[3:] else ""
        it = "them" if foreign[1:] else "it"
        raise OptionError(f"{shown}{more} would be replaced, and AutoUNet did not write {it}", remedy)
