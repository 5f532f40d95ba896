"""NRRD files, and the segments that 3D Slicer describes in them.

Read here and not through ITK: a damaged file is told for certain, and Slicer's fields are at hand. Formats:
teem.sourceforge.net/nrrd/format.html, and "Segmentation labelmap file format" of 3D Slicer's developer guide.
"""

from __future__ import annotations

import bz2
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import DataError
from .headers import AGAIN, VolumeHeader, damaged, gunzip, make_geometry, take_voxels

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


_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
}
"""signs of (x, y, z) that turn a space into LPS; other spaces are taken as they are, as ITK does"""


class Segment(NamedTuple):
    name: str
    layer: int
    value: int


def _header(path: Path, file: NrrdFile) -> VolumeHeader:
    domain = [index for index in range(len(file.sizes)) if index != file.components]
    size = [file.sizes[index] for index in domain]
    components = 1 if file.components is None else file.sizes[file.components]
    axes = min(3, len(domain))
    vectors = vectors_of(path, file.fields, len(file.sizes))
    if vectors is not None:
        used = [vectors[index] for index in domain]
        if len(domain) == 4 and used[0] is None:
            raise DataError(f"{path} has time as its first axis. Store the axes as x, y, z, time")
        spacing, origin, direction = _in_space(path, file, [vector or [] for vector in used[:axes]])
    else:
        spacing, origin, direction = _along_axes(path, file, domain[:axes])
    return VolumeHeader(
        make_geometry(path, "nrrd", size[:axes], spacing, origin, direction),
        components,
        size[3] if len(size) == 4 else 1,
    )


def _in_space(path: Path, file: NrrdFile, vectors: list[list[float]]) -> tuple[list[float], list[float], np.ndarray]:
    axes = len(vectors)
    text = file.fields.get("space origin")
    origin = floats(path, "space origin", text.strip("() ")) if text else [0.0] * len(vectors[0])
    if any(len(vector) < axes for vector in [*vectors, origin]):
        raise damaged(path, f"its space directions are {file.fields['space directions'][:80]!r}")
    columns = np.array([vector[:axes] for vector in vectors], dtype=np.float64).T
    signs = np.array(_SPACES.get(_space(file), (1, 1, 1))[:axes], dtype=np.float64)
    columns *= signs[:, None]
    spacing = np.sqrt((columns**2).sum(axis=0))
    with np.errstate(all="ignore"):  # a damaged header; refused by make_geometry
        return spacing.tolist(), (np.array(origin[:axes]) * signs).tolist(), columns / spacing


def _space(file: NrrdFile) -> str:
    return file.fields.get("space", "").strip('"').lower().removesuffix("-time").removesuffix("t")


def _along_axes(path: Path, file: NrrdFile, domain: list[int]) -> tuple[list[float], list[float], np.ndarray]:
    """Without directions in space: `spacings` and `axis mins`, NaN where nothing is known."""
    found = []
    for field, default in (("spacings", 1.0), ("axis mins", 0.0)):
        text = file.fields.get(field) or file.fields.get(field.replace(" ", ""))
        values = floats(path, field, text) if text else [default] * len(file.sizes)
        if len(values) != len(file.sizes):
            raise damaged(path, f"its {field} are {text!r}")
        found.append([default if np.isnan(values[index]) else values[index] for index in domain])
    return found[0], found[1], np.eye(len(domain))


def read_nrrd_header(path: Path) -> VolumeHeader:
    """Raises DataError."""
    return _header(path, parse_header(path, read_head(path)))


def read_nrrd(path: Path) -> tuple[np.ndarray, VolumeHeader]:
    """Array (components x frames, Z, Y, X) in the file's own number type. Raises DataError."""
    content = path.read_bytes()
    file = parse_header(path, content)
    header = _header(path, file)
    number = _TYPES.get(file.fields["type"].lower())
    if number is None:
        raise DataError(f"{path} holds voxels of type {file.fields['type']!r}. Store them as integers or floats")
    big = file.fields.get("endian", "little").lower() == "big"
    voxels = _voxels(path, file, content, np.dtype((">" if big else "<") + number))
    axis = None if file.components is None else len(file.sizes) - 1 - file.components
    if axis is not None:
        voxels = np.moveaxis(voxels, axis, 0)
    return voxels.reshape(header.channels, *header.geometry.shape), header


def _voxels(path: Path, file: NrrdFile, content: bytes, number: np.dtype) -> np.ndarray:
    """With the axes as in the file, slowest first."""
    shape = file.sizes[::-1]
    encoding = file.fields["encoding"].lower()
    data = content[file.offset :]
    for _ in range(integer(path, "line skip", file.fields.get("line skip", file.fields.get("lineskip", "0")))):
        data = data.partition(b"\n")[2]
    if encoding in ("gzip", "gz"):
        data = gunzip(path, data)
    elif encoding in ("bzip2", "bz2"):
        try:
            data = bz2.decompress(data)
        except (OSError, ValueError, EOFError) as error:
            raise damaged(path, str(error)) from None
    elif encoding in ("ascii", "text", "txt"):
        return _ascii(path, data, number, shape)
    elif encoding != "raw":
        raise DataError(f"{path} has the encoding {encoding!r}. Store it as raw or gzip")
    skip = file.fields.get("byte skip", file.fields.get("byteskip", "0"))
    return take_voxels(path, data if skip == "-1" else data[integer(path, "byte skip", skip) :], number, shape)


def _ascii(path: Path, data: bytes, number: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    words = data.split()
    try:
        values = np.array(words, dtype="S").astype(np.float64) if words else np.empty(0)
    except ValueError:
        raise damaged(path, "its voxels are no numbers") from None
    if len(values) != np.prod(shape):
        raise DataError(f"{path} is truncated: {len(values)} of {np.prod(shape)} voxels are there. {AGAIN}")
    return values.astype(number).reshape(shape)


def read_segments(path: Path) -> tuple[Segment, ...]:
    """3D Slicer's segments; () for a file without them. Raises DataError.

    Files of before Slicer 4.11 have one layer per segment and neither layer nor label value.
    """
    file = parse_header(path, read_head(path))
    found = []
    for key, name in file.keys.items():
        if match := re.fullmatch(r"Segment(\d{1,5})_Name", key):
            number = match[1]
            layer = file.keys.get(f"Segment{number}_Layer", number if file.components is not None else "0")
            value = file.keys.get(f"Segment{number}_LabelValue", "1")
            found.append(Segment(name, integer(path, "segments", layer), integer(path, "segments", value)))
    layers = 1 if file.components is None else file.sizes[file.components]
    for segment in found:
        if segment.layer >= layers:
            raise damaged(path, f"segment {segment.name!r} lies in layer {segment.layer} of {layers}")
    return tuple(found)
