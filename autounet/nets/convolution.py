"""The convolutions of all families, around oneDNN's faults on CPUs. It loads torch: import it inside `build` only.

oneDNN 3.12 (torch 2.13) has these faults; `benchmarks/convolution_memory.py` counts how many sizes they concern:

- 3-D, bf16, CPUs with AMX. The gradient of the kernel (`brgconv_bwd_w:avx10_1_512_amx`) writes beyond its memory
  wherever a plane is large enough to be worked on in parts: the process crashes, or trains on what it has overwritten.
  That is so for half of the sizes tried. So it is put together from planes here, by 2-D convolutions.
- 3-D, bf16, CPUs with AMX. The result (`brg_conv_fwd:avx10_1_512_amx`) is wrong where an axis has one or two voxels,
  and where a stride leaves a single column (github.com/pytorch/pytorch/issues/169688). Such small inputs are convolved
  in float32.
- 2-D, channels-last. The backward pass of a 1x1 convolution with a stride writes beyond its memory for some numbers of
  channels: in float32 on a CPU with AVX2, and in bf16 on one with AVX-512. So the voxels that the stride leaves are
  cut out first, and convolved without a stride.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

LEAST_EDGE = 3
"""voxels along each axis from which on oneDNN's result is right (343 shapes, 6 kinds of layer, against float32)"""


class Conv2d(nn.Conv2d):
    """torch's class of this name without these faults; the parameters are the same. Padding is given as numbers."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, Y, X)
        if self.groups != 1:
            return super().forward(x)
        return conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Conv3d(nn.Conv3d):
    """torch's class of this name without these faults; the parameters are the same. Padding is given as numbers."""

    def forward(self, x: Tensor) -> Tensor:  # (B, C, Z, Y, X)
        if self.groups != 1:
            return super().forward(x)
        return conv3d(x, self.weight, self.bias, self.stride, self.padding)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = (1, 1), padding: Any = (0, 0)
) -> Tensor:
    """torch's function of the same name without these faults."""
    x, stride = _without_pointwise_strides(x, weight, stride, padding)
    return functional.conv2d(x, weight, bias, stride, padding)


def conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = (1, 1, 1), padding: Any = (0, 0, 0)
) -> Tensor:
    """torch's function of the same name without these faults."""
    if x.device.type != "cpu" or number_format(x) != torch.bfloat16:
        return functional.conv3d(x, weight, bias, tuple(stride), padding)
    x, stride = _without_pointwise_strides(x, weight, stride, padding)
    if _is_thin(x, weight, stride, padding):
        with torch.autocast("cpu", enabled=False):
            y = functional.conv3d(x.float(), weight.float(), as_type(bias, torch.float32), stride, padding)
        return y.to(torch.bfloat16)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return functional.conv3d(x, weight, bias, stride, padding)
    low = torch.bfloat16
    return _Convolution.apply(x.to(low), weight.to(low), as_type(bias, low), stride, tuple(padding))


def _without_pointwise_strides(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Input and stride of the same convolution with stride 1 along axes where the kernel has one voxel.

    Only on a CPU where gradients are computed: predictions are torch's own.
    """
    axes = zip(weight.shape[2:], stride, padding, strict=True)
    left = tuple(1 if length == 1 and margin == 0 else step for length, step, margin in axes)
    if left == tuple(stride) or x.device.type != "cpu" or not torch.is_grad_enabled():
        return x, tuple(stride)
    kept = (slice(None, None, step // other) for step, other in zip(stride, left, strict=True))
    return x[(slice(None), slice(None), *kept)], left


def _is_thin(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether oneDNN's result may be wrong."""
    columns = (x.shape[-1] + 2 * padding[-1] - weight.shape[-1]) // stride[-1] + 1
    return min(x.shape[2:]) < LEAST_EDGE or (columns == 1 and stride[-1] > 1)


def as_type(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None else tensor.to(dtype)


def number_format(x: Tensor) -> torch.dtype:
    """In which a convolution of `x` is computed."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = stride, padding
        return functional.conv3d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        stride, padding = ctx.steps
        gradients: list[Tensor | None] = [None] * 5
        if ctx.needs_input_grad[0]:
            gradients[0] = convolution_backward(gradient, x, weight, stride, padding, (True, False))[0]
        if ctx.needs_input_grad[1]:
            gradients[1] = weight_gradient(x, gradient, weight, stride, padding)
        if ctx.needs_input_grad[2]:
            gradients[2] = gradient.sum([0, 2, 3, 4])
        return tuple(gradients)


def convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """torch's gradients of input and kernel, in 2-D or 3-D."""
    none = [0] * len(stride)
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, list(stride), list(padding), [1] * len(stride), False, none, 1, [*wanted, False]
    )
    return found[0], found[1]


def weight_gradient(
    x: Tensor, gradient: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """(O, C, *kernel) float32 for an input (B, C, *S) and the gradient (B, O, *s) of a 3-D convolution's result.

    Planes that go together are copied side by side, or taken sample by sample as they lie, whichever moves less.
    """
    total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    parts, planes = total.unbind(2), weight.unbind(2)
    together = weight.numel() * len(x) > x.numel()
    samples = [(x, gradient)] if together else list(zip(x.split(1), gradient.split(1), strict=True))
    for one, given in samples:
        for place, read, result in plane_pairs(one, given, weight.shape[2], stride[0], padding[0]):
            parts[place].add_(
                convolution_backward(result, read, planes[place], stride[1:], padding[1:], (False, True))[1]
            )
    return total


def plane_pairs(
    x: Tensor, gradient: Tensor, depth: int, step: int, padding: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each plane of a kernel: its place, the planes it reads (N, C, Y, X), and those it gives (N, O, y, x).

    Both are channels-last. `x` is (B, C, Z, Y, X), `gradient` (B, O, z, y, x).
    """
    x, gradient = x.movedim(1, -1), gradient.movedim(1, -1)
    for place in range(depth):
        shift = place - padding  # plane i of the result reads plane i x step + shift
        first = max(0, -(shift // step))
        last = min(gradient.shape[1] - 1, (x.shape[1] - 1 - shift) // step)
        if last >= first:
            read = x[:, first * step + shift : last * step + shift + 1 : step].flatten(0, 1)
            given = gradient[:, first : last + 1].flatten(0, 1)
            yield place, read.contiguous().movedim(-1, 1), given.contiguous().movedim(-1, 1)
