"""What is done: a stage's result counts where its done file holds the key of its inputs and all of its files are there.

This is the only place that decides it. The key is that of a record of `schema/stage_inputs.py`; the done file is
written last, so that an interrupted stage is not done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..schema.errors import RecordError
from ..schema.metrics import CaseMetrics
from ..schema.record import Record, write_text


def is_done(done: Path, key: str, writes: Iterable[Path] = ()) -> bool:
    return stored_key(done) == key and all(path.exists() for path in writes)


def mark_done(done: Path, key: str) -> None:
    write_text(done, json.dumps({"key": key}) + "\n")


def forget(done: Path) -> None:
    """To be called before the work: until `mark_done` the stage is not done."""
    done.unlink(missing_ok=True)


def stored_key(done: Path) -> str | None:
    """None where the done file is absent or damaged."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
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
