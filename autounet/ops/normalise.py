"""Intensities to the range a network likes, channel by channel, with the values the plan holds.

The schemes are nnU-Net's (Isensee et al. 2021): CT by statistics of the data set's foreground, colour images to 0..1,
everything else by the case's own mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..schema.plan import ChannelNormalisation
from .masks import filled_mask

SMALLEST_STD = 1e-8
"""a constant channel becomes zero instead of a division by zero"""
LARGEST = 2.0**60
"""beyond it, squares and differences of float32 may overflow; half of the largest exponent, less what a sum adds"""


def normalise(image: np.ndarray, schemes: Sequence[ChannelNormalisation]) -> np.ndarray:
    """New contiguous float32 array of (C, Z, Y, X), each channel by its scheme.

    Raises ValueError when there are not as many schemes as channels.
    """
    if len(schemes) != len(image):
        raise ValueError(f"{len(image)} channels, but normalisation for {len(schemes)}")
    mask = filled_mask(image) if any(scheme.nonzero_only for scheme in schemes) else None
    result = np.array(image, dtype=np.float32, order="C")
    for channel, scheme in zip(result, schemes, strict=True):
        SCHEMES[scheme.scheme](channel, scheme, mask if scheme.nonzero_only else None)
    return result


def _ct(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    np.clip(channel, scheme.lower, scheme.upper, out=channel)
    channel -= scheme.mean
    channel /= max(scheme.std, SMALLEST_STD)


def _zscore(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    """With a mask, voxels outside it are neither counted nor changed: they stay 0."""
    inside = channel if mask is None else channel[mask]
    if inside.size == 0:
        return
    _scale_down(inside)
    inside -= np.float32(inside.mean(dtype=np.float64))
    spread = np.sqrt(np.square(inside).mean(dtype=np.float64))
    inside /= np.float32(max(spread, SMALLEST_STD))
    if mask is not None:
        channel[mask] = inside


def _unit(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    channel -= scheme.lower
    channel /= max(scheme.upper - scheme.lower, SMALLEST_STD)


def _range(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    _scale_down(channel)
    channel -= channel.min()
    channel /= max(channel.max(), SMALLEST_STD)


def _scale_down(values: np.ndarray) -> None:
    """In place by a power of two where values are beyond `LARGEST`, for schemes that give the same at every scale."""
    if max(-float(values.min()), float(values.max())) > LARGEST:
        values *= np.float32(LARGEST / np.finfo(np.float32).max)


def _none(channel: np.ndarray, scheme: ChannelNormalisation, mask: np.ndarray | None) -> None:
    return None


SCHEMES: dict[str, Callable[[np.ndarray, ChannelNormalisation, np.ndarray | None], None]] = {
    "ct": _ct,
    "zscore": _zscore,
    "unit": _unit,
    "range": _range,
    "none": _none,
}
