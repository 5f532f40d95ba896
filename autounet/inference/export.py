"""From scores on the prepared grid back to labels in the file's own voxels and values: the inverse of `prepare_case`.

It goes slice by slice along the file's first axis, so that classes x full resolution never exists. Interpolating all
scores everywhere would still be most of the work, and most of it in vain: where all prepared voxels around a file
voxel agree on the class, every weighted mean of them agrees too, and so does every average over sources that agree
(`decisions`). Only the remaining voxels, near the borders between classes, are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product

import numpy as np
from scipy.sparse import csr_array

from ..ops.masks import decode
from ..ops.resample import Rows
from ..preprocessing import Interpolation, prepare_labels, to_file, to_grid
from ..schema.geometry import CaseProperties
from ..schema.labels import Labels, TargetKind, targets_of
from ..schema.plan import Average
from .ensembling import (
    ARGMAX,
    LOGITS,
    AveragedQuantity,
    Decision,
    RunningMean,
    averaged_quantity,
    decision_for,
    normalised_weights,
)

ROWS = 1 << 14
"""file voxels interpolated at a time: their scores fit the cache"""
UNDECIDED = -1


def export(
    sources: Sequence[tuple[np.ndarray, CaseProperties]],
    labels: Labels,
    weights: Sequence[float] | None = None,
    targets: TargetKind = "classes",
    average: Average = "probabilities",
) -> np.ndarray:
    """(Z, Y, X) int32 file values in the shape of the original file, from scores (C, *S) of one or more sources.

    What wins is decided as `ensemble_scores` averages. One source: the class of the highest logit. Several: the highest
    weighted mean of their probabilities. With `targets` regions each channel is on where its sigmoid, or the weighted
    mean of sigmoids, is above 1/2, and writes its class over those of earlier channels. Voxels outside the crop are
    class 0.
    """
    scores = ensemble_scores(sources, labels, weights, targets, average)
    dense = np.zeros(scores.shape, np.int16)
    scores.classify(dense[tuple(slice(start, stop) for start, stop in scores.box)])
    return decode(dense, labels).astype(np.int32, copy=False)


def ensemble_scores(
    sources: Sequence[tuple[np.ndarray, CaseProperties]],
    labels: Labels,
    weights: Sequence[float] | None = None,
    targets: TargetKind = "classes",
    average: Average = "probabilities",
    rows: Sequence[Rows | None] | None = None,
) -> EnsembleScores:
    """Of `sources`, scores (C, *S) with the prepared case that they belong to, in the file's own voxels.

    `rows` are given for each source where its scores are some rows alone: see `to_file`. Weights are equal unless
    given. Raises ValueError when there is no source, or the sources are of different cases or crops, or have other
    channels than one for each target.
    """
    if not sources:
        raise ValueError("nothing to export: no scores")
    given = rows or [None] * len(sources)
    parts = [to_file(np.asarray(each[0]), each[1], some) for each, some in zip(sources, given, strict=True)]
    first, channels = sources[0][1], len(targets_of(labels, targets))
    for part, (scores, properties) in zip(parts, sources, strict=True):
        if len(scores) != channels:
            raise ValueError(f"{properties.identifier}: scores of {len(scores)} channels for {channels} targets")
        if properties.identifier != first.identifier or properties.geometry != first.geometry:
            raise ValueError(f"sources of different cases: {first.identifier} and {properties.identifier}")
        if part.box != parts[0].box:
            raise ValueError(f"{properties.identifier}: sources with different crops {part.box} and {parts[0].box}")
    return EnsembleScores(
        parts,
        first.geometry.shape,
        decision_for(labels, targets),
        averaged_quantity(average, targets),
        normalised_weights(weights, len(parts)),
    )


class EnsembleScores:
    """Scores of one case, averaged over sources in the voxels of a file or of another prepared grid, slice by slice."""

    def __init__(
        self,
        parts: Sequence[Interpolation],
        shape: tuple[int, int, int],
        decision: Decision,
        quantity: AveragedQuantity = LOGITS,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        self.shape = shape
        """of the whole file"""
        self.box = parts[0].box
        """the crop in the file's voxels, stored axis order"""
        self.channels = len(parts[0].scores)
        self.decision = decision
        self._parts = parts
        self._slices = [_Slices(part) for part in parts]
        self._quantity = quantity
        self._weights = weights

    def logits_at(self, z: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(N, C) float32 logits of the voxels (y, x) of slice `z`, all counted from the crop's first."""
        result = np.empty((len(y), self.channels), np.float32)
        for rows, values in self._means_at(z, y, x):
            result[rows] = values if len(self._parts) == 1 else self._quantity.to_logits(values)
        return result

    def classify(self, result: np.ndarray) -> None:
        """Fill `result`, dense classes (Z, Y, X) int16 of the crop."""
        winners = [self.decision.winners(part.scores) for part in self._parts]
        if len(self._parts) == 1 and self._parts[0].is_identity:
            result[...] = winners[0]
        else:
            for z, plane in enumerate(result):
                plane[...] = _agreed(self._parts, winners, z)
                undecided = plane == UNDECIDED
                if undecided.any():
                    y, x = np.nonzero(undecided)
                    plane[undecided] = np.concatenate(
                        [self.decision.choose(values) for _, values in self._means_at(z, y, x)]
                    )
        if self.decision.classes is not None:
            for plane in result:
                plane[...] = self.decision.classes[plane]

    def _means_at(self, z: int, y: np.ndarray, x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Some of the N voxels after others, and for these (n, C): a single source's logits, or the mean over them."""
        tables = [slices.at(z, len(y)) for slices in self._slices]
        for start in range(0, len(y), ROWS):
            rows = slice(start, start + ROWS)
            scores = [
                reduce(np.add, [weight * interpolate(table, part, y[rows], x[rows]) for table, weight in planes])
                for planes, part in zip(tables, self._parts, strict=True)
            ]
            if len(scores) == 1:
                yield rows, scores[0]
                continue
            mean = RunningMean()
            for own, weight in zip(scores, self._weights, strict=True):
                mean.add(self._quantity.from_logits(own), weight)
            yield rows, mean.result()


def _agreed(parts: Sequence[Interpolation], winners: Sequence[np.ndarray], z: int) -> np.ndarray:
    """(Y, X) int16 of slice `z`: the winner on which all neighbours in all sources agree, else UNDECIDED."""
    agreed: np.ndarray | None = None
    for part, winner in zip(parts, winners, strict=True):
        first, *plane = part.taps
        ends = (winner[first.low[z]], winner[first.high[z]])
        lowest, highest = (ends[0], ends[0]) if first.weight[z] == 0 else (np.minimum(*ends), np.maximum(*ends))
        for axis, each in enumerate(plane):
            low, high = (lowest.take(side, axis) for side in each[:2]), (highest.take(side, axis) for side in each[:2])
            lowest, highest = np.minimum(*low), np.maximum(*high)
        own = np.where(lowest == highest, lowest, np.int16(UNDECIDED))
        agreed = own if agreed is None else np.where(agreed == own, own, np.int16(UNDECIDED))
    assert agreed is not None
    return agreed


class _Slices:
    """A source's scores around one slice of the crop, as planes (Y', X', K) float32 with their weights.

    The two prepared slices used last are kept with their classes moved to the end, as neighbouring slices of the
    crop share them.
    """

    def __init__(self, part: Interpolation) -> None:
        self._part = part
        self._kept: dict[int, np.ndarray] = {}

    def at(self, z: int, wanted: int) -> list[tuple[np.ndarray, float]]:
        """The prepared slices on both sides; or one plane between them, where more voxels are `wanted` than it has."""
        along = self._part.taps[0]
        low, high, weight = int(along.low[z]), int(along.high[z]), float(along.weight[z])
        self._kept = {index: plane for index, plane in self._kept.items() if index in (low, high)}
        below = self._classes_last(low)
        if weight == 0:
            return [(below, 1.0)]
        above = self._classes_last(high)
        if wanted <= below.shape[0] * below.shape[1]:
            return [(below, 1 - weight), (above, weight)]
        return [(below + np.float32(weight) * (above - below), 1.0)]

    def _classes_last(self, index: int) -> np.ndarray:
        if index not in self._kept:
            plane = self._part.scores[:, index].transpose(1, 2, 0)
            self._kept[index] = np.ascontiguousarray(plane, dtype=np.float32)
        return self._kept[index]


def interpolate(table: np.ndarray, part: Interpolation, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Scores (N, K) at voxels (y, x) of the crop: a sparse matrix of 4 neighbours a row times the table (Y', X', K)."""
    along_y, along_x = part.taps[1:]
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


# ---- from one stage of a cascade to the next -----------------------------------------------------------------------


def labels_for_next_stage(
    scores: np.ndarray, source: CaseProperties, target: CaseProperties, decision: Decision = ARGMAX
) -> np.ndarray:
    """Dense labels (*S) on the prepared grid of `target` from scores (C, *S') on that of `source`.

    The scores are interpolated and then decided on, as nnU-Net does: labels interpolated from the coarse grid would
    have its steps. int8, or int16 when a class is beyond 127. Raises ValueError when the two are not the same case.
    """
    result = np.empty(target.shape, np.int16)
    EnsembleScores([to_grid(scores, source, target)], target.shape, decision).classify(result)
    highest = len(scores) - 1 if decision.classes is None else int(decision.classes.max())
    return result.astype(np.int8) if highest <= np.iinfo(np.int8).max else result


def labels_by_file(
    scores: np.ndarray, source: CaseProperties, target: CaseProperties, decision: Decision = ARGMAX
) -> np.ndarray:
    """As `labels_for_next_stage`, by way of a label image in the file's own voxels, which is prepared like any other.

    So nnU-Net does where the second stage reads the first one's files: each label is resampled by itself.
    """
    stored = EnsembleScores([to_file(scores, source)], source.geometry.shape, decision)
    dense = np.zeros(stored.shape, np.int16)
    stored.classify(dense[tuple(slice(start, stop) for start, stop in stored.box)])
    return prepare_labels(dense, target)


def append_one_hot(image: np.ndarray, segmentation: np.ndarray, classes: int) -> np.ndarray:
    """Image (C, *S) and dense labels (*S) to (C + classes - 1, *S) float32: one channel a class but the background."""
    joined = np.empty((len(image) + classes - 1, *image.shape[1:]), np.float32)
    joined[: len(image)] = image
    for index, channel in enumerate(joined[len(image) :], 1):
        np.equal(segmentation, index, out=channel, casting="unsafe")
    return joined
