"""Predicting whole images: overlapping tiles, mirrored views and several networks, averaged (`ensembling`).

Tiles cover the output. A network whose output is smaller than its input reads more of the image around each tile, and
beyond the image's borders its mirror image: the overlap-tile strategy (Ronneberger et al. 2015).
"""

from __future__ import annotations

import functools
import logging
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
from ..schema.errors import OutOfMemory
from ..schema.plan import Configuration, Swap
from ..step import Precision
from ..system_memory import is_out_of_memory
from .ensembling import AveragedQuantity, RunningMean, averaged_quantity

log = logging.getLogger(__name__)


def free_cached(device: torch.device) -> None:
    """Give back what torch's allocator holds without using it, so that pieces can become one block again."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@functools.cache
def warn_once(message: str) -> None:
    log.warning("%s", message)


def accumulators(whole: Sequence[int], spatial: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Zeros (K, *T) for scores and (*T) for the sum of weights, on the CPU where the device has no room for them.

    Both at once: later nothing large is allocated but by networks.
    """
    try:
        return torch.zeros(whole, device=device), torch.zeros(spatial, device=device)
    except (MemoryError, RuntimeError) as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    warn_once(f"memory ran out on {device}: the scores are kept in the CPU's memory instead")
    free_cached(device)
    return torch.zeros(whole), torch.zeros(spatial)


def with_less_memory(inputs: int, scores: Tensor, device: torch.device, patch: Sequence[int]) -> tuple[int, Tensor]:
    """Number of inputs to try next, after a forward of `inputs` was too much, and the scores, at last on the CPU.

    Raises OutOfMemory when a single input was too much with the scores on the CPU.
    """
    free_cached(device)
    if inputs > 1:
        warn_once(f"memory ran out on {device} with {inputs} inputs at a time: {inputs // 2} are tried")
        return inputs // 2, scores
    if scores.device.type != "cpu":
        warn_once(f"memory ran out on {device} with one input at a time: the scores are kept in the CPU's memory")
        scores = scores.cpu()
        free_cached(device)
        return inputs, scores
    remedy = "Use a machine with more" if device.type == "cpu" else "Free some of it, or use --device cpu"
    shape = "x".join(map(str, patch))
    raise OutOfMemory(f"memory ran out on {device} with one input of {shape} at a time, the least there is", remedy)


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


class MirroredView(NamedTuple):
    """A tile mirrored along some axes, and its channels in another order where left and right differ."""

    axes: tuple[int, ...] = ()
    """mirrored axes of (B, C, *P)"""
    inputs: tuple[int, ...] | None = None
    """order of the input's channels; None: as they are. An exchange of two by two, which undoes itself"""
    outputs: tuple[int, ...] | None = None
    """order of the output's channels, likewise"""

    def apply(self, inputs: Tensor) -> Tensor:
        return _ordered(inputs.flip(self.axes) if self.axes else inputs, self.inputs)

    def undo(self, logits: Tensor) -> Tensor:
        return _ordered(logits.flip(self.axes) if self.axes else logits, self.outputs)


def _ordered(array: Tensor, channels: tuple[int, ...] | None) -> Tensor:
    return array if channels is None else array[:, list(channels)]


@dataclass(frozen=True)
class TileEnsemble:
    """What is averaged in each tile: every model in every view; at most `limit` inputs a forward."""

    models: tuple[nn.Module, ...]
    views: tuple[MirroredView, ...]
    """the unmirrored one first"""
    limit: int
    channels_last: bool
    quantity: AveragedQuantity


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
    one is too much, the scores are kept in the CPU's memory; both are logged once a process.
    Raises OutOfMemory when that does not help, ValueError for an image of another rank, no model, one in training mode,
    or a mirrored axis without the swap that it needs.
    """
    if image.ndim != 4:
        raise ValueError("predict_scores needs an image (C, *S) and at least one model, all in eval mode")
    device, patch, field = torch.device(device), configuration.patch_size, output_field(configuration)
    ensemble = tile_ensemble(models, configuration, device, tile_batch, swap)
    padding = centred_padding(image.shape[-len(patch) :], field)
    padded = torch.from_numpy(padded_image(image, padding, patch, field).astype(np.float32, copy=False))
    precision = Precision(configuration.precision, configuration.channels_last)
    with torch.inference_mode(), precision.autocast(device.type):
        scores = _blend(ensemble, padded, configuration, classes, device, on_done)
    for axis, ((below, _), size) in enumerate(zip(padding, image.shape[-len(patch) :], strict=True), 4 - len(patch)):
        scores = scores.narrow(axis, below, size)
    return np.ascontiguousarray(scores.cpu().numpy())


def tile_ensemble(
    models: Sequence[nn.Module],
    configuration: Configuration,
    device: torch.device,
    tile_batch: int | None = None,
    swap: Swap | None = None,
) -> TileEnsemble:
    """For the arguments see `predict_scores`. Raises ValueError as it does."""
    if not models or any(model.training for model in models):
        raise ValueError("predict_scores needs at least one model, all in eval mode")
    if configuration.swap_axis in configuration.inference.mirror_axes and swap is None:
        raise ValueError(f"axis {configuration.swap_axis} is mirrored, and nothing says what changes places")
    return TileEnsemble(
        models=tuple(models),
        views=mirrored_views(configuration, swap),
        limit=tile_batch or default_batch(configuration, device),
        channels_last=configuration.channels_last,
        quantity=averaged_quantity(configuration.inference.average, configuration.targets),
    )


def mirrored_views(configuration: Configuration, swap: Swap | None) -> tuple[MirroredView, ...]:
    """A view for every subset of the mirrored axes, the unmirrored one first."""
    dims = len(configuration.patch_size)
    views = []
    for axes in mirror_combinations(configuration.inference.mirror_axes):
        channels = (swap.inputs, swap.outputs) if swap is not None and swap.axis in axes else (None, None)
        views.append(MirroredView(tensor_axes(axes, dims), *channels))
    return tuple(views)


def output_field(configuration: Configuration) -> tuple[int, ...]:
    """Size of the network's output: the patch, or its middle."""
    network = configuration.network
    return FAMILIES[network.family].output_size(network, configuration.patch_size)


