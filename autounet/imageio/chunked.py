"""Images of Zarr and HDF5, of which some rows are read at a time: those that are larger than the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Shape3
from .axes import AxisPlaces, arrange, find_axes
from .formats import errors_of_file, file_kind, read_file_header
from .hdf5 import axes_of, opened_data_set, require_sound_chunks
from .image_format import ImageHeader
from .ome_zarr import chunks_of, image_at, opened_array, require_sound_array

MOST_CHUNKS = 10**7
"""of a Zarr array that is read by rows: each takes a tenth of a millisecond"""
CHUNKED_KINDS = ("zarr", "hdf5")
"""file kinds of which parts can be read"""


class ChunkedImage(NamedTuple):
    """An opened image (C, Z, Y, X) whose voxels are still in its file."""

    path: Path
    header: ImageHeader
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    chunks: Shape3
    """voxels along z, y and x that are decompressed at once"""
    stored: Any
    """the array of the library"""
    places: AxisPlaces
    frame: int | None

    def rows(self, axis: int, start: int, stop: int) -> np.ndarray:
        """(C, Z, Y, X) as stored, of these rows along z, y or x (`axis` 0 to 2). Raises FileError."""
        place = self.places[1 + axis]
        where = [slice(None)] * len(self.stored.shape)
        if place is not None:
            where[place] = slice(start, stop)
        if self.frame is not None and self.places.c is not None:
            where[self.places.c] = slice(self.frame, self.frame + 1)
        with errors_of_file(self.path):
            return arrange(np.asarray(self.stored[tuple(where)]), self.places)


@contextmanager
def opened_image(path: Path, frame: int | None = None, checked: bool = True) -> Iterator[ChunkedImage]:
    """An image of one of `CHUNKED_KINDS`; `frame` takes one time point.

    `checked` False: for its sizes alone, as its chunks are not looked at. Raises DataError as `read_image`.
    """
    header = read_file_header(path)
    if frame is not None and (header.components > 1 or frame >= header.frames):
        finding = f"has {header.frames} time points of {header.components} values"
        raise FileError(path, finding, "Give the original file")
    with _opened(path, checked) as (stored, axes, chunks):
        places = find_axes(path, stored.shape, axes)
        z, y, x = (1 if place is None else chunks[place] for place in places[1:4])
        count = 1 if frame is not None or places.c is None else stored.shape[places.c]
        yield ChunkedImage(
            path, header, (count, *header.geometry.shape), np.dtype(stored.dtype), (z, y, x), stored, places, frame
        )


@contextmanager
def _opened(path: Path, checked: bool) -> Iterator[tuple[Any, str, tuple[int, ...]]]:
    """The library's array, the letters of its axes, and the lengths of its chunks."""
    if file_kind(path) == "zarr":
        with errors_of_file(path):
            image = image_at(path)
            if checked:
                require_sound_array(path, image.array)
                if (count := chunks_of(image.array)) > MOST_CHUNKS:
                    what = f"has {count} chunks, which are too many to be looked for"
                    raise FileError(path, what, "Export it in larger chunks")
            stored = opened_array(image.array)
        yield stored, image.axes, image.array.shards.chunks if image.array.shards else image.array.chunks
        return
    with opened_data_set(path) as data:
        with errors_of_file(path):
            if checked:
                require_sound_chunks(path, data)
        yield data, axes_of(path, data), data.chunks or (1,) * data.ndim
