"""Outlines on the pixels of the image that they were drawn on. A pixel is inside where its centre is.

The parts of one outline are joined; of ImageJ's composite regions, what lies in an even number of parts is a hole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .dicom_contours import contour_area
from .image_format import require_memory
from .imagej_rois import Outline
from .outline_files import outlined_shape, read_outlines
from .structures import NamedMask

CROWD = -1
"""in place of the number of an object, where nobody told objects apart"""


class _Drawn(NamedTuple):
    """The pixels of an outline."""

    planes: slice
    box: tuple[slice, slice]
    inside: np.ndarray
    """(Y, X) bool in the box"""

    @property
    def place(self) -> tuple[slice, slice, slice]:
        return (self.planes, *self.box)


def outline_masks(path: Path, image: Path, geometry: Geometry, channels: int) -> Iterator[NamedMask]:
    """The mask (Z, Y, X) of each class on an image of `channels`. Raises FileError."""
    masks: dict[str, np.ndarray] = {}
    for outline in _outlines(path, image, geometry):
        own = _drawn(path, outline, geometry, channels)
        masks.setdefault(outline.name, np.zeros(geometry.shape, bool))[own.place] |= own.inside
    yield from (NamedMask(name, mask) for name, mask in masks.items())


def outline_numbers(path: Path, image: Path, geometry: Geometry, channels: int) -> np.ndarray:
    """(Z, Y, X) int32 with a number for each outline from 1 on; where they overlap, that of the smaller one.

    Crowds, which surround several objects, are CROWD where no object is. Raises FileError.
    """
    numbers = np.zeros(geometry.shape, np.int32)
    outlines = _outlines(path, image, geometry)
    for each in outlines:
        if each.crowd:
            own = _drawn(path, each, geometry, channels)
            numbers[own.place][..., own.inside] = CROWD
    drawn = [_drawn(path, each, geometry, channels) for each in outlines if not each.crowd]
    for number, own in enumerate(sorted(drawn, key=lambda own: -int(own.inside.sum())), 1):
        numbers[own.place][..., own.inside] = number
    return numbers


def _outlines(path: Path, image: Path, geometry: Geometry) -> list[Outline]:
    """Raises FileError where they were drawn on an image of another size."""
    told, shape = outlined_shape(path, image), geometry.shape[1:]
    if all(told) and told != shape:
        finding = f"was drawn on {told[0]} x {told[1]} pixels, and {image.name} has {shape[0]} x {shape[1]} (y, x)"
        raise FileError(path, finding, "Give the image that it was drawn on, neither scaled nor turned")
    return read_outlines(path, image)[0]


def _drawn(path: Path, outline: Outline, geometry: Geometry, channels: int) -> _Drawn:
    depth, *shape = geometry.shape
    planes = slice(0, depth)
    if outline.position and depth > 1:
        index = (outline.position - 1) // (channels if outline.over_channels else 1)
        if index >= depth:
            finding = f"has a region on slice {index + 1}, and {depth} are there"
            raise FileError(path, finding, "Give the stack that it was drawn on")
        planes = slice(index, index + 1)
    if outline.mask is not None:
        (top, left), (height, width) = outline.box, outline.mask.shape
        if min(top, left) < 0 or top + height > shape[0] or left + width > shape[1]:
            raise FileError(path, "has a mask that reaches beyond its image", "Give the image that it was drawn on")
        return _Drawn(planes, np.s_[top : top + height, left : left + width], outline.mask)
    corners = np.concatenate(outline.parts)[:, ::-1]
    top, left = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, shape).tolist()
    bottom, right = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, (top, left), shape).tolist()
    inside = np.zeros((bottom - top, right - left), bool)
    for points in outline.parts:
        require_memory(path, len(points) * max(1, bottom - top), 64)
        area = contour_area(points - 0.5 - (left, top), inside.shape, exclusive=False)
        own = np.zeros_like(inside)
        own[area.box] = area.inside
        inside = inside ^ own if outline.exclusive else inside | own
    return _Drawn(planes, np.s_[top:bottom, left:right], inside)
