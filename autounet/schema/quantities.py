"""Sizes and times as people write them: 8GB, 500MB; 90s, 30m, 2h, 1h30m."""

from __future__ import annotations

import re

from .errors import OptionError

SIZE_UNITS = {"KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
TIME_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes. Units are powers of 1024; a bare number is GB. Raises OptionError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B?)?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise OptionError(f"'{text}' is not a size; write for example 8GB or 500MB")
    unit = (match[2] or "GB").upper().replace("I", "")
    return int(float(match[1]) * SIZE_UNITS[unit if unit.endswith("B") else unit + "B"])


def parse_time(text: str) -> float:
    """Seconds. Raises OptionError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", text.lower())
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*([smhd])", "", text.lower()).strip()
    seconds = sum(float(number) * TIME_UNITS[unit] for number, unit in parts)
    if rest or seconds <= 0:
        raise OptionError(f"'{text}' is not a time; write for example 90s, 30m, 2h or 1h30m")
    return seconds


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
    """For people: 512 MB, 7.6 GB."""
    return f"{size / 1024**3:.1f} GB" if size >= 1024**3 else f"{size / 1024**2:.0f} MB"
