"""Poly-1 cross-entropy: Leng et al., "PolyLoss", ICLR 2022."""

from __future__ import annotations

from torch import Tensor

from autounet.losses import LossSetting, Pixelwise
from autounet.losses.terms import VoxelLoss, weighted_mean
from autounet.losses.voxels import Voxels

EPSILON = 1.0
"""weight of the first polynomial term; the paper's default"""


def poly1_cross_entropy(voxels: Voxels) -> Tensor:
    """Mean over voxels of -log p + EPSILON (1 - p), p the probability of what is true."""
    return weighted_mean(EPSILON * voxels.error() - voxels.log_likelihood(), voxels.weight)


def poly1(setting: LossSetting) -> Pixelwise:
    """Through `setting.encoding`: so regions, ignored voxels and partly annotated cases are taken care of."""
    return VoxelLoss(setting.encoding, poly1_cross_entropy)
