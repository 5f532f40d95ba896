"""The header of a NRRD file: its fields, 3D Slicer's keys and the axes. `nrrd.py` makes an image of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from autounet.images.headers import AGAIN, damaged
from autounet.schema.errors import DataError

_DOMAINS = ("domain", "space", "time")
"""kinds of axes along which samples are taken; all others hold the components of one sample"""
_MOST = 1 << 16
"""bytes in which the header of an image must end; what 3D Slicer writes per segment stays far below"""
_MOST_SEGMENTS = 1 << 22
_VECTOR = re.compile(r"none|\(([^()]*)\)")


class NrrdFile(NamedTuple):
    fields: dict[str, str]
    keys: dict[str, str]
    """key/value pairs, among them 3D Slicer's"""
    sizes: tuple[int, ...]
    """axes from the fastest to the slowest"""
    components: int | None
    """index of the axis that holds the components of a sample"""
    offset: int
    """of the first byte after the header"""


def is_nrrd_segmentation(path: Path) -> bool:
    """By its name, as 3D Slicer has it."""
    return path.name.lower().endswith(".seg.nrrd")


def read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_SEGMENTS)


def parse_header(path: Path, content: bytes) -> NrrdFile:
    if not re.match(rb"NRRD000\d\r?\n", content):
        raise DataError(f"{path} is not a NRRD file: its first line is missing or damaged. {AGAIN}")
    end = re.search(rb"\r?\n\r?\n", content[: _MOST_SEGMENTS if is_nrrd_segmentation(path) else _MOST])
    if end is None:
        raise DataError(f"{path} is truncated or damaged: its header has no end. {AGAIN}")
    try:
        lines = content[: end.start()].decode("utf-8").splitlines()[1:]
    except UnicodeDecodeError:
        raise damaged(path, "its header is no text") from None
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in lines:
        key, assigned, value = line.partition(":=")
        name, colon, entry = line.partition(": ")
        if line.startswith("#"):
            continue
        if assigned:
            keys[key] = value
        elif colon:
            fields[name.strip().lower()] = entry.strip()
        elif not re.fullmatch(r"[A-Za-z ]+:", line):
            raise damaged(path, f"its header has the line {line[:40]!r}")
    return _with_axes(path, fields, keys, end.end())


def _with_axes(path: Path, fields: dict[str, str], keys: dict[str, str], offset: int) -> NrrdFile:
    for needed in ("type", "dimension", "sizes", "encoding"):
        if needed not in fields:
            raise damaged(path, f"its header has no {needed}")
    if "data file" in fields or "datafile" in fields:
        raise DataError(f"{path} is a header whose data lie in another file. Save it as one file")
    sizes = tuple(integer(path, "sizes", word) for word in fields["sizes"].split())
    if len(sizes) != integer(path, "dimension", fields["dimension"]) or not sizes or min(sizes) < 1:
        raise damaged(path, f"its sizes are {fields['sizes']}, its dimension {fields['dimension']}")
    kinds = [word.strip('"').lower() for word in fields.get("kinds", "").split()] or ["domain"] * len(sizes)
    directions = vectors_of(path, fields, len(sizes))
    if len(kinds) != len(sizes):
        raise damaged(path, f"it has {len(sizes)} axes and {len(kinds)} kinds")
    if directions is None:
        inner = [index for index, kind in enumerate(kinds) if kind not in (*_DOMAINS, "???", "none")]
    else:
        inner = [index for index, vector in enumerate(directions) if vector is None and kinds[index] != "time"]
    domains = len(sizes) - len(inner)
    if len(inner) > 1 or domains not in (2, 3, 4):
        raise DataError(f"{path} has {len(sizes)} axes ({' '.join(kinds)}). Store one image per file")
    return NrrdFile(fields, keys, sizes, inner[0] if inner else None, offset)


def integer(path: Path, field: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text.strip()):
        raise damaged(path, f"its {field} holds {text[:40]!r}")
    return int(text)


def floats(path: Path, field: str, text: str) -> list[float]:
    try:
        return [float(word) for word in re.split(r"[,\s]+", text.strip())]
    except ValueError:
        raise damaged(path, f"its {field} is {text[:60]!r}") from None


def vectors_of(path: Path, fields: dict[str, str], axes: int) -> list[list[float] | None] | None:
    """`space directions`, None where an axis is not in space; None when the header has none."""
    text = fields.get("space directions")
    if text is None:
        return None
    found = [match[1] and floats(path, "space directions", match[1]) for match in _VECTOR.finditer(text)]
    rest = _VECTOR.sub("", text).strip()
    lengths = {len(vector) for vector in found if vector}
    if len(found) != axes or rest or len(lengths) != 1:
        raise damaged(path, f"its space directions are {text[:80]!r}")
    return [vector or None for vector in found]  # type: ignore[misc]
