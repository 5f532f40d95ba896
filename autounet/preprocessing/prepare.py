"""A case as read becomes a case as trained on, and what was predicted goes back to the file's own voxels.

Forward: orient, transpose, crop, normalise, resample. The inverse needs the case's `CaseProperties` alone, and
interpolates, undoes the crop and turns the axes back; values that belong to classes go by `inference.export`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..datasets import load_case
from ..ops.masks import crop, nonzero_box, normalise
from ..ops.orient import network_axes, orient, permute, unorient, unpermute
from ..ops.resample import (
    Rows,
    Taps,
    apply_taps,
    axis_orders,
    axis_taps,
    coarser_spacing,
    resample_image,
    resample_labels,
    resampled_shape,
    separate_axis,
)
from ..schema.dataset import ChannelAvailability, Dataset, channel_availability
from ..schema.errors import DataError
from ..schema.geometry import Box3, CaseProperties, Geometry, Spacing3
from ..schema.plan import PreprocessSpec
from ..schema.quantities import format_size
from ..schema.record import utf8
from ..store import write_prepared
from ..system_memory import available_memory
from ..workers import map_parallel

MOST_LOCATIONS = 10_000
"""per class, as in nnU-Net"""


class Prepared(NamedTuple):
    """A case on the grid that networks see."""

    properties: CaseProperties
    image: np.ndarray
    """(C, *S) float32"""
    labels: np.ndarray | None
    """(*S) int8, or int16 when a class is beyond 127"""
    locations: dict[int, np.ndarray]
    """dense class -> (N, 3) int32 voxels of the prepared grid, in their order; see `class_locations`"""


def prepare_case(
    identifier: str,
    key: str,
    image: np.ndarray,
    labels: np.ndarray | None,
    geometry: Geometry,
    spec: PreprocessSpec,
    present: ChannelAvailability | None = None,
) -> Prepared:
    """From (C, Z, Y, X) and dense labels (Z, Y, X) as stored to the prepared grid. The inputs are not changed.

    Normalisation comes before resampling, because a resampled mask of non-zero voxels would no longer fit the image.
    Channels that are not `present` (None: all are) are 0 after it: what a network takes for nothing special.
    Raises ValueError when image, labels and geometry differ in shape, or the channels are not the plan's; DataError
    when the spacing makes an image that no memory holds.
    """
    if image.shape[1:] != geometry.shape or (labels is not None and labels.shape != geometry.shape):
        shapes = f"image {image.shape[1:]}" + ("" if labels is None else f" and labels {labels.shape}")
        raise ValueError(f"{identifier}: {shapes} do not fit the geometry's shape {geometry.shape}")
    properties = case_properties(identifier, key, nonzero_box(image), geometry, spec, present)
    inside = crop(orient(image, properties.axes, properties.flips), properties.box)
    _require_memory(properties, len(image))
    normalised = normalise(inside, spec.normalisation)
    if present is not None:
        normalised[~np.array(present)] = 0
    rules = spec.resampling
    result = resample_image(normalised, properties.shape, rules.image_order, image_axis(properties), rules.z_order)
    if labels is None:
        return Prepared(properties, result, None, {})
    dense = prepare_labels(labels, properties)
    return Prepared(properties, result, dense, class_locations(dense, identifier))


def case_properties(
    identifier: str,
    key: str,
    stored_box: Box3,
    geometry: Geometry,
    spec: PreprocessSpec,
    present: ChannelAvailability | None = None,
) -> CaseProperties:
    """What preprocessing makes of a case whose non-zero voxels fill a box (stored axis order)."""
    axes, flips = network_axes(geometry.direction, geometry.dimension, spec.orientation, spec.transpose)
    spacing, size = permute(geometry.spacing, axes), permute(geometry.shape, axes)
    sides = zip(permute(stored_box, axes), size, flips, strict=True)
    first, second, third = (
        (whole - stop, whole - start) if flip else (start, stop) for (start, stop), whole, flip in sides
    )
    return CaseProperties(
        identifier=identifier,
        key=key,
        spec=spec,
        geometry=geometry,
        axes=axes,
        flips=flips,
        network_shape=size,
        network_spacing=spacing,
        box=(first, second, third),
        shape=resampled_shape(
            [stop - start for start, stop in (first, second, third)], spacing, _grid_spacing(spec, spacing)
        ),
        present=present,
    )


def image_axis(properties: CaseProperties) -> int | None:
    """The axis along which the image of a case is resampled on its own (network axis order), or None."""
    rules, spacing = properties.spec.resampling, properties.network_spacing
    return separate_axis(spacing, _prepared_spacing(properties), rules.separate_z_ratio)


def _require_memory(properties: CaseProperties, channels: int) -> None:
    """Raises DataError where resampling makes an image larger than all memory, as of a spacing in another unit."""
    needed = 4 * channels * math.prod(properties.shape)
    if math.prod(properties.shape) <= math.prod(properties.cropped_shape) or needed <= available_memory():
        return
    raise DataError(
        f"its {enlargement(properties.network_spacing, properties.shape)}, which need {format_size(needed)} of memory",
        CHECK_SPACING,
        properties.identifier or None,
    )


def enlargement(spacing: Sequence[float], shape: Sequence[int]) -> str:
    """How a spacing makes a grid of this shape, as a part of a sentence."""
    millimetres = " x ".join(f"{step:g}" for step in spacing)
    return f"spacing of {millimetres} mm makes {' x '.join(map(str, shape))} voxels at the spacing of the network"


CHECK_SPACING = "Correct the spacing in the header: it may be in another unit, as 1000 in place of 1 mm"


def prepare_labels(labels: np.ndarray, properties: CaseProperties) -> np.ndarray:
    """Dense labels (Z, Y, X) as stored to (*S) of the case's prepared grid; int8, or int16 for classes beyond 127."""
    dense = crop(orient(labels, properties.axes, properties.flips), properties.box)
    dense = np.ascontiguousarray(dense, dtype=np.int8 if dense.max() <= 127 else np.int16)
    rules = properties.spec.resampling
    return resample_labels(dense, properties.shape, rules.label_order, image_axis(properties), rules.z_order)


