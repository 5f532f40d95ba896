"""A new image whose files are read some rows at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np

from ..imageio import CHUNKED_KINDS, ChunkedImage, file_kind, opened_image
from ..schema.errors import DataError
from ..schema.geometry import Geometry
from .inputs import InputCase
from .reading import require_channels, require_one_grid

PIECE_BYTES = 2**24
"""of the float32 of a piece of an image, about; at least one row"""
DECODED_BYTES = 2**29
"""of the rows as stored that are read at once, at most: a chunk is decompressed once where its rows fit in here"""


def rows_of_piece(voxels: float) -> int:
    """Rows of so many float32 values each that are handled at once."""
    return max(1, int(PIECE_BYTES // (4 * voxels)))


def can_be_chunked(case: InputCase) -> bool:
    """Whether parts of all its files can be read."""
    return case.error is None and all(file_kind(path) in CHUNKED_KINDS for path in case.images)


class ChunkedInput(NamedTuple):
    """An opened case (C, Z, Y, X)."""

    identifier: str
    geometry: Geometry
    channels: int
    present: tuple[bool, ...] | None
    """which of C it has; the others are 0. None: all"""
    parts: tuple[ChunkedImage, ...]
    """joined along the channels that are present"""

    def pieces(self, axis: int) -> list[list[tuple[int, int]]]:
        """(start, stop) of pieces of rows along z, y or x; those of one list are read from the files at once."""
        size, plane = self.geometry.shape[axis], self.plane(axis)
        rows = rows_of_piece(self.channels * plane)
        stored = sum(part.shape[0] * part.dtype.itemsize for part in self.parts) * plane
        depth = max(part.chunks[axis] for part in self.parts)
        whole = depth * stored <= DECODED_BYTES
        block = depth * max(1, rows // depth) if whole else max(rows, DECODED_BYTES // stored)
        return [
            [(first, min(first + rows, start + block, size)) for first in range(start, min(start + block, size), rows)]
            for start in range(0, size, block)
        ]

    def plane(self, axis: int) -> int:
        """Voxels of one row along an axis, of one channel."""
        return math.prod(self.geometry.shape) // self.geometry.shape[axis]

    def read(self, axis: int, backwards: bool = False) -> Iterator[tuple[int, int, np.ndarray]]:
        """(start, stop, (C, Z, Y, X) float32) of each piece, from the first row to the last or the other way round."""
        there = range(self.channels) if self.present is None else np.flatnonzero(self.present)
        way = -1 if backwards else 1
        for block in self.pieces(axis)[::way]:
            corner = block[0][0]
            stored = [each.rows(axis, corner, block[-1][1]) for each in self.parts]
            for start, stop in block[::way]:
                where = (slice(None),) * (1 + axis) + (slice(start - corner, stop - corner),)
                shape = list(self.geometry.shape)
                shape[axis] = stop - start
                image = np.zeros((self.channels, *shape), np.float32)
                first = 0
                for part in stored:
                    image[there[first : first + len(part)]] = part[where]
                    first += len(part)
                yield start, stop, image
            del stored, part  # before the next are read


@contextmanager
def opened_input(case: InputCase, channels: int, checked: bool = True) -> Iterator[ChunkedInput]:
    """A case that `can_be_chunked`, checked as `load_input` does but for its intensities; `checked` as `opened_image`.

    Raises DataError.
    """
    present = None if case.present is None else tuple(index in case.present for index in range(channels))
    with ExitStack() as stack:
        try:
            parts = tuple(stack.enter_context(opened_image(path, case.frame, checked)) for path in case.images)
            headers = [part.header for part in parts]
            geometries, remarks = [each.geometry for each in headers], [each.remarks for each in headers]
            require_one_grid(case.images, geometries, remarks, logging.WARNING if checked else logging.DEBUG)
            found = sum(part.shape[0] for part in parts)
            require_channels(case.images, found, channels if case.present is None else len(case.present))
        except DataError as error:
            raise DataError(error.message, error.remedy, case.identifier) from None
        yield ChunkedInput(case.identifier, headers[0].geometry, channels, present, parts)
