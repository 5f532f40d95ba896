"""Sizes, times, numbers and lists as people write them: 8GB, 500MB; 90s, 30m, 1h30m; 0,1,2; NAME=VALUE.

`parse_` reads what `write_` writes; `format_` is for people alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from os import PathLike
from typing import Any, get_args, get_origin

from .errors import OptionError

AnyPath = str | PathLike[str]
MOST_SEED = 2**53
"""a thousand times as much, which seeds of the folds reach, is below 2^63"""
LONGEST_TIME = 400
"""letters: looking for numbers takes the square of them"""
SIZE_UNITS = {"KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
TIME_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes. Units are powers of 1024; a bare number is GB. Raises OptionError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B?)?\s*", text, re.IGNORECASE)
    size = 0
    if match:
        unit = (match[2] or "GB").upper().replace("I", "")
        number = float(match[1]) * SIZE_UNITS[unit if unit.endswith("B") else unit + "B"]
        size = int(number) if math.isfinite(number) else 0
    if size <= 0:
        raise OptionError(f"'{text}' is not a size", "Write for example 8GB or 500MB")
    return size


def write_size(size: int) -> str:
    """The size in bytes as `parse_size` reads it back exactly: 8GB, 2.5GB, 600MB."""
    for unit in ("GB", "MB", "KB"):
        number = format(Decimal(size) / SIZE_UNITS[unit], ".6f").rstrip("0").rstrip(".")
        if int(float(number) * SIZE_UNITS[unit]) == size:
            return number + unit
    return format(Decimal(size) / SIZE_UNITS["KB"], "f") + "KB"


def parse_time(text: str) -> float:
    """Seconds. Raises OptionError."""
    short = text.lower()[:LONGEST_TIME]
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", short)
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*([smhd])", "", short).strip()
    seconds = sum(float(number) * TIME_UNITS[unit] for number, unit in parts)
    if rest or len(text) > len(short) or not 0 < seconds < math.inf:
        raise OptionError(f"'{short}' is not a time", "Write for example 90s, 30m, 2h or 1h30m")
    return seconds


def write_time(seconds: float) -> str:
    """As `parse_time` reads it back exactly, in the largest unit that keeps it a whole number: 2h, 90m, 45s."""
    for unit in ("h", "m"):
        if seconds >= TIME_UNITS[unit] and seconds % TIME_UNITS[unit] == 0:
            return f"{seconds / TIME_UNITS[unit]:.0f}{unit}"
    number = format(Decimal(repr(float(seconds))), "f")
    return number.removesuffix(".0") + "s"


def parse_integers(text: str) -> tuple[int, ...]:
    """`1` or `1,2,3`. Raises OptionError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"'{text}' is not a whole number or a list of them", "Write for example 0,1,2") from None


def parse_integer(text: str) -> int:
    """Raises OptionError."""
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"'{text}' is not a whole number", "Write one, for example 2") from None


def parse_numbers(text: str) -> tuple[float, ...]:
    """`0.7,0.3`. Raises OptionError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"'{text}' is not a list of numbers", "Write for example 0.7,0.3") from None


def write_list(values: Sequence[object]) -> str:
    """`0,1,2`, as the functions above read it."""
    return ",".join(map(str, values))


def parse_pairs(entries: Sequence[str], example: str = "liver=1") -> dict[str, str]:
    """Entries NAME=VALUE. Raises OptionError, with what might be written."""
    pairs: dict[str, str] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if not name or not value:
            raise OptionError(f"'{entry}' is not of the form NAME=VALUE", f"Write for example {example}")
        if name in pairs:
            raise OptionError(f"{name} is given twice", "Give it once")
        pairs[name] = value
    return pairs


def write_pairs(pairs: Mapping[str, object]) -> list[str]:
    """Entries NAME=VALUE, as `parse_pairs` reads them."""
    return [f"{name}={value}" for name, value in pairs.items()]


def format_time(seconds: float) -> str:
    """For people: 45 s, 12 min, 3 h 05 min, 14 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds >= 3 * 86400:
        return f"{seconds / 86400:.0f} days"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_seconds(seconds: float) -> str:
    """Of a step, for people: 85 ms, 4.8 s."""
    return f"{1000 * seconds:.0f} ms" if seconds < 0.995 else f"{seconds:.1f} s"


def format_number(value: float | None) -> str:
    """Four decimals, or the word for a metric without a value."""
    return "undefined" if value is None else f"{value:.4f}"


def format_size(size: float) -> str:
    """For people: 64 KB, 512 MB, 7.6 GB."""
    if size < 1024**2:
        return f"{size / 1024:.0f} KB"
    return f"{size / 1024**3:.1f} GB" if size >= 1024**3 else f"{size / 1024**2:.0f} MB"


TYPE_WORDS: dict[Any, tuple[str, str]] = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "values true or false"),
    PathLike: ("a path", "paths"),
}


def format_type(python: Any, several: bool = False) -> str:
    """What values of a type are, for people: a text or a number, a list of whole numbers, a text for each name."""
    kind, inner = get_origin(python), get_args(python)
    if kind is Mapping:
        return f"{format_type(inner[1])} for each name"
    if kind is Sequence:
        return f"a list of {format_type(inner[0], several=True)}"
    words = TYPE_WORDS.get(kind or python)
    return words[several] if words else " or ".join(format_type(each, several) for each in inner)
