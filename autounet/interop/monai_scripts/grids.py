"""From a case as stored to the grid of a network, and from a network's scores back to the voxels of the file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from ...inference.ensembling import (
    ARGMAX,
    LOGITS,
    AveragedQuantity,
    Decision,
    OrderedRegions,
    RunningMean,
)
from ...ops import resample
from ...ops.masks import SCHEMES, crop, kept_components, nonzero_box, nonzero_mask
from ...ops.orient import network_axes, orient, permute, unorient, unpermute
from .images import Image


@lru_cache(maxsize=64)
def cubic_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) float32: as `resample.cubic_operator`, which takes scipy's filter and a sparse matrix.

    Cubic B-splines through the voxels, with edges repeated: one system of equations in place of the filter.
    """
    padded = np.pad(np.eye(old), ((resample.BORDER, resample.BORDER), (0, 0)), mode="edge")
    size = len(padded)
    splines = (4 * np.eye(size) + np.eye(size, k=1) + np.eye(size, k=-1)) / 6
    coefficients = np.linalg.solve(splines, padded)
    where = resample.positions(old, new)
    base = np.floor(where).astype(np.int64)
    t = (where - base)[:, None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3)
    rows = (weight / 6 * coefficients[base + resample.BORDER - 1 + index] for index, weight in enumerate(weights))
    return np.asarray(sum(rows), np.float32)


class Grid(NamedTuple):
    """A case on the grid of one configuration; network axis order unless said otherwise."""

    image: np.ndarray
    """(C, *S) float32"""
    spec: Any
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    """`ops.orient`"""
    box: Any
    """of all voxels that are not 0"""
    whole: tuple[int, int, int]
    """voxels of the file"""
    spacing: tuple[float, float, float]
    """of the file, mm"""
    target: tuple[float, float, float]
    """of this grid, mm"""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape[1:]

    @property
    def cropped(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.box)

    @property
    def stored_box(self) -> tuple[slice, ...]:
        """Stored axis order."""
        sides = zip(self.box, self.whole, self.flips, strict=True)
        box = [slice(size - b, size - a) if flip else slice(a, b) for (a, b), size, flip in sides]
        return unpermute(box, self.axes)


def prepare(case: Image, spec: Any) -> Grid:
    """Orient, transpose, crop, normalise, resample, as the plan says in `preprocess`."""
    resample.cubic_operator = cubic_matrix  # type: ignore[assignment]  # scipy is not among what a bundle may need
    axes, flips = network_axes(case.direction, case.dimension, spec.orientation, spec.transpose)
    spacing = permute(case.spacing, axes)
    a, b, c = (own if new is None else new for own, new in zip(spacing, spec.spacing, strict=True))
    target = (a, b, c)
    image = orient(case.array, axes, flips)
    box = nonzero_box(image)
    inside = crop(image, box)
    mask = filled_mask(inside) if any(each.nonzero_only for each in spec.normalisation) else None
    normalised = np.array(inside, np.float32, order="C")
    for channel, rule in zip(normalised, spec.normalisation, strict=True):
        SCHEMES[rule.scheme](channel, rule, mask if rule.nonzero_only else None)
    normalised[~np.array(case.present)] = 0
    rules = spec.resampling
    axis = resample.separate_axis(spacing, target, rules.separate_z_ratio)
    shape = resample.resampled_shape(inside.shape[1:], spacing, target)
    resampled = resample.resample_image(normalised, shape, rules.image_order, axis, rules.z_order)
    return Grid(resampled, spec, axes, flips, box, permute(case.array.shape[1:], axes), spacing, target)


def filled_mask(image: np.ndarray) -> np.ndarray:
    """(Z, Y, X) bool: not 0 in any channel, with holes filled."""
    mask = np.ascontiguousarray(nonzero_mask(image)).astype(np.uint8)
    padded = sitk.GetImageFromArray(np.pad(mask, 1))
    filled = sitk.GetArrayFromImage(sitk.BinaryFillhole(padded, fullyConnected=False))
    return _without_border(filled) > 0 if min(mask.shape) > 1 else mask > 0


def _without_border(array: np.ndarray) -> np.ndarray:
    return array[1:-1, 1:-1, 1:-1]


class Source(NamedTuple):
    """Scores of one configuration, and how other voxels are interpolated from them; stored axis order."""

    scores: np.ndarray
    """(K, *S)"""
    taps: tuple[resample.Taps, resample.Taps, resample.Taps]


def to_shape(scores: np.ndarray, grid: Grid, shape: Sequence[int], spacing: Sequence[float]) -> Source:
    """From the grid's scores (K, *S) to another grid of the same crop, given in the grid's axis order."""
    rules = grid.spec.resampling
    axis = resample.separate_axis(grid.target, spacing, rules.separate_z_ratio)
    along = resample.axis_taps(grid.shape, shape, resample.axis_orders(rules.score_order, axis, rules.z_order))
    turned = zip(along, grid.shape, grid.flips, strict=True)
    stored = unpermute([each.flipped(size) if flip else each for each, size, flip in turned], grid.axes)
    return Source(unorient(scores, grid.axes, grid.flips), stored)


