"""Labels that DICOM objects hold, on the voxels of the series they were drawn on: segmentations and structure sets.

Standard: DICOM PS3.3 A.51 and C.8.20 (segmentation), C.8.8.5 and C.8.8.6 (structure set, contours).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from .dicom import LABEL_MODALITIES
from .dicom_slices import read_dataset
from .image_format import damaged
from .structures import NamedMask

if TYPE_CHECKING:
    from pydicom import Dataset

OFF_GRID = 0.3
"""voxels by which a segmentation's pixels may lie beside those of the series: positions are rounded in both"""
ON_CONTOUR = 1e-3
"""voxels from a contour up to which a voxel's centre lies on it: coordinates are stored with 16 characters"""
TILTED = 0.5
"""slices that the points of one contour may be apart"""
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
"""contours that surround an area; points and open lines do not"""
INSIDE = 0.99
"""share of a contour's area in another one's from which on it lies inside"""


def structure_names(path: Path) -> list[str]:
    """The structures that an object names and describes, in its order, each once. Raises DataError."""
    dataset = read_dataset(path)
    if _modality(path, dataset) == "SEG":
        return list(dict.fromkeys(_segment_names(dataset).values()))
    drawn = {number for number, _ in _contours(dataset)}
    return list(dict.fromkeys(name for number, name in _roi_names(dataset).items() if number in drawn))


def object_masks(path: Path, geometry: Geometry) -> Iterator[NamedMask]:
    """The mask (Z, Y, X) of each structure on the voxels of a series. Raises DataError."""
    dataset = read_dataset(path)
    if _modality(path, dataset) == "SEG":
        yield from _segment_masks(path, dataset, geometry)
    else:
        yield from _contour_masks(path, dataset, geometry)


def referenced_instances(path: Path) -> set[str]:
    """UIDs of the images that an object refers to, anywhere in it. Raises DataError."""
    elements = read_dataset(path).iterall()
    return {str(each.value) for each in elements if each.keyword == "ReferencedSOPInstanceUID"}


def may_overlap(path: Path) -> bool:
    """Whether structures of one object can share voxels: not where it says so, or holds one alone. Raises DataError."""
    dataset = read_dataset(path)
    if _modality(path, dataset) != "SEG":
        return True
    told = str(dataset.get("SegmentsOverlap") or "").upper() == "NO" or _kind(dataset) == "LABELMAP"
    return not told and len(_segment_names(dataset)) > 1


def _modality(path: Path, dataset: Dataset) -> str:
    modality = str(dataset.get("Modality") or "")
    if modality not in LABEL_MODALITIES:
        raise FileError(path, f"is no segmentation and no structure set, but of modality {modality or 'unknown'}")
    return modality


def _number(value: Any) -> int:
    return int(value) if value not in (None, "") else 0


# ---- segmentations ----------------------------------------------------------------------------------------------


def _kind(dataset: Dataset) -> str:
    return str(dataset.get("SegmentationType") or "BINARY").upper()


def _segment_names(dataset: Dataset) -> dict[int, str]:
    """By segment number; the label, else what kind of structure it is."""
    names = {}
    for segment in dataset.get("SegmentSequence") or ():
        number = _number(segment.get("SegmentNumber"))
        codes = segment.get("SegmentedPropertyTypeCodeSequence") or ()
        meaning = str(codes[0].get("CodeMeaning") or "") if codes else ""
        name = str(segment.get("SegmentLabel") or meaning or f"segment {number}").strip(" \0")
        if number or _kind(dataset) != "LABELMAP":  # 0 of a label map is the background
            names[number] = name
    return names


class _Frame(NamedTuple):
    segment: int
    """number; 0: the pixels are segment numbers"""
    first: np.ndarray
    """(3,) position of the first pixel in voxels (x, y, z) of the series"""
    right: np.ndarray
    """(3,) step in voxels from one column to the next, and from one row to the next"""
    down: np.ndarray


def _segment_masks(path: Path, dataset: Dataset, geometry: Geometry) -> Iterator[NamedMask]:
    names = _segment_names(dataset)
    if not names:
        raise damaged(path, "it describes no segments")
    found = {name: np.zeros(geometry.shape, bool) for name in names.values()}
    frames = _frames(path, dataset, geometry)
    least = 0.5 * (_number(dataset.get("MaximumFractionalValue")) or 255) if _kind(dataset) == "FRACTIONAL" else 1
    for frame, pixels in zip(frames, _pixels(path, dataset), strict=False):
        for number in [frame.segment] if frame.segment else np.unique(pixels[pixels > 0]).tolist():
            if number not in names:
                raise damaged(path, f"a frame is of segment {number}, which it does not describe")
            inside = pixels >= least if frame.segment else pixels == number
            _paint(path, found[names[number]], frame, inside)
    yield from (NamedMask(name, mask) for name, mask in found.items())


