"""What a table of the page is, and how numbers are written in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Self

DASH = "–"


class Link(str):
    """A cell that leads to a part of the page, or to a file beside it."""

    address: str

    def __new__(cls, text: str, address: str) -> Self:
        link = super().__new__(cls, text)
        link.address = address
        return link


@dataclass(frozen=True)
class Table:
    """`head` and every row have the same length; columns in `numeric` are set right-aligned."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)
    keys: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """column -> a number a row to sort by, where what is written does not begin with one (times)"""

    @property
    def sortable(self) -> bool:
        return len(self.rows) > 1


def number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def between(interval: tuple[float, float] | None) -> str:
    return DASH if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def times(values: Sequence[float]) -> str:
    """40 × 56 × 40"""
    return " × ".join(f"{value:.4g}" for value in values)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """median (least to most)"""
    if min(values) == max(values):
        return f"{values[0]:.{digits}g}"
    return f"{median(values):.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"


def plain_list(words: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
