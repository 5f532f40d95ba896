"""Predicting whole images: overlapping tiles, mirrored views and several networks, averaged (`pooling`).

Tiles cover the output. A network whose output is smaller than its input reads more of the image around each tile, and
beyond the image's borders its mirror image: the overlap-tile strategy (Ronneberger et al. 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..nets import FAMILIES
from ..ops.tiles import (
    WEIGHTINGS,
    centred_padding,
    mirror_combinations,
    mirrored_indices,
    tensor_axes,
    tile_starts,
    tile_windows,
)
from ..schema.plan import Configuration, Swap
from ..step import Precision
from .ensembling import LOGITS, Pooling, pooling_of
from .loading import accumulators, is_out_of_memory, with_less_memory

CPU_FORWARD_VOXELS = 2**20
"""input voxels of one forward on a CPU: more gains no speed and costs memory"""


class Tile(NamedTuple):
    """Windows of the padded image and of the scores, and in 2d the slice along axis 0."""

    slice_index: int | None
    read: tuple[slice, ...]
    written: tuple[slice, ...]

    @property
    def source(self) -> tuple[slice | int, ...]:
        """What the network gets, in an array (channels, *S)."""
        return self._head + self.read

    @property
    def target(self) -> tuple[slice | int, ...]:
        """Where its output lies, in an array (classes, *T)."""
        return self._head + self.written

    @property
    def _head(self) -> tuple[slice | int, ...]:
        return (slice(None),) if self.slice_index is None else (slice(None), self.slice_index)


class View(NamedTuple):
    """One way of looking at a tile: mirrored, and its channels in another order where left and right differ."""

    axes: tuple[int, ...] = ()
    """mirrored axes of (B, C, *P)"""
    inputs: tuple[int, ...] | None = None
    """order of the input's channels; None: as they are. An exchange of two by two, which undoes itself"""
    outputs: tuple[int, ...] | None = None
    """order of the output's channels, likewise"""

    def seen(self, inputs: Tensor) -> Tensor:
        return _ordered(inputs.flip(self.axes) if self.axes else inputs, self.inputs)

    def upright(self, logits: Tensor) -> Tensor:
        return _ordered(logits.flip(self.axes) if self.axes else logits, self.outputs)


def _ordered(array: Tensor, channels: tuple[int, ...] | None) -> Tensor:
    return array if channels is None else array[:, list(channels)]


@dataclass(frozen=True)
class Averaging:
    """What is averaged for one tile: every model, every view; at most `limit` inputs a forward."""

    models: tuple[nn.Module, ...]
    views: tuple[View, ...]
    """the unmirrored one first"""
    limit: int
    channels_last: bool
    pooling: Pooling = LOGITS


def predict_scores(
    models: Sequence[nn.Module],
    image: np.ndarray,
    configuration: Configuration,
    classes: int,
    device: str | torch.device,
    tile_batch: int | None = None,
    on_done: Callable[[int, int], None] | None = None,
    swap: Swap | None = None,
) -> np.ndarray:
    """Logits (K, *S) float32 of a prepared image (C, *S), averaged over models and mirrored views.

    Where `configuration.inference` averages probabilities, these are the logits of the mean: the softmax of its
    logarithm is the mean again. K is `classes`, the number of output channels; `swap` (`schema.swaps.prediction_swap`)
    says which of them change places in a mirror. A 2d configuration predicts slices along axis 0. The models are in
    eval mode on `device` and return full-resolution logits. An image smaller than the patch is padded with zeros, and
    cropped again; where the output is smaller than the patch, the image is padded with its mirror image instead.
    `tile_batch` is the largest number of inputs (a tile in one view) of one forward; see `default_batch`.
    `on_done(done, total)` counts tiles. Where memory runs out, fewer inputs are predicted at a time, and when a single
    one is too much, the scores are kept in the CPU's memory; both are said once a process.
    Raises OutOfMemory when that does not help, ValueError for an image of another rank, no model, one in training mode,
    or a mirrored axis without the swap that it needs.
    """
    if image.ndim != 4 or not models or any(model.training for model in models):
        raise ValueError("predict_scores needs an image (C, *S) and at least one model, all in eval mode")
    if configuration.swap_axis in configuration.inference.mirror_axes and swap is None:
        raise ValueError(f"axis {configuration.swap_axis} is mirrored, and nothing says what changes places")
    device, patch, field = torch.device(device), configuration.patch_size, output_field(configuration)
    padding = centred_padding(image.shape[-len(patch) :], field)
    padded = torch.from_numpy(_pad(image, padding, patch, field).astype(np.float32, copy=False))
    averaging = Averaging(
        models=tuple(models),
        views=mirrored_views(configuration, swap),
        limit=tile_batch or default_batch(configuration, device),
        channels_last=configuration.channels_last,
        pooling=pooling_of(configuration.inference.average, configuration.targets),
    )
    precision = Precision(configuration.precision, configuration.channels_last)
    with torch.inference_mode(), precision.autocast(device.type):
        scores = _blend(averaging, padded, configuration, classes, device, on_done)
    for axis, ((below, _), size) in enumerate(zip(padding, image.shape[-len(patch) :], strict=True), 4 - len(patch)):
        scores = scores.narrow(axis, below, size)
    return np.ascontiguousarray(scores.cpu().numpy())


