"""From scores on the prepared grid back to labels in the file's own voxels and values: the inverse of `prepare_case`.

It goes slice by slice along the file's first axis, so that classes x full resolution never exists. Interpolating all
scores everywhere would still be most of the work, and most of it in vain: where all prepared voxels around a file
voxel agree on the class, every weighted mean of them agrees too, and so does every average over sources that agree
(`deciding`). Only the remaining voxels, near the borders between classes, are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.sparse import csr_array

from ..ops.label_values import decode
from ..ops.masks import crop
from ..ops.orient import orient
from ..ops.resample import apply_taps, resample_labels, separate_axis
from ..preprocessing.prepare import View, grid_view, prepared_spacing, stored_view
from ..schema.labels import Labels, TargetKind, targets_of
from ..schema.plan import Average
from ..schema.prepared import CaseProperties
from .decisions import HIGHEST, Decision, decision_for

ROWS = 1 << 14
"""file voxels interpolated at a time: their scores fit the cache"""
UNDECIDED = -1


def export(
    sources: Sequence[tuple[np.ndarray, CaseProperties]],
    labels: Labels,
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
    targets: TargetKind = "classes",
    average: Average = "probabilities",
) -> np.ndarray:
    """(Z, Y, X) int32 file values in the shape of the original file, from scores (C, *S) of one or more sources.

    One source: the class of the highest logit. Several: the highest weighted mean of softmax(logits / temperature);
    weights are equal unless given. With `targets` regions each channel is on where its sigmoid, or the weighted mean
    of sigmoid(logits / temperature), is above 1/2, and paints its class over those of earlier channels. With `average`
    logits the mean is of the logits themselves. Voxels outside the crop are class 0. Raises ValueError when there is no
    source, or the sources are of different cases or crops, or have other channels than one for each target.
    """
    views = checked_views(sources, len(targets_of(labels, targets)))
    shares = shares_of(weights, len(views))
    dense = np.zeros(sources[0][1].geometry.shape, np.int16)
    inside = dense[tuple(slice(start, stop) for start, stop in views[0].box)]
    classify(views, decision_for(labels, targets), shares, temperature, inside, average)
    return decode(dense, labels).astype(np.int32, copy=False)


def shares_of(weights: Sequence[float] | None, count: int) -> np.ndarray:
    """(count,) summing to 1; equal without weights. Raises ValueError for another number of weights."""
    shares = np.full(count, 1 / count) if weights is None else np.asarray(weights, float) / np.sum(weights)
    if len(shares) != count:
        raise ValueError(f"{len(shares)} weights for {count} sources")
    return shares


def classify(
    views: Sequence[View],
    decision: Decision,
    shares: np.ndarray,
    temperature: float,
    result: np.ndarray,
    average: Average = "probabilities",
) -> None:
    """Fill `result`, dense classes (Z, Y, X) int16 of the views' common target, as `export` decides them."""
    winners = [decision.winners(view.scores) for view in views]
    if len(views) == 1 and views[0].same_grid:
        result[...] = winners[0]
    else:
        planes = [Planes(view) for view in views]
        for z, row in enumerate(result):
            row[...] = _agreed(views, winners, z)
            undecided = row == UNDECIDED
            if undecided.any():
                rows = np.nonzero(undecided)
                row[undecided] = _decide(planes, decision, shares, temperature, average, z, *rows)
    if decision.classes is not None:
        for row in result:
            row[...] = decision.classes[row]


def checked_views(sources: Sequence[tuple[np.ndarray, CaseProperties]], channels: int) -> list[View]:
    if not sources:
        raise ValueError("nothing to export: no scores")
    views = [stored_view(np.asarray(scores), properties) for scores, properties in sources]
    first = sources[0][1]
    for view, (scores, properties) in zip(views, sources, strict=True):
        if len(scores) != channels:
            raise ValueError(f"{properties.identifier}: scores of {len(scores)} channels for {channels} targets")
        if properties.identifier != first.identifier or properties.geometry != first.geometry:
            raise ValueError(f"sources of different cases: {first.identifier} and {properties.identifier}")
        if view.box != views[0].box:
            raise ValueError(f"{properties.identifier}: sources with different crops {view.box} and {views[0].box}")
    return views


def _agreed(views: Sequence[View], winners: Sequence[np.ndarray], z: int) -> np.ndarray:
    """(Y, X) int16 of slice `z`: the winner on which all neighbours in all sources agree, else UNDECIDED."""
    agreed: np.ndarray | None = None
    for view, winner in zip(views, winners, strict=True):
        first, *plane = view.taps
        ends = (winner[first.low[z]], winner[first.high[z]])
        lowest, highest = (ends[0], ends[0]) if first.weight[z] == 0 else (np.minimum(*ends), np.maximum(*ends))
        for axis, each in enumerate(plane):
            low, high = (lowest.take(side, axis) for side in each[:2]), (highest.take(side, axis) for side in each[:2])
            lowest, highest = np.minimum(*low), np.maximum(*high)
        own = np.where(lowest == highest, lowest, np.int16(UNDECIDED))
        agreed = own if agreed is None else np.where(agreed == own, own, np.int16(UNDECIDED))
    assert agreed is not None
    return agreed


