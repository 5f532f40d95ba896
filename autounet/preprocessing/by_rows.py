"""The way of `prepare` for an image that is larger than the memory: figures of the whole in one pass, then row by row.

Crop, normalisation and resampling give every voxel what `prepare_case` gives it. The figures are sums in double
precision of other parts; where that changes the last bit of a mean or a standard deviation as float32, values differ by
as much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..datasets.checks.case_checks import channel_facts, sample_step
from ..datasets.chunked_input import ChunkedInput, rows_of_piece
from ..ops.masks import LARGEST, SCHEMES, SMALLEST_STD, crop, nonzero_mask
from ..ops.orient import orient
from ..ops.resample import REACH, Rows, resample_image, rows_needed
from ..ops.rows import RowBuffer, RowComponents
from ..schema.dataset import ChannelFacts
from ..schema.geometry import Box3, CaseProperties
from ..schema.plan import ChannelNormalisation
from .prepare import image_axis

SPLIT = 2**18
"""voxels whose distances are squared at a time, in double precision"""


class Moments(NamedTuple):
    """Of one channel where any channel is not 0."""

    voxels: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """sum of squared distances from the mean"""
    least: float = math.inf
    largest: float = -math.inf

    def joined(self, other: Moments) -> Moments:
        """Of both parts together (Chan, Golub and LeVeque 1979)."""
        if not self.voxels or not other.voxels:
            return other if other.voxels else self
        voxels, apart = self.voxels + other.voxels, other.mean - self.mean
        return Moments(
            voxels,
            self.mean + apart * other.voxels / voxels,
            self.squares + other.squares + apart * apart * self.voxels * other.voxels / voxels,
            min(self.least, other.least),
            max(self.largest, other.largest),
        )

    def with_zeros(self, voxels: int) -> Moments:
        return self.joined(Moments(voxels, 0.0, 0.0, 0.0, 0.0)) if voxels else self


class ImageFigures(NamedTuple):
    """What has to be known of a whole image before its first row is prepared."""

    axis: int
    """z, y or x, along which it was read"""
    box: Box3
    """of voxels that are not 0 in some channel, stored axis order; of an empty image the whole"""
    facts: tuple[ChannelFacts, ...]
    moments: tuple[Moments, ...]
    """of each channel, where any is not 0"""
    not_finite: int
    """voxels"""
    zeros: RowComponents | None
    """where holes had to be looked for, of the voxels that are 0 in all channels"""
    holes: np.ndarray
    """(N,) which of these components are holes"""
    hole_voxels: int


def measure_image(image: ChunkedInput, axis: int, with_holes: bool) -> ImageFigures:
    """One pass over an image along z, y or x; `with_holes` for schemes over non-zero voxels only. Raises DataError."""
    shape = image.geometry.shape
    step = sample_step(math.prod(shape))
    filled = [np.zeros(size, bool) for size in shape]
    moments = [Moments()] * image.channels
    extremes = np.full((2, image.channels), [[np.inf], [-np.inf]])
    samples: list[list[np.ndarray]] = [[] for _ in range(image.channels)]
    zeros = RowComponents(axis, 6) if with_holes else None
    wrong = 0
    for start, stop, piece in image.read(axis):
        steps = [slice(None, None, step)] * 3
        steps[axis] = slice(-start % step, None, step)
        mask = nonzero_mask(piece)
        for index in range(3):
            rows = slice(start, stop) if index == axis else slice(None)
            filled[index][rows] |= mask.any(axis=tuple(other for other in range(3) if other != index))
        if zeros is not None:
            zeros.add(~mask)
        for index, channel in enumerate(piece):
            extremes[:, index] = min(extremes[0, index], channel.min()), max(extremes[1, index], channel.max())
            if not np.isfinite([channel.min(), channel.max()]).all():
                wrong += int(channel.size - np.count_nonzero(np.isfinite(channel)))
                continue
            samples[index].append(channel[tuple(steps)].flatten())
            moments[index] = moments[index].joined(_moments(channel if mask.all() else channel[mask]))
    sizes, at_border = zeros.finish() if zeros is not None and not wrong else (np.zeros(0, np.int64), np.zeros(0, bool))
    return ImageFigures(
        axis,
        _box(filled),
        ()
        if wrong
        else tuple(
            channel_facts(float(low), float(high), np.concatenate(sample))
            for low, high, sample in zip(*extremes, samples, strict=True)
        ),
        tuple(moments),
        wrong,
        zeros,
        ~at_border,
        int(sizes[~at_border].sum()),
    )


def _moments(values: np.ndarray) -> Moments:
    if not values.size:
        return Moments()
    mean = float(values.mean(dtype=np.float64))
    squares = sum(
        float(np.square(row - np.float64(mean)).sum())
        for row in np.array_split(values.ravel(), 1 + values.size // SPLIT)
    )
    return Moments(values.size, mean, squares, float(values.min()), float(values.max()))


def _box(filled: Sequence[np.ndarray]) -> Box3:
    places = [np.flatnonzero(each) for each in filled]
    whole = any(not found.size for found in places)
    first, second, third = (
        (0, len(each)) if whole else (int(found[0]), int(found[-1]) + 1)
        for each, found in zip(filled, places, strict=True)
    )
    return first, second, third


def prepared_rows(image: ChunkedInput, figures: ImageFigures, properties: CaseProperties) -> Iterator[np.ndarray]:
    """Blocks of the prepared image (C, *S) from the first row to the last along the axis that the figures were made."""
    axis = properties.axes.index(figures.axis)
    old, new = properties.cropped_shape[axis], properties.shape[axis]
    rules, own = properties.spec.resampling, image_axis(properties)
    order = rules.z_order if axis == own else rules.image_order
    limits = _limits(image, figures, properties)
    normalised = RowBuffer(_normalised_rows(image, figures, properties), 1 + axis)
    rows = max(rows_of_piece(image.channels * math.prod(properties.cropped_shape) / new), round(REACH * new / old))
    parts = [(start, min(start + rows, new)) for start in range(0, new, rows)]
    needed = np.array([rows_needed(old, new, order, *part) for part in parts])
    firsts = np.minimum.accumulate(needed[::-1, 0])[::-1].tolist()  # a row may need fewer before it than one after it
    for (start, stop), first, last in zip(parts, firsts, needed[:, 1].tolist(), strict=True):
        part = Rows(axis, old, first, start, stop)
        yield resample_image(
            normalised.take(first, last), properties.shape, rules.image_order, own, rules.z_order, part, limits
        )


def _normalised_rows(image: ChunkedInput, figures: ImageFigures, properties: CaseProperties) -> Iterator[np.ndarray]:
    """Of the crop, (C, *S) in network axis order."""
    axis, schemes = figures.axis, properties.spec.normalisation
    backwards = properties.flips[properties.axes.index(axis)]
    pieces = [piece for block in image.pieces(axis) for piece in block]
    moments = [_counted(each, scheme, figures) for each, scheme in zip(figures.moments, schemes, strict=True)]
    for start, stop, piece in image.read(axis, backwards):
        low, high = (min(max(each, start), stop) - start for each in figures.box[axis])
        if low == high:
            continue
        box = list(figures.box)
        box[axis] = (low, high)
        mask = None
        if any(scheme.nonzero_only for scheme in schemes):
            mask = nonzero_mask(piece)
            if figures.zeros is not None and figures.holes.any():
                mask |= figures.zeros.chosen(pieces.index((start, stop)), ~mask, figures.holes)
            mask = crop(mask, (box[0], box[1], box[2]))
        inside = np.ascontiguousarray(crop(piece, (box[0], box[1], box[2])))
        for channel, scheme, own in zip(inside, schemes, moments, strict=True):
            _normalise(channel, scheme, own, mask if scheme.nonzero_only else None)
        if image.present is not None:
            inside[~np.array(image.present)] = 0
        yield np.ascontiguousarray(orient(inside, properties.axes, properties.flips))


def _counted(moments: Moments, scheme: ChannelNormalisation, figures: ImageFigures) -> Moments:
    """Of the voxels that decide on a channel's normalisation: those of the crop, or of what is not 0 with its holes."""
    if scheme.nonzero_only:
        return moments.with_zeros(figures.hole_voxels)
    return moments.with_zeros(math.prod(stop - start for start, stop in figures.box) - moments.voxels)


