"""Random changes of a batch in plain torch, on its device: what `transforms.py` does by batchgeneratorsv2.

Probabilities, ranges and order are nnU-Net's, and all that is drawn comes from numpy's generator, sample by sample. So
a sample is the same in every batch. Channels are worked on one after the other on a CPU, where each fits into the
cache, and together elsewhere, where every call costs time.

Images are interpolated linearly, as in nnU-Net, and so are the one-hot maps of labels. What is separable, blur and
coarser resolution, is one matrix for each axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

P_NOISE, P_BLUR, P_BRIGHTNESS, P_CONTRAST, P_COARSE, P_INVERTED, P_GAMMA = 0.1, 0.2, 0.15, 0.15, 0.25, 0.1, 0.3
"""of a sample"""
P_CHANNEL = 0.5
"""of each channel of a sample that is blurred or made coarser"""
LARGEST_NOISE = 0.1
"""standard deviation"""
SIGMAS = (0.5, 1.0)
"""of the blur, in voxels"""
LEAST_BLURRED = 4
"""voxels of an axis; a thinner one is not blurred, as it holds no kernel of up to 7"""
TRUNCATE = 6
"""length of a blur's kernel in standard deviations, before it is rounded to an odd number"""
MULTIPLIERS = (0.75, 1.25)
"""of brightness and contrast: below or above 1 with equal probability, evenly within"""
COARSEST = 0.5
"""share of an axis's voxels that are left"""
GAMMAS = (0.7, 1.5)
"""drawn as `MULTIPLIERS`"""
SMALLEST = 1e-7
"""range and standard deviation of a channel that is not constant, at least"""


class Changes(NamedTuple):
    """What is drawn for one sample beside space: a value for each channel, None where it stays as it is."""

    noise_seed: int
    noise: float | None
    """standard deviation"""
    blur: tuple[tuple[float, ...] | None, ...]
    """standard deviation along each axis, 0 for none"""
    brightness: tuple[float | None, ...]
    contrast: tuple[float | None, ...]
    coarse: tuple[tuple[int, ...] | None, ...]
    """voxels that are left of each axis"""
    inverted: tuple[float | None, ...]
    """gamma of the negative"""
    gamma: tuple[float | None, ...]
    mirrored: tuple[int, ...]
    """axes"""


KINDS = {"full": [True] * 7, "light": [True, False, False, True, False, False, True]}
"""which of the changes there are; augmentations of plug-ins are none of them"""


def draw_changes(
    generator: np.random.Generator,
    kind: str,
    channels: int,
    patch: Sequence[int],
    flat: bool,
    mirror_axes: Sequence[int],
) -> Changes:
    """All is drawn, whatever `kind` (full or light) leaves out; `flat` patches become coarser in their planes only."""
    coins = generator.random(7) < (P_NOISE, P_BLUR, P_BRIGHTNESS, P_CONTRAST, P_COARSE, P_INVERTED, P_GAMMA)
    noise, blur, brightness, contrast, coarse, inverted, gamma = coins & KINDS[kind]

    def around_one(limits: tuple[float, float]) -> tuple[float, ...]:
        below = generator.random(channels) < 0.5
        shares = generator.random(channels)
        return tuple(np.where(below, limits[0] + shares * (1 - limits[0]), 1 + shares * (limits[1] - 1)).tolist())

    nothing = (None,) * channels
    chosen = generator.random((2, channels)) < P_CHANNEL
    sigmas = generator.uniform(*SIGMAS, (channels, len(patch))) * (np.asarray(patch) >= LEAST_BLURRED)
    scales = np.repeat(generator.uniform(COARSEST, 1, (channels, 1)), len(patch), axis=1)
    if flat:
        scales[:, 0] = 1
    left = [tuple(round(length * scale) for length, scale in zip(patch, each, strict=True)) for each in scales.tolist()]
    factors = around_one(MULTIPLIERS), around_one(MULTIPLIERS), around_one(GAMMAS), around_one(GAMMAS)
    return Changes(
        int(generator.integers(2**31)),
        float(generator.uniform(0, LARGEST_NOISE)) if noise else None,
        tuple(tuple(each) if blur and on else None for each, on in zip(sigmas.tolist(), chosen[0], strict=True)),
        factors[0] if brightness else nothing,
        factors[1] if contrast else nothing,
        tuple(each if coarse and on else None for each, on in zip(left, chosen[1], strict=True)),
        factors[2] if inverted else nothing,
        factors[3] if gamma else nothing,
        tuple(axis for axis, coin in zip(mirror_axes, generator.random(len(mirror_axes)), strict=True) if coin < 0.5),
    )