def _pixels(path: Path, dataset: Dataset) -> Iterator[np.ndarray]:
    """(Y, X) of each frame."""
    from pydicom.pixels import iter_pixels

    if "PixelData" not in dataset:
        return
    try:
        yield from iter_pixels(BytesIO(path.read_bytes()))
    except Exception as error:  # of pydicom and of the codecs that it calls
        raise damaged(path, f"its pixels cannot be decoded ({' '.join(str(error).split())[:120]})") from None


def _frames(path: Path, dataset: Dataset, geometry: Geometry) -> list[_Frame]:
    """Where the frames lie. Raises DataError where that is not on the voxels of the series."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    to_voxels = np.linalg.inv(np.reshape(geometry.direction, (3, 3)) * geometry.spacing[::-1])
    found = []
    for groups in dataset.get("PerFrameFunctionalGroupsSequence") or ():

        def value(macro: str, keyword: str, own: Dataset = groups) -> Any:
            for place in (own, shared):
                items = place.get(macro) if place is not None else None
                if items and items[0].get(keyword) is not None:
                    return items[0].get(keyword)
            return None

        position = value("PlanePositionSequence", "ImagePositionPatient")
        axes = value("PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = value("PixelMeasuresSequence", "PixelSpacing")
        if position is None or axes is None or spacing is None:
            raise FileError(path, "does not say where its frames lie", "Export it again, or convert it to NIfTI")
        along, across = np.reshape(np.array(axes, float), (2, 3))
        right, down = to_voxels @ along * float(spacing[1]), to_voxels @ across * float(spacing[0])
        first = to_voxels @ (np.array(position, float) - geometry.origin)
        steps = np.stack([first, right, down])
        reach = np.array([1, dataset.Columns, dataset.Rows])[:, None]
        if (np.abs(steps - np.rint(steps)) * reach > OFF_GRID).any():
            finding = "does not lie on the voxels of its series: it was resampled, or drawn on another one"
            raise FileError(path, finding, "Export it on the grid of its series, or convert both to NIfTI")
        number = _number(value("SegmentIdentificationSequence", "ReferencedSegmentNumber"))
        found.append(_Frame(0 if _kind(dataset) == "LABELMAP" else number or 1, *np.rint(steps)))
    return found


def _paint(path: Path, mask: np.ndarray, frame: _Frame, inside: np.ndarray) -> None:
    rows, columns = np.nonzero(inside)
    x, y, z = (frame.first[:, None] + frame.right[:, None] * columns + frame.down[:, None] * rows).astype(int)
    depth, height, width = mask.shape
    if ((x < 0) | (x >= width) | (y < 0) | (y >= height) | (z < 0) | (z >= depth)).any():
        raise FileError(
            path, "reaches beyond its series", "Check that the series is whole, and the one it was drawn on"
        )
    mask[z, y, x] = True


# ---- structure sets ---------------------------------------------------------------------------------------------


def _roi_names(dataset: Dataset) -> dict[int, str]:
    names = {}
    for roi in dataset.get("StructureSetROISequence") or ():
        number = _number(roi.get("ROINumber"))
        names[number] = str(roi.get("ROIName") or "").strip(" \0") or f"ROI {number}"
    return names


def _contours(dataset: Dataset) -> Iterator[tuple[int, Dataset]]:
    """ROI number and contour, of those that surround an area."""
    for roi in dataset.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            closed = str(contour.get("ContourGeometricType") or "").upper() in CLOSED
            if closed and len(contour.get("ContourData") or ()) >= 9:
                yield _number(roi.get("ReferencedROINumber")), contour


def _contour_masks(path: Path, dataset: Dataset, geometry: Geometry) -> Iterator[NamedMask]:
    names = _roi_names(dataset)
    to_voxels = np.linalg.inv(np.reshape(geometry.direction, (3, 3)) * geometry.spacing[::-1])
    drawn: dict[str, dict[int, list[_Area]]] = {}
    for number, contour in _contours(dataset):
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
            slices.setdefault(z, []).append(_area(voxels[:, :2], geometry.shape[1:], exclusive))
    for name, slices in drawn.items():
        mask = np.zeros(geometry.shape, bool)
        for z, areas in slices.items():
            _fill(mask[z], areas)
        yield NamedMask(name, mask)


class _Area(NamedTuple):
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


def _area(points: np.ndarray, shape: Sequence[int], exclusive: bool) -> _Area:
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
    return _Area(int(top), int(left), parity | border, border, exclusive)


def _fill(plane: np.ndarray, areas: Sequence[_Area]) -> None:
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
