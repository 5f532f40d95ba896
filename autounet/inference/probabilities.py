"""The probabilities behind a segmentation, in the file's own voxels: beside the export, which decides on classes.

Several sources are pooled first and tempered then: one temperature for what is pooled changes no decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..schema.geometry import Box3
from ..schema.labels import Labels, TargetKind, targets_of
from ..schema.plan import Average
from ..schema.prepared import CaseProperties
from .decisions import Decision, decision_for
from .export import ROWS, Planes, checked_views, interpolate, shares_of


class PooledScores:
    """Logits of the pooled probabilities, whose highest is what `export` writes; C channels, one for each target.

    The arguments are those of `export`, with the same demands.
    """

    def __init__(
        self,
        sources: Sequence[tuple[np.ndarray, CaseProperties]],
        labels: Labels,
        weights: Sequence[float] | None = None,
        targets: TargetKind = "classes",
        average: Average = "probabilities",
    ) -> None:
        self.channels = len(targets_of(labels, targets))
        views = checked_views(sources, self.channels)
        self.decision: Decision = decision_for(labels, targets)
        self.shape = sources[0][1].geometry.shape
        self.box: Box3 = views[0].box
        """the crop in the file's voxels, stored axis order"""
        self._planes = [Planes(view) for view in views]
        self._weights = shares_of(weights, len(views)).astype(np.float32)
        self._average = average

    def at(self, z: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(N, C) float32 logits of the voxels (y, x) of slice `z`, all counted from the crop's first."""
        result = np.empty((len(y), self.channels), np.float32)
        tables = [planes.at(z) for planes in self._planes]
        for start in range(0, len(y), ROWS):
            rows = slice(start, start + ROWS)
            found = [
                interpolate(table, planes.view, y[rows], x[rows])
                for table, planes in zip(tables, self._planes, strict=True)
            ]
            result[rows] = found[0] if len(found) == 1 else self._pooled(found)
        return result

    def _pooled(self, found: Sequence[np.ndarray]) -> np.ndarray:
        if self._average == "logits":
            return sum(weight * own for weight, own in zip(self._weights, found, strict=True))
        shares = [weight * self.decision.shares(own) for weight, own in zip(self._weights, found, strict=True)]
        return self.decision.logits(sum(shares[1:], start=shares[0]))

    def planes(self, temperature: float = 1.0) -> Iterator[np.ndarray]:
        """Probabilities (Y, X, C) float32 of each slice of the whole file, at a temperature; background outside the
        crop."""
        (first, last), (top, bottom), (left, right) = self.box
        size = (bottom - top, right - left)
        y, x = (index.ravel() for index in np.indices(size))
        outside = np.broadcast_to(self.decision.outside(self.channels), (*self.shape[1:], self.channels))
        for z in range(self.shape[0]):
            plane = outside.astype(np.float32)
            if first <= z < last:
                found = self.decision.probabilities(self.at(z - first, y, x) / temperature)
                plane[top:bottom, left:right] = found.reshape(*size, self.channels)
            yield plane


class Maps(NamedTuple):
    """In the shape of the file; None where not asked for."""

    probabilities: np.ndarray | None
    """(C, Z, Y, X) float32"""
    entropy: np.ndarray | None
    """(Z, Y, X) float32 nats: how unsure they are, at most log(C), or of overlapping targets C log(2); 0 outside the
    crop"""


def pooled_maps(pooled: PooledScores, temperature: float, probabilities: bool, entropy: bool) -> Maps:
    """Slice by slice; only what is asked for is held whole."""
    maps = Maps(
        np.empty((pooled.channels, *pooled.shape), np.float32) if probabilities else None,
        np.empty(pooled.shape, np.float32) if entropy else None,
    )
    for z, plane in enumerate(pooled.planes(temperature)):
        if maps.probabilities is not None:
            maps.probabilities[:, z] = plane.transpose(2, 0, 1)
        if maps.entropy is not None:
            found = pooled.decision.entropy(plane.reshape(-1, pooled.channels))
            maps.entropy[z] = np.maximum(found, 0).reshape(plane.shape[:2])
    return maps
