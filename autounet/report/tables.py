"""Tables of the report and of `autounet compare`, and how numbers are written in them. Reads no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Self

DASH = "–"
"""a value that is not defined or not known"""


class LinkedText(str):
    """A cell that links to a part of the report or to a file in the same folder."""

    address: str

    def __new__(cls, text: str, address: str) -> Self:
        linked = super().__new__(cls, text)
        linked.address = address
        return linked


@dataclass(frozen=True)
class ReportTable:
    """Rows of text, each as long as `head`; the columns in `numeric` are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)
    """sentences below the table, without full stops"""
    sort_keys: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """column -> number of each row to sort by, where the text of the cell does not begin with it (times, sizes)"""

    @property
    def sortable(self) -> bool:
        return len(self.rows) > 1


def text_lines(table: ReportTable) -> list[str]:
    """The table for a terminal: columns of equal width."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        padded = [
            cell.rjust(width) if column in table.numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(cells)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def interval_text(interval: tuple[float, float] | None, digits: int = 3) -> str:
    """0.712 to 0.891"""
    return DASH if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def size_text(values: Sequence[float]) -> str:
    """40 × 56 × 40"""
    return " × ".join(f"{value:.4g}" for value in values)


def range_text(values: Sequence[float], digits: int = 3) -> str:
    """median (minimum to maximum)"""
    if min(values) == max(values):
        return f"{values[0]:.{digits}g}"
    return f"{median(values):.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"


def plain_list(words: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
