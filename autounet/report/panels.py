"""From a case's files to the flat pictures that are drawn: which cut, which part of it, which way up.

A volume is turned to the canonical orientation and cut in its three planes, shown as a radiologist expects them
(patient's right on the left of the picture, front or top of the patient up). A 2-D image is taken whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autounet.images import output_suffix, read_image, read_labels, suffix
from autounet.ops.orient import canonical_axes, orient, permute
from autounet.schema.dataset import Case, Dataset
from autounet.schema.errors import AutoUNetError

MARGIN = 0.5
"""the view reaches this share of the structures' extent beyond them on each side"""
LEAST_VIEW = 32.0
"""mm; the view of a volume is never narrower"""
ANATOMICAL = ("nifti", "nrrd", "mha", "dicom")
"""file kinds whose direction tells where the patient's axes lie"""
TITLES = {
    True: (("axial", ("R", "L", "A", "P")), ("coronal", ("R", "L", "S", "I")), ("sagittal", ("A", "P", "S", "I"))),
    False: (("across z", ()), ("across y", ()), ("across x", ())),
}
"""per plane perpendicular to (z, y, x): its name, and the letters at the left, right, top and bottom"""


@dataclass(frozen=True)
class Panel:
    """One flat picture. image (H,W) or (H,W,3) in 0..1; truth and prediction (H,W) file values."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float]
    """(row, column) mm"""
    letters: tuple[str, ...] = ()
    volume: bool = True


def case_panels(dataset: Dataset, case: Case, predictions: Path) -> list[Panel]:
    """Three cuts of a volume, or the one 2-D image, of the first channel (all three of a colour image).

    Raises:
        AutoUNetError: a file is missing, unreadable or of another shape.
    """
    if case.label is None:
        raise AutoUNetError(f"case {case.identifier} has no reference")
    root = Path(dataset.root)
    image, geometry = read_image(root / case.images[0], case.frame)
    truth, _ = read_labels(root / case.label, dataset.labels.codes, case.frame)
    prediction, _ = read_labels(predictions / (case.identifier + output_suffix(suffix(root / case.images[0]))))
    if not image.shape[1:] == truth.shape == prediction.shape:
        shapes = f"image {image.shape[1:]}, reference {truth.shape}, prediction {prediction.shape}"
        raise AutoUNetError(f"the files of case {case.identifier} differ in shape: {shapes}")
    image = _windowed(image if _is_colour(image, dataset) else image[:1])
    if geometry.shape[0] == 1:
        shown = np.moveaxis(image, 0, -1)[0].squeeze()
        return [Panel("", shown, truth[0], prediction[0], geometry.spacing[1:], volume=False)]
    anatomical = geometry.kind in ANATOMICAL
    axes, flips = canonical_axes(geometry.direction, 3 if anatomical else 2)
    image, truth, prediction = (orient(array, axes, flips) for array in (image, truth, prediction))
    values = [label.value for label in dataset.labels.foreground]
    return cuts(np.moveaxis(image, 0, -1), truth, prediction, permute(geometry.spacing, axes), values, anatomical)


def cuts(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, float, float],
    values: list[int],
    anatomical: bool,
) -> list[Panel]:
    """Per plane the cut with the largest area of structures. image (Z,Y,X,C), labels (Z,Y,X), canonical."""
    marked = np.isin(truth, values) | np.isin(prediction, values)
    window = [_span(marked, axis, spacing[axis]) for axis in range(3)]
    panels = []
    for axis, (title, letters) in enumerate(TITLES[anatomical]):
        area = marked.sum(axis=tuple(other for other in range(3) if other != axis))
        index = int(area.argmax()) if area.any() else marked.shape[axis] // 2
        box = tuple(index if other == axis else window[other] for other in range(3))
        flat = [array[box] for array in (image, truth, prediction)]
        if axis != 0:  # rows run along z, which points upwards
            flat = [array[::-1] for array in flat]
        row, column = (spacing[other] for other in range(3) if other != axis)
        shown = flat[0][..., 0] if flat[0].shape[-1] == 1 else flat[0]
        panels.append(Panel(title, shown, flat[1], flat[2], (row, column), letters))
    return panels


def _span(marked: np.ndarray, axis: int, spacing: float) -> slice:
    """The part of an axis that is shown: the structures and a margin; all of it when there are none."""
    size = marked.shape[axis]
    hits = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
    if not hits.size:
        return slice(0, size)
    start, stop = int(hits[0]), int(hits[-1]) + 1
    margin = max((stop - start) * MARGIN, (LEAST_VIEW / spacing - (stop - start)) / 2)
    return slice(max(0, int(start - margin)), min(size, int(np.ceil(stop + margin))))


def _is_colour(image: np.ndarray, dataset: Dataset) -> bool:
    return image.shape[0] == 3 and [channel.name for channel in dataset.channels] == ["red", "green", "blue"]


def _windowed(image: np.ndarray) -> np.ndarray:
    """(C,Z,Y,X) -> 0..1. Colours by their range, grey between the 0.5 and 99.5 percentiles of non-zero voxels."""
    if image.shape[0] == 3:
        return np.clip(image / (255.0 if image.max() > 1 else 1.0), 0, 1)
    values = image[image != 0]
    low, high = np.percentile(values, [0.5, 99.5]) if values.size else (0.0, 1.0)
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)
