"""Scores of an image of which only some rows are in memory: the tiles of `sliding_window`, row after row.

Tiles, their weights and their overlap are those of the whole image, and tiles are added in the same order along the
axis that the rows go along; a voxel that several tiles of one row share may get them in another order than in the
whole image, and its scores may then differ in the last bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..ops.rows import RowBuffer
from ..ops.tiles import WEIGHTINGS, axis_starts, centred_padding, mirrored_indices, tile_starts, tile_windows
from ..schema.plan import Configuration, Swap
from ..step import Precision
from .sliding_window import (
    Tile,
    accumulator_device,
    accumulators,
    add_tiles,
    output_field,
    padded_image,
    predict_scores,
    tile_ensemble,
)


def score_rows(
    models: Sequence[nn.Module],
    prepared: RowBuffer,
    shape: Sequence[int],
    axis: int,
    configuration: Configuration,
    classes: int,
    device: str | torch.device,
    swap: Swap | None = None,
) -> Iterator[np.ndarray]:
    """Blocks of what `predict_scores` gives for a prepared image (C, *S), from the first row along `axis` to the last.

    Each is (K, *S') float32 of some rows. `prepared` holds rows along axis 1 + `axis` of the image, `shape` is S. For
    the other arguments see there. One row of tiles, or one slice, is in memory at a time. Raises as it does.
    """
    dims = len(configuration.patch_size)
    along = axis - (3 - dims)
    if along < 0:
        slices: Iterator[tuple[int, int]] = ((row, row + 1) for row in range(shape[axis]))
    elif shape[axis] <= configuration.patch_size[along]:
        slices = iter([(0, shape[axis])])
    else:
        yield from _tile_rows(models, prepared, shape, axis, configuration, classes, torch.device(device), swap)
        return
    for start, stop in slices:
        yield predict_scores(models, prepared.take(start, stop), configuration, classes, device, swap=swap)


def _tile_rows(
    models: Sequence[nn.Module],
    prepared: RowBuffer,
    shape: Sequence[int],
    axis: int,
    configuration: Configuration,
    classes: int,
    device: torch.device,
    swap: Swap | None,
) -> Iterator[np.ndarray]:
    """Where the axis has more rows than a tile."""
    patch, field, inference = configuration.patch_size, output_field(configuration), configuration.inference
    dims, length = len(patch), shape[axis]
    lead = 3 - dims
    along = axis - lead
    ensemble = tile_ensemble(models, configuration, device, swap=swap)
    precision = Precision(configuration.precision, configuration.channels_last)
    weights = torch.from_numpy(WEIGHTINGS[inference.weighting](field))
    padding = list(centred_padding(shape[lead:], field))
    spatial = [size + below + above for size, (below, above) in zip(shape[lead:], padding, strict=True)]
    spatial[along] = field[along]  # one row of tiles
    field_across = [patch[along] if index == along else each for index, each in enumerate(field)]
    windows = [
        (tile_windows(start, patch), tile_windows(start, field))
        for start in tile_starts(spatial, field, inference.overlap)
    ]
    tiles = [Tile(index, *both) for index in (range(shape[0]) if lead else (None,)) for both in windows]
    inside = [slice(below, below + size) for size, (below, _) in zip(shape[lead:], padding, strict=True)]
    inside[along] = slice(None)
    starts = axis_starts(length, field[along], inference.overlap)
    rest: tuple[Tensor, Tensor] | None = None
    for start, following in itertools.pairwise((*starts, length)):
        margin = (patch[along] - field[along]) // 2
        reached = mirrored_indices(start - margin, start - margin + patch[along], length)
        first = int(reached.min())
        rows = prepared.take(first, int(reached.max()) + 1).take(reached - first, 1 + axis)
        image = torch.from_numpy(np.ascontiguousarray(padded_image(rows, padding, patch, field_across), np.float32))
        with torch.inference_mode(), precision.autocast(device.type):
            place = accumulator_device(classes, image, device) if rest is None else rest[0].device
            scores, coverage = accumulators((classes, *shape[:lead], *spatial), spatial, place)
            if rest is not None:
                for fresh, old in zip((scores, coverage), rest, strict=True):
                    own = fresh.ndim - dims + along
                    fresh.narrow(own, 0, old.shape[own]).copy_(old)
            ensemble, scores = add_tiles(ensemble, image, tiles, scores, weights, device)
            coverage = coverage.to(scores.device)
            for _, window in windows:
                coverage[window] += weights.to(scores.device)
            done, left = following - start, field[along] - (following - start)
            finished = scores.narrow(1 + axis, 0, done) / coverage.narrow(along, 0, done)
            finished = ensemble.quantity.to_logits(finished)
            rest = (
                scores.narrow(1 + axis, done, left).clone(),
                coverage.narrow(along, done, left).clone(),
            )
        yield np.ascontiguousarray(finished[(slice(None), *[slice(None)] * lead, *inside)].cpu().numpy())
