"""Blocks of the networks that pool by maximum and choose their normalisation. Import inside `build` only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import CONVOLUTIONS, SLOPE, InstanceNorm, UpConvolution
from .family import Normalisation

BATCH_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def norm_slope(normalisation: Normalisation) -> float:
    """Of the activation: instance norm with leaky ReLU as in nnU-Net, everything else with ReLU as published."""
    return SLOPE if normalisation == "instance" else 0.0


class Unit(nn.Module):
    """Convolution of stride 1, normalisation, leaky ReLU (slope 0: ReLU)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        normalisation: Normalisation,
        slope: float = 0.0,
        padded: bool = True,
    ) -> None:
        super().__init__()
        dims = len(kernel)
        padding = tuple((size - 1) // 2 if padded else 0 for size in kernel)
        self.conv = CONVOLUTIONS[dims](inputs, outputs, tuple(kernel), padding=padding)
        self.slope = slope
        self.norm: nn.Module | None = None
        if normalisation == "batch":
            self.norm = BATCH_NORMS[dims](outputs)
        elif normalisation == "instance":
            self.norm = InstanceNorm(outputs, slope)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, *S) -> (B, outputs, *S), or smaller by kernel - 1
        x = self.conv(x)
        if isinstance(self.norm, InstanceNorm):  # holds the activation
            return self.norm(x)
        if self.norm is not None:
            x = self.norm(x)
        return functional.leaky_relu_(x, self.slope)


def unit_row(
    inputs: int,
    widths: Sequence[int],
    kernel: Sequence[int],
    normalisation: Normalisation,
    slope: float = 0.0,
    padded: bool = True,
) -> nn.Sequential:
    """One unit for each of `widths`, which are their features."""
    before = (inputs, *widths)
    return nn.Sequential(
        *(
            Unit(first, second, kernel, normalisation, slope, padded)
            for first, second in zip(before, widths, strict=False)
        )
    )


def max_pool(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, C, *S) -> (B, C, *S / stride): largest values of blocks that do not overlap."""
    if max(stride) == 1:
        return x
    if len(stride) == 2:
        return functional.max_pool2d(x, tuple(stride))
    if x.device.type == "cpu":
        return functional.max_pool3d(x, tuple(stride))
    return max_pool_planes(x, stride)


def max_pool_planes(x: Tensor, stride: Sequence[int]) -> Tensor:
    """`max_pool` in 3-D as two poolings of planes: max_pool3d's gradient has no deterministic form in CUDA."""
    depth, *plane = stride
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        y = functional.max_pool2d(x.transpose(1, 2).flatten(0, 1), tuple(plane))
        y = y.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)
    else:
        y = functional.max_pool2d(x.flatten(1, 2), tuple(plane)).unflatten(1, x.shape[1:3])
    return functional.max_pool2d(y.flatten(3), (depth, 1)).unflatten(3, y.shape[3:])


def upsample_linear(x: Tensor, factors: Sequence[int]) -> Tensor:
    """(B, C, *S) -> (B, C, *S x factors), as `interpolate` does between voxel centres (align_corners=False).

    One matrix product an axis, since the gradient of torch's own has no deterministic form in CUDA.
    """
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    last = x.is_contiguous(memory_format=layout) and not x.is_contiguous()
    for axis, factor in enumerate(factors, start=2):
        if factor > 1:
            weights = _linear_weights(x.shape[axis], factor, x)
            x = (x.movedim(axis, -1) @ weights).movedim(-1, axis)
    return x.contiguous(memory_format=layout if last else torch.contiguous_format)


def _linear_weights(length: int, factor: int, like: Tensor) -> Tensor:
    """(length, length x factor): column o holds the share of each voxel in the interpolated voxel o."""
    place = (torch.arange(length * factor, device=like.device, dtype=torch.float32) + 0.5) / factor - 0.5
    distance = place.clamp(0, length - 1) - torch.arange(length, device=like.device)[:, None]
    return (1 - distance.abs()).clamp(min=0).to(like.dtype)


def centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """The middle (B, C, *size) of (B, C, *S)."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, (x.shape[axis] - length) // 2, length)
    return x


def he_initialise(network: nn.Module) -> None:
    """Gaussian weights of standard deviation sqrt(2 / N), N numbers going into a neuron; biases 0 (He et al. 2015).

    Ronneberger et al. 2015 ask for it in every layer. A voxel after an up-convolution sees one voxel before it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | UpConvolution):
            incoming = module.weight.shape[0] if isinstance(module, UpConvolution) else module.weight[0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(2 / incoming))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
