"""Whether a coarser 3-D configuration is worth having beside the full resolution (nnU-Net v2's rule).

Its existence also decides batch Dice at full resolution: with small patches of large images a class may be
missing in most of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autounet.schema.errors import PlanError

ENOUGH_CONTEXT = 0.25
"""share of the median image that a patch should see"""
COARSENING = 1.03
"""factor of the target spacing per attempt"""
LEAST_REDUCTION = 2.0
"""a coarser configuration is dropped when its median image has more than 1 / this of the voxels"""
SIMILAR = 2.0
NO_PATCH = (0, 0, 0)


@dataclass(frozen=True)
class Coarser:
    """A coarser grid; arrays are (3,) in network axis order."""

    spacing: np.ndarray
    """mm"""
    median: np.ndarray
    """size of the median image there, rounded"""
    voxels: float
    """of the median image, not rounded"""


PatchAt = Callable[[Coarser], tuple[int, ...]]
"""the patch that the planner finds on a grid; raises PlanError when there is none"""


def find_lowres(
    spacing: np.ndarray, median: np.ndarray, patch: tuple[int, ...], patch_at: PatchAt
) -> tuple[Coarser | None, str]:
    """The grid of 3d_lowres, or None when full resolution suffices; and why, as the rest of a sentence.

    `spacing`, `median` and `patch` are those of 3d_fullres. The finest axes are coarsened alone until the others are
    within a factor 2.
    """
    full_voxels = np.prod(median, dtype=np.float64)
    grid = Coarser(spacing, median, float(full_voxels))
    if _seen(patch, grid) >= ENOUGH_CONTEXT:
        return None, f"a patch of 3d_fullres sees {_seen(patch, grid):.0%} of the median image, at least a quarter"
    while _seen(patch, grid) < ENOUGH_CONTEXT:
        grid = _coarsened(grid, spacing, median)
        if min(grid.median) < 1:
            return None, "an axis would vanish before a patch saw a quarter of the median image"
        try:
            patch = patch_at(grid)
        except PlanError:
            # a grid for which there is no network is passed over, as in nnU-Net
            patch = NO_PATCH
    if full_voxels / grid.voxels < LEAST_REDUCTION:
        return None, (
            f"the grid on which a patch sees a quarter of the median image has {grid.voxels / full_voxels:.0%} of the "
            "voxels of 3d_fullres, more than half, and so is too similar"
        )
    return grid, "a patch of 3d_fullres sees less than a quarter of the median image, and one here at least that"


def _seen(patch: tuple[int, ...], grid: Coarser) -> float:
    """Share of the median image."""
    return float(np.prod(patch, dtype=np.float64) / grid.voxels)


def _coarsened(grid: Coarser, spacing: np.ndarray, median: np.ndarray) -> Coarser:
    coarse = grid.spacing.copy()
    finer = max(coarse) / coarse > SIMILAR
    coarse[finer if finer.any() else slice(None)] *= COARSENING
    return grid_at(coarse, spacing, median)


def grid_at(coarse: np.ndarray, spacing: np.ndarray, median: np.ndarray) -> Coarser:
    """The grid of spacing `coarse` for images whose median size is `median` at `spacing`."""
    size = spacing / coarse * median
    return Coarser(coarse, np.array([round(length) for length in size]), float(np.prod(size, dtype=np.float64)))
