"""NRRD files, and the segments that 3D Slicer describes in them.

pynrrd parses the header. Voxels are taken here, because pynrrd's reader overlooks voxels that the header does not say,
and a compressed part that ends early or goes on. Formats: teem.sourceforge.net/nrrd/format.html, and "Segmentation
labelmap file format" of 3D Slicer's developer guide.
"""

from __future__ import annotations

import bz2
import math
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .image_format import (
    COPY_AGAIN,
    PADDING,
    UNKNOWN_UNIT,
    ImageFormat,
    ImageHeader,
    Remark,
    components_last,
    damaged,
    deflated,
    gunzip,
    make_geometry,
    millimetres,
    require_memory,
    spelt,
)

_DOMAINS = ("domain", "space", "time")
"""kinds of axes along which samples are taken; all others hold the components of one sample"""
_MOST_HEADER = 1 << 16
"""bytes in which the header of an image must end; what 3D Slicer writes per segment stays far below"""
_MOST_SEGMENT_HEADER = 1 << 22
_MOST_ITEM_BYTES, _MOST_BYTES = 8, 1 << 50
"""of a number, and of all voxels, which a damaged header may exceed"""
_MOST_SKIPPED = 1 << 22
"""bytes of another format's header before the voxels"""
_SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
}
"""signs of (x, y, z) that turn a space into LPS; other spaces are taken as they are, as ITK does"""
_FIRST_LINES = b"""NRRD0004
# Complete NRRD file format specification at:
# http://teem.sourceforge.net/nrrd/format.html
"""
_WRITTEN_TYPES = {
    "uint8": "unsigned char", "int8": "signed char", "uint16": "unsigned short", "int16": "short",
    "uint32": "unsigned int", "int32": "int", "uint64": "unsigned long long int", "int64": "long long int",
    "float32": "float", "float64": "double",
}  # fmt: skip
"""numpy's names -> the format's"""


class Segment(NamedTuple):
    """A segment of 3D Slicer."""

    name: str
    layer: int
    value: int


class NrrdHeader(NamedTuple):
    """A parsed header."""

    fields: Mapping[str, Any]
    """pynrrd's values by name, and key/value pairs, among them 3D Slicer's"""
    sizes: tuple[int, ...]
    """axes from the fastest to the slowest"""
    component_axis: int | None
    """the axis that holds the components of a sample"""
    offset: int
    """of the first byte after the header"""

    @property
    def layers(self) -> int:
        return 1 if self.component_axis is None else self.sizes[self.component_axis]


def is_nrrd_segmentation(path: Path) -> bool:
    """By its name, as 3D Slicer has it."""
    return path.name.lower().endswith(".seg.nrrd")


def read_nrrd_header(path: Path) -> ImageHeader:
    """Reads the first bytes of the file only. Raises DataError."""
    return _image_header(path, _parse_file(path))


def read_nrrd(path: Path) -> tuple[np.ndarray, ImageHeader]:
    """Array (components x frames, Z, Y, X) in the file's own number type. Raises DataError."""
    content = path.read_bytes()
    header = _parse(path, content)
    image = _image_header(path, header)
    voxels = _voxels(path, header, content)
    if header.component_axis is not None:
        voxels = np.moveaxis(voxels, len(header.sizes) - 1 - header.component_axis, 0)
    return voxels.reshape(image.channels, *image.geometry.shape), image


def read_segments(path: Path) -> tuple[Segment, ...]:
    """3D Slicer's segments; () for a file without them. Raises DataError.

    Files of before Slicer 4.11 have one layer per segment and neither layer nor label value.
    """
    header = _parse_file(path)
    segments = []
    for key, name in header.fields.items():
        if match := re.fullmatch(r"Segment(\d{1,5})_Name", key):
            number = match[1]
            layer = header.fields.get(f"Segment{number}_Layer", number if header.component_axis is not None else "0")
            value = header.fields.get(f"Segment{number}_LabelValue", "1")
            for text in (layer, value):
                if not re.fullmatch(r"\d{1,10}", text):
                    raise damaged(path, f"its segment {name!r} has the layer or label value {text[:40]!r}")
            segments.append(Segment(name, int(layer), int(value)))
    for segment in segments:
        if segment.layer >= header.layers:
            raise damaged(path, f"segment {segment.name!r} lies in layer {segment.layer} of {header.layers}")
    return tuple(segments)


def _parse_file(path: Path) -> NrrdHeader:
    with path.open("rb") as file:
        return _parse(path, file.read(_MOST_SEGMENT_HEADER))


def _parse(path: Path, content: bytes) -> NrrdHeader:
    import nrrd

    if not re.match(rb"NRRD000\d\r?\n", content):
        raise FileError(path, "is not a NRRD file: its first line is missing or damaged", COPY_AGAIN)
    end = re.search(rb"\r?\n\r?\n", content[: _MOST_SEGMENT_HEADER if is_nrrd_segmentation(path) else _MOST_HEADER])
    if end is None:
        raise FileError(path, "is truncated or damaged: its header has no end", COPY_AGAIN)
    try:
        lines = content[: end.start()].decode("utf-8").splitlines()
        with np.errstate(all="ignore"):  # sizes that are no numbers, refused below
            fields = nrrd.read_header([_as_pynrrd_reads(line) for line in lines])
    except UnicodeDecodeError:
        raise damaged(path, "its header is no text") from None
    except Exception as error:  # pynrrd lets value, index and type errors through
        raise damaged(path, f"its header cannot be parsed ({error})") from None
    return _with_axes(path, fields, end.end())


