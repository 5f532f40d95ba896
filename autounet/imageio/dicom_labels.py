"""Labels that DICOM objects hold, on the voxels of the series they were drawn on: segmentations and structure sets.

Standard: DICOM PS3.3 A.51 and C.8.20 (segmentation). Contours of structure sets: see `dicom_contours`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from ..schema.geometry import Geometry
from ..schema.labels import LabelCode
from .dicom_contours import contour_masks, contours, number_of, roi_names
from .dicom_index import LABEL_MODALITIES
from .dicom_slices import read_dataset
from .formats import errors_of_file
from .image_format import damaged
from .structures import NamedMask, join_masks, structure_values

if TYPE_CHECKING:
    from pydicom import Dataset

OFF_GRID = 0.3
"""voxels by which a segmentation's pixels may lie beside those of the series: positions are rounded in both"""


def structure_names(path: Path) -> list[str]:
    """The structures that an object names and describes, in its order, each once. Raises DataError."""
    dataset = read_dataset(path)
    with errors_of_file(path):  # pydicom reads what lies deeper when it is asked for
        if _modality(path, dataset) == "SEG":
            return list(dict.fromkeys(_segment_names(dataset).values()))
        drawn = {number for number, _ in contours(dataset)}
        return list(dict.fromkeys(name for number, name in roi_names(dataset).items() if number in drawn))


def object_masks(path: Path, geometry: Geometry) -> Iterator[NamedMask]:
    """The mask (Z, Y, X) of each structure on the voxels of a series. Raises DataError."""
    dataset = read_dataset(path)
    if _modality(path, dataset) == "SEG":
        yield from _segment_masks(path, dataset, geometry)
    else:
        yield from contour_masks(path, dataset, geometry)


def masks_of_objects(objects: Sequence[Path], geometry: Geometry) -> Iterator[NamedMask]:
    """As `object_masks`, of several objects. Raises DataError also for files that are damaged in any other way."""
    for path in objects:
        with errors_of_file(path):
            yield from object_masks(path, geometry)


def object_values(path: Path, geometry: Geometry, codes: Sequence[LabelCode]) -> np.ndarray:
    """(Z, Y, X) int32 on a grid, of the structures that the codes name; others are left out. Raises DataError."""
    wanted = {name for code in codes for name in code.segments}
    found = join_masks((each for each in masks_of_objects([path], geometry) if each.name in wanted), geometry)
    return structure_values(path, found, codes, strict=False).values


def referenced_instances(path: Path) -> set[str]:
    """UIDs of the images that an object refers to, anywhere in it. Raises DataError."""
    dataset = read_dataset(path)
    with errors_of_file(path):
        return {str(each.value) for each in dataset.iterall() if each.keyword == "ReferencedSOPInstanceUID"}


def may_overlap(path: Path) -> bool:
    """Whether structures of one object can share voxels: not where it says so, or holds one alone. Raises DataError."""
    dataset = read_dataset(path)
    with errors_of_file(path):
        if _modality(path, dataset) != "SEG":
            return True
        told = str(dataset.get("SegmentsOverlap") or "").upper() == "NO" or _kind(dataset) == "LABELMAP"
        return not told and len(_segment_names(dataset)) > 1


def _modality(path: Path, dataset: Dataset) -> str:
    modality = str(dataset.get("Modality") or "")
    if modality not in LABEL_MODALITIES:
        raise FileError(path, f"is no segmentation and no structure set, but of modality {modality or 'unknown'}")
    return modality


def _kind(dataset: Dataset) -> str:
    return str(dataset.get("SegmentationType") or "BINARY").upper()


def _segment_names(dataset: Dataset) -> dict[int, str]:
    """By segment number; the label, else what kind of structure it is."""
    names = {}
    for segment in dataset.get("SegmentSequence") or ():
        number = number_of(segment.get("SegmentNumber"))
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
    least = 0.5 * (number_of(dataset.get("MaximumFractionalValue")) or 255) if _kind(dataset) == "FRACTIONAL" else 1
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
    except MemoryError:
        raise
    except Exception as error:  # of pydicom and of the codecs that it calls
        raise damaged(path, f"its pixels cannot be decoded ({' '.join(str(error).split())[:120]})") from None


