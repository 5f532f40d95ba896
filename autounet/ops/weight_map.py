"""The weight map of the 2015 U-Net: gaps between neighbouring objects, and rare classes, count more.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

d1 and d2 are the distances to the nearest and the second nearest object (Ronneberger, Fischer, Brox 2015, U-Net:
convolutional networks for biomedical image segmentation, MICCAI, equation 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import edt
import numpy as np

BORDER_WEIGHT = 10.0
"""w0 of the paper"""
BORDER_SIGMA = 5.0
"""sigma of the paper, in pixels"""


def border_weight(
    labels: np.ndarray,
    spacing: Sequence[float] | None = None,
    balance: np.ndarray | None = None,
    w0: float = BORDER_WEIGHT,
    sigma: float = BORDER_SIGMA,
) -> np.ndarray:
    """(*P) float32 weight of each voxel of dense `labels` (*P), 2-D or 3-D; 0 where a label is -1.

    Objects are the connected components of each foreground class, joined at faces only: a diagonal line of background
    parts two of them. The second term is for the background between objects, and 0 where there are fewer than two.
    `spacing` holds the distance of neighbouring voxels along each axis in the unit of `sigma`; None: 1. `balance` is
    w_c by class (K); None takes the frequencies of `labels` itself, which change from patch to patch: training does
    better with `balance_weights` of the whole data set. Raises ValueError for labels of other than 2 or 3 axes.
    """
    if labels.ndim not in (2, 3):
        raise ValueError(f"labels have {labels.ndim} axes, not 2 or 3")
    if balance is None:
        balance = balance_weights(np.bincount(labels[labels >= 0].ravel()))
    weight = np.append(balance, 0)[labels]  # label -1 reads the last, 0
    gap = labels == 0
    nearest, second = two_nearest(objects(labels), spacing)
    weight[gap] += w0 * np.exp(-((nearest[gap] + second[gap]) ** 2) / (2 * sigma**2))
    return weight.astype(np.float32)


def balance_weights(voxels: Sequence[int] | np.ndarray) -> np.ndarray:
    """(K) weight of each class from its number of voxels: the classes that occur weigh equal in sum, 1 on average.

    A class without voxels weighs 1.
    """
    counts = np.asarray(voxels, float)
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def objects(labels: np.ndarray) -> np.ndarray:
    """(*P) number of the object of each voxel from 1 on, 0 outside; objects of different classes are different."""
    foreground = np.ascontiguousarray(np.maximum(labels, 0), dtype=np.int32)
    return cc3d.connected_components(foreground, connectivity=4 if labels.ndim == 2 else 6)


def two_nearest(numbers: np.ndarray, spacing: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each voxel to the nearest and to the second nearest object, both (*P); infinite where none is.

    `numbers` (*P) is 0 outside objects and 1..n in them. float32, between voxels' centres, 0 inside. Each binary digit
    parts the objects into two sides. The nearest object lies on the nearer side of each digit, and any other one on the
    farther side of some: the least over digits of the distance to the farther side is that to the second nearest. So it
    takes 2 log2(n) distance transforms and not n.
    """
    nearest = np.full(numbers.shape, np.inf, np.float32)
    second = nearest.copy()
    for digit in range(int(numbers.max(initial=0)).bit_length()):
        on = (numbers >> digit) & 1 == 1
        sides = [_distance(side, spacing) for side in (on, (numbers > 0) & ~on)]
        nearest = np.minimum(nearest, np.minimum(*sides))
        second = np.minimum(second, np.maximum(*sides))
    return nearest, second


def _distance(mask: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
    """To the nearest voxel of the mask; infinite where it is empty."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return edt.edt(np.ascontiguousarray(~mask), anisotropy=tuple(spacing or (1.0,) * mask.ndim), black_border=False)