def class_locations(labels: np.ndarray, identifier: str, most: int = MOST_LOCATIONS) -> dict[int, np.ndarray]:
    """Up to `most` voxels of each class above 0 in dense labels (*S), drawn without replacement.

    Where some voxels have no label, those of class 0 are as hard to hit by chance, and are listed too. The draw is
    seeded by the case's name, so preparing a case again gives the same voxels.
    """
    flat = labels.ravel()
    foreground = np.flatnonzero(flat >= 0 if flat.min(initial=0) < 0 else flat > 0)
    classes = flat[foreground]
    by_class = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[by_class], return_index=True)
    locations = {}
    parts = np.split(foreground[by_class], starts[1:]) if len(present) else []  # split gives one part of nothing
    for label, indices in zip(present.tolist(), parts, strict=True):
        if len(indices) > most:
            generator = np.random.default_rng([zlib.crc32(utf8(identifier)), label])
            indices = np.sort(generator.choice(indices, most, replace=False, shuffle=False))
        locations[label] = np.stack(np.unravel_index(indices, labels.shape), axis=1).astype(np.int32)
    return locations


def kept_labels(labels: np.ndarray, geometry: Geometry, spec: PreprocessSpec, scale: float) -> np.ndarray:
    """Dense labels (Z, Y, X) as stored after the way to a grid of at least `scale` times the finest axis of the spec's,
    and back: what a network on that grid could predict at best."""
    axes, flips = network_axes(geometry.direction, geometry.dimension, spec.orientation, spec.transpose)
    dense = np.ascontiguousarray(orient(labels, axes, flips))
    spacing = permute(geometry.spacing, axes)
    target = coarser_spacing(_grid_spacing(spec, spacing), scale, geometry.dimension)
    if spec.spacing[0] is None:
        target[0] = spacing[0]
    coarse = resample_labels(dense, resampled_shape(dense.shape, spacing, target.tolist()))
    return unorient(resample_labels(coarse, dense.shape), axes, flips)


# ---- the inverse ------------------------------------------------------------------------------------------------


class Interpolation(NamedTuple):
    """Scores of one source in the target's axis order, and how the target's voxels are interpolated from them.

    The target is the crop in the file (stored axis order), or another prepared grid (its own axis order).
    """

    scores: np.ndarray
    """(K, *S) view"""
    taps: tuple[Taps, Taps, Taps]
    """from the source's prepared grid to the target, per axis"""
    box: Box3
    """where the target lies in the file (stored axis order), or the whole prepared grid"""

    @property
    def is_identity(self) -> bool:
        return all(
            len(each.low) == size and not each.weight.any() and np.array_equal(each.low, np.arange(size))
            for each, size in zip(self.taps, self.scores.shape[1:], strict=True)
        )


def to_file(scores: np.ndarray, properties: CaseProperties, rows: Rows | None = None) -> Interpolation:
    """To the file's own voxels; with `rows` of the crop (network axis order) from scores that begin with its `first`.

    Raises ValueError when the scores are not on the case's prepared grid.
    """
    along, box = list(crop_taps(properties)), list(properties.box)
    if rows is None:
        _require_grid(scores, properties)
    else:
        corner = box[rows.axis][0]
        box[rows.axis] = (corner + rows.start, corner + rows.stop)
        along[rows.axis] = along[rows.axis].rows(rows.start, rows.stop, rows.first)
    return Interpolation(
        unorient(scores, properties.axes, properties.flips),
        _stored_taps(along, scores.shape[1:], properties),
        _stored_box((box[0], box[1], box[2]), properties),
    )


def crop_taps(properties: CaseProperties) -> tuple[Taps, Taps, Taps]:
    """From the prepared grid to the crop of the file, network axis order."""
    return _taps_to(properties, properties.cropped_shape, properties.network_spacing)