class _Placement(NamedTuple):
    """What a frame says of its place."""

    segment: int
    position: np.ndarray
    """(3,) mm, of the centre of the first pixel"""
    along: np.ndarray
    """(3,) direction in which columns are counted, and that of rows"""
    across: np.ndarray
    spacing: tuple[float, float]
    """mm between rows and between columns"""
    distance: float | None
    """mm between slices"""


def _placements(path: Path, dataset: Dataset) -> Iterator[_Placement]:
    """Of each frame. Raises DataError where one does not say where it lies."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
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
        number = number_of(value("SegmentIdentificationSequence", "ReferencedSegmentNumber"))
        distance = value("PixelMeasuresSequence", "SpacingBetweenSlices")
        yield _Placement(
            0 if _kind(dataset) == "LABELMAP" else number or 1,
            np.array(position, float),
            along,
            across,
            (float(spacing[0]), float(spacing[1])),
            float(distance) if distance else None,
        )


def _frames(path: Path, dataset: Dataset, geometry: Geometry) -> list[_Frame]:
    """Where the frames lie. Raises DataError where that is not on the voxels of the series."""
    to_voxels = np.linalg.inv(np.reshape(geometry.direction, (3, 3)) * geometry.spacing[::-1])
    reach = np.array([1, dataset.get("Columns") or 1, dataset.get("Rows") or 1])[:, None]
    found = []
    for each in _placements(path, dataset):
        right, down = to_voxels @ each.along * each.spacing[1], to_voxels @ each.across * each.spacing[0]
        steps = np.stack([to_voxels @ (each.position - geometry.origin), right, down])
        if (np.abs(steps - np.rint(steps)) * reach > OFF_GRID).any():
            finding = "does not lie on the voxels of its series: it was resampled, or drawn on another one"
            raise FileError(path, finding, "Export it on the grid of its series, or convert both to NIfTI")
        found.append(_Frame(each.segment, *np.rint(steps)))
    return found


def objects_geometry(paths: Sequence[Path]) -> Geometry:
    """The smallest grid of slices that holds all frames and contours, that of the first segmentation among the objects.

    For comparing them without their series: outside there is nothing. Raises DataError without a segmentation.
    """
    with errors_of_file(paths[0]):
        return _common_grid(paths)


def _common_grid(paths: Sequence[Path]) -> Geometry:
    read = [(path, read_dataset(path)) for path in paths]
    placed = [(path, dataset, list(_placements(path, dataset))) for path, dataset in read
              if _modality(path, dataset) == "SEG"]  # fmt: skip
    path, dataset, frames = next((each for each in placed if each[2]), (paths[0], None, []))
    if dataset is None:
        finding = "is on no grid: only segmentations (DICOM-SEG) say how large voxels are"
        raise FileError(path, finding, "Give one of the two as DICOM-SEG or NIfTI")
    first = frames[0]
    normal = np.cross(first.along, first.across)
    heights = [float(normal @ frame.position) for _, _, own in placed for frame in own]
    gaps = np.diff(np.unique(np.round(heights, 3)))
    step = first.distance or (float(gaps.min()) if len(gaps) else 1.0)
    for _, other in read:
        heights += [float(height) for _, contour in contours(other)
                    for height in np.reshape(np.array(contour.ContourData, float), (-1, 3)) @ normal]  # fmt: skip
    below = round((min(heights) - float(normal @ first.position)) / step)
    count = round((max(heights) - min(heights)) / step) + 1
    x, y, z = (first.position + below * step * normal).tolist()
    a, b, c, d, e, f, g, h, i = np.stack([first.along, first.across, normal], axis=1).ravel().tolist()
    return Geometry(
        shape=(count, int(dataset.Rows), int(dataset.Columns)),
        spacing=(step, *first.spacing),
        origin=(x, y, z),
        direction=(a, b, c, d, e, f, g, h, i),
        kind="dicom",
    )


def _paint(path: Path, mask: np.ndarray, frame: _Frame, inside: np.ndarray) -> None:
    rows, columns = np.nonzero(inside)
    x, y, z = (frame.first[:, None] + frame.right[:, None] * columns + frame.down[:, None] * rows).astype(int)
    depth, height, width = mask.shape
    if ((x < 0) | (x >= width) | (y < 0) | (y >= height) | (z < 0) | (z >= depth)).any():
        raise FileError(
            path, "reaches beyond its series", "Check that the series is whole, and the one it was drawn on"
        )
    mask[z, y, x] = True
