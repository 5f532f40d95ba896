"""A table of the cases, as CSV, TSV or JSON: `case`, one column per channel, `label`, `group`, `fold`, `annotated`.

Paths are relative to the table's folder. JSON is a list of objects with these keys, or {"cases": [...]}, which may
be part of a dataset.json. A table without columns of images adds group, fold, annotated classes or labels to the
cases that another layout finds."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...imageio import is_container, is_series, is_zarr, split_address, suffix
from ...schema.dataset import Case, Finding, Severity
from ...schema.errors import DataError
from ...schema.options import DataOptions
from .detected_layout import DetectedLayout, case_of, override_labels, parse_labels, read_description, with_channels
from .files import (
    LARGEST_TABLE,
    NO_UNICODE,
    SAVE_AS_UTF8,
    TABLES,
    is_there,
    readable_text,
    unicode_text,
)

CASE, LABEL, GROUP, FOLD, ANNOTATED = KNOWN = ("case", "label", "group", "fold", "annotated")
"""columns with a meaning of their own"""
USUAL_NAME = "cases"
_NOT_TABLES = ("participants.tsv", "sessions.tsv", "scans.tsv", "dataset_description.json", "palette.json")


class DatasetTable(NamedTuple):
    path: Path
    columns: list[str]
    rows: list[dict[str, str]]

    @property
    def image_columns(self) -> list[str]:
        """Columns that name images, by an image's ending or an existing DICOM series."""
        others = [column for column in self.columns if column not in KNOWN]
        return [column for column in others if any(_names_image(self.path.parent, row[column]) for row in self.rows)]


def _names_image(folder: Path, entry: str) -> bool:
    return bool(entry) and (bool(suffix(entry)) or is_series(folder / entry) or is_zarr(folder / entry))


def find_table(data: Path) -> DatasetTable | None:
    """The table that `data` is, or the one in that folder. Raises DataError for a bad table, or several."""
    if data.is_file():
        table = read_table(data)
        if table is None:
            raise DataError(
                f"{data} is not a table of cases: it needs a column `case` and others", "Write one row per case"
            )
        return table
    found = [table for path in _possible_tables(data) if (table := read_table(path)) is not None]
    if len(found) > 1:
        names = ", ".join(table.path.name for table in found)
        raise DataError(
            f"several files of {data} list cases; candidates: {names}", "Give one of them in place of the folder"
        )
    return found[0] if found else None


def _possible_tables(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in TABLES
        and path.name not in _NOT_TABLES
        and path.is_file()
        and path.stat().st_size < LARGEST_TABLE
    ]


def passed_over(data: Path) -> list[Finding]:
    """Files beside the data that name cases, and are no table that can be read since they are no Unicode (warnings)."""
    found = []
    for path in [] if data.is_file() else _possible_tables(data):
        text, is_unicode = readable_text(path)
        if not is_unicode and any(f"{mark}{CASE}{mark}" in text for mark in '",;\t'):
            message, remedy = f"{path.name} {NO_UNICODE} and is passed over", f"If it lists cases: {SAVE_AS_UTF8}"
            found.append(Finding(code="unused-entries", severity=Severity.warning, message=message, remedy=remedy))
    return found