def to_grid(scores: np.ndarray, source: CaseProperties, target: CaseProperties) -> Interpolation:
    """From one prepared grid straight to another of the same case.

    Raises ValueError when the scores are not on the source's grid, or the two are of different cases or crops.
    """
    _require_grid(scores, source)
    if source.identifier != target.identifier or source.geometry != target.geometry:
        raise ValueError(f"grids of different cases: {source.identifier} and {target.identifier}")
    if _stored_box(source.box, source) != _stored_box(target.box, target):
        raise ValueError(f"{source.identifier}: grids with different crops")
    shape = permute(unpermute(target.shape, target.axes), source.axes)
    spacing = permute(unpermute(_prepared_spacing(target), target.axes), source.axes)
    stored = _stored_taps(_taps_to(source, shape, spacing), source.shape, source)
    sizes = permute(unpermute(source.shape, source.axes), target.axes)
    turned = zip(permute(stored, target.axes), sizes, target.flips, strict=True)
    first, second, third = (each.flipped(size) if flip else each for each, size, flip in turned)
    straight = unorient(scores, source.axes, source.flips)
    box = ((0, target.shape[0]), (0, target.shape[1]), (0, target.shape[2]))
    return Interpolation(orient(straight, target.axes, target.flips), (first, second, third), box)


def restore_map(values: np.ndarray, properties: CaseProperties) -> np.ndarray:
    """(Z, Y, X) float32 in the shape of the original file, from `values` (*S) on the case's prepared grid.

    Interpolated as scores are, slice by slice; 0 outside the crop. Raises ValueError when the values are not on the
    case's prepared grid.
    """
    scores, (along_z, along_y, along_x), box = to_file(values[None], properties)
    result = np.zeros(properties.geometry.shape, np.float32)
    inside = result[tuple(slice(start, stop) for start, stop in box)]
    for z, plane in enumerate(inside):
        below, above = (scores[0, end[z]].astype(np.float32, copy=False) for end in along_z[:2])
        plane[...] = apply_taps(apply_taps(below + along_z.weight[z] * (above - below), 0, along_y), 1, along_x)
    return result


def _grid_spacing(spec: PreprocessSpec, spacing: Spacing3) -> Spacing3:
    """The spacing of the prepared grid; `spacing` is the case's own, network axis order."""
    first, second, third = spec.spacing
    return (spacing[0] if first is None else first, second, third)


def _prepared_spacing(properties: CaseProperties) -> Spacing3:
    """Of a case's prepared grid, network axis order."""
    return _grid_spacing(properties.spec, properties.network_spacing)


def _require_grid(scores: np.ndarray, properties: CaseProperties) -> None:
    if scores.shape[1:] != properties.shape:
        raise ValueError(
            f"{properties.identifier}: scores of shape {scores.shape} for a prepared case of {properties.shape}"
        )


def _taps_to(source: CaseProperties, shape: Sequence[int], spacing: Spacing3) -> tuple[Taps, Taps, Taps]:
    """From the prepared grid to one of `shape` and `spacing`, all in the source's network axis order."""
    rules = source.spec.resampling
    # nnU-Net looks at the grid one comes from first: here the prepared one
    axis = separate_axis(_prepared_spacing(source), spacing, rules.separate_z_ratio)
    return axis_taps(source.shape, shape, axis_orders(rules.score_order, axis, rules.z_order))


def _stored_taps(along: Sequence[Taps], shape: Sequence[int], properties: CaseProperties) -> tuple[Taps, Taps, Taps]:
    """Taps of a case's network axes for its stored axes; `shape` is that of the scores, network axis order."""
    turned = zip(along, shape, properties.flips, strict=True)
    return unpermute([each.flipped(size) if flip else each for each, size, flip in turned], properties.axes)


def _stored_box(own: Box3, properties: CaseProperties) -> Box3:
    """A box in network axis order in the file's voxels, stored axis order."""
    sides = zip(own, properties.network_shape, properties.flips, strict=True)
    box = [(whole - stop, whole - start) if flip else (start, stop) for (start, stop), whole, flip in sides]
    return unpermute(box, properties.axes)


class _PrepareTask(NamedTuple):
    dataset: Dataset
    """of this case alone"""
    key: str
    spec: PreprocessSpec
    folder: Path


def prepare_cases(
    dataset: Dataset,
    spec: PreprocessSpec,
    folder: Path,
    keys: Mapping[str, str],
    workers: int,
    on_case: Callable[[str], None],
) -> None:
    """Read and preprocess the cases that `keys` names into `folder`, in parallel, each with its key.

    Raises DataError naming the case.
    """
    tasks = [_PrepareTask(dataset.only(case), key, spec, folder) for case, key in keys.items()]
    map_parallel(_prepare_one, tasks, workers, on_case)


def _prepare_one(task: _PrepareTask) -> str:
    case = task.dataset.cases[0]
    loaded = load_case(task.dataset, case.identifier)
    present = channel_availability(case, len(task.dataset.channels))
    prepared = prepare_case(case.identifier, task.key, loaded.image, loaded.labels, loaded.geometry, task.spec, present)
    write_prepared(task.folder, *prepared)
    return case.identifier
