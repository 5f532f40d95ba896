"""Reads a case for its pictures and the viewer: image, reference and predictions, turned upright, and the shown window.

A volume is turned to the canonical orientation; a 2-D image stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..datasets import read_numbers, read_reference
from ..imageio import output_suffix, read_image, read_labels, suffix
from ..ops.objects import apart
from ..ops.orient import Axes, Flips, canonical_axes, orient, permute
from ..schema.dataset import Case, Dataset
from ..schema.errors import AutoUNetError

EntropyReader = Callable[[str, np.ndarray, np.ndarray, np.ndarray], np.ndarray | None]
"""(case, z, y, x) -> entropy (len(z), len(y), len(x)), 0..1 of the maximum, at these indices of the file's array;
None: no scores were kept"""

MARGIN = 0.5
"""shown around the structures on each side, as a fraction of their extent"""
MIN_VIEW = 32.0
"""mm; the shown window of a volume is never narrower"""
ANATOMICAL = ("nifti", "nrrd", "mha", "dicom")
"""file kinds whose direction relates the axes to the patient"""
PLANES = {
    True: (("axial", ("R", "L", "A", "P")), ("coronal", ("R", "L", "S", "I")), ("sagittal", ("A", "P", "S", "I"))),
    False: (("across z", ()), ("across y", ()), ("across x", ())),
}
"""anatomical or not -> per plane perpendicular to (z, y, x) its name, and letters at the left, right, top and bottom"""


@dataclass(frozen=True)
class CaseVolume:
    """Arrays (Z,Y,X) in the shown orientation; image (Z,Y,X,C) in 0..1, C 1 or 3."""

    case: str
    image: np.ndarray
    reference: np.ndarray
    """label values as in the file"""
    prediction: np.ndarray
    spacing: tuple[float, float, float]
    """mm"""
    values: tuple[int, ...]
    """label values of the foreground classes"""
    window: tuple[slice, slice, slice]
    """the shown part: the structures with a margin, or everything"""
    anatomical: bool = False
    """whether the axes are known to be the patient's"""
    flat: bool = False
    """a 2-D image"""
    axes: Axes = (0, 1, 2)
    flips: Flips = (False, False, False)
    entropy: EntropyReader | None = None
    configuration_predictions: Mapping[str, np.ndarray] = field(default_factory=dict)
    """predictions by single configurations, where these are compared"""

    def uncertainty(self, indices: Sequence[np.ndarray]) -> np.ndarray | None:
        """Entropy (Z',Y',X') float32 0..1 at these indices of the shown axes; None where no scores were kept."""
        if self.entropy is None:
            return None
        stored = [np.zeros(0, int)] * 3
        for shown, axis in enumerate(self.axes):
            size = self.reference.shape[shown]
            stored[axis] = size - 1 - indices[shown] if self.flips[shown] else indices[shown]
        entropy = self.entropy(self.case, *stored)
        return None if entropy is None else entropy.transpose(self.axes)


def read_volume(
    dataset: Dataset,
    case: Case,
    predictions: Path,
    entropy: EntropyReader | None = None,
    configuration_folders: Sequence[Path] = (),
) -> CaseVolume:
    """The first channel (all three of a colour image), the reference, and the segmentation in folder `predictions`.

    `configuration_folders` hold the segmentations by single configurations. Raises AutoUNetError where a file is
    missing, cannot be read or has another shape.
    """
    if case.label is None:
        raise AutoUNetError("the case has no reference", case=case.identifier)
    image_file = Path(dataset.root) / case.images[0]
    name = case.identifier + output_suffix(suffix(image_file))
    image, geometry = read_image(image_file, case.frame)
    objects = dataset.labels.objects is not None
    reference, _ = read_numbers(dataset, case) if objects else read_reference(dataset, case)
    prediction, *others = (read_labels(folder / name)[0] for folder in (predictions, *configuration_folders))
    if not image.shape[1:] == reference.shape == prediction.shape:
        shapes = f"image {image.shape[1:]}, reference {reference.shape}, prediction {prediction.shape}"
        raise AutoUNetError(f"the files have different shapes: {shapes}", case=case.identifier)
    values = tuple(label.value for label in dataset.labels.foreground)
    if objects:  # a gap shows between those that touch
        reference, prediction = (apart(each, dataset.labels.ignore) for each in (reference, prediction))
        others = [(each > 0).astype(np.int32) for each in others]
        values = (1,)
    image = _to_unit_range(image if _is_colour(image, dataset) else image[:1])
    flat, anatomical = geometry.shape[0] == 1, geometry.kind in ANATOMICAL
    axes, flips = canonical_axes(geometry.direction, 3 if anatomical and not flat else 2)
    image, reference, prediction, *others = (
        orient(each, axes, flips) for each in (image, reference, prediction, *others)
    )
    spacing = permute(geometry.spacing, axes)
    marked = np.isin(reference, values) | np.isin(prediction, values)
    return CaseVolume(
        case=case.identifier,
        image=np.moveaxis(image, 0, -1),
        reference=reference,
        prediction=prediction,
        spacing=spacing,
        values=values,
        window=whole(reference.shape) if flat else window(marked, spacing),
        anatomical=anatomical and not flat,
        flat=flat,
        axes=axes,
        flips=flips,
        entropy=entropy,
        configuration_predictions={
            folder.name: other for folder, other in zip(configuration_folders, others, strict=True)
        },
    )


def whole(shape: Sequence[int]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(0, size) for size in shape)
    return z, y, x


def window(marked: np.ndarray, spacing: Sequence[float]) -> tuple[slice, slice, slice]:
    """The marked voxels (Z,Y,X) bool with a margin; everything along an axis where there are none."""
    z, y, x = (_span(marked, axis, spacing[axis]) for axis in range(3))
    return z, y, x


def _span(marked: np.ndarray, axis: int, spacing: float) -> slice:
    size = marked.shape[axis]
    hits = np.flatnonzero(marked.any(axis=tuple(other for other in range(3) if other != axis)))
    if not hits.size:
        return slice(0, size)
    start, stop = int(hits[0]), int(hits[-1]) + 1
    margin = max((stop - start) * MARGIN, (MIN_VIEW / spacing - (stop - start)) / 2)
    return slice(max(0, int(start - margin)), min(size, int(np.ceil(stop + margin))))


def _is_colour(image: np.ndarray, dataset: Dataset) -> bool:
    return image.shape[0] == 3 and [channel.name for channel in dataset.channels] == ["red", "green", "blue"]


def _to_unit_range(image: np.ndarray) -> np.ndarray:
    """(C,Z,Y,X) to 0..1: colours by their range, else by the 0.5 and 99.5 percentiles of non-zero voxels."""
    if image.shape[0] == 3:
        return np.clip(image / (255.0 if image.max() > 1 else 1.0), 0, 1)
    values = image[image != 0]
    low, high = np.percentile(values, [0.5, 99.5]) if values.size else (0.0, 1.0)
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)