def padded_image(
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
    ensemble: TileEnsemble,
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
    scores, coverage = accumulators(whole, spatial, accumulator_device(classes, image, device))
    if len(windows) == 1:
        return ensemble.quantity.to_logits(add_tiles(ensemble, image, tiles, scores, None, device, on_done)[1])
    weights = torch.from_numpy(WEIGHTINGS[inference.weighting](field))
    scores = add_tiles(ensemble, image, tiles, scores, weights, device, on_done)[1]
    coverage, weights = coverage.to(scores.device), weights.to(scores.device)
    for _, window in windows:
        coverage[window] += weights
    scores /= coverage
    return ensemble.quantity.to_logits(scores)


def add_tiles(
    ensemble: TileEnsemble,
    image: Tensor,
    tiles: Sequence[Tile],
    scores: Tensor,
    weights: Tensor | None,
    device: torch.device,
    on_done: Callable[[int, int], None] | None = None,
) -> tuple[TileEnsemble, Tensor]:
    """Predict tiles of an image (C, *S) and add them to `scores` (K, *T) times the `weights` of a tile's voxels.

    Without weights they are put there. Returns the ensemble and the scores, which differ from those given where memory
    ran out: with fewer inputs at a time, on the CPU. Raises OutOfMemory.
    """
    first = 0
    weights = None if weights is None else weights.to(scores.device)
    while first < len(tiles):
        chunk = tiles[first : first + max(1, ensemble.limit // len(ensemble.views))]
        means = _means_or_none(ensemble, image, chunk, device, scores.device)
        if means is None:
            inputs = min(ensemble.limit, len(chunk) * len(ensemble.views))
            patch = [each.stop - each.start for each in chunk[0].read]
            limit, scores = with_less_memory(inputs, scores, device, patch)
            ensemble = replace(ensemble, limit=limit)
            weights = None if weights is None else weights.to(scores.device)
            continue
        for tile, mean in zip(chunk, means, strict=True):
            if weights is None:
                scores[tile.target] = mean
            else:
                scores[tile.target].addcmul_(mean, weights)
        first += len(chunk)
        if on_done:
            on_done(first, len(tiles))
    return ensemble, scores


def _means_or_none(
    ensemble: TileEnsemble, image: Tensor, tiles: Sequence[Tile], device: torch.device, target: torch.device
) -> Tensor | None:
    """`average_tiles` of some tiles; None when memory ran out. By then the failed tensors are freed."""
    try:
        inputs = torch.stack([image[tile.source] for tile in tiles]).to(device)
        return average_tiles(ensemble, inputs).to(target)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def average_tiles(ensemble: TileEnsemble, inputs: Tensor) -> Tensor:
    """Mean (B, K, *P) float32 of inputs (B, C, *P) over views and models. Views share a forward if they fit."""
    mean = RunningMean()
    group = max(1, ensemble.limit // len(inputs))
    layout = torch.channels_last if inputs.ndim == 4 else torch.channels_last_3d
    for first in range(0, len(ensemble.views), group):
        views = ensemble.views[first : first + group]
        stacked = torch.cat([view.apply(inputs) for view in views])
        if ensemble.channels_last:
            stacked = stacked.contiguous(memory_format=layout)
        for model in ensemble.models:
            for view, logits in zip(views, model(stacked).chunk(len(views)), strict=True):
                mean.add(ensemble.quantity.from_logits(view.undo(logits)))
    return mean.result()


def accumulator_device(classes: int, image: Tensor, device: torch.device) -> torch.device:
    """The device itself, unless the scores would take more than half of a GPU's free memory."""
    if device.type != "cuda":
        return device
    needed = 4 * classes * image[0].numel()
    return device if needed < torch.cuda.mem_get_info(device)[0] / 2 else torch.device("cpu")
