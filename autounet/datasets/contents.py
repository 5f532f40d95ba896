"""What label and intensity arrays hold, as numbers small enough to keep."""

from __future__ import annotations

import hashlib

import numpy as np

from autounet.schema.dataset import IntensitySample

SAMPLES = 10_000
"""intensities kept per case and channel"""
_COUNTED = 1 << 20
"""value range up to which label values are counted by table"""


def count_values(values: np.ndarray) -> dict[int, int]:
    """Voxels per value that occurs, ascending. Zeros, most voxels of most label files, are set apart first."""
    rest = values[values != 0]
    counts = {0: values.size - rest.size} if rest.size < values.size else {}
    if rest.size:
        low, high = int(rest.min()), int(rest.max())
        if high - low < _COUNTED:
            table = np.bincount(rest - low)
            counts |= {int(index) + low: int(table[index]) for index in np.flatnonzero(table)}
        else:
            found, numbers = np.unique(rest, return_counts=True)
            counts |= dict(zip(found.tolist(), numbers.tolist(), strict=True))
    return dict(sorted(counts.items()))


def sample_intensities(
    image: np.ndarray, foreground: np.ndarray | None, seed: int, identifier: str
) -> tuple[IntensitySample, ...]:
    """Up to SAMPLES foreground intensities per channel of (C, Z, Y, X), at the same voxels in each.

    The voxels are drawn from (seed, identifier) alone. Images with NaN or infinite voxels give no sample.
    """
    where = np.flatnonzero(foreground) if foreground is not None else np.empty(0, np.int64)
    if where.size == 0 or not np.isfinite(image).all():
        return tuple(IntensitySample(values=(), minimum=None, maximum=None) for _ in image)
    key = hashlib.blake2b(f"{seed}:{identifier}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(key, "little"))
    chosen = where if where.size <= SAMPLES else np.sort(rng.choice(where, SAMPLES, replace=False, shuffle=False))
    samples = []
    for channel in image:
        flat = channel.ravel()
        inside = flat[where]
        samples.append(
            IntensitySample(values=_short(flat[chosen]), minimum=float(inside.min()), maximum=float(inside.max()))
        )
    return tuple(samples)


def _short(values: np.ndarray) -> tuple[float, ...]:
    """float32 as the shortest decimals that give the same float32 back."""
    if (values == np.rint(values)).all():
        return tuple(values.tolist())
    return tuple(float(text) for text in values.astype(str).tolist())
