"""What label and intensity arrays hold, as numbers small enough to keep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import cc3d
import numpy as np

from ...ops.orient import crop, nonzero_box
from ...schema.dataset import ChannelFacts, Components, IntensitySample
from ...schema.geometry import Box3

SAMPLES = 10_000
"""intensities kept per case and channel"""
NO_SAMPLE = IntensitySample.of(b"", None, None)
_COUNTED = 1 << 20
"""value range up to which label values are counted by table"""
_INSPECTED = 1 << 14
"""voxels of a channel's regular sample, about"""
CLICK_VOXELS = 8
"""a component of no more voxels is what one click of a brush of two voxels a side leaves"""
CLICK_RATIO = 100
"""how many times larger the largest component of the same class is, so that structures of a few voxels are none"""
MOST_CLICKS = 3
"""of one class in one case; a class with more of them comes in pieces"""


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
        return tuple(NO_SAMPLE for _ in image)
    key = hashlib.blake2b(f"{seed}:{identifier}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(key, "little"))
    chosen = where if where.size <= SAMPLES else np.sort(rng.choice(where, SAMPLES, replace=False, shuffle=False))
    samples = []
    for channel in image:
        flat = channel.ravel()
        inside = flat[where]
        values = flat[chosen].astype("<f4", copy=False).tobytes()
        samples.append(IntensitySample.of(values, float(inside.min()), float(inside.max())))
    return tuple(samples)


def describe_channels(image: np.ndarray) -> tuple[ChannelFacts, ...]:
    """Range and percentiles of each channel of (C, Z, Y, X)."""
    return tuple(_describe(channel) for channel in image)


def _describe(channel: np.ndarray) -> ChannelFacts:
    low, high = float(channel.min()), float(channel.max())
    if not np.isfinite([low, high]).all():
        return ChannelFacts()
    step = max(1, round((channel.size / _INSPECTED) ** (1 / 3)))
    sample = channel[::step, ::step, ::step]
    sample = sample[sample != 0]
    if sample.size == 0:
        return ChannelFacts(minimum=low, maximum=high)
    first, middle, last = np.percentile(sample, (1, 50, 99)).tolist()
    return ChannelFacts(minimum=low, maximum=high, low=first, median=middle, high=last)


def image_hash(image: np.ndarray, box: Box3) -> str:
    """32 hex digits over the shape of (C, Z, Y, X), where its non-zero `box` lies, and the intensities in it."""
    state = hashlib.sha256(repr((image.shape, box)).encode())
    for channel in image:
        state.update(np.ascontiguousarray(crop(channel, box)).data)
    return state.hexdigest()[:32]


def count_components(values: np.ndarray, counts: Mapping[int, int], ignore: int | None) -> dict[int, Components]:
    """Per value of (Z, Y, X), with its `counts`, its components; without 0 and `ignore`.

    A component of at most CLICK_VOXELS beside one CLICK_RATIO times larger looks like a click that went astray, unless
    the class has more than MOST_CLICKS of them.
    """
    wanted = np.array([value for value in counts if value not in (0, ignore)])
    if not wanted.size:
        return {}
    box = nonzero_box(values[None])
    labelled, number = cc3d.connected_components(_dense(crop(values, box), wanted), connectivity=26, return_N=True)
    flat = labelled.ravel()
    marked = np.flatnonzero(flat)
    sizes = np.bincount(flat[marked], minlength=number + 1)[1:]
    first = np.empty(number + 1, np.int64)
    first[flat[marked[::-1]]] = marked[::-1]  # of equal indices the last assignment stays: the first voxel
    places = np.stack(np.unravel_index(first[1:], labelled.shape), axis=1) + [start for start, _ in box]
    of_value = values[tuple(places.T)]
    return {int(value): _summary(sizes[of_value == value], places[of_value == value]) for value in wanted}


def _dense(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(Z, Y, X) with 1 for the first of the `wanted` values (ascending), 2 for the next, ..., 0 for all others."""
    number = np.uint8 if len(wanted) < 256 else np.uint32
    if len(wanted) == 1:
        return (values == wanted[0]).astype(number)
    places = np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)
    return np.where(wanted[places] == values, places + 1, 0).astype(number)


def _summary(sizes: np.ndarray, places: np.ndarray) -> Components:
    """Of one class, from the voxels of its components and a place (z, y, x) in each."""
    largest = int(sizes.max())
    clicks = np.flatnonzero((sizes <= CLICK_VOXELS) & (sizes * CLICK_RATIO <= largest))
    if not 0 < len(clicks) <= MOST_CLICKS:
        return Components(count=len(sizes), largest=largest, clicks=0)
    z, y, x = places[clicks[sizes[clicks].argmin()]].tolist()
    return Components(count=len(sizes), largest=largest, clicks=len(clicks), place=(z, y, x))
