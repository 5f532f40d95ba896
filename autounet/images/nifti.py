"""The voxels of NIfTI files. Their geometry stays with ITK.

ITK turns NaN and infinite voxels into zeros, and fills what a truncated file lacks with zeros, without a word; here
both are seen, and gzip's checksum is checked on the way. Format: nifti1.h and nifti2.h of the NIfTI initiative.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autounet.images.headers import AGAIN, damaged, gunzip
from autounet.schema.errors import DataError

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""datatype codes of scalar voxels -> numpy's names without byte order"""


class Header(NamedTuple):
    order: str
    """byte order, < or >"""
    shape: tuple[int, ...]
    """(x, y, z, ...)"""
    datatype: int
    bits: int
    """per voxel"""
    offset: int
    """of the first voxel"""
    slope: float
    intercept: float


def read_voxels(path: Path) -> np.ndarray | None:
    """Array (..., Z, Y, X) as stored, scaled when the header says so; None for types that are left to ITK.

    Raises DataError when the file is truncated or damaged.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gunzip(path, content)
    header = _header(path, content)
    expected = header.offset + math.prod(header.shape) * header.bits // 8
    if len(content) < expected:
        raise DataError(f"{path} is truncated: {len(content)} of {expected} bytes are there. {AGAIN}")
    if content[expected:].strip(b"\0"):
        raise damaged(path, f"its header tells of {expected} bytes, and {len(content)} are there")
    if header.datatype not in _TYPES or header.offset < 348 or len(header.shape) > 4:
        return None
    number = np.dtype(header.order + _TYPES[header.datatype])
    count = math.prod(header.shape)
    voxels = np.frombuffer(content, number, count, header.offset).reshape(header.shape[::-1])
    scaled = math.isfinite(header.slope) and header.slope != 0 and math.isfinite(header.intercept)
    if not scaled or (header.slope, header.intercept) == (1, 0):
        return voxels
    return (voxels * float(header.slope) + float(header.intercept)).astype(np.float32)


def _header(path: Path, content: bytes) -> Header:
    for order in "<>":
        size = struct.unpack_from(order + "i", content)[0] if len(content) >= 348 else 0
        if size == 348:
            extents = struct.unpack_from(order + "8h", content, 40)
            datatype, bits = struct.unpack_from(order + "2h", content, 70)
            offset, slope, intercept = struct.unpack_from(order + "3f", content, 108)
        elif size == 540 and len(content) >= 540:
            datatype, bits = struct.unpack_from(order + "2h", content, 12)
            extents = struct.unpack_from(order + "8q", content, 16)
            (offset,) = struct.unpack_from(order + "q", content, 168)
            slope, intercept = struct.unpack_from(order + "2d", content, 176)
        else:
            continue
        shape = [max(1, extent) for extent in extents[1 : 1 + max(1, min(7, extents[0]))]]
        while len(shape) > 2 and shape[-1] == 1:
            shape.pop()
        return Header(order, tuple(shape), datatype, bits, int(offset), slope, intercept)
    raise DataError(f"{path} is not a NIfTI file: its header is missing or damaged. {AGAIN}")
