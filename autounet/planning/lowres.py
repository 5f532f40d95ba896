"""Whether a coarser 3-D configuration is worth having beside the full resolution (nnU-Net v2's rule).

Its existence also decides batch Dice at full resolution: with small patches of large images a class may be
missing in most of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ENOUGH_CONTEXT = 0.25
"""share of the median image that a patch should see"""
COARSENING = 1.03
"""factor of the target spacing per attempt"""
LEAST_REDUCTION = 2.0
"""a coarser configuration is dropped when its median image has more than 1 / this of the voxels"""
SIMILAR = 2.0
MOST_ATTEMPTS = 1000


def find_lowres_spacing(
    spacing: np.ndarray,
    median: np.ndarray,
    patch: tuple[int, ...],
    patch_at: Callable[[np.ndarray, np.ndarray, float], tuple[int, ...]],
) -> np.ndarray | None:
    """Target spacing (3,) of 3d_lowres, or None when full resolution suffices.

    `patch_at(spacing, median, voxels of the median image)` is the patch that the planner finds on a grid. Coarser
    axes come last: the finest are coarsened alone until they are within a factor 2.
    """
    full_voxels = voxels = np.prod(median, dtype=np.float64)
    coarse = spacing.copy()
    attempts = 0
    while np.prod(patch, dtype=np.float64) / voxels < ENOUGH_CONTEXT and attempts < MOST_ATTEMPTS:
        finer = max(coarse) / coarse > SIMILAR
        coarse[finer if finer.any() else slice(None)] *= COARSENING
        size = spacing / coarse * median
        voxels = np.prod(size, dtype=np.float64)
        patch = patch_at(coarse.copy(), np.array([round(length) for length in size]), float(voxels))
        attempts += 1
    return None if full_voxels / voxels < LEAST_REDUCTION else coarse