def decision_of(configuration: Any) -> Decision:
    """How the scores of a configuration become classes."""
    return ARGMAX if configuration.targets == "classes" else OrderedRegions(configuration.paints)


def decide(
    sources: Sequence[Source], decision: Decision, quantity: AveragedQuantity, weights: Sequence[float]
) -> np.ndarray:
    """Dense classes (Z, Y, X) int16, slice by slice: of one source by its logits, of several by their weighted mean."""
    lengths = [len(each.low) for each in sources[0].taps]
    result = np.empty(lengths, np.int16)
    for z, plane in enumerate(result):
        rows = [_slice(each, z) for each in sources]
        if len(rows) > 1:
            mean = RunningMean()
            for own, weight in zip(rows, weights, strict=True):
                mean.add(quantity.from_logits(own), float(np.float32(weight)))
            rows = [mean.result()]
        winners = decision.choose(rows[0])
        plane[...] = (winners if decision.classes is None else decision.classes[winners]).reshape(plane.shape)
    return result


def _slice(source: Source, z: int) -> np.ndarray:
    """(N, K) float32: logits of all voxels of a slice."""
    first, along_y, along_x = source.taps
    below, above = (source.scores[:, end[z]].astype(np.float32) for end in first[:2])
    plane = below + first.weight[z] * (above - below)
    plane = resample.apply_taps(resample.apply_taps(plane, 1, along_y), 2, along_x)
    return np.ascontiguousarray(plane.reshape(len(plane), -1).T)


def in_file(
    scores: Sequence[np.ndarray],
    grids: Sequence[Grid],
    configuration: Any,
    quantity: AveragedQuantity,
    weights: Sequence[float] = (1.0,),
) -> np.ndarray:
    """Dense classes (Z, Y, X) int16 in the file's voxels, of one configuration or several of the same targets."""
    sources = [to_shape(own, grid, grid.cropped, grid.spacing) for own, grid in zip(scores, grids, strict=True)]
    result = np.zeros(unpermute(grids[0].whole, grids[0].axes), np.int16)
    result[grids[0].stored_box] = decide(sources, decision_of(configuration), quantity, weights)
    return result


def for_next_stage(scores: np.ndarray, grid: Grid, configuration: Any, target: Grid, handover: str) -> np.ndarray:
    """Dense classes (*S) on the grid of a cascade's next stage.

    `handover` grid interpolates the scores straight to it; file decides in the file's voxels and resamples labels.
    """
    if handover == "file":
        dense = in_file([scores], [grid], configuration, LOGITS)
        return _resampled_labels(crop(orient(dense, target.axes, target.flips), target.box), target)
    shape, spacing = permute(unpermute(target.shape, target.axes), grid.axes), unpermute(target.target, target.axes)
    source = to_shape(scores, grid, shape, permute(spacing, grid.axes))
    dense = decide([source], decision_of(configuration), LOGITS, (1.0,))
    return orient(dense, target.axes, target.flips)


def _resampled_labels(labels: np.ndarray, grid: Grid) -> np.ndarray:
    """Each class linearly, and the one with most weight wins; of equal ones the highest."""
    rules = grid.spec.resampling
    axis = resample.separate_axis(grid.spacing, grid.target, rules.separate_z_ratio)
    along = resample.axis_taps(labels.shape, grid.shape, resample.axis_orders(rules.label_order, axis, rules.z_order))
    result, best = np.zeros(grid.shape, np.int16), np.zeros(grid.shape, np.float32)
    for label in np.unique(labels):
        share = (labels == label).astype(np.float32)
        for index, each in enumerate(along):
            share = resample.apply_taps(share, index, each)
        wins = (share > best - resample.TIE) & (share > 0)
        result[wins] = label
        np.maximum(best, share, out=best)
    return result


def append_one_hot(image: np.ndarray, segmentation: np.ndarray, classes: int) -> np.ndarray:
    """Image (C, *S) and dense classes (*S) to (C + classes - 1, *S): one channel a class but the background."""
    hot = [segmentation == index for index in range(1, classes)]
    return np.concatenate([image, np.array(hot, np.float32)])


def remove_components(values: np.ndarray, spacing: Sequence[float], steps: Sequence[Any]) -> np.ndarray:
    """A segmentation (Z, Y, X) of label values without the components that cross-validation says to remove."""
    for step in steps:
        mask = np.isin(values, step.values).astype(np.uint8)
        flat = mask[0] if len(mask) == 1 else mask
        neighbours = sitk.ConnectedComponentImageFilter()
        neighbours.FullyConnectedOn()
        numbers = sitk.GetArrayFromImage(neighbours.Execute(sitk.GetImageFromArray(flat))).reshape(mask.shape)
        kept = kept_components(step, np.bincount(numbers.ravel())[1:] * float(np.prod(spacing)))
        values = np.where(np.concatenate([[False], ~kept])[numbers], 0, values)
    return values
