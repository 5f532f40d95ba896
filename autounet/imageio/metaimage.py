"""MetaImage files (.mha, .mhd).

Read here and not through ITK, whose reader ends the whole process with a floating point exception on some damaged
files and takes what is missing in compressed ones as read. Format: itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import math
import re
import zlib
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .image_format import (
    COPY_AGAIN,
    ImageFormat,
    ImageHeader,
    components_last,
    damaged,
    deflated,
    gunzip,
    inflate,
    make_geometry,
    require_memory,
    spelt,
    take_voxels,
)

_NUMBER_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_WRITTEN_TYPES = {
    np.dtype(name).name: kind for kind, name in _NUMBER_TYPES.items() if kind not in ("MET_LONG", "MET_ULONG")
}
"""numpy's names -> the format's"""
_MOST_HEADER = 1 << 16
"""bytes in which the header must end"""


class MetaFile(NamedTuple):
    fields: dict[str, str]
    offset: int
    """of the first byte after the header"""


def _parse(path: Path, content: bytes) -> MetaFile:
    """Lines `Key = Value`; ElementDataFile is the last."""
    end = re.search(rb"ElementDataFile[ \t]*=[^\n]*(\n|$)", content[:_MOST_HEADER])
    if end is None:
        raise FileError(path, "is not a MetaImage file, or truncated: its header has no ElementDataFile", COPY_AGAIN)
    try:
        lines = content[: end.end()].decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise damaged(path, "its header is no text") from None
    fields = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if line.strip() and not equals:
            raise damaged(path, f"its header has the line {line[:40]!r}")
        fields[key.strip()] = value.strip()
    for needed in ("NDims", "DimSize", "ElementType"):
        if needed not in fields:
            raise damaged(path, f"its header has no {needed}")
    return MetaFile(fields, end.end())


def _flag(path: Path, fields: dict[str, str], *names: str) -> bool:
    value = next((fields[name] for name in names if name in fields), "False").lower()
    if value not in ("true", "false", "1", "0"):
        raise damaged(path, f"its {names[0]} is {value!r}")
    return value in ("true", "1")


def _integers(path: Path, name: str, text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,10}(\s+\d{1,10})*", text):
        raise damaged(path, f"its {name} is {text[:60]!r}")
    return [int(word) for word in text.split()]


def _floats(
    path: Path, fields: dict[str, str], names: tuple[str, ...], count: int, default: list[float]
) -> list[float]:
    """The first field of these names that is there."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        return default
    try:
        values = [float(word) for word in fields[name].split()]
    except ValueError:
        raise damaged(path, f"its {name} is {fields[name][:60]!r}") from None
    if len(values) != count:
        raise damaged(path, f"its {name} has {len(values)} numbers, not {count}")
    return values


