"""A table of the cases, as CSV, TSV or JSON: `case`, one column per channel, `label`, `group`, `fold`, `annotated`.

Paths are relative to the table's folder. JSON is a list of objects with these keys, or {"cases": [...]}, which may
be part of a dataset.json. A table without columns of images adds group, fold, annotated classes or labels to the
cases that another layout finds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from autounet.datasets.labels import parse_labels
from autounet.datasets.layouts.found import Found, case_of, override_labels, read_description
from autounet.datasets.layouts.presence import with_channels
from autounet.datasets.layouts.table_file import CASE, FOLD, GROUP, LABEL, Table, find_table
from autounet.images import suffix
from autounet.schema.dataset import Case, Finding
from autounet.schema.errors import DataError
from autounet.schema.options import DataOptions


def detect(data: Path, options: DataOptions) -> bool:
    """A table that names images; `--channel` patterns win over it."""
    if options.channels:
        return False
    table = find_table(data)
    return table is not None and bool(table.image_columns)


def find(data: Path, options: DataOptions) -> Found:
    """Cases and channels of a table that names images. Every file must be there; an empty entry says that a case lacks
    a channel."""
    table = find_table(data)
    assert table is not None
    root, channels = table.path.parent, table.image_columns
    cases, findings = [], []
    for row in table.rows:
        images = [root / row[channel] for channel in channels if row[channel]]
        label = root / row[LABEL] if row.get(LABEL) and not options.label else None
        findings += _missing(row, channels, label, root, bool(options.label))
        cases.append(case_of(root, row[CASE], images, label))
    if options.label:
        cases, unmatched = override_labels(root, cases, options.label)
        findings += unmatched
    present = {row[CASE]: [index for index, channel in enumerate(channels) if row[channel]] for row in table.rows}
    cases = [with_channels(case, present[case.identifier], len(channels)) for case in cases]
    description = _description(table.path)
    classes, regions, ignore = parse_labels(description.get("labels", {}))
    example = next(iter(cases[0].images), "")
    return Found(
        cases=cases,
        image_pattern=f"{Path(example).parent.as_posix()}/*{suffix(example)}",
        channels=channels,
        classes=classes,
        regions=regions,
        ignore=ignore,
        labels_declared=bool(classes or regions),
        findings=findings,
    )


def _description(path: Path) -> dict[str, Any]:
    """dataset.json beside the table, joined with what a JSON table says besides its cases."""
    own = json.loads(path.read_text(encoding="utf-8-sig")) if path.suffix.lower() == ".json" else {}
    return read_description(path.parent) | (own if isinstance(own, dict) else {})


def _missing(
    row: dict[str, str], channels: Sequence[str], label: Path | None, root: Path, other: bool
) -> list[Finding]:
    """Entries that name nothing, cases without any image; `other`: labels come from elsewhere."""
    findings = []
    for channel in channels:
        if row[channel] and not (root / row[channel]).exists():
            message = f"the table names {row[channel]}, which does not exist, for channel {channel}"
            remedy = "Name the file, leave the entry empty if there is none, or take the case out"
            findings.append(Finding(case=row[CASE], code="missing-image", message=message, remedy=remedy))
    if not any(row[channel] for channel in channels):
        message, remedy = "the table names no image for it", "Name its files, or take the case out"
        findings.append(Finding(case=row[CASE], code="missing-image", message=message, remedy=remedy))
    if not other and (label is None or not label.is_file()):
        entry = f"{row[LABEL]}, which does not exist," if row.get(LABEL) else "nothing"
        message, remedy = f"the table names {entry} as its label", "Name its label file, or take the case out"
        findings.append(Finding(case=row[CASE], code="missing-label", message=message, remedy=remedy))
    return findings


def supplement(data: Path, cases: list[Case], known: Collection[str]) -> tuple[list[Case], list[Finding]]:
    """Cases with the group, fold and, where it names no images, the label that a table gives them.

    Findings: cases that are not among those `known`, which may be more than `cases`; labels that are not there; cases
    without a fold where others have one.
    """
    table = find_table(data)
    if table is None:
        return cases, []
    rows = {row[CASE]: row for row in table.rows}
    findings = []
    if not table.image_columns:
        shown = ", ".join(sorted(known)[:3])
        for name in rows:
            if name not in known:
                message = f"{table.path.name} lists it, and there is no such case (cases: {shown}, ...)"
                remedy = "Correct the name, or take its row out"
                findings.append(Finding(case=name, code="unknown-case", message=message, remedy=remedy))
    without = [
        case.identifier for case in cases if FOLD in table.columns and not rows.get(case.identifier, {}).get(FOLD)
    ]
    if len(without) < len(cases):
        message, remedy = f"{table.path.name} gives it no fold", "Give one to every case, or to none"
        findings += [Finding(case=name, code="splits", message=message, remedy=remedy) for name in without]
    supplemented = [_supplemented(case, rows.get(case.identifier, {}), table, findings) for case in cases]
    return supplemented, findings


def _supplemented(case: Case, row: dict[str, str], table: Table, findings: list[Finding]) -> Case:
    changes: dict[str, Any] = {key: row[key] for key in (GROUP, FOLD) if row.get(key)}
    if row.get(LABEL) and not table.image_columns:
        if (table.path.parent / row[LABEL]).is_file():
            changes["label"] = row[LABEL]
        else:
            message = f"{table.path.name} names {row[LABEL]}, which does not exist, as its label"
            remedy = "Name its label file, or take the entry out"
            findings.append(Finding(case=case.identifier, code="layout", message=message, remedy=remedy))
    return case.model_copy(update=changes)


def table_folds(cases: Sequence[Case]) -> tuple[tuple[str, ...], ...] | None:
    """The validation cases of each fold that a table gives, folds in the order of their names; None without any.

    Raises DataError for a single fold, or for a group in two of them.
    """
    names = sorted({case.fold for case in cases if case.fold is not None}, key=lambda name: (len(name), name))
    if not names:
        return None
    if len(names) < 2:
        raise DataError(f"the table puts every case into fold {names[0]}. Give at least two folds, or leave them out")
    owner: dict[str, str] = {}
    for case in cases:
        group, fold = case.group or case.identifier, str(case.fold)
        if owner.setdefault(group, fold) != fold:
            raise DataError(f"the table puts group {group} into folds {owner[group]} and {fold}. Keep it together")
    return tuple(tuple(sorted(case.identifier for case in cases if case.fold == name)) for name in names)
