"""The table of `plan --explain`, for terminals of every width and for files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from autounet.planning.explain import Row

TITLES = {
    "name": "",
    "patch": "patch",
    "batch": "batch",
    "stages": "stages",
    "features": "features",
    "spacing": "spacing mm",
    "memory": "memory",
    "step": "step",
    "length": "whole run",
}
"""field of `Row` -> heading; the rest are sentences below the table"""
UNKNOWN = "-"
WITHOUT_LIMIT = 10_000
"""characters, to measure a table that nothing narrows"""


def explanation(rows: Sequence[Row], width: int, budget: str) -> str:
    """Plain text of lines of at most `width` characters: a table, then what limits each configuration.

    A configuration has a row; where that does not fit into the width, a column; and where that does not either, a
    block of lines. `budget` is twice the memory, in words.
    """
    table = next((each for each in (_as_rows(rows), _as_columns(rows)) if _needed(each) <= width), None)
    lines = _rendered(table, width) if table is not None else _as_blocks(rows)
    for row in rows:
        lines += ["", *_wrapped(f"{row.name}: limited by {row.limited_by}", width)]
        lines += _wrapped(f"  with {budget}: {row.doubled}", width)
    return "\n".join(lines) + "\n"


def _as_rows(rows: Sequence[Row]) -> Table:
    table = _empty()
    for field, title in TITLES.items():
        table.add_column(title, justify="left" if field == "name" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[getattr(row, field) or UNKNOWN for field in TITLES])
    return table


def _as_columns(rows: Sequence[Row]) -> Table:
    table = _empty()
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right", no_wrap=True)
    for field, title in list(TITLES.items())[1:]:
        table.add_row(title, *[getattr(row, field) or UNKNOWN for row in rows])
    return table


def _as_blocks(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        lines.append(row.name)
        lines += [f"  {title}: {getattr(row, field) or UNKNOWN}" for field, title in list(TITLES.items())[1:]]
    return lines


def _empty() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)


def _needed(table: Table) -> int:
    console = _console(WITHOUT_LIMIT)
    return Measurement.get(console, console.options, table).maximum


def _rendered(table: Table, width: int) -> list[str]:
    console = _console(width)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="    ", drop_whitespace=True) or [text]
