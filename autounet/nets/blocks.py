"""Building blocks that families share. This module loads torch: import it inside `build` only.

The instance norm stands here because torch's own leaves the channels-last format: on a CPU it copies to contiguous,
which costs more than the convolution beside it. Measured on 2 cores, bf16, (9, 32, 40, 56, 40): forward and backward
take 181 ms in torch's instance norm, and the next convolution converts back. Group norm with one channel a group is
the same function and keeps the format (forward 28 ms), but its backward takes 430 ms; batch norm's backward over one
sample is the same function again and takes 41 ms. So the forward is mostly the one, the backward the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .convolution import Conv2d, Conv3d, number_format
from .family import Normalisation

SLOPE = 0.01
"""negative slope of leaky ReLU (nnU-Net)"""
EPS = 1e-5
"""added to the variance (nnU-Net)"""

CONVOLUTIONS: dict[int, type[nn.Module]] = {2: Conv2d, 3: Conv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


FEW_VOXELS = 1024
"""below which, and in bf16 with channels that are no multiple of `VECTOR`, torch's group norm goes through a
channels-last image value by value, and batch norm of each sample is quicker: benchmarks/norms.py"""
VECTOR = 16
"""channels of bf16 that it takes at once"""


def is_slow(x: Tensor) -> bool:
    """Whether group norm of an image on a CPU is slower than `by_batch_norm`."""
    voxels = x[0, 0].numel()
    slow = voxels < FEW_VOXELS or (x.dtype == torch.bfloat16 and x.shape[1] % VECTOR != 0)
    return slow and voxels > 1 and x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim - 2])


def by_group_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Instance norm, and mean and reciprocal deviation of each sample and channel (B, C)."""
    batch, channels = x.shape[:2]
    return torch.native_group_norm(x, weight, bias, batch, channels, x[0, 0].numel(), channels, eps)


def by_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same, of two voxels or more."""
    y, (mean, spread) = torch.empty_like(x), weight.new_empty((2, *x.shape[:2])).unbind()
    for one, result, average, deviation in zip(x.split(1), y.split(1), mean, spread, strict=True):
        torch.ops.aten.native_batch_norm.out(
            one, weight, bias, None, None, True, 0.0, eps, out=result, save_mean=average, save_invstd=deviation
        )
    return y, mean, spread


class _NormActivation(torch.autograd.Function):
    """leaky_relu(instance_norm(x)) in any memory format, both with their gradients; slope 1 leaves the norm alone.

    Keeps the input and the result; the result is the next convolution's input, so it costs no memory. Without an
    activation the result is not kept, and may be written over.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float) -> Tensor:
        y, mean, rstd = (by_batch_norm if is_slow(x) else by_group_norm)(x, weight, bias, eps)
        activation = None
        if slope != 1:
            activation = functional.leaky_relu_(y, slope)
        ctx.save_for_backward(x, activation, weight, mean, rstd)
        ctx.constants = slope, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y, weight, mean, rstd = ctx.saved_tensors
        slope, eps = ctx.constants
        if y is None:
            # a tensor of our own: other branches may use the one that came
            gradient = gradient.to(x.dtype, copy=True)
        else:
            # the sign of the result is the sign before the activation
            gradient = torch.ops.aten.leaky_relu_backward(gradient.to(y.dtype), y, slope, True)
        # written over itself: the kernel reads all sums first, then goes element by element
        sums = weight.new_empty((2, *mean.shape))
        parts = (gradient.split(1), x.split(1), mean.unbind(), rstd.unbind(), *map(Tensor.unbind, sums.unbind()))
        for one, before, average, spread, scale_sum, shift_sum in zip(*parts, strict=True):
            torch.ops.aten.native_batch_norm_backward.out(
                one,
                before,
                weight,
                None,
                None,
                average,
                spread,
                True,
                eps,
                [True, True, True],
                out0=one,
                out1=scale_sum,
                out2=shift_sum,
            )
        weight_gradient, bias_gradient = sums.sum(1)
        return gradient, weight_gradient, bias_gradient, None, None


