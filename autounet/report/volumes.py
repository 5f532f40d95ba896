"""A case read once for its pictures and for the viewer: image, reference, predictions, the way up, what is around.

A volume is turned to the canonical orientation; a 2-D image is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..datasets import read_reference
from ..imageio import output_suffix, read_image, read_labels, suffix
from ..ops.orient import Axes, Flips, canonical_axes, orient, permute
from ..schema.dataset import Case, Dataset
from ..schema.errors import AutoUNetError

Entropy = Callable[[str, np.ndarray, np.ndarray, np.ndarray], np.ndarray | None]
"""(case, z, y, x) -> (len(z), len(y), len(x)) 0..1 at these indices of the file's array; None: nothing was kept"""

MARGIN = 0.5
"""the view reaches this share of the structures' extent beyond them on each side"""
LEAST_VIEW = 32.0
"""mm; the view of a volume is never narrower"""
ANATOMICAL = ("nifti", "nrrd", "mha", "dicom")
"""file kinds whose direction tells where the patient's axes lie"""


@dataclass(frozen=True)
class CaseVolume:
    """Arrays (Z, Y, X) in the shown orientation; image (Z, Y, X, C) in 0..1, C 1 or 3."""

    case: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]
    """mm"""
    values: tuple[int, ...]
    """of the foreground, as in the label arrays"""
    window: tuple[slice, slice, slice]
    """what is shown: the structures with a margin, or all"""
    anatomical: bool = False
    """whether the axes are the patient's"""
    flat: bool = False
    axes: Axes = (0, 1, 2)
    flips: Flips = (False, False, False)
    entropy: Entropy | None = None
    rivals: dict[str, np.ndarray] = field(default_factory=dict)
    """predictions by single configurations, where these are compared"""

    def uncertainty(self, indices: Sequence[np.ndarray]) -> np.ndarray | None:
        """(Z', Y', X') float32 0..1 at these indices of the shown axes; None where no scores were kept."""
        if self.entropy is None:
            return None
        stored = [np.zeros(0, int)] * 3
        for shown, axis in enumerate(self.axes):
            size = self.truth.shape[shown]
            stored[axis] = size - 1 - indices[shown] if self.flips[shown] else indices[shown]
        found = self.entropy(self.case, *stored)
        return None if found is None else found.transpose(self.axes)


def read_volume(
    dataset: Dataset, case: Case, predictions: Path, entropy: Entropy | None = None, rivals: Sequence[Path] = ()
) -> CaseVolume:
    """The first channel (all three of a colour image), the reference, and the segmentation in `predictions`.

    `rivals` are the folders of single configurations, named as these. Raises AutoUNetError where a file is missing,
    unreadable or of another shape.
    """
    if case.label is None:
        raise AutoUNetError(f"case {case.identifier} has no reference")
    root = Path(dataset.root)
    name = case.identifier + output_suffix(suffix(root / case.images[0]))
    image, geometry = read_image(root / case.images[0], case.frame)
    truth, _ = read_reference(dataset, case)
    prediction, *others = (read_labels(folder / name)[0] for folder in (predictions, *rivals))
    if not image.shape[1:] == truth.shape == prediction.shape:
        shapes = f"image {image.shape[1:]}, reference {truth.shape}, prediction {prediction.shape}"
        raise AutoUNetError(f"the files of case {case.identifier} differ in shape: {shapes}")
    values = tuple(label.value for label in dataset.labels.foreground)
    image = _windowed(image if _is_colour(image, dataset) else image[:1])
    flat, anatomical = geometry.shape[0] == 1, geometry.kind in ANATOMICAL
    axes, flips = canonical_axes(geometry.direction, 3 if anatomical and not flat else 2)
    image, truth, prediction, *others = (orient(each, axes, flips) for each in (image, truth, prediction, *others))
    spacing = permute(geometry.spacing, axes)
    marked = np.isin(truth, values) | np.isin(prediction, values)
    return CaseVolume(
        case.identifier,
        np.moveaxis(image, 0, -1),
        truth,
        prediction,
        spacing,
        values,
        whole(truth.shape) if flat else window(marked, spacing),
        anatomical and not flat,
        flat,
        axes,
        flips,
        entropy,
        {folder.name: other for folder, other in zip(rivals, others, strict=True)},
    )


def whole(shape: Sequence[int]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(0, size) for size in shape)
    return z, y, x


def window(marked: np.ndarray, spacing: Sequence[float]) -> tuple[slice, slice, slice]:
    """The structures (Z, Y, X) bool and a margin; all along an axis when there are none."""
    z, y, x = (_span(marked, axis, spacing[axis]) for axis in range(3))
    return z, y, x


def _span(marked: np.ndarray, axis: int, spacing: float) -> slice:
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
