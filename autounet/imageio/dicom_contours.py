"""Structure sets (RTSTRUCT): contours on slices, filled on the voxels of a series.

Standard: DICOM PS3.3 C.8.8.5 and C.8.8.6 (structure set, contours).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .image_format import damaged
from .structures import NamedMask

if TYPE_CHECKING:
    from pydicom import Dataset

ON_CONTOUR = 1e-3
"""voxels from a contour up to which a voxel's centre lies on it: coordinates are stored with 16 characters"""
TILTED = 0.5
"""slices that the points of one contour may be apart"""
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
"""contours that surround an area; points and open lines do not"""
INSIDE = 0.99
"""share of a contour's area in another one's from which on it lies inside"""


def number_of(value: Any) -> int:
    """0 for a value that is missing or empty."""
    return int(value) if value not in (None, "") else 0


def roi_names(dataset: Dataset) -> dict[int, str]:
    """By the number of the structure."""
    names = {}
    for roi in dataset.get("StructureSetROISequence") or ():
        number = number_of(roi.get("ROINumber"))
        names[number] = str(roi.get("ROIName") or "").strip(" \0") or f"ROI {number}"
    return names


def contours(dataset: Dataset) -> Iterator[tuple[int, Dataset]]:
    """ROI number and contour, of those that surround an area."""
    for roi in dataset.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            closed = str(contour.get("ContourGeometricType") or "").upper() in CLOSED
            if closed and len(contour.get("ContourData") or ()) >= 9:
                yield number_of(roi.get("ReferencedROINumber")), contour


def contour_masks(path: Path, dataset: Dataset, geometry: Geometry) -> Iterator[NamedMask]:
    """The mask (Z, Y, X) of each structure on the voxels of a series. Raises DataError."""
    names = roi_names(dataset)
    to_voxels = np.linalg.inv(np.reshape(geometry.direction, (3, 3)) * geometry.spacing[::-1])
    drawn: dict[str, dict[int, list[Area]]] = {}
    for number, contour in contours(dataset):
        name = names.get(number, f"ROI {number}")
        try:
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
        except ValueError:
            raise damaged(path, f"a contour of {name} is no list of points") from None
        voxels = (points - geometry.origin) @ to_voxels.T
        if np.ptp(voxels[:, 2]) > TILTED:
            finding = f"has contours of {name} that are not parallel to the slices of its series"
            raise FileError(path, finding, "Export it with contours on the slices, or convert it to NIfTI")
        z = round(float(voxels[:, 2].mean()))
        slices = drawn.setdefault(name, {})
        if 0 <= z < geometry.shape[0]:
            exclusive = "XOR" in str(contour.ContourGeometricType).upper()
            slices.setdefault(z, []).append(contour_area(voxels[:, :2], geometry.shape[1:], exclusive))
    for name, slices in drawn.items():
        mask = np.zeros(geometry.shape, bool)
        for z, areas in slices.items():
            _fill(mask[z], areas)
        yield NamedMask(name, mask)


class Area(NamedTuple):
    """What one contour surrounds, in the smallest box of pixels that holds it."""

    top: int
    left: int
    inside: np.ndarray
    """(Y, X) bool, of pixels whose centres lie inside or on the contour"""
    border: np.ndarray
    """of those that lie on it"""
    exclusive: bool

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.inside.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]


def contour_area(points: np.ndarray, shape: Sequence[int], exclusive: bool) -> Area:
    """From the corners (N, 2), x and y in pixels, of a contour on a slice of `shape`."""
    low = np.clip(np.floor(points.min(axis=0)).astype(int), 0, [shape[1], shape[0]])
    high = np.clip(np.ceil(points.max(axis=0)).astype(int) + 1, low, [shape[1], shape[0]])
    (left, top), (width, height) = low, high - low
    start = points - low
    stop = np.roll(start, -1, axis=0)
    inside, border = np.zeros((height, width + 1), np.int32), np.zeros((height, width), bool)
    rows = np.arange(height)[:, None]
    (x0, y0), (x1, y1) = start.T, stop.T
    crossed = (np.minimum(y0, y1) <= rows) & (rows < np.maximum(y0, y1))
    slope = np.divide(x1 - x0, y1 - y0, out=np.zeros_like(x0), where=y1 != y0)
    at = x0 + (rows - y0) * slope
    row, edge = np.nonzero(crossed)
    np.add.at(inside, (row, np.clip(np.ceil(at[row, edge]).astype(int), 0, width)), 1)
    parity = (np.cumsum(inside, axis=1)[:, :width] % 2).astype(bool)
    touched = (np.minimum(y0, y1) - ON_CONTOUR <= rows) & (rows <= np.maximum(y0, y1) + ON_CONTOUR)
    level = np.abs(y1 - y0) <= ON_CONTOUR
    row, edge = np.nonzero(touched & ~level)
    place = np.clip(at[row, edge], np.minimum(x0, x1)[edge], np.maximum(x0, x1)[edge])
    column = np.rint(place).astype(int)
    on = (np.abs(place - column) <= ON_CONTOUR) & (column >= 0) & (column < width)
    border[row[on], column[on]] = True
    for row_, edge_ in zip(*np.nonzero(touched & level), strict=True):
        first, last = sorted((x0[edge_], x1[edge_]))
        border[row_, max(0, int(np.ceil(first - ON_CONTOUR))) : max(0, int(np.floor(last + ON_CONTOUR)) + 1)] = True
    return Area(int(top), int(left), parity | border, border, exclusive)


def _fill(plane: np.ndarray, areas: Sequence[Area]) -> None:
    """Draw the contours of one structure on one slice (Y, X), the largest first.

    One that lies inside others is a hole where their number is odd, and an island where it is even. Pixels whose
    centres lie on a contour belong to the structure. Contours that only cross each other are joined; of type XOR, what
    lies in an odd number of them is the structure.
    """
    ordered = sorted(areas, key=lambda area: -int(area.inside.sum()))
    before: list[np.ndarray] = []
    for area in ordered:
        own = np.zeros_like(plane)
        own[area.box] = area.inside
        if not own.any():
            continue  # smaller than a pixel
        if area.exclusive:
            plane ^= own
            continue
        if any((own == other).all() for other in before):
            continue  # the same contour once more
        around = sum(int((own & other).sum()) >= INSIDE * int(own.sum()) for other in before)
        before.append(own)
        if around % 2:
            plane[area.box] &= ~area.inside | area.border
        else:
            plane |= own