def _as_pynrrd_reads(line: str) -> str:
    """Names of fields in small letters, and blanks between the vectors of a list only, where the format is freer."""
    name, colon, value = line.partition(": ")
    if not colon or ":=" in line or line.startswith("#"):
        return line
    name = name.strip().lower()
    if name == "space directions":
        value = re.sub(r"\s+(?=[^()]*\))", "", value).replace(")(", ") (")
    return f"{name}: {value}"


def _with_axes(path: Path, fields: Mapping[str, Any], offset: int) -> NrrdHeader:
    for needed in ("type", "dimension", "sizes", "encoding"):
        if needed not in fields:
            raise damaged(path, f"its header has no {needed}")
    if "data file" in fields or "datafile" in fields:
        raise FileError(path, "is a header whose voxels lie in another file", "Save it as one file")
    sizes = tuple(int(size) for size in fields["sizes"])
    if len(sizes) != fields["dimension"] or not sizes or min(sizes) < 1:
        raise damaged(path, f"its sizes are {' '.join(map(str, sizes))}, its dimension {fields['dimension']}")
    kinds = [word.strip('"').lower() for word in fields.get("kinds", ())] or ["domain"] * len(sizes)
    directions = _directions(fields)
    if len(kinds) != len(sizes) or len(directions or sizes) != len(sizes):
        raise damaged(path, f"it has {len(sizes)} axes, {len(kinds)} kinds and {len(directions or sizes)} directions")
    if directions is None:
        inner = [index for index, kind in enumerate(kinds) if kind not in (*_DOMAINS, "???", "none")]
    else:
        inner = [index for index, vector in enumerate(directions) if vector is None and kinds[index] != "time"]
    if len(inner) > 1 or len(sizes) - len(inner) not in (2, 3, 4):
        raise FileError(path, f"has {len(sizes)} axes ({' '.join(kinds)})", "Store one image per file")
    return NrrdHeader(fields, sizes, inner[0] if inner else None, offset)


def _directions(fields: Mapping[str, Any]) -> list[np.ndarray | None] | None:
    """`space directions`, None for an axis that is not in space; None when the header has none."""
    if "space directions" not in fields:
        return None
    return [None if row is None or np.isnan(row).all() else row for row in fields["space directions"]]


def _image_header(path: Path, header: NrrdHeader) -> ImageHeader:
    domain = [index for index in range(len(header.sizes)) if index != header.component_axis]
    size = [header.sizes[index] for index in domain]
    axes = min(3, len(domain))
    directions = _directions(header.fields)
    if directions is None:
        spacing = _along_axes(path, header, ("spacings",), domain[:axes], 1.0)
        origin = _along_axes(path, header, ("axis mins", "axismins"), domain[:axes], 0.0)
        columns = np.eye(axes)
    else:
        vectors = [directions[index] for index in domain]
        if len(domain) == 4 and vectors[0] is None:
            raise FileError(path, "has time as its first axis", "Store the axes as x, y, z, time")
        spacing, origin, columns = _in_space(path, header, [vector for vector in vectors[:axes] if vector is not None])
    scale, remarks = _unit(header, domain[:axes])
    spacing, origin = [scale * value for value in spacing], [scale * value for value in origin]
    geometry = make_geometry(path, "nrrd", size[:axes], spacing, origin, columns)
    return ImageHeader(geometry, header.layers, size[3] if len(size) == 4 else 1, remarks=remarks)


def _unit(header: NrrdHeader, domain: list[int]) -> tuple[float, tuple[Remark, ...]]:
    """mm in the header's unit of length: of its space, or of the axes in the `domain` where it names no space."""
    fields = header.fields
    units = fields.get("space units") if "space directions" in fields else fields.get("units")
    if units is not None and "space directions" not in fields:
        units = [units[index] for index in domain if index < len(units)]
    names = {str(unit).strip('" ') for unit in units or ()} - {"", "none", "unknown", "???"}
    factors = {millimetres(name) for name in names}
    if not names or (len(factors) == 1 and None not in factors):
        return next(iter(factors), None) or 1.0, ()
    text = f"gives its spacing in {' and '.join(map(repr, sorted(names)))[:60]}, not one unit of length; mm were taken"
    return 1.0, (Remark(UNKNOWN_UNIT, text, 'Correct "space units" in its header'),)