def change_intensities(images: Tensor, changes: Sequence[Changes], together: bool | None = None) -> None:
    """Images (B, C, *P) in place. `together`: channels of a batch at once; None: not on a CPU."""
    if together is None:
        together = images.device.type != "cpu"
    for image, each in zip(images, changes, strict=True):
        if each.noise is not None:
            generator = torch.Generator(images.device).manual_seed(each.noise_seed)
            image.add_(torch.randn(image.shape, generator=generator, device=image.device), alpha=each.noise)
    channels = images.flatten(0, 1)
    for name, change in CHANGES.items():
        values = [value for each in changes for value in getattr(each, name)]
        chosen = [number for number, value in enumerate(values) if value is not None]
        for numbers in [chosen] if together and len(chosen) > 1 else [[number] for number in chosen]:
            arguments = [values[number] for number in numbers]
            if len(numbers) == 1:
                part = channels[numbers[0] : numbers[0] + 1]
                changed = change(part, arguments)
                if changed is not part:  # not in place
                    part.copy_(changed)
            else:
                where = torch.tensor(numbers).to(images.device, non_blocking=True)
                channels[where] = change(channels[where], arguments)


def brighten(part: Tensor, factors: Sequence[float]) -> Tensor:
    return part.mul_(_column(factors, part))


def contrasted(part: Tensor, factors: Sequence[float]) -> Tensor:
    """Stretched around its mean, and kept within its range. (R, *P), each row with its factor."""
    rows, factor = part.flatten(1), _column(factors, part).view(-1, 1)
    low, high = _range(rows)
    torch.addcmul(rows.mean(1, keepdim=True) * (1 - factor), rows, factor, out=rows)
    rows.clamp_(low, high)
    return part


def gamma_corrected(part: Tensor, gammas: Sequence[float], inverted: bool = False) -> Tensor:
    """(R, *P) on a scale from 0 to 1, or 1 to 0, to the power of gamma; with the mean and the deviation from before."""
    rows, gamma = part.flatten(1), _column(gammas, part).view(-1, 1)
    low, high = _range(rows)
    extent = high - low
    scale = (-1 if inverted else 1) / extent.clamp(min=SMALLEST)
    rows.sub_(high if inverted else low).mul_(scale)  # in one step rounding would give negative numbers
    mean, deviation = _mean_and_deviation(part)
    rows.pow_(gamma if len(gamma) > 1 else gammas[0])
    mean_now, deviation_now = _mean_and_deviation(part)
    factor = deviation * extent / (deviation_now * extent).clamp(min=SMALLEST) * extent
    if inverted:
        mean, factor = high - mean * extent, -factor
    else:
        mean = low + mean * extent
    torch.addcmul(mean - factor * mean_now, rows, factor, out=rows)
    return part


def inverted_gamma(part: Tensor, gammas: Sequence[float]) -> Tensor:
    return gamma_corrected(part, gammas, inverted=True)


def blurred(part: Tensor, sigmas: Sequence[Sequence[float]]) -> Tensor:
    return _along_axes(part, _blur_matrix, sigmas)


def coarsened(part: Tensor, left: Sequence[Sequence[int]]) -> Tensor:
    return _along_axes(part, _coarse_matrix, left)


CHANGES: dict[str, Callable[[Tensor, Sequence[Any]], Tensor]] = {
    "blur": blurred,
    "brightness": brighten,
    "contrast": contrasted,
    "coarse": coarsened,
    "inverted": inverted_gamma,
    "gamma": gamma_corrected,
}
"""in nnU-Net's order, after the noise: fields of `Changes`, and what each does to (R, *P) with R values"""


def _column(values: Sequence[float], part: Tensor) -> Tensor:
    """(R, 1, ...) beside (R, *P)."""
    return torch.tensor(values).to(part.device, non_blocking=True).view(-1, *[1] * (part.ndim - 1))


def _range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1) each; over all of a single row torch is faster."""
    if len(rows) == 1:
        low, high = torch.aminmax(rows)
        return low.view(1, 1), high.view(1, 1)
    return torch.aminmax(rows, dim=1, keepdim=True)


def _mean_and_deviation(part: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1) each, of (R, *P) between 0 and 1; several times faster than torch's `std_mean`."""
    rows = part.flatten(1)
    mean, count = rows.mean(1, keepdim=True), rows.shape[1]
    # plane by plane, since a norm's sum of millions of squares would lose digits
    squares = torch.linalg.vector_norm(part.flatten(2), dim=2).square().sum(1, keepdim=True)
    return mean, ((squares - count * mean.square()) / max(1, count - 1)).clamp(min=0).sqrt()


def _along_axes(part: Tensor, make: Callable[[int, Any], Tensor], arguments: Sequence[Sequence[Any]]) -> Tensor:
    """(R, *P), each axis of each row multiplied by the matrix that `make` gives for its length and argument."""
    shape = part.shape
    for axis, values in enumerate(zip(*arguments, strict=True), start=1):
        length, after = shape[axis], math.prod(shape[axis + 1 :])
        if all(value in (0, length) for value in values):  # nothing to blur, or no voxel less
            continue
        matrices = torch.stack([make(length, value) for value in values]).to(part.device, non_blocking=True)
        if after == 1:
            part = part.reshape(shape[0], -1, length) @ matrices.mT
        else:
            part = matrices[:, None] @ part.reshape(shape[0], -1, length, after)
    return part.view(shape)


