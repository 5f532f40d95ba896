"""Axes and channels of the formats that name them: TIFF, OME-Zarr and HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import FileError

MOST_COLOURS = 4
"""length up to which an axis that has no name holds channels, and not rows, columns or slices"""
LONGEST_NAME = 80
"""letters of a channel's name that are kept"""


class AxisPlaces(NamedTuple):
    """Which axis of an array as stored is that of channels, slices, rows and columns; None where there is none."""

    c: int | None
    z: int | None
    y: int
    x: int
    frames: int
    """time points along `c`"""


def find_axes(path: Path, shape: Sequence[int], axes: str) -> AxisPlaces:
    """Of named axes: Z, I and Q are slices, C and S channels, T time, Y, X; of length 1 only Y, X and S count.

    Without an axis of slices, T is one. Raises DataError.
    """
    kept = [i for i, axis in enumerate(axes) if axis in "YXS" or shape[i] > 1]
    slices = [i for i in kept if axes[i] not in "YXSC"]
    channels = [i for i in kept if axes[i] in "SC"]
    frames = 1
    names = "".join(axes[i] for i in kept)
    if "T" in names and len(slices) == 2 and not channels:
        channels, slices = [axes.index("T")], [i for i in slices if axes[i] != "T"]
        frames = shape[channels[0]]
    if len(slices) > 1 or len(channels) > 1 or not {"Y", "X"} <= set(names):
        raise FileError(path, f"has the axes {names}", "Store one volume per file, with one axis of slices")
    c, z = (next(iter(each), None) for each in (channels, slices))
    return AxisPlaces(c, z, axes.index("Y"), axes.index("X"), frames)


def arrange(array: np.ndarray, places: AxisPlaces) -> np.ndarray:
    """View (C, Z, Y, X) of an array as stored, or of a part of it."""
    order = [place for place in places[:4] if place is not None]
    rest = [axis for axis in range(array.ndim) if axis not in order]
    array = array.transpose(*order, *rest).squeeze(tuple(range(len(order), array.ndim)))
    missing = tuple(index for index, place in enumerate(places[:2]) if place is None)
    return np.expand_dims(array, missing)


def order_axes(path: Path, array: np.ndarray, axes: str) -> tuple[np.ndarray, int]:
    """Bring named axes (see `find_axes`) to (C, Z, Y, X), and the number of time points along C. Raises DataError."""
    places = find_axes(path, array.shape, axes)
    return arrange(array, places), places.frames


def guess_axes(path: Path, shape: Sequence[int], remedy: str) -> str:
    """Letters of the axes of an array whose file does not name them.

    A short last axis is that of channels, as ilastik takes it, of four axes and more also a short one before the
    slices; an axis before these of length 1 is time. Raises DataError, with the `remedy`, where no axis can be that of
    the channels.
    """
    last = len(shape) > 2 and shape[-1] <= MOST_COLOURS
    if len(shape) in (2, 3):
        return "YXC" if last else "ZYX"[-len(shape) :]
    if len(shape) in (4, 5) and set(shape[: len(shape) - 4]) <= {1}:
        before = "T" * (len(shape) - 4)
        if last:
            return before + "ZYXC"
        if shape[-4] <= MOST_COLOURS:
            return before + "CZYX"
    raise FileError(path, f"does not say what its axes of the lengths {tuple(shape)} are", remedy)


def clean_names(names: Sequence[object], count: int) -> tuple[str, ...]:
    """Channels' names as a file gives them, in one line each; none where these are not `count` different ones."""
    found = tuple(" ".join("".join(filter(str.isprintable, str(each))).split())[:LONGEST_NAME] for each in names)
    return found if len(found) == count == len(set(found)) and all(found) else ()
