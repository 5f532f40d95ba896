"""The metrics by name, and their values for every class of one case, from two label maps; those of boundaries.

Distances are in mm, or in pixels for images without spacing. Surfaces include faces at the border of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Final, Literal

import numpy as np
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree

from ..datasets.checks.case_checks import HEADER_TOLERANCE, world_differences
from ..imageio import VOLUME_KINDS
from ..ops.orient import orient, orientation_towards, oriented_geometry, same_voxels
from ..ops.surfaces import distances_to_outside, surface_elements
from ..schema.dataset import NOT_ANNOTATED, is_certain
from ..schema.errors import DataError
from ..schema.geometry import Geometry, GeometryDifference, placements
from ..schema.labels import Labels
from ..schema.metrics import DEFAULT_METRICS, OBJECT_METRICS, ClassMetrics
from ..schema.plugins import Registry, not_callable
from .overlap_metrics import (
    MaskPair,
    Undefined,
    average_precision,
    cl_dice,
    count_error,
    dice,
    iou,
    lesion_f1,
    panoptic_quality,
    precision,
    sensitivity,
    volume,
    volume_difference,
)

SPACING_PRECISION: Final = 1e-6
"""relative; files hold spacings in float32, and one voxel of 1 mm must lie within a tolerance of 1 mm"""
BOUNDARY_SHARE: Final = 0.02
"""width of the boundary in boundary IoU as a share of the image's diagonal: that of its paper"""


def hd95(pair: MaskPair) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in mm or pixels.

    Surfaces are voxel centres (see `ops.distances.surface`); percentiles per direction, then the maximum, as in
    "Metrics reloaded" and MONAI. Undefined when a mask is empty.
    """
    pair.require_both()
    return float(max(np.percentile(distances, 95) for distances in pair.distances))


def assd(pair: MaskPair) -> float:
    """Average symmetric surface distance: the mean of both directions' distances together, in mm or pixels.

    Heimann et al., IEEE Transactions on Medical Imaging 2009; "Metrics reloaded" and MONAI (symmetric). MedPy's is
    another, the mean of the two directions' means. Surfaces as for `hd95`. Undefined when a mask is empty.
    """
    pair.require_both()
    return float(np.concatenate(pair.distances).mean())


def nsd(pair: MaskPair) -> float:
    """Normalised surface Dice (Nikolov et al. 2018), voxel-edge form.

    The share of surface voxels, of both masks together, that lie within the tolerance of the other surface. 0 when
    one mask is empty, undefined when both are.
    """
    if pair.is_missed():
        return 0.0
    forth, back = (distances <= _limit(pair) for distances in pair.distances)
    return float((np.count_nonzero(forth) + np.count_nonzero(back)) / (len(forth) + len(back)))


def nsd_subvoxel(pair: MaskPair) -> float:
    """Normalised surface Dice (Nikolov et al. 2018), subvoxel form, as in DeepMind's surface-distance and MONAI.

    The surfaces run between voxels (see `ops.subvoxel`), and each piece counts by its area. 0 when one mask is empty,
    undefined when both are.
    """
    if pair.is_missed():
        return 0.0
    pieces = [surface_elements(mask, pair.steps) for mask in pair.flat]
    trees = [cKDTree(centres, balanced_tree=False, compact_nodes=False) for centres, _ in pieces]
    within = 0.0
    for (centres, sizes), tree in zip(pieces, reversed(trees), strict=True):
        within += sizes[tree.query(centres)[0] <= _limit(pair)].sum()
    return float(within / sum(sizes.sum() for _, sizes in pieces))


def _limit(pair: MaskPair) -> float:
    return pair.tolerance * (1 + SPACING_PRECISION)


def boundary_iou(pair: MaskPair) -> float:
    """IoU of the two masks' inner boundaries, Cheng et al., "Boundary IoU", CVPR 2021.

    A boundary is what of a mask lies within a distance of the outside: 2 % of the image's diagonal, at least one voxel.
    The paper erodes in steps of pixels; here the distance is Euclidean, between voxel centres, in units of the
    spacing. 0 when one mask is empty, undefined when both are.
    """
    if pair.is_missed():
        return 0.0
    diagonal = float(np.linalg.norm([pair.shape[axis] * pair.spacing[axis] for axis in pair.axes]))
    width = max(BOUNDARY_SHARE * diagonal, *pair.steps) * (1 + SPACING_PRECISION)
    first, second = (mask & (distances_to_outside(mask, pair.steps) <= width) for mask in pair.flat)
    return int(np.count_nonzero(first & second)) / int(np.count_nonzero(first | second))


def _average_precision_above(percent: int) -> Callable[[MaskPair], float]:
    def metric(pair: MaskPair) -> float:
        return average_precision(pair, percent / 100)

    metric.__doc__ = f"""`average_precision` above an IoU of 0.{percent}."""
    return metric


Metric = Callable[[MaskPair], float]
OWN_METRICS: dict[str, Metric] = {
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
    **{f"ap{percent}": _average_precision_above(percent) for percent in (50, 60, 70, 80, 90)},
    "count_error": count_error,
}
"""by the field of `ClassMetrics` that holds the value"""
METRICS: Registry[Metric] = Registry("metrics", OWN_METRICS, not_callable)
"""with those of plug-ins, whose values `ClassMetrics.plugins` holds"""


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
    names |= {region.name: region.values for region in labels.reported_regions}
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


def evaluate_objects(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: Labels,
    tolerance: float = 1.0,
    unit: Unit = "mm",
    metrics: Sequence[str] = (*DEFAULT_METRICS, *OBJECT_METRICS),
) -> dict[str, ClassMetrics]:
    """As `evaluate_case` for numbered masks (Z,Y,X): metrics of the one class whose objects `labels` tell apart.

    Numbers above 0 are objects. Voxels where the reference has the ignore value belong to none in either.
    """
    assert labels.objects is not None
    if labels.ignore is not None:
        ignored = reference == labels.ignore
        prediction, reference = (np.where(ignored, 0, each) for each in (prediction, reference))
    prediction, reference = (np.maximum(each, 0) for each in (prediction, reference))
    box = _box((prediction > 0) | (reference > 0)) or (slice(0, 0),) * reference.ndim
    pair = MaskPair(
        prediction=prediction[box] > 0,
        reference=reference[box] > 0,
        shape=reference.shape,
        spacing=tuple(float(step) for step in spacing),
        axes=tuple(axis for axis, size in enumerate(reference.shape) if size > 1) or tuple(range(reference.ndim)),
        tolerance=tolerance,
        unit=unit,
        numbers=(prediction[box], reference[box]),
    )
    return {labels.objects: evaluate_pair(pair, metrics)}


def _is_annotated(values: Sequence[int], labels: Labels, annotated: Sequence[bool] | None) -> bool:
    """Whether the reference says where the union of `values` is."""
    return annotated is None or is_certain([labels.values.index(value) for value in values], annotated)


def evaluate_pair(pair: MaskPair, metrics: Sequence[str] = DEFAULT_METRICS) -> ClassMetrics:
    """The named metrics of one pair of masks, undefined ones as None with their reason."""
    values: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for name in metrics:
        try:
            values[name] = float(METRICS[name](pair))
        except Undefined as reason:
            undefined[name] = str(reason)
    return ClassMetrics.of(values, undefined)


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