def _normalise(channel: np.ndarray, scheme: ChannelNormalisation, moments: Moments, mask: np.ndarray | None) -> None:
    """A part of a channel, in place, as `ops.masks.normalise` does with all of it."""
    if scheme.scheme not in ("zscore", "range"):
        SCHEMES[scheme.scheme](channel, scheme, None)
        return
    if not moments.voxels:
        return
    inside = channel if mask is None else channel[mask]
    scale = 1.0
    if max(-moments.least, moments.largest) > LARGEST:
        scale = LARGEST / float(np.finfo(np.float32).max)
        inside *= np.float32(scale)
    if scheme.scheme == "zscore":
        mean = np.float32(moments.mean * scale)
        rounded = moments.mean * scale - float(mean)  # the whole's distances are from the mean as it is subtracted
        spread = math.hypot(math.sqrt(moments.squares / moments.voxels) * scale, rounded)
        inside -= mean
        inside /= np.float32(max(spread, SMALLEST_STD))
    else:
        least, largest = np.float32(moments.least * scale), np.float32(moments.largest * scale)
        inside -= least
        inside /= max(largest - least, SMALLEST_STD)
    if mask is not None:
        channel[mask] = inside


def _limits(image: ChunkedInput, figures: ImageFigures, properties: CaseProperties) -> np.ndarray | None:
    """The least and largest normalised values of the crop: (2, C, 1, 1, 1), or of each row of the separate axis.

    None where this is the axis of the pieces, which have all of such a row, or where nothing is clipped.
    """
    own, schemes = image_axis(properties), properties.spec.normalisation
    if properties.spec.resampling.image_order < 2 or own == properties.axes.index(figures.axis):
        return None
    limits = np.empty((2, image.channels, 1, 1, 1), np.float32)
    if own is None:  # no scheme changes the order of values
        for index, (scheme, moments) in enumerate(zip(schemes, figures.moments, strict=True)):
            counted = _counted(moments, scheme, figures)
            ends = np.array([counted.least, counted.largest] if counted.voxels else [0.0, 0.0], np.float32)
            _normalise(ends, scheme, counted, None)
            if counted.voxels < math.prod(properties.cropped_shape):
                ends = np.array([min(ends[0], 0), max(ends[1], 0)])
            missing = image.present is not None and not image.present[index]
            limits[:, index, 0, 0, 0] = 0 if missing else ends
        return limits
    shape = [size if axis == own else 1 for axis, size in enumerate(properties.cropped_shape)]
    limits = np.broadcast_to(
        np.array([np.inf, -np.inf], np.float32)[:, None, None, None, None], (2, image.channels, *shape)
    ).copy()
    across = tuple(axis for axis in (1, 2, 3) if axis != 1 + own)
    for rows in _normalised_rows(image, figures, properties):
        np.minimum(limits[0], rows.min(axis=across, keepdims=True), out=limits[0])
        np.maximum(limits[1], rows.max(axis=across, keepdims=True), out=limits[1])
    return limits
