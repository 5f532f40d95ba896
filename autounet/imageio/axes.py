"""Axes and channels of the formats that name them: TIFF, OME-Zarr and HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..schema.errors import FileError

MOST_COLOURS = 4
"""length up to which an axis that has no name holds channels, and not rows, columns or slices"""
LONGEST_NAME = 80
"""letters of a channel's name that are kept"""


def order_axes(path: Path, array: np.ndarray, axes: str) -> tuple[np.ndarray, int]:
    """Bring named axes (Z, I and Q slices, C and S channels, T time, Y, X) to (C, Z, Y, X).

    Also the number of time points along C; without an axis of slices, T is one. Raises DataError.
    """
    for index in reversed([i for i, axis in enumerate(axes) if axis not in "YXS" and array.shape[i] == 1]):
        array, axes = array.squeeze(index), axes[:index] + axes[index + 1 :]
    slices = [i for i, axis in enumerate(axes) if axis not in "YXSC"]
    channels = [i for i, axis in enumerate(axes) if axis in "SC"]
    frames = 1
    if "T" in axes and len(slices) == 2 and not channels:
        channels, slices = [axes.index("T")], [i for i in slices if axes[i] != "T"]
        frames = array.shape[channels[0]]
    if len(slices) > 1 or len(channels) > 1 or not {"Y", "X"} <= set(axes):
        raise FileError(path, f"has the axes {axes}", "Store one volume per file, with one axis of slices")
    order = [*channels, *slices, axes.index("Y"), axes.index("X")]
    array = array.transpose(order)
    if not channels:
        array = array[None]
    return (array if slices else array[:, None]), frames


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
