"""Labels of an image that is larger than the memory, on their way into a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..schema.disk import writing
from ..schema.geometry import Shape3

READ_BYTES = 2**24
"""of a piece, about"""


class LabelRows:
    """(Z, Y, X) integers in a file of nothing else, which is written and read by rows along z or y."""

    def __init__(self, path: Path, shape: Shape3, dtype: np.dtype, background: int) -> None:
        """Makes the file, with `background` in every voxel."""
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.axis = 0 if shape[0] > 1 else 1
        """along which pieces are read: z, or y of a single slice"""
        with writing(path), path.open("wb") as file:
            file.truncate(math.prod(shape) * self.dtype.itemsize)
        if background:
            for start, piece in self.pieces():
                self.write(self.axis, start, np.full_like(piece, background))

    def write(self, axis: int, start: int, values: np.ndarray) -> None:
        """Values (Z, Y, X) of the rows from `start` on along z or y (`axis` 0 or 1), whole along the others."""
        rows = np.ascontiguousarray(values, self.dtype)
        with writing(self.path), self.path.open("rb+") as file:
            for z, plane in enumerate(rows, start if axis == 0 else 0):
                file.seek(self._place(z, start if axis else 0))
                file.write(plane.data)

    def read(self, z: int, start: int, stop: int) -> np.ndarray:
        """(Y, X) some rows of one slice."""
        with self.path.open("rb") as file:
            file.seek(self._place(z, start))
            values = np.fromfile(file, self.dtype, (stop - start) * self.shape[2])
        return values.reshape(stop - start, self.shape[2])

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """The first row, and values (Z, Y, X), of pieces along `axis`, in order."""
        rows = max(1, READ_BYTES // (math.prod(self.shape) // self.shape[self.axis] * self.dtype.itemsize))
        for start in range(0, self.shape[self.axis], rows):
            stop = min(start + rows, self.shape[self.axis])
            if self.axis == 1:
                yield start, self.read(0, start, stop)[None]
            else:
                yield start, np.stack([self.read(z, 0, self.shape[1]) for z in range(start, stop)])

    def _place(self, z: int, y: int) -> int:
        return (z * self.shape[1] + y) * self.shape[2] * self.dtype.itemsize