def mirrored_views(configuration: Configuration, swap: Swap | None) -> tuple[View, ...]:
    """A view for every subset of the mirrored axes, the unmirrored one first."""
    dims = len(configuration.patch_size)
    views = []
    for axes in mirror_combinations(configuration.inference.mirror_axes):
        channels = (swap.inputs, swap.outputs) if swap is not None and swap.axis in axes else (None, None)
        views.append(View(tensor_axes(axes, dims), *channels))
    return tuple(views)


def output_field(configuration: Configuration) -> tuple[int, ...]:
    """Size of the network's output: the patch, or its middle."""
    network = configuration.network
    return FAMILIES[network.family].output_size(network, configuration.patch_size)


def _pad(
    image: np.ndarray, padding: Sequence[tuple[int, int]], patch: Sequence[int], field: Sequence[int]
) -> np.ndarray:
    """(C, *S) with `padding` (below, above) per axis of the patch, and with the margins that the network loses."""
    if tuple(patch) == tuple(field):
        return np.pad(image, [(0, 0)] * (4 - len(patch)) + list(padding))
    for axis, ((below, above), large, small) in enumerate(zip(padding, patch, field, strict=True), 4 - len(patch)):
        margin, length = (large - small) // 2, image.shape[axis]
        reached = mirrored_indices(-below - margin, length + above + large - small - margin, length)
        image = image.take(reached, axis)
    return image


def default_batch(configuration: Configuration, device: torch.device) -> int:
    """Inputs of one forward: the training batch, which is known to fit; on a CPU at least `CPU_FORWARD_VOXELS`."""
    if device.type != "cpu":
        return configuration.batch_size
    return max(1, CPU_FORWARD_VOXELS // int(np.prod(configuration.patch_size)))


def _blend(
    averaging: Averaging,
    image: Tensor,
    configuration: Configuration,
    classes: int,
    device: torch.device,
    on_done: Callable[[int, int], None] | None,
) -> Tensor:
    """Weighted mean (K, *T) over all tiles of a padded image (C, *S), as logits; T is S without the lost margins."""
    patch, field, inference = configuration.patch_size, output_field(configuration), configuration.inference
    lost = [large - small for large, small in zip(patch, field, strict=True)]
    spatial = [length - margin for length, margin in zip(image.shape[-len(patch) :], lost, strict=True)]
    windows = [
        (tile_windows(start, patch), tile_windows(start, field))
        for start in tile_starts(spatial, field, inference.overlap)
    ]
    slices = range(image.shape[1]) if len(patch) == 2 else (None,)
    tiles = [Tile(index, *both) for index in slices for both in windows]
    whole = (classes, *image.shape[1 : 4 - len(patch)], *spatial)
    scores, coverage = accumulators(whole, spatial, _accumulator_device(classes, image, device))
    weights = torch.from_numpy(WEIGHTINGS[inference.weighting](field)).to(scores.device)
    first = 0
    while first < len(tiles):
        chunk = tiles[first : first + max(1, averaging.limit // len(averaging.views))]
        shares = _shares_or_none(averaging, image, chunk, device, scores.device)
        if shares is None:
            inputs = min(averaging.limit, len(chunk) * len(averaging.views))
            limit, scores = with_less_memory(inputs, scores, device, patch)
            averaging = replace(averaging, limit=limit)
            weights = weights.to(scores.device)
            continue
        for tile, tile_shares in zip(chunk, shares, strict=True):
            if len(windows) == 1:
                scores[tile.target] = tile_shares
            else:
                scores[tile.target].addcmul_(tile_shares, weights)
        first += len(chunk)
        if on_done:
            on_done(first, len(tiles))
    if len(windows) > 1:
        coverage = coverage.to(scores.device)
        for _, window in windows:
            coverage[window] += weights
        scores /= coverage
    return averaging.pooling.scores(scores)


def _shares_or_none(
    averaging: Averaging, image: Tensor, tiles: Sequence[Tile], device: torch.device, target: torch.device
) -> Tensor | None:
    """`average_shares` of some tiles; None when memory ran out. By then the failed tensors are freed."""
    try:
        inputs = torch.stack([image[tile.source] for tile in tiles]).to(device)
        return average_shares(averaging, inputs).to(target)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def average_shares(averaging: Averaging, inputs: Tensor) -> Tensor:
    """Mean logits, or what else is pooled, (B, K, *P) float32 of inputs (B, C, *P) over views and models.

    Views share a forward if they fit.
    """
    total: Tensor | None = None
    group = max(1, averaging.limit // len(inputs))
    layout = torch.channels_last if inputs.ndim == 4 else torch.channels_last_3d
    for first in range(0, len(averaging.views), group):
        views = averaging.views[first : first + group]
        stacked = torch.cat([view.seen(inputs) for view in views])
        if averaging.channels_last:
            stacked = stacked.contiguous(memory_format=layout)
        for model in averaging.models:
            for view, logits in zip(views, model(stacked).chunk(len(views)), strict=True):
                share = averaging.pooling.shares(view.upright(logits))
                total = share.to(torch.float32, copy=True) if total is None else total.add_(share)
    assert total is not None
    return total.div_(len(averaging.views) * len(averaging.models))


def _accumulator_device(classes: int, image: Tensor, device: torch.device) -> torch.device:
    """The device itself, unless the scores would take more than half of a GPU's free memory."""
    if device.type != "cuda":
        return device
    needed = 4 * classes * image[0].numel()
    return device if needed < torch.cuda.mem_get_info(device)[0] / 2 else torch.device("cpu")
