"""What headers say, checked before anything is built on it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import DataError
from ..schema.geometry import Geometry

AGAIN = "Copy or export the file again"
SQUARE = 1e-2
"""largest scalar product of two axes' unit vectors: headers keep few digits; a sheared image is far beyond it"""
LIMIT = 1e9
"""mm; a spacing or an origin beyond it comes from a damaged header"""


class VolumeHeader(NamedTuple):
    geometry: Geometry
    components: int
    """values per voxel: colours, vectors, layers"""
    frames: int
    """length of a fourth axis, 1 when there is none"""

    @property
    def channels(self) -> int:
        return self.components * self.frames


def damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is damaged: {what}. {AGAIN}")


def make_geometry(
    path: Path,
    kind: str,
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: np.ndarray,
) -> Geometry:
    """Geometry of 2 or 3 axes: size, spacing and origin as (x, y[, z]), direction with the axes in its columns.

    Raises DataError for anything that no image can have.
    """
    axes = len(size)
    if min(size) < 1:
        raise DataError(f"{path} holds no voxels. {AGAIN}")
    if not all(math.isfinite(value) and 0 < value < LIMIT for value in spacing):
        raise damaged(path, f"its spacing is {tuple(spacing)}")
    if not all(math.isfinite(value) and abs(value) < LIMIT for value in origin):
        raise damaged(path, f"its origin is {tuple(origin)}")
    if not np.isfinite(direction).all() or np.abs(direction.T @ direction - np.eye(axes)).max() > SQUARE:
        raise DataError(
            f"{path} cannot be read: its axes are not at right angles (sheared or inexact direction matrix). "
            "Resample it to a rectangular grid"
        )
    full = np.eye(3)
    full[:axes, :axes] = direction
    x, y, z = [*map(int, size), 1][:3]
    dx, dy, dz = [*map(float, spacing), 1.0][:3]
    ox, oy, oz = [*map(float, origin), 0.0][:3]
    return Geometry(
        shape=(z, y, x),
        spacing=(dz, dy, dx),
        origin=(ox, oy, oz),
        direction=tuple(full.ravel().tolist()),  # type: ignore[arg-type]
        kind=kind,
        dimension=axes,
    )


def take_voxels(path: Path, data: bytes, number: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """The voxels of a file, `shape` from the slowest axis to the fastest.

    Raises DataError when there are too few bytes, or more than the header tells of (padding by zeros is accepted).
    """
    expected = math.prod(shape) * number.itemsize
    if len(data) < expected:
        raise DataError(f"{path} is truncated: {len(data)} of {expected} bytes of voxels are there. {AGAIN}")
    if data[expected:].strip(b"\0"):
        raise damaged(path, f"its header tells of {expected} bytes of voxels, and {len(data)} are there")
    return np.frombuffer(data, number, math.prod(shape)).reshape(tuple(shape))


def gunzip(path: Path, content: bytes) -> bytes:
    """All members of a gzip file, checksums verified; padding by zeros is allowed behind them. Raises DataError."""
    parts = []
    while content:
        stream = zlib.decompressobj(wbits=31)
        parts.append(inflate(path, stream, content))
        content = stream.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def inflate(path: Path, stream: zlib._Decompress, content: bytes) -> bytes:
    """What a zlib stream holds, to its end. Raises DataError when it is damaged or ends early."""
    try:
        data = stream.decompress(content)
    except zlib.error as error:
        raise damaged(path, str(error)) from None
    if not stream.eof:
        raise DataError(f"{path} is truncated: its compressed data end early, after {len(data)} bytes. {AGAIN}")
    return data
