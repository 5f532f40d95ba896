"""Voxels sampled evenly around the structures of a case, which calibration and ensemble weights are fitted on."""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

import numpy as np

from ..inference.export import EnsembleScores
from ..ops.label_values import NO_LOSS
from ..ops.masks import nonzero_box
from ..schema.geometry import Box3

MARGIN = 8
"""voxels around the structures, referenced or predicted: farther out nothing is uncertain"""


class SampledVoxels(NamedTuple):
    """N voxels, sorted by slice."""

    inside: np.ndarray
    """(N, 3) indices (z, y, x), counted from the crop's first voxel"""
    classes: np.ndarray
    """(N,) dense classes of the reference"""

    def logits(self, pooled: EnsembleScores) -> np.ndarray:
        """(N, C) float32."""
        found = np.empty((len(self.inside), pooled.channels), np.float32)
        for z in np.unique(self.inside[:, 0]):
            rows = self.inside[:, 0] == z
            found[rows] = pooled.logits_at(int(z), self.inside[rows, 1], self.inside[rows, 2])
        return found


def sample_voxels(identifier: str, dense: np.ndarray, structures: np.ndarray, crop: Box3, most: int) -> SampledVoxels:
    """Up to `most` voxels of a case, the same for the same name; those without a label are left out.

    `dense` (Z, Y, X) is the reference as dense classes, `structures` (Z, Y, X) bool where it or the segmentation is
    something else than background, both in the file's voxels, of which `crop` was predicted.
    """
    box = _around(structures, crop)
    starts, sizes = [start for start, _ in box], [stop - start for start, stop in box]
    chosen = np.random.default_rng(crc32(identifier.encode())).integers(0, np.prod(sizes), most)
    found = np.stack(np.unravel_index(np.unique(chosen), sizes), axis=1) + starts
    classes = dense[tuple(found.T)]
    found, classes = found[classes != NO_LOSS], classes[classes != NO_LOSS]
    return SampledVoxels(found - [start for start, _ in crop], classes)


def _around(structures: np.ndarray, crop: Box3) -> Box3:
    """The part of the crop within `MARGIN` of the structures; the whole crop where there are none in it."""
    near = [
        (max(first, start - MARGIN), min(last, stop + MARGIN))
        for (start, stop), (first, last) in zip(nonzero_box(structures[None]), crop, strict=True)
    ]
    return crop if any(start >= stop for start, stop in near) else (near[0], near[1], near[2])
