"""What is expected of a training in little time: what it leaves unlearnt, and whether slices or volumes learn more."""

from __future__ import annotations

import math

from ..schema.plan import Configuration

LEARNING, BY_STEPS, BY_COVERAGE, BY_WIDTH = 1.2, 0.3, 0.25, 0.2
"""of `learning_error`, by trainings of five data sets (benchmarks/results/recipes_2026-11-30.md). Exponents fitted to
four of them are 0.28, 0.13 and 0.13; with the generated one, whose classes are told by their places, coverage has about
0.4, and 16 features beat 8 in equal time by what 0.2 gives. Each data set has a factor of its own, without mirroring
from 0.7 to 2; 1.2, their geometric mean, stands for one that nobody has seen"""
EASY, HARD = 0.5, 3.0
"""factors between which those of all data sets are taken to lie: measured were 0.66 to 2.1"""
THICK_SLICES = 3.0
"""times the pixel size from which on slices are trained one by one where time is short; nnU-Net calls such grids
anisotropic from here on"""
VOLUME_STEPS = 5000
"""steps that a fold of 3d_fullres gets from which on thick slices are trained as volumes. Chosen: slices won where
volumes had 196 to 1,049 steps, and in trainings of 250,000 the two are alike (ACDC; nnU-Net's published results)"""
SLICE_STEPS = 1.8
"""times the steps of volumes that slices have to get: ACDC with 16 features on a grid twice as coarse, 0.61 after 1,125
steps of slices and 0.48 after 231 of volumes, brought to equal steps by `learning_error`
(benchmarks/results/recipes_2026-11-30.md)"""


def learning_error(steps: float, coverage: float, width: int, factor: float = LEARNING) -> float:
    """What is missing to a Dice of 1 on the network's own grid after so many steps of a short training.

    `coverage` is the share of an image that a patch shows, `width` the features of the first stage, `factor` that of
    the data set.
    """
    return min(1.0, factor / _reached(steps, coverage, width))


def learning_factor(dice: float, kept: float, steps: float, coverage: float, width: int) -> float:
    """The factor of `learning_error` of a data set on which a training has reached `dice`, from EASY to HARD.

    `kept` is the Dice that labels keep on its grid. Where the grid explains all that is missing, half of it is taken to
    be unlearnt.
    """
    missing = 1 - dice
    learnt = math.sqrt(max(missing**2 - (1 - kept) ** 2, (missing / 2) ** 2))
    return min(HARD, max(EASY, learnt * _reached(steps, coverage, width)))


def _reached(steps: float, coverage: float, width: int) -> float:
    return max(steps, 1.0) ** BY_STEPS * min(coverage, 1.0) ** BY_COVERAGE * (width / 16) ** BY_WIDTH


def may_prefer_slices(whole: Configuration, volumes: Configuration) -> bool:
    """Whether 2d is to be compared with a 3d_fullres that was fitted to the time, `whole` without a limit of time."""
    return _thickness(whole) >= THICK_SLICES and (volumes.predicted_steps or 0) < VOLUME_STEPS


def _thickness(volumes: Configuration) -> float:
    return max(volumes.network_spacing) / min(volumes.network_spacing)


def slices_instead(whole: Configuration, volumes: Configuration, slices: Configuration) -> str:
    """Why 2d is trained instead of 3d_fullres, both fitted to the same time; empty where it is not."""
    few, many = volumes.predicted_steps or 0, slices.predicted_steps or 0
    if many < SLICE_STEPS * few:
        return ""
    return (
        f"instead of 3d_fullres, which would get about {few} steps in this time, and 2d about {many}: slices are "
        f"{_thickness(whole):.1f} times thicker than pixels, so that a volume shows little more than its slices; "
        f"3d_fullres pays from {VOLUME_STEPS} steps on (--configurations chooses)"
    )
