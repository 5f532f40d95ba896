"""Reading a table of cases from CSV, TSV or JSON; what its columns mean says `table`."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from autounet.datasets.layouts.folders import TABLES
from autounet.images import is_series, suffix
from autounet.schema.errors import DataError

CASE, LABEL, GROUP, FOLD, ANNOTATED = KNOWN = ("case", "label", "group", "fold", "annotated")
"""columns with a meaning of their own"""
_NOT_TABLES = ("participants.tsv", "sessions.tsv", "scans.tsv", "dataset_description.json", "palette.json")
_LARGEST = 1 << 26
"""bytes; a larger CSV or JSON file beside the images is no list of cases"""


class Table(NamedTuple):
    path: Path
    columns: list[str]
    rows: list[dict[str, str]]

    @property
    def image_columns(self) -> list[str]:
        """Columns that name images, by an image's ending or an existing DICOM series."""
        others = [column for column in self.columns if column not in KNOWN]
        return [column for column in others if any(_names_image(self.path.parent, row[column]) for row in self.rows)]


def _names_image(folder: Path, entry: str) -> bool:
    return bool(entry) and (bool(suffix(entry)) or is_series(folder / entry))


def find_table(data: Path) -> Table | None:
    """The table that `data` is, or the one in that folder. Raises DataError for a bad table, or several."""
    if data.is_file():
        table = read_table(data)
        if table is None:
            raise DataError(
                f"{data} is no table of cases: it has no column `case` beside others. Write one row per case"
            )
        return table
    files = [
        path
        for path in sorted(data.iterdir())
        if path.suffix.lower() in TABLES
        and path.name not in _NOT_TABLES
        and path.is_file()
        and path.stat().st_size < _LARGEST
    ]
    found = [table for path in files if (table := read_table(path)) is not None]
    if len(found) > 1:
        names = ", ".join(table.path.name for table in found)
        raise DataError(
            f"several files of {data} list cases; candidates: {names}. Give one of them in place of the folder"
        )
    return found[0] if found else None


def read_table(path: Path) -> Table | None:
    """None for a file that lists no cases. Raises DataError for one that does, wrongly."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    rows = _from_json(path, text) if path.suffix.lower() == ".json" else _from_csv(path, text)
    if not rows:
        return None
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if CASE not in columns or len(columns) < 2:
        return None
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    blank = [number for number, row in enumerate(rows, 1) if not row[CASE]]
    if blank:
        raise DataError(f"{path}: row {blank[0]} has no case. Name it")
    twice = [name for name, count in Counter(row[CASE] for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"{path} lists {', '.join(twice[:5])} more than once. Write one row per case")
    return Table(path, columns, rows)


def _from_csv(path: Path, text: str) -> list[dict[str, str]]:
    """The separator is the one of , tab and ; that the first line has most of."""
    head = text.partition("\n")[0]
    separator = max(",\t;", key=head.count)
    lines = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(cell.strip() for cell in row)]
    columns = [name.strip().lower() if name.strip().lower() in KNOWN else name.strip() for name in (lines or [[]])[0]]
    if CASE not in columns:
        return []
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} has two columns of one name. Give each its own")
    for number, row in enumerate(lines[1:], 2):
        if len(row) > len(columns):
            raise DataError(f"{path}: line {number} has {len(row)} entries for {len(columns)} columns. Correct it")
    return [dict(zip(columns, (cell.strip() for cell in row), strict=False)) for row in lines[1:]]


def _from_json(path: Path, text: str) -> list[dict[str, str]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        if '"case"' in text:
            raise DataError(f"{path} is not readable JSON: {error}. Correct it") from None
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
        raise DataError(f"{path} holds {value!r} where a name, a number or a path is expected. Correct it")
    return "" if value is None else str(value).strip()