class InstanceNorm(nn.Module):
    """Affine instance norm followed by leaky ReLU (slope 1: none); `weight` and `bias` as in torch's InstanceNorm."""

    def __init__(self, channels: int, slope: float = SLOPE, eps: float = EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope, self.eps = slope, eps

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S) -> (B, C, *S)
        trained = torch.is_grad_enabled() and x.requires_grad
        # a compiler makes kernels of its own of what it can look into
        if x.device.type != "cpu" or (trained and torch.compiler.is_compiling()):
            y = functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
            return y if self.slope == 1 else functional.leaky_relu_(y, self.slope)
        if trained:
            return _NormActivation.apply(x, self.weight, self.bias, self.slope, self.eps)
        if torch.compiler.is_compiling():  # a program that is exported must not depend on the size of one image
            y = torch.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
        else:
            y = (by_batch_norm if is_slow(x) else by_group_norm)(x, self.weight, self.bias, self.eps)[0]
        return y if self.slope == 1 else functional.leaky_relu_(y, self.slope)


class ConvBlock(nn.Module):
    """Padded convolution, instance norm, leaky ReLU (slope 1: none)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        slope: float = SLOPE,
        bias: bool = True,
    ) -> None:
        super().__init__()
        padding = tuple((size - 1) // 2 for size in kernel)
        self.conv = CONVOLUTIONS[len(kernel)](inputs, outputs, tuple(kernel), tuple(stride), padding, bias=bias)
        self.norm = InstanceNorm(outputs, slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def conv_blocks(inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], count: int) -> nn.Sequential:
    """`count` blocks in a row; the first carries the stride."""
    ones = (1,) * len(kernel)
    return nn.Sequential(
        *(
            ConvBlock(inputs if index == 0 else outputs, outputs, kernel, stride if index == 0 else ones)
            for index in range(count)
        )
    )


def average_pool(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, C, *S) -> (B, C, *S / stride): means of blocks that do not overlap, in the memory format of `x`.

    In 3-D two poolings of planes, since torch's avg_pool3d on a CPU neither keeps channels-last nor takes bf16.
    Measured on a core, bf16, (2, 32, 40, 56, 40): forward 3 ms, backward 58 ms, beside 47 and 125 ms of a convolution.
    """
    if len(stride) == 2:
        return functional.avg_pool2d(x, tuple(stride))
    depth, *plane = stride
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        y = functional.avg_pool2d(x.transpose(1, 2).flatten(0, 1), tuple(plane))
        y = y.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)
    else:
        y = functional.avg_pool2d(x.flatten(1, 2), tuple(plane)).unflatten(1, x.shape[1:3])
    return functional.avg_pool2d(y.flatten(3), (depth, 1)).unflatten(3, y.shape[3:])


class UpConvolution(nn.Module):
    """Transposed convolution whose kernel equals its stride; parameters as in torch's ConvTranspose.

    Such a kernel never overlaps itself, so it is a matrix product whose results are laid out side by side. oneDNN's
    backward of the transposed form is slow: bf16, (9, 64, 20, 28, 20) to 32 features, forward and backward 194 ms on
    a core against 84 ms. The forward alone is faster as torch has it, and so is everything on a GPU.
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int], bias: bool = True) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.weight = nn.Parameter(torch.empty(inputs, outputs, *self.stride))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, *S) -> (B, outputs, *S x stride)
        dims = len(self.stride)
        last = x.is_contiguous(memory_format=CHANNELS_LAST[dims])
        # in bf16 oneDNN's gradient is not to be trusted, see `convolution`
        if x.device.type == "cpu" and torch.is_grad_enabled() and (last or number_format(x) == torch.bfloat16):
            return self._as_product(x)
        transposed = functional.conv_transpose2d if dims == 2 else functional.conv_transpose3d
        return transposed(x, self.weight, self.bias, self.stride)

    def _as_product(self, x: Tensor) -> Tensor:
        dims, outputs = len(self.stride), self.weight.shape[1]
        matrix = self.weight.movedim((0, 1), (-1, -2)).flatten(0, dims)  # (strides x outputs, inputs)
        bias = None if self.bias is None else self.bias.repeat(math.prod(self.stride))
        y = functional.linear(x.movedim(1, -1), matrix, bias)
        y = y.unflatten(-1, (*self.stride, outputs))  # (B, *S, *strides, outputs)
        order = [axis for pair in zip(range(1, dims + 1), range(dims + 1, 2 * dims + 1), strict=True) for axis in pair]
        size = [length * step for length, step in zip(x.shape[2:], self.stride, strict=True)]
        return y.permute(0, *order, -1).reshape(len(x), *size, outputs).movedim(-1, 1)


def initialise(network: nn.Module, slope: float = SLOPE) -> None:
    """He initialisation for leaky ReLU, biases zero: every convolution, transposed or not (nnU-Net's rule)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | UpConvolution):
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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