def read_table(path: Path) -> DatasetTable | None:
    """None for a file that lists no cases. Raises DataError for one that does, wrongly or in no Unicode.

    Other programs write tables and JSON, too, in any encoding: theirs have no column `case`, or none besides that names
    images or has a meaning here, and another name than cases.csv, cases.tsv or cases.json.
    """
    is_unicode = True
    try:
        text, is_unicode = readable_text(path)
        rows = _from_json(path, text) if path.suffix.lower() == ".json" else _from_csv(path, text)
    except DataError:
        if is_unicode:
            raise
        rows = []
    except (OSError, RecursionError, csv.Error):
        rows = []
    if not is_unicode and (rows or path.stem.lower() == USUAL_NAME):
        raise DataError(f"{path} lists cases and {NO_UNICODE}", SAVE_AS_UTF8)
    if not rows:
        return None
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if CASE not in columns or not _is_ours(path, columns, rows):
        return None
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    blank = [number for number, row in enumerate(rows, 1) if not row[CASE]]
    if blank:
        raise DataError(f"{path}: row {blank[0]} names no case", "Fill the column `case`")
    twice = [name for name, count in Counter(row[CASE] for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"{path} lists {', '.join(twice[:5])} more than once", "Write one row per case")
    return DatasetTable(path, columns, rows)


def _is_ours(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> bool:
    """Whether a table with a column `case` says anything about cases."""
    others = [column for column in columns if column != CASE]
    if not {GROUP, FOLD, ANNOTATED}.isdisjoint(others):
        return True
    return any(_names_image(path.parent, row.get(column, "")) for column in others for row in rows)


def _from_csv(path: Path, text: str) -> list[dict[str, str]]:
    """The separator is the one of , tab and ; that the first line has most of."""
    head = text.partition("\n")[0]
    separator = max(",\t;", key=head.count)
    lines = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(cell.strip() for cell in row)]
    columns = [name.strip().lower() if name.strip().lower() in KNOWN else name.strip() for name in (lines or [[]])[0]]
    if CASE not in columns:
        return []
    rows = [dict(zip(columns, (cell.strip() for cell in row), strict=False)) for row in lines[1:]]
    if not _is_ours(path, columns, rows):
        return []
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} has two columns of the same name", "Give each its own name")
    for number, row in enumerate(lines[1:], 2):
        if len(row) > len(columns):
            raise DataError(f"{path}: line {number} has {len(row)} entries for {len(columns)} columns", "Correct it")
    return rows


def _from_json(path: Path, text: str) -> list[dict[str, str]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        if '"case"' in text:
            raise DataError(f"{path} is not readable JSON: {error}", "Correct it") from None
        return []
    entries = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and CASE in entry for entry in entries):
        return []
    if any(isinstance(value, dict) for entry in entries for value in entry.values()):  # results, for example
        return []
    return [{str(key): _cell(path, value) for key, value in entry.items()} for entry in entries]


def _cell(path: Path, value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, (str, int)) for each in value):
        return ";".join(str(each) for each in value)
    if isinstance(value, dict | list | bool):
        raise DataError(f"{path} holds {value!r} where a name, a number or a path is expected", "Correct it")
    return "" if value is None else str(value).strip()


def detect(data: Path, options: DataOptions) -> bool:
    """A table that names images; `--channel` patterns win over it."""
    if options.channels:
        return False
    table = find_table(data)
    return table is not None and bool(table.image_columns)


def find(data: Path, options: DataOptions) -> DetectedLayout:
    """Cases and channels of a table that names images. Every file must be there; an empty entry says that a case lacks
    a channel."""
    table = find_table(data)
    assert table is not None
    root, channels = table.path.parent, table.image_columns
    cases, findings = [], []
    for row in table.rows:
        images = [root / row[channel] for channel in channels if row[channel]]
        label = root / row[LABEL] if row.get(LABEL) and not options.label else None
        findings += _missing_files(row, channels, label, root, bool(options.label))
        cases.append(case_of(root, row[CASE], images, label))
    if options.label:
        cases, unmatched = override_labels(root, cases, options.label)
        findings += unmatched
    present = {row[CASE]: [index for index, channel in enumerate(channels) if row[channel]] for row in table.rows}
    cases = [with_channels(case, present[case.identifier], len(channels)) for case in cases]
    description = _description(table.path)
    labels = parse_labels(description.get("labels", {}))
    example, address = split_address(next(iter(cases[0].images), ""))
    return DetectedLayout(
        cases=cases,
        image_pattern=f"{example.parent.as_posix()}/*{suffix(example)}{address and '/'}{address}",
        channels=channels,
        labels=labels,
        labels_declared=labels.complete,
        findings=findings,
    )


