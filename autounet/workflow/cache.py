"""What is done: a stage's result counts where its done file holds the key of its inputs and all of its files are there.

This is the only place that decides it. The key is that of a record of `schema/stage_inputs.py`; the done file is
written last, so that an interrupted stage is not done. It also holds checksums of the stage's files: a command first
looks for those that differ (`stages.forget_damaged`), and what can be derived is made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..schema.errors import RecordError
from ..schema.metrics import CaseMetrics
from ..schema.record import Record
from ..store.file_hashes import FileHashes


class DoneRecord(Record):
    """`done.json` of a stage."""

    SEALED: ClassVar[bool] = True

    key: str
    files: dict[str, str] = {}
    """what the stage wrote, relative to the done file's folder -> blake2b-128 of it, hex"""


def is_done(done: Path, key: str, writes: Iterable[Path] = ()) -> bool:
    return stored_key(done) == key and all(path.exists() for path in writes)


def mark_done(done: Path, key: str, written: Iterable[Path] = ()) -> None:
    """`written` are the files whose damage is to be noticed; those that are not there are left out."""
    hashes = FileHashes()
    found = {_name(path, done): hashes.of(path) for path in written}
    files = {name: checksum for name, checksum in found.items() if checksum is not None}
    DoneRecord(key=key, files=files).save(done)


class Damage(NamedTuple):
    changed: list[Path]
    missing: list[str]
    """names, relative to the done file's folder"""


def damage(done: Path, written: Iterable[Path], hashes: FileHashes) -> Damage:
    """Which of the files `written`, as they are there now, differ from what the done file holds.

    Its own names only say what is missing: they may be anything in an output folder from elsewhere.
    """
    record = _done_record(done)
    files = {} if record is None else record.files
    there = {_name(path, done): path for path in written if path.is_file()}
    changed = [path for name, path in there.items() if name in files and hashes.of(path) != files[name]]
    return Damage(changed, sorted(files.keys() - there.keys()))


def _name(path: Path, done: Path) -> str:
    return Path(os.path.relpath(path, done.parent)).as_posix()


def forget(done: Path) -> None:
    """To be called before the work: until `mark_done` the stage is not done."""
    done.unlink(missing_ok=True)


def stored_key(done: Path) -> str | None:
    """None where the done file is absent or damaged."""
    record = _done_record(done)
    return None if record is None else record.key


def _done_record(done: Path) -> DoneRecord | None:
    try:
        return DoneRecord.load(done)
    except RecordError:
        return None


def move_aside(folder: Path) -> Path | None:
    """Rename a folder to the first free `<name>.old_<n>`; None when there is nothing to move. Nothing is deleted."""
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.old_{number}")).exists():
        number += 1
    folder.rename(target)
    return target


class CaseResult(Record):
    """`crossval/<configuration>/cases/<case>.json`: done file and metrics of one case in one."""

    SEALED: ClassVar[bool] = True

    key: str
    metrics: CaseMetrics


def kept_results(
    keys: Mapping[str, str], file: Callable[[str], Path], writes: Callable[[str], Iterable[Path]]
) -> dict[str, CaseMetrics]:
    """The cases that need no work. `keys` are those of the cases wanted, `file(case)` holds a `CaseResult`."""
    kept = {}
    for case, key in keys.items():
        result = _result(file(case))
        if result is not None and result.key == key and all(path.exists() for path in writes(case)):
            kept[case] = result.metrics
    return kept


def keep_result(file: Path, key: str, metrics: CaseMetrics) -> None:
    CaseResult(key=key, metrics=metrics).save(file)


def result_key(file: Path) -> str | None:
    """The key of a `CaseResult`; None where there is none."""
    result = _result(file)
    return None if result is None else result.key


def _result(file: Path) -> CaseResult | None:
    try:
        return CaseResult.load(file)
    except RecordError:
        return None
