"""The metrics by name, and their values for every class of one case, from two label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import numpy as np
from scipy.ndimage import find_objects

from ..datasets.checks.case_checks import HEADER_TOLERANCE, world_differences
from ..imageio import VOLUME_KINDS
from ..ops.orient import orient, orientation_towards, oriented_geometry, same_voxels
from ..schema.dataset import NOT_ANNOTATED, is_certain
from ..schema.errors import DataError
from ..schema.geometry import Geometry, GeometryDifference, placements
from ..schema.labels import Labels
from ..schema.metrics import DEFAULT_METRICS, ClassMetrics
from .boundary_metrics import assd, boundary_iou, hd95, nsd, nsd_subvoxel
from .overlap_metrics import (
    MaskPair,
    Undefined,
    cl_dice,
    dice,
    iou,
    lesion_f1,
    panoptic_quality,
    precision,
    sensitivity,
    volume,
    volume_difference,
)

METRICS: dict[str, Callable[[MaskPair], float]] = {
    "dice": dice,
    "iou": iou,
    "sensitivity": sensitivity,
    "precision": precision,
    "hd95": hd95,
    "nsd": nsd,
    "volume": volume,
    "volume_difference": volume_difference,
    "assd": assd,
    "nsd_subvoxel": nsd_subvoxel,
    "boundary_iou": boundary_iou,
    "lesion_f1": lesion_f1,
    "panoptic_quality": panoptic_quality,
    "cl_dice": cl_dice,
}
"""by the field of `ClassMetrics` that holds the value"""


Unit = Literal["mm", "pixels"]
Box = tuple[slice, ...]
LARGEST_DIRECT_VALUE = 4096
"""label values up to this are found in one pass over the array; others by a pass each"""


def distance_unit(geometry: Geometry) -> Unit:
    """Pixels for a 2-D image whose file states no spacing, else mm."""
    return "pixels" if geometry.dimension == 2 and set(geometry.spacing) == {1.0} else "mm"


def on_grid_of(
    values: np.ndarray, own: Geometry, reference: Geometry
) -> tuple[np.ndarray, tuple[GeometryDifference, ...]]:
    """A view of (..., Z, Y, X) whose axes run like the reference's, and what its place in space then differs in.

    The same voxels may be stored in another order of the axes and against their direction, by either transform of a
    NIfTI file. Where one of the two does not say where its voxels lie (pictures; a 2-D image beside a volume), shapes
    have to be equal as stored, and spacing where both state one.
    """
    shape = () if own.shape == reference.shape else (GeometryDifference("shape", own.shape, reference.shape),)
    kinds = {own.kind, reference.kind}
    if not kinds <= VOLUME_KINDS or own.dimension != reference.dimension:
        return values, shape + _stated_spacing(own, reference)
    if not shape and not world_differences(own, reference):
        return values, ()
    pairs = product(placements(own), placements(reference))
    own, reference = next((pair for pair in pairs if same_voxels(*pair)), (own, reference))
    axes, flips = orientation_towards(own, reference)
    turned = [oriented_geometry(own, axes, flips, direction) for direction in (None, reference.direction)]
    if turned[0].shape != reference.shape:
        shape = (GeometryDifference("shape", turned[0].shape, reference.shape),)
        return orient(values, axes, flips), shape + world_differences(turned[0], reference)
    found = min((world_differences(each, reference) for each in turned), key=len)
    return orient(values, axes, flips), found


def _stated_spacing(own: Geometry, reference: Geometry) -> tuple[GeometryDifference, ...]:
    """The difference of two spacings, of which 1 everywhere means that a picture states none."""
    spacings = {own.spacing, reference.spacing}
    if own.dimension != reference.dimension or (1.0, 1.0, 1.0) in spacings:
        return ()
    if np.allclose(own.spacing, reference.spacing, rtol=HEADER_TOLERANCE, atol=0):
        return ()
    return (GeometryDifference("spacing", own.spacing, reference.spacing),)


def evaluate_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: Labels,
    tolerance: float = 1.0,
    unit: Unit = "mm",
    annotated: Sequence[bool] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, ClassMetrics]:
    """Metrics per reported class and per region of one case.

    `prediction` and `reference` hold file values (Z,Y,X), `spacing` is (z, y, x). Voxels where the reference has
    the ignore value belong to no class in either. `annotated` (K) says which classes were annotated in the case, by
    dense index; None: all. Classes that the reference does not show have no metric, with that as the reason. `metrics`
    names those of `METRICS` that are measured. Raises DataError when the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise DataError(
            f"the prediction has the shape {prediction.shape}, the reference {reference.shape}",
            "Compare segmentations of the same image",
        )
    names: dict[str, tuple[int, ...]] = {label.name: (label.value,) for label in labels.reported}
    names |= {region.name: region.values for region in labels.regions}
    targets = {name: values for name, values in names.items() if _is_annotated(values, labels, annotated)}
    wanted = {value for values in targets.values() for value in values}
    boxes = [value_boxes(array, wanted) for array in (prediction, reference)]
    axes = tuple(axis for axis, size in enumerate(reference.shape) if size > 1) or tuple(range(reference.ndim))
    result = {}
    for name, values in targets.items():
        box = _union([found[value] for found in boxes for value in values if value in found], reference.ndim)
        counted = True if labels.ignore is None else reference[box] != labels.ignore
        pair = MaskPair(
            prediction=_mask(prediction[box], values) & counted,
            reference=_mask(reference[box], values),
            shape=reference.shape,
            spacing=tuple(float(step) for step in spacing),
            axes=axes,
            tolerance=tolerance,
            unit=unit,
        )
        result[name] = evaluate_pair(pair, metrics)
    unannotated = ClassMetrics(undefined=dict.fromkeys(metrics, NOT_ANNOTATED))
    return {name: result.get(name, unannotated) for name in names}


def _is_annotated(values: Sequence[int], labels: Labels, annotated: Sequence[bool] | None) -> bool:
    """Whether the reference says where the union of `values` is."""
    return annotated is None or is_certain([labels.values.index(value) for value in values], annotated)


def evaluate_pair(pair: MaskPair, metrics: Sequence[str] = DEFAULT_METRICS) -> ClassMetrics:
    """The named metrics of one pair of masks, undefined ones as None with their reason."""
    values: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for name in metrics:
        try:
            values[name] = METRICS[name](pair)
        except Undefined as reason:
            undefined[name] = str(reason)
    return ClassMetrics(**values, undefined=undefined)


def value_boxes(array: np.ndarray, values: set[int]) -> dict[int, Box]:
    """The bounding box of each of the values that occurs in an integer array."""
    if not array.size:
        return {}
    if int(array.min()) >= 0 and int(array.max()) <= LARGEST_DIRECT_VALUE:
        found = find_objects(array if array.dtype.kind in "iu" else array.astype(np.int32))
        boxes = {value: found[value - 1] for value in values if 0 < value <= len(found)}
    else:
        boxes = {value: _box(array == value) for value in values if value != 0}
    if 0 in values:
        boxes[0] = _box(array == 0)
    return {value: box for value, box in boxes.items() if box is not None}


def _box(mask: np.ndarray) -> Box | None:
    """The bounding box of a mask; None when it is empty."""
    found = find_objects(mask.view(np.uint8))
    return found[0] if found else None


def _union(boxes: Sequence[Box], ndim: int) -> Box:
    """The smallest box around several; an empty one when there are none."""
    if not boxes:
        return (slice(0, 0),) * ndim
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True)
    )


def _mask(array: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Where the array has one of the values; boolean."""
    return array == values[0] if len(values) == 1 else np.isin(array, values)