def _in_space(path: Path, header: NrrdHeader, vectors: list[np.ndarray]) -> tuple[list[float], list[float], np.ndarray]:
    """Spacing and origin (x, y[, z]) in LPS, and the axes' directions as columns."""
    axes = len(vectors)
    origin = header.fields.get("space origin", np.zeros(axes))
    if any(len(vector) < axes for vector in [*vectors, origin]):
        raise damaged(path, f"its space has {min(map(len, [*vectors, origin]))} dimensions, its image {axes}")
    space = header.fields.get("space", "").strip('"').lower().removesuffix("-time").removesuffix("t")
    signs = np.array(_SPACES.get(space, (1, 1, 1))[:axes], dtype=np.float64)
    columns = np.array([vector[:axes] for vector in vectors], dtype=np.float64).T * signs[:, None]
    with np.errstate(all="ignore"):  # a damaged header; refused by make_geometry
        spacing = np.sqrt((columns**2).sum(axis=0))
        return spacing.tolist(), (np.array(origin[:axes]) * signs).tolist(), columns / spacing


def _along_axes(
    path: Path, header: NrrdHeader, names: tuple[str, ...], domain: list[int], default: float
) -> list[float]:
    """Values per axis of a header without directions in space; the default where nothing is known."""
    values = next((header.fields[name] for name in names if name in header.fields), [default] * len(header.sizes))
    if len(values) != len(header.sizes):
        raise damaged(path, f"it has {len(header.sizes)} axes and {len(values)} {names[0]}")
    return [default if np.isnan(values[index]) else float(values[index]) for index in domain]


def _voxels(path: Path, header: NrrdHeader, content: bytes) -> np.ndarray:
    """With the axes as in the file, slowest first. Raises DataError."""
    import nrrd

    encoding, source = header.fields["encoding"].lower(), BytesIO(content)
    source.seek(header.offset)
    lines = header.fields.get("line skip", header.fields.get("lineskip", 0))
    for _ in range(lines):
        if not source.readline():  # a damaged header may say billions
            break
    skip = max(0, header.fields.get("byte skip", header.fields.get("byteskip", 0)))
    if skip > _MOST_SKIPPED:
        raise damaged(path, f"its header skips {skip} bytes")
    limit = min(_MOST_BYTES, math.prod(header.sizes) * _MOST_ITEM_BYTES + skip)
    require_memory(path, math.prod(header.sizes), 1)
    if encoding in ("gzip", "gz"):
        encoding, source = "raw", BytesIO(gunzip(path, source.read(), limit))
    elif encoding in ("bzip2", "bz2"):
        try:
            stream = bz2.BZ2Decompressor()
            encoding, source = "raw", BytesIO(stream.decompress(source.read(), limit + PADDING))
            if not stream.eof:
                raise damaged(path, f"its compressed data end early, or hold more than {limit} bytes")
        except (OSError, ValueError, EOFError) as error:
            raise damaged(path, str(error)) from None
    elif encoding not in ("raw", "ascii", "text", "txt"):
        raise FileError(path, f"has the encoding {encoding!r}", "Store it as raw or gzip")
    number = header.fields["type"].lower()
    no_number = FileError(path, f"holds voxels of type {number!r}", "Store them as integers or floats")
    if number == "block":
        raise no_number
    changes = {"type": number, "encoding": encoding, "lineskip": min(0, lines)}  # negative: pynrrd refuses it
    try:
        voxels = nrrd.read_data({"endian": "little", **header.fields, **changes}, source, index_order="C")
    except KeyError:
        raise no_number from None
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise FileError(path, f"is truncated or damaged: {error}", COPY_AGAIN) from None
    if source.read().strip(b"\0"):
        raise damaged(path, f"its header says {voxels.nbytes} bytes of voxels, and more are there")
    return voxels


def write_nrrd(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X), compressed by gzip, with the fields that ITK writes. Raises OSError."""
    axes, stored = geometry.dimension, components_last(array, geometry)
    columns = np.reshape(geometry.direction, (3, 3))[:axes, :axes] * geometry.spacing[::-1][:axes]
    vectors = [f"({spelt(column).replace(' ', ',')})" for column in columns.T]
    several = ["vector"] if len(array) > 1 else []
    fields = {
        "type": _WRITTEN_TYPES[array.dtype.newbyteorder("=").name],
        "dimension": stored.ndim,
        **({"space": "left-posterior-superior"} if axes == 3 else {"space dimension": axes}),
        "sizes": " ".join(map(str, stored.shape[::-1])),
        "space directions": " ".join([*("none" for _ in several), *vectors]),
        "kinds": " ".join([*several, *["domain"] * axes]),
        **({"endian": "little"} if array.itemsize > 1 else {}),
        "encoding": "gzip",
        "space origin": f"({spelt(geometry.origin[:axes]).replace(' ', ',')})",
    }
    with path.open("wb") as file:
        file.write(_FIRST_LINES + "".join(f"{name}: {value}\n" for name, value in fields.items()).encode() + b"\n")
        file.writelines(deflated(stored, 31))


NRRD = ImageFormat(
    (".seg.nrrd", ".nrrd"), read_nrrd, read_nrrd_header, write_nrrd, written_as={".seg.nrrd": ".nrrd"},
    has_geometry=True,
)  # fmt: skip
