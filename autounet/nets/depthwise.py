"""Depthwise convolutions. This module loads torch: import it inside `build` only.

On a CPU torch's own backward is slow in 3-D, and slowest in bf16. Measured on a core, kernel 3, channels-last,
(2, 32, 20, 28, 20), bf16: forward 1 ms, gradient of the input 14.5 ms, of the weight 66 ms (fp32: 1, 6.7 and 9.6 ms),
where a convolution of planes of the same size needs 0.8 ms for each of the three. So the input's gradient is a forward
convolution here, and the weight's one is put together from planes, all of it in fp32 for larger kernels (kernel 5,
forward and backward: 53 ms, 163 ms in bf16, 210 ms as torch has it). The same holds for transposed convolutions, whose
forward is the input's gradient of a convolution (15.8 ms).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .blocks import CHANNELS_LAST
from .convolution import plane_pairs

FAST_IN_BF16 = 3
"""largest kernel whose weight gradient oneDNN computes fast in bf16"""


def depthwise(features: int, kernel: Sequence[int], stride: Sequence[int], bias: bool = True) -> nn.Module:
    """Each channel convolved alone, padded so that (B, C, *S) becomes (B, C, *S / stride); odd kernels.

    Parameters and their initial values are those of torch's convolution with a group for each channel.
    """
    padding = tuple(size // 2 for size in kernel)
    kind = DepthwiseConv2d if len(kernel) == 2 else DepthwiseConv3d
    return kind(features, features, tuple(kernel), tuple(stride), padding, groups=features, bias=bias)  # type: ignore[arg-type]


def depthwise_transposed(features: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Module:
    """The transposed form: (B, C, *S) becomes (B, C, *(S - 1) x stride + 1); parameters as in torch's."""
    padding = tuple(size // 2 for size in kernel)
    kind = DepthwiseTranspose2d if len(kernel) == 2 else DepthwiseTranspose3d
    return kind(features, features, tuple(kernel), tuple(stride), padding, groups=features)  # type: ignore[arg-type]


class DepthwiseConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        fast_way = torch.is_grad_enabled() and is_channels_last_on_cpu(x)
        return fast(x, self.weight, self.bias, self.stride) if fast_way else super().forward(x)


class DepthwiseConv3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        fast_way = torch.is_grad_enabled() and is_channels_last_on_cpu(x)
        return fast(x, self.weight, self.bias, self.stride) if fast_way else super().forward(x)


class DepthwiseTranspose2d(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if is_channels_last_on_cpu(x):
            return fast_transposed(x, self.weight, self.bias, self.stride)
        return super().forward(x, output_size)


class DepthwiseTranspose3d(nn.ConvTranspose3d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if is_channels_last_on_cpu(x):
            return fast_transposed(x, self.weight, self.bias, self.stride)
        return super().forward(x, output_size)


def is_channels_last_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim - 2])


def fast(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """(B, C, *S) channels-last, (C, 1, *kernel) -> (B, C, *S / stride), in the number format autocast asks for."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    return _Depthwise.apply(x, weight, bias, tuple(stride))


def fast_transposed(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """(B, C, *S) channels-last, (C, 1, *kernel) -> (B, C, *(S - 1) x stride + 1): spread, then a convolution."""
    size = [(length - 1) * step + 1 for length, step in zip(x.shape[2:], stride, strict=True)]
    return fast(spread(x, stride, size), mirrored(weight), bias, (1,) * len(size))


def spread(x: Tensor, stride: Sequence[int], size: Sequence[int]) -> Tensor:
    """Zeros (B, C, *size) with `x` (B, C, *S) at every stride-th voxel from the first on, in the format of `x`."""
    if max(stride) == 1:
        return x
    last = CHANNELS_LAST[len(size)]
    layout = last if x.is_contiguous(memory_format=last) else torch.contiguous_format
    zeros = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout).zero_()
    whole = slice(None)
    zeros[(whole, whole, *(slice(None, None, step) for step in stride))] = x
    return zeros


def mirrored(weight: Tensor) -> Tensor:
    return weight.flip(tuple(range(2, weight.ndim)))


def half(weight: Tensor) -> list[int]:
    return [size // 2 for size in weight.shape[2:]]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _convolve(x, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=CHANNELS_LAST[x.ndim - 2])
        gradients: list[Tensor | None] = [None, None, None, None]
        if ctx.needs_input_grad[0]:
            # each voxel gives back along the mirrored kernel what it took
            wide = spread(gradient, ctx.stride, x.shape[2:])
            gradients[0] = _convolve(wide, mirrored(weight), None, (1,) * len(ctx.stride))
        if ctx.needs_input_grad[1]:
            gradients[1] = _weight_gradient(x, gradient, weight, ctx.stride)
        if ctx.needs_input_grad[2]:
            gradients[2] = gradient.sum([0, *range(2, x.ndim)])
        return tuple(gradients)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:
    convolve = functional.conv2d if x.ndim == 4 else functional.conv3d
    return convolve(x, weight, bias, stride, half(weight), groups=len(weight))


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    """A slice of the kernel after the other: the planes it reads, against the planes it gives."""
    dtype = x.dtype if max(weight.shape[2:]) <= FAST_IN_BF16 else torch.float32
    total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for part, read, given, plane in _planes(x, gradient, weight, stride[0]):
        _, found, _ = torch.ops.aten.convolution_backward(
            given.to(dtype).contiguous(memory_format=torch.channels_last),
            read.to(dtype).contiguous(memory_format=torch.channels_last),
            plane.to(dtype).contiguous(),
            None,
            stride[-2:],
            half(plane),
            [1, 1],
            False,
            [0, 0],
            len(weight),
            [False, True, False],
        )
        total[part] = found
    return total.to(weight.dtype)


def _planes(x: Tensor, gradient: Tensor, weight: Tensor, step: int) -> Iterator[tuple[Any, Tensor, Tensor, Tensor]]:
    """(place in the weight, input (N, C, H, W), gradient (N, C, h, w), weight (C, 1, *kernel of a plane))."""
    if x.ndim == 4:
        yield ..., x, gradient, weight
        return
    for place, read, given in plane_pairs(x, gradient, weight.shape[2], step, weight.shape[2] // 2):
        yield (slice(None), slice(None), place), read, given, weight[:, :, place]


class DropPath(nn.Module):
    """In training sets a residual branch to zero for a share `rate` of the samples, and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (B, ...) -> (B, ...)
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((len(x), *(1 for _ in x.shape[1:]))).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


def rising_rates(highest: float, count: int) -> list[float]:
    """From 0 for the first block to `highest` for the last, linearly (Sec. 3 of the paper)."""
    return [highest * index / max(1, count - 1) for index in range(count)]
