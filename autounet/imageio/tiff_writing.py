"""TIFF images and stacks through tifffile: what is written."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .label_rows import LabelRows

LARGEST_IMAGEJ = 2**32 - 2**25
"""bytes of the pixels of a file with offsets of 32 bits, which ImageJ's metadata need"""
STRIP_BYTES = 2**18
"""of the rows that are compressed together, as tifffile does"""
_OME_TYPES = tuple(map(np.dtype, ("i1", "i2", "i4", "u1", "u2", "u4", "f4", "f8")))
_IMAGEJ_TYPES = (np.uint8, np.uint16, np.float32)


def write_tiff(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, Z, Y, X). A stack keeps its spacing: as ImageJ metadata where ImageJ knows the type, else in OME-XML.

    Raises DataError for a number type that a stack cannot have.
    """
    import tifffile

    is_stack = geometry.shape[0] > 1
    rgb = array.shape[0] == 3 and array.dtype in ((np.uint8,) if is_stack else (np.uint8, np.uint16))
    photometric: Any = "rgb" if rgb else "minisblack"
    if not is_stack and (rgb or array.shape[0] == 1):
        pixels = np.moveaxis(array[:, 0], 0, -1) if rgb else array[0, 0]
        tifffile.imwrite(path, pixels, photometric=photometric, compression="zlib")
        return
    large = array.nbytes > LARGEST_IMAGEJ
    if rgb or (array.shape[0] == 1 and array.dtype in _IMAGEJ_TYPES and not large):
        pixels = np.moveaxis(array, 0, -1) if rgb else array[0]
        metadata = _imagej(geometry, "ZYXS" if rgb else "ZYX")
        tifffile.imwrite(path, pixels, imagej=True, photometric=photometric, **metadata)
        return
    metadata = _ome(path, geometry, array.dtype, hashlib.sha256(array.tobytes()).hexdigest(), large)
    tifffile.imwrite(path, array, photometric=photometric, **metadata)


def write_tiff_rows(path: Path, labels: LabelRows, number: np.dtype, geometry: Geometry) -> None:
    """The labels as `write_tiff` writes an array of this number type, with a slice or a strip in memory at a time."""
    import tifffile

    kind: Any = {"shape": labels.shape, "dtype": number, "photometric": "minisblack"}
    size = math.prod(labels.shape) * number.itemsize
    large = size > LARGEST_IMAGEJ
    if geometry.shape[0] == 1:
        rows = max(1, STRIP_BYTES // (labels.shape[2] * number.itemsize))
        kind |= {"shape": labels.shape[1:], "rowsperstrip": rows, "compression": "zlib", "bigtiff": large}
        tifffile.imwrite(path, _strips(labels, number, rows), **kind)
    elif number in _IMAGEJ_TYPES and not large:
        tifffile.imwrite(path, _slices(labels, number), imagej=True, **kind, **_imagej(geometry, "ZYX"))
    else:
        content = hashlib.sha256()
        for plane in _slices(labels, number):
            content.update(plane.data)
        kind["shape"] = (1, *labels.shape)
        metadata = _ome(path, geometry, number, content.hexdigest(), large)
        tifffile.imwrite(path, _slices(labels, number), **kind, **metadata)


def _slices(labels: LabelRows, number: np.dtype) -> Iterator[np.ndarray]:
    for z in range(labels.shape[0]):
        yield labels.read(z, 0, labels.shape[1]).astype(number)


def _strips(labels: LabelRows, number: np.dtype, rows: int) -> Iterator[bytes]:
    for start in range(0, labels.shape[1], rows):
        values = labels.read(0, start, min(start + rows, labels.shape[1])).astype(number.newbyteorder("<"))
        yield zlib.compress(values.data, 6)


def _imagej(geometry: Geometry, axes: str) -> dict[str, Any]:
    z, y, x = geometry.spacing
    return {"resolution": (1 / x, 1 / y), "metadata": {"axes": axes, "spacing": z, "unit": "mm"}}


def _ome(path: Path, geometry: Geometry, number: np.dtype, digest: str, large: bool) -> dict[str, Any]:
    """What describes (C, Z, Y, X); `digest` stands for the content, as tifffile's own identifier holds the time."""
    if number not in _OME_TYPES:
        raise FileError(path, f"cannot hold a stack of {number}", "Write NIfTI")
    z, y, x = geometry.spacing
    metadata: dict[str, Any] = {"axes": "CZYX", "UUID": f"urn:uuid:{uuid5(NAMESPACE_OID, digest)}"}
    if geometry.shape[0] > 1:
        metadata |= {"PhysicalSizeZ": z, "PhysicalSizeY": y, "PhysicalSizeX": x}
        metadata |= dict.fromkeys(("PhysicalSizeZUnit", "PhysicalSizeYUnit", "PhysicalSizeXUnit"), "mm")
    return {"compression": "zlib", "metadata": metadata, "ome": True, "bigtiff": large}