def _header(path: Path, file: MetaFile) -> ImageHeader:
    fields = file.fields
    (count,) = _integers(path, "NDims", fields["NDims"])[:1]
    size = _integers(path, "DimSize", fields["DimSize"])
    if count not in (2, 3, 4) or len(size) != count:
        raise FileError(
            path, f"has {count} axes of size {fields['DimSize']}", "Store 2 or 3 axes, and one more for channels"
        )
    components = _integers(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"))[0]
    if components < 1:
        raise FileError(path, "holds no voxels", COPY_AGAIN)
    axes = min(count, 3)
    spacing = _floats(path, fields, ("ElementSpacing", "ElementSize"), count, [1.0] * count)
    origin = _floats(path, fields, ("Offset", "Position", "Origin"), count, [0.0] * count)
    identity = np.eye(count).ravel().tolist()
    matrix = _floats(path, fields, ("TransformMatrix", "Rotation", "Orientation"), count * count, identity)
    columns = np.reshape(matrix, (count, count)).T[:axes, :axes]  # each row of the file is one axis
    geometry = make_geometry(path, "mha", size[:axes], spacing[:axes], origin[:axes], columns)
    return ImageHeader(geometry, components, size[3] if count == 4 else 1)


def read_meta_header(path: Path) -> ImageHeader:
    """Raises DataError."""
    with path.open("rb") as file:
        return _header(path, _parse(path, file.read(_MOST_HEADER)))


def data_file(path: Path) -> Path:
    """The file that holds the voxels: `path` itself, or what an .mhd file names. Raises DataError."""
    with path.open("rb") as file:
        return _data_file(path, _parse(path, file.read(_MOST_HEADER)))


def _data_file(path: Path, file: MetaFile) -> Path:
    name = file.fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name or not name or _leads_out(name):
        raise FileError(path, f"keeps its voxels in {name[:60] or 'no file'!r}", "Save it as one file (.mha)")
    source = path.parent / name
    if not source.is_file():
        raise FileError(
            path, f"keeps its voxels in {name[:60]}, which is not there", "Put that file beside it, or save as .mha"
        )
    return source


def _leads_out(name: str) -> bool:
    """Of the folder of the file that names it; data stores may still put a link there."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or Path(name).is_absolute() or ":" in parts[0]


def read_meta(path: Path) -> tuple[np.ndarray, ImageHeader]:
    """Array (components x frames, Z, Y, X) in the file's own number type. Raises DataError."""
    content = path.read_bytes()
    file = _parse(path, content)
    header = _header(path, file)
    fields = file.fields
    if fields["ElementType"] not in _NUMBER_TYPES:
        raise FileError(
            path, f"holds voxels of type {fields['ElementType'][:40]!r}", "Store them as integers or floats"
        )
    big = _flag(path, fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    number = np.dtype((">" if big else "<") + _NUMBER_TYPES[fields["ElementType"]])
    source = _data_file(path, file)
    data = content[file.offset :] if source == path else source.read_bytes()
    shape = (header.frames, *header.geometry.shape, header.components)
    require_memory(path, math.prod(shape), number.itemsize)
    if not _flag(path, {"BinaryData": "True", **fields}, "BinaryData"):
        raise FileError(path, "holds its voxels as text", "Save it as binary")
    skip = fields.get("HeaderSize", "0")
    if _flag(path, fields, "CompressedData"):
        limit = math.prod(shape) * number.itemsize
        packed = data[:2] == b"\x1f\x8b"
        data = gunzip(path, data, limit) if packed else inflate(path, zlib.decompressobj(), data, limit)
    elif skip == "-1":  # the voxels are the last bytes
        data = data[-math.prod(shape) * number.itemsize :]
    elif skip != "0":
        data = data[_integers(path, "HeaderSize", skip)[0] :]
    voxels = np.moveaxis(take_voxels(path, data, number, shape), -1, 1)
    return voxels.reshape(header.channels, *header.geometry.shape), header


def write_meta(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X), compressed by zlib, with the fields that ITK writes. Raises OSError."""
    axes, stored = geometry.dimension, components_last(array, geometry)
    columns = np.reshape(geometry.direction, (3, 3))[:axes, :axes]
    packed = list(deflated(stored, 15))
    fields = {
        "ObjectType": "Image",
        "NDims": axes,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": sum(map(len, packed)),
        "TransformMatrix": spelt(columns.T.ravel()),
        "Offset": spelt(geometry.origin[:axes]),
        "CenterOfRotation": spelt([0.0] * axes),
        "AnatomicalOrientation": _anatomical(columns) if axes == 3 else "??",
        "ElementSpacing": spelt(geometry.spacing[::-1][:axes]),
        "DimSize": " ".join(map(str, array.shape[:0:-1][:axes])),
        **({"ElementNumberOfChannels": len(array)} if len(array) > 1 else {}),
        "ElementType": _WRITTEN_TYPES[array.dtype.newbyteorder("=").name],
        "ElementDataFile": "LOCAL",
    }
    with path.open("wb") as file:
        file.write("".join(f"{name} = {value}\n" for name, value in fields.items()).encode())
        file.writelines(packed)


def _anatomical(columns: np.ndarray) -> str:
    """Where each axis (a column, LPS) comes from: right, left, anterior, posterior, inferior or superior."""
    worlds = max(permutations(range(3)), key=lambda order: sum(abs(columns[order, range(3)])))
    return "".join(("RAI" if columns[world, axis] > 0 else "LPS")[world] for axis, world in enumerate(worlds))


METAIMAGE = ImageFormat(
    (".mha", ".mhd"), read_meta, read_meta_header, write_meta, written_as={".mhd": ".mha"}, has_geometry=True
)
