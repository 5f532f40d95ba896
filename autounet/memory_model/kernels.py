"""What comes out of the operations that a training step calls most, as Meta tensors: size, type and memory order.

torch's own shape functions forget the memory order of convolutions on Meta tensors and load the symbolic algebra. For
the others theirs give the same, but take most of the time of a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
META = torch.device("meta")


def _layout(*tensors: Tensor) -> torch.memory_format:
    """Channels-last when the image or the kernel is, as oneDNN and cuDNN decide."""
    for layout, dims in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        for tensor in tensors:
            if tensor.ndim == dims and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
                return layout
    return torch.contiguous_format


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    size = []
    for axis, length in enumerate(x.shape[2:]):
        step, pad, spread = (value[axis if len(value) > 1 else 0] for value in (stride, padding, dilation))
        reach = spread * (weight.shape[2 + axis] - 1) + 1
        if transposed:
            more = output_padding[axis if len(output_padding) > 1 else 0]
            size.append((length - 1) * step - 2 * pad + reach + more)
        else:
            size.append((length + 2 * pad - reach) // step + 1)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    shape = (len(x), channels, *size)
    return torch.empty(shape, dtype=x.dtype, device=META, memory_format=_layout(x, weight))


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *rest: Any) -> Any:
    layout, wanted = _layout(x, weight), rest[-1]
    made = [
        torch.empty(like.shape, dtype=like.dtype, device=META, memory_format=layout) if asked else None
        for like, asked in zip((x, weight), wanted, strict=False)
    ]
    return (*made, torch.empty(bias_sizes, dtype=weight.dtype, device=META) if wanted[2] else None)


def _like_first(first: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(first)


def _norm(
    x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is not None or keepdim:
        return aten.linalg_vector_norm.default(x, order, dim, keepdim, dtype=dtype)
    return torch.empty((), dtype=dtype or x.dtype, device=META)


def _binary(operation: Any) -> Callable[..., Tensor]:
    """Where nothing is broadcast or converted the result is like the first; elsewhere torch says."""

    def kernel(first: Tensor, second: Any, **more: Any) -> Tensor:
        plain = first.dtype.is_floating_point and (
            isinstance(second, int | float)
            if not isinstance(second, Tensor)
            else (second.shape, second.dtype, second.stride()) == (first.shape, first.dtype, first.stride())
        )
        return torch.empty_like(first) if plain else operation(first, second, **more)

    return kernel


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *rest: Any) -> Any:
    if not training:
        return aten.native_batch_norm.default(x, weight, bias, mean, variance, training, *rest)
    statistics = [torch.empty(x.shape[1], dtype=torch.float32, device=META) for _ in range(2)]
    return torch.empty_like(x), *statistics


def _batch_norm_backward(gradient: Tensor, x: Tensor, weight: Any, *rest: Any) -> Any:
    wanted = rest[-1]
    vectors = [torch.empty(x.shape[1], dtype=torch.float32, device=META) if asked else None for asked in wanted[1:]]
    return torch.empty_like(x), *vectors


KERNELS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.leaky_relu_backward.default: _like_first,
    aten.gelu_backward.default: _like_first,
    aten.linalg_vector_norm.default: _norm,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    **{each: _binary(each) for each in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)},
}
"""by the operation that they stand for"""