def _blur_matrix(length: int, sigma: float) -> Tensor:
    """(length, length) a Gaussian's weights, the axis reflected at its ends. `sigma` 0: the identity."""
    half = (_odd(sigma * TRUNCATE + 0.5) - 1) // 2
    steps = np.arange(-half, half + 1)
    weights = np.exp(-0.5 * (steps / max(sigma, SMALLEST)) ** 2)
    places = np.abs(np.arange(length)[:, None] + steps)
    places = length - 1 - np.abs(length - 1 - places)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], places), weights / weights.sum())
    return torch.from_numpy(matrix.astype(np.float32))


def _odd(number: float) -> int:
    """The nearest odd integer, the larger of two."""
    return 2 * math.floor(number / 2) + 1


@lru_cache(maxsize=256)
def _coarse_matrix(length: int, left: int) -> Tensor:
    """(length, length) the nearest of `left` voxels, and from them linearly back; all that there are: the identity."""
    ratio = length / left
    nearest = np.minimum(np.floor((np.arange(left) + 0.5) * ratio).astype(int), length - 1)
    places = np.maximum((np.arange(length) + 0.5) / ratio - 0.5, 0)
    first = np.floor(places).astype(int)
    share = places - first
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length), nearest[first]), 1 - share)
    np.add.at(matrix, (np.arange(length), nearest[np.minimum(first + 1, left - 1)]), share)
    return torch.from_numpy(matrix.astype(np.float32))


Move = Callable[[Tensor], Tensor]
"""(K, *S) -> (K, *P), linearly interpolated; 0 beyond the source"""


def moved(image: Tensor, maps: Sequence[Tensor], present: Sequence[Sequence[int]], move: Move) -> tuple[Tensor, Tensor]:
    """Image (C, *P) and maps (M, *P) from (C, *S) and M times (*S).

    A voxel's label is the value whose one-hot map, moved, has the largest share. `present`: for each map the values
    that occur, but 0, which has what the others leave, also beyond the source.
    """
    image, results = move(image), []
    for labels, values in zip(maps, present, strict=True):
        result = torch.zeros_like(image[0], dtype=labels.dtype)
        one_hot = torch.empty((1, *labels.shape), device=image.device)
        rest, largest = torch.ones_like(image[0]), torch.zeros_like(image[0])
        for value in values:
            torch.eq(labels, value, out=one_hot[0])
            share = move(one_hot)[0]
            result.masked_fill_(share > largest, value)
            torch.maximum(largest, share, out=largest)
            rest -= share
        results.append(result.masked_fill_(largest <= rest, 0))
    return image, torch.stack(results)


def rotation(size: Sequence[int], source: Sequence[int], matrix: np.ndarray, device: torch.device) -> Move:
    """From `source` to `size`, where `matrix` (D, D) takes places around the centre of `size` to those in the source.

    In three dimensions by two steps in planes, for which torch's interpolation is nine times faster than in volumes on
    a CPU: the planes of the source are turned such that only the first axis is left, then those of the first and the
    last axis. Both interpolate along slanted lines of the source, so that the result is not that of the eight nearest
    voxels to the last digit, but as smooth.
    """
    if len(size) == 2:
        grid = _places(matrix, size, source, device)
        return lambda array: grid_sample(array[None], grid[None], align_corners=False)[0]
    high, wide = size[1:]
    # the first axis in the result of a place (z of the source, y, x), and from it the places in plane z
    back = np.concatenate(([1.0], -matrix[0, 1:])) / matrix[0, 0]
    within = matrix[1:] @ np.stack([back, [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    across = _places(within, (source[0], high, wide), source[1:], device)
    slanted = np.stack([matrix[0, [1, 0, 2]], [0.0, 0.0, 1.0]])
    along = _places(slanted, (high, size[0], wide), (source[0], wide), device)

    def move(array: Tensor) -> Tensor:
        turned = grid_sample(array.transpose(0, 1), across, align_corners=False)  # (z of the source, K, high, wide)
        return grid_sample(turned.permute(2, 1, 0, 3), along, align_corners=False).permute(1, 2, 0, 3)

    return move


def _places(matrix: np.ndarray, size: Sequence[int], source: Sequence[int], device: torch.device) -> Tensor:
    """(*size, 2) places in a plane of the size `source`, in the order and the units of torch's `grid_sample`.

    `matrix` (2, D) takes a place around the centre of `size` to one around the centre of the plane.
    """
    grid = torch.empty(*size, 2, device=device)
    axes = [
        (torch.arange(length, device=device) - (length - 1) / 2).view(-1, *[1] * (len(size) - 1 - axis))
        for axis, length in enumerate(size)
    ]
    for place, (row, length) in enumerate(zip(matrix[::-1], source[::-1], strict=True)):
        *others, last = (axis * float(2 * weight / length) for axis, weight in zip(axes, row, strict=True))
        torch.add(sum(others[1:], others[0]), last, out=grid[..., place])
    return grid