def _description(path: Path) -> dict[str, Any]:
    """dataset.json beside the table, joined with the entries of a JSON table other than its cases."""
    own = json.loads(unicode_text(path)) if path.suffix.lower() == ".json" else {}
    return read_description(path.parent) | (own if isinstance(own, dict) else {})


def _missing_files(
    row: dict[str, str], channels: Sequence[str], label: Path | None, root: Path, other: bool
) -> list[Finding]:
    """Entries that name nothing, cases without any image; `other`: labels come from elsewhere."""
    findings = []
    for channel in channels:
        if row[channel] and not is_there(root / row[channel]):
            message = f"the table names {row[channel]}, which does not exist, for channel {channel}"
            remedy = "Correct the path, leave the entry empty if there is no file, or remove the row"
            findings.append(Finding(case=row[CASE], code="missing-image", message=message, remedy=remedy))
    if not any(row[channel] for channel in channels):
        message, remedy = "the table names no image for it", "Name its files, or remove its row"
        findings.append(Finding(case=row[CASE], code="missing-image", message=message, remedy=remedy))
    if not other and (label is None or not _is_label(label)):
        entry = f"{row[LABEL]}, which does not exist," if row.get(LABEL) else "nothing"
        message, remedy = f"the table names {entry} as its label", "Name its label file, or remove its row"
        findings.append(Finding(case=row[CASE], code="missing-label", message=message, remedy=remedy))
    return findings


def _is_label(path: Path) -> bool:
    return is_there(path) and (path.is_file() or is_container(path))


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
                message = f"{table.path.name} lists it, but there is no such case (cases: {shown}, ...)"
                remedy = "Correct the name, or remove its row"
                findings.append(Finding(case=name, code="unknown-case", message=message, remedy=remedy))
    without = [
        case.identifier for case in cases if FOLD in table.columns and not rows.get(case.identifier, {}).get(FOLD)
    ]
    if len(without) < len(cases):
        message, remedy = f"{table.path.name} gives it no fold", "Give one to every case, or to none"
        findings += [Finding(case=name, code="splits", message=message, remedy=remedy) for name in without]
    supplemented = [_supplemented(case, rows.get(case.identifier, {}), table, findings) for case in cases]
    return supplemented, findings


def _supplemented(case: Case, row: dict[str, str], table: DatasetTable, findings: list[Finding]) -> Case:
    changes: dict[str, Any] = {key: row[key] for key in (GROUP, FOLD) if row.get(key)}
    if row.get(LABEL) and not table.image_columns:
        if _is_label(table.path.parent / row[LABEL]):
            changes["label"] = row[LABEL]
        else:
            message = f"{table.path.name} names {row[LABEL]}, which does not exist, as its label"
            remedy = "Name its label file, or leave the entry empty"
            findings.append(Finding(case=case.identifier, code="layout", message=message, remedy=remedy))
    return case.model_copy(update=changes)


def table_folds(cases: Sequence[Case], source: str = "the table") -> tuple[tuple[str, ...], ...] | None:
    """The validation cases of each fold that a table or list gives, folds in the order of their names, if any.

    `source` gives them. Raises DataError for a single fold, or for a group in two of them.
    """
    names = sorted({case.fold for case in cases if case.fold is not None}, key=lambda name: (len(name), name))
    if not names:
        return None
    if len(names) < 2:
        raise DataError(f"{source} puts every case into fold {names[0]}", "Give at least two folds, or leave them out")
    owner: dict[str, str] = {}
    for case in cases:
        group, fold = case.group or case.identifier, str(case.fold)
        if owner.setdefault(group, fold) != fold:
            raise DataError(
                f"{source} puts group {group} into folds {owner[group]} and {fold}",
                "Put all cases of a group into one fold",
            )
    return tuple(tuple(sorted(case.identifier for case in cases if case.fold == name)) for name in names)