def _decide(
    planes: Sequence[Planes],
    decision: Decision,
    shares: np.ndarray,
    temperature: float,
    average: Average,
    z: int,
    y: np.ndarray,
    x: np.ndarray,
) -> np.ndarray:
    """Winners (N) of the voxels (y, x) of slice `z` of the crop."""
    result = np.empty(len(y), np.int16)
    tables = [each.at(z) for each in planes]
    for start in range(0, len(y), ROWS):
        rows = slice(start, start + ROWS)
        scores = [interpolate(table, each.view, y[rows], x[rows]) for table, each in zip(tables, planes, strict=True)]
        if len(scores) > 1:
            parts = zip(shares.astype(np.float32), scores, strict=True)
            scores = [
                share * (own if average == "logits" else decision.shares(own / temperature)) for share, own in parts
            ]
        result[rows] = decision.choose(sum(scores[1:], start=scores[0]))
    return result


class Planes:
    """A source's scores in the plane of one slice of the crop: (Y', X', K) float32, interpolated along z alone.

    The two prepared slices used last are kept with their classes moved to the end, as neighbouring slices of the
    crop share them.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._kept: dict[int, np.ndarray] = {}

    def at(self, z: int) -> np.ndarray:
        along = self.view.taps[0]
        low, high, weight = int(along.low[z]), int(along.high[z]), along.weight[z]
        self._kept = {index: plane for index, plane in self._kept.items() if index in (low, high)}
        below = self._classes_last(low)
        return below if weight == 0 else below + weight * (self._classes_last(high) - below)

    def _classes_last(self, index: int) -> np.ndarray:
        if index not in self._kept:
            plane = self.view.scores[:, index].transpose(1, 2, 0)
            self._kept[index] = np.ascontiguousarray(plane, dtype=np.float32)
        return self._kept[index]


def interpolate(table: np.ndarray, view: View, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Scores (N, K) at voxels (y, x) of the crop: a sparse matrix of 4 neighbours a row times the table (Y', X', K)."""
    along_y, along_x = view.taps[1:]
    width = np.int64(table.shape[1])
    indices, weights = np.empty((len(y), 4), np.int32), np.empty((len(y), 4), np.float32)
    rows = ((along_y.low, 1 - along_y.weight), (along_y.high, along_y.weight))
    columns = ((along_x.low, 1 - along_x.weight), (along_x.high, along_x.weight))
    for corner, ((row, from_row), (column, from_column)) in enumerate(product(rows, columns)):
        np.add(row[y] * width, column[x], out=indices[:, corner], casting="unsafe")
        np.multiply(from_row[y], from_column[x], out=weights[:, corner])
    cells = table.reshape(-1, table.shape[2])
    ends = np.arange(0, 4 * len(y) + 1, 4, dtype=np.int32)
    return csr_array((weights.ravel(), indices.ravel(), ends), shape=(len(y), len(cells))) @ cells


def export_map(values: np.ndarray, properties: CaseProperties) -> np.ndarray:
    """(Z, Y, X) float32 in the shape of the original file, from `values` (*S) on the case's prepared grid.

    Interpolated as scores are, slice by slice; 0 outside the crop. Raises ValueError when the values are not on the
    case's prepared grid.
    """
    view = stored_view(values[None], properties)
    along_z, along_y, along_x = view.taps
    result = np.zeros(properties.geometry.shape, np.float32)
    inside = result[tuple(slice(start, stop) for start, stop in view.box)]
    for z, plane in enumerate(inside):
        below, above = (view.scores[0, end[z]].astype(np.float32, copy=False) for end in along_z[:2])
        plane[...] = apply_taps(apply_taps(below + along_z.weight[z] * (above - below), 0, along_y), 1, along_x)
    return result


LARGEST_INT8 = 127


def labels_for_next_stage(
    scores: np.ndarray, source: CaseProperties, target: CaseProperties, decision: Decision = HIGHEST
) -> np.ndarray:
    """Dense labels (*S) on the prepared grid of `target` from scores (C, *S') on that of `source`.

    The scores are interpolated and then decided on, as nnU-Net does: labels interpolated from the coarse grid would
    have its steps. int8, or int16 when a class is beyond 127. Raises ValueError when the two are not the same case.
    """
    result = np.empty(target.shape, np.int16)
    classify([grid_view(scores, source, target)], decision, np.ones(1), 1.0, result)
    highest = len(scores) - 1 if decision.classes is None else int(decision.classes.max())
    return result.astype(np.int8) if highest <= LARGEST_INT8 else result


def labels_by_file(
    scores: np.ndarray, source: CaseProperties, target: CaseProperties, decision: Decision = HIGHEST
) -> np.ndarray:
    """As `labels_for_next_stage`, by way of a label image in the file's own voxels, which is prepared like any other.

    So nnU-Net does where the second stage reads the first one's files: each label is resampled by itself.
    """
    view = stored_view(scores, source)
    dense = np.zeros(source.geometry.shape, np.int16)
    inside = dense[tuple(slice(start, stop) for start, stop in view.box)]
    classify([view], decision, np.ones(1), 1.0, inside)
    rules = target.spec.resampling
    axis = separate_axis(target.network_spacing, prepared_spacing(target), rules.separate_z_ratio)
    seen = crop(orient(dense, target.axes, target.flips), target.box)
    return resample_labels(np.ascontiguousarray(seen), target.shape, rules.label_order, axis, rules.z_order)


def append_one_hot(image: np.ndarray, segmentation: np.ndarray, classes: int) -> np.ndarray:
    """Image (C, *S) and dense labels (*S) to (C + classes - 1, *S) float32: one channel a class but the background."""
    joined = np.empty((len(image) + classes - 1, *image.shape[1:]), np.float32)
    joined[: len(image)] = image
    for index, channel in enumerate(joined[len(image) :], 1):
        np.equal(segmentation, index, out=channel, casting="unsafe")
    return joined
