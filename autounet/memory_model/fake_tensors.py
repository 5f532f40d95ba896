"""Tensors without numbers that a training step runs on as on real ones, and a record of the memory it takes.

torch's own FakeTensorMode gives the same bytes (a test compares them), but it loads and asks the compiler: 2.5 s of
processor time once and 0.4 s a step of a 3-D U-Net of six stages, where this needs 0.2 s a step. And in a torch built
without CUDA a backward pass over its tensors on a GPU aborts the process, as autograd finds no device guard. Here all
arithmetic takes place on Meta tensors. C++ sees tensors on the CPU; what a network in Python asks, `x.device`, answers
with the device that is played. So a plan for a GPU is the same wherever it is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..torch_private import (
    CONVERT,
    READ_NUMBER,
    WITHOUT_TORCH_FUNCTION,
    DispatchMode,
    autocast_in_float32,
    schema,
    storage_key,
    without_compiler,
    wrapper,
)
from .peak import Event

aten = torch.ops.aten
CPU, META = torch.device("cpu"), torch.device("meta")

CUDA_IN_FLOAT32 = (
    "layer_norm", "group_norm", "rms_norm", "softmax.int", "log_softmax.int", "softplus", "cumsum",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_trilinear3d",
)  # fmt: skip
"""what autocast computes in float32 on CUDA and leaves alone on a CPU (torch's "CUDA Ops that can autocast to
float32"), as far as networks use it"""


# What comes out of the operations that a training step calls most, as Meta tensors: size, type and memory order.
# torch's own shape functions forget the memory order of convolutions on Meta tensors and load the symbolic algebra. For
# the others theirs give the same, but take most of the time of a trace.


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


def _empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """In the same memory order; torch's own function loads the symbolic algebra on Meta tensors."""
    layout = _layout(x)
    if not x.is_contiguous(memory_format=layout):
        return torch.empty_like(x, dtype=dtype)
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=META, memory_format=layout)


def _like_first(first: Tensor, *rest: Any) -> Tensor:
    return _empty_like(first)


def _copy(operation: Any) -> Callable[..., Tensor]:
    """A new tensor like the first argument, of another type if asked; torch computes what is asked for beyond that."""

    def kernel(x: Tensor, *rest: Any, **more: Any) -> Tensor:
        plain = not rest and more.get("memory_format") in (None, torch.preserve_format)
        if not plain or more.get("layout") not in (None, torch.strided):
            return operation(x, *rest, **more)
        return _empty_like(x, more.get("dtype"))

    return kernel


def _repeat(x: Tensor, times: Any) -> Tensor:
    shape = (*[1] * (len(times) - x.ndim), *x.shape)
    return torch.empty([length * count for length, count in zip(shape, times, strict=True)], dtype=x.dtype, device=META)


def _cat(tensors: Any, dim: int = 0) -> Tensor:
    """Torch computes it where types or memory orders differ."""
    first = tensors[0]
    layout = _layout(first)
    if any(each.dtype != first.dtype or not each.is_contiguous(memory_format=layout) for each in tensors):
        return aten.cat.default(tensors, dim)
    shape = list(first.shape)
    shape[dim] = sum(each.shape[dim] for each in tensors)
    return torch.empty(shape, dtype=first.dtype, device=META, memory_format=layout)


def _norm(
    x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is not None or keepdim:
        return aten.linalg_vector_norm.default(x, order, dim, keepdim, dtype=dtype)
    return torch.empty((), dtype=dtype or x.dtype, device=META)


def _binary(operation: Any) -> Callable[..., Tensor]:
    """The result is like the first argument where nothing is broadcast or converted; elsewhere torch computes it."""

    def kernel(first: Tensor, second: Any, **more: Any) -> Tensor:
        plain = first.dtype.is_floating_point and (
            isinstance(second, int | float)
            if not isinstance(second, Tensor)
            else (second.shape, second.dtype, second.stride()) == (first.shape, first.dtype, first.stride())
        )
        return _empty_like(first) if plain else operation(first, second, **more)

    return kernel


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *rest: Any) -> Any:
    if not training:
        return aten.native_batch_norm.default(x, weight, bias, mean, variance, training, *rest)
    statistics = [torch.empty(x.shape[1], dtype=torch.float32, device=META) for _ in range(2)]
    return _empty_like(x), *statistics


def _batch_norm_backward(gradient: Tensor, x: Tensor, weight: Any, *rest: Any) -> Any:
    wanted = rest[-1]
    vectors = [torch.empty(x.shape[1], dtype=torch.float32, device=META) if asked else None for asked in wanted[1:]]
    return _empty_like(x), *vectors


def _group_norm(
    x: Tensor, weight: Any, bias: Any, batch: int, channels: int, voxels: int, groups: int, eps: float
) -> Any:
    statistics = [torch.empty((batch, groups), dtype=x.dtype, device=META) for _ in range(2)]
    return _empty_like(x), *statistics


KERNELS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.leaky_relu_backward.default: _like_first,
    aten.gelu_backward.default: _like_first,
    aten.linalg_vector_norm.default: _norm,
    aten.repeat.default: _repeat,
    aten.cat.default: _cat,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_group_norm.default: _group_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    **{each: _binary(each) for each in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)},
    **{each: _copy(each) for each in (aten.empty_like.default, aten.zeros_like.default, aten.clone.default, CONVERT)},
}
"""by the operation that they stand for"""


class FakeTensor(Tensor):
    """Stands for a tensor; `meta_tensor` is on the Meta device, whose storage is what is counted."""

    meta_tensor: Tensor
    shown: torch.device

    @staticmethod
    def __new__(cls, meta_tensor: Tensor, shown: torch.device) -> FakeTensor:
        made = wrapper(cls, meta_tensor, CPU)
        made.meta_tensor, made.shown = meta_tensor, shown
        return made

    __torch_function__ = WITHOUT_TORCH_FUNCTION  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.shown

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.shown.type == "cuda"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} on a fake tensor outside `played`")


class _Devices(TorchFunctionMode):
    """Replaces the simulated device by the CPU in calls of torch, which may be built without the other."""

    def __init__(self, played: torch.device) -> None:
        super().__init__()
        self.played = played

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def known(value: Any) -> Any:
            return CPU if isinstance(value, torch.device) and value == self.played else value

        return function(*map(known, args), **{name: known(value) for name, value in (kwargs or {}).items()})


class Recorder(DispatchMode):
    """Runs every operation on Meta tensors and notes when storages begin and end."""

    def __init__(self, played: torch.device) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._played = played
        self._alive: dict[int, tuple[int, Any]] = {}
        self._blocks = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation is READ_NUMBER:
            # The answer to any question about values is yes: some voxels have no loss, which takes more memory than
            # none, and the gradients need no clipping, which takes none.
            return True
        written = _written(operation)
        if written is not None:
            return written(args, kwargs)
        known: dict[int, FakeTensor] = {}
        inner = _inner(tuple(args), known)
        named = {name: _inner(value, known) for name, value in kwargs.items()}
        return self._outer(KERNELS.get(operation, operation)(*inner, **named), known)

    def _outer(self, value: Any, known: dict[int, FakeTensor]) -> Any:
        if isinstance(value, Tensor):
            if id(value) in known:
                return known[id(value)]
            self._count(value.untyped_storage())
            return FakeTensor(value, self._played)
        if isinstance(value, list | tuple):
            return type(value)(self._outer(each, known) for each in value)
        return value

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage_key(storage)
        if key in self._alive:
            return
        self._blocks += 1
        block, size = self._blocks, storage.nbytes()
        self.events.append(Event(block, size))

        def ended(_: Any) -> None:
            del self._alive[key]
            self.events.append(Event(block, -size))

        self._alive[key] = block, weakref.ref(storage, ended)


@contextmanager
def played(device: str) -> Iterator[Recorder]:
    """Inside, every new tensor is a fake one, whose device reads as `device` ('cpu' or 'cuda')."""
    shown = torch.device("cuda:0" if device == "cuda" else device)
    with ExitStack() as stack:
        stack.enter_context(without_compiler())  # first: it keeps other threads out
        if shown.type == "cuda":
            stack.enter_context(autocast_in_float32(CUDA_IN_FLOAT32))
        stack.enter_context(_Devices(shown))
        yield stack.enter_context(Recorder(shown))


def fake_module(module: torch.nn.Module, channels_last: bool) -> torch.nn.Module:
    """Give a module that was built on the Meta device fake parameters and buffers, in place; inside `played`."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            spatial = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
            layout = spatial.get(tensor.ndim, torch.contiguous_format)
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, memory_format=layout)
            parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if parameter else empty
        return made[id(tensor)]

    for part in module.modules():
        own = part.named_parameters(recurse=False, remove_duplicate=False)
        for name, tensor in [*own, *part.named_buffers(recurse=False, remove_duplicate=False)]:
            setattr(part, name, fake(tensor))
    return module


PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.memory_format, torch.layout}


def _inner(value: Any, known: dict[int, FakeTensor]) -> Any:
    if type(value) in PLAIN:
        return value  # most arguments
    if isinstance(value, FakeTensor):
        known[id(value.meta_tensor)] = value
        return value.meta_tensor
    if isinstance(value, Tensor):
        return value.to(META)  # a number that Python code wrapped
    if isinstance(value, torch.device):
        return META
    if isinstance(value, list | tuple):
        return type(value)([_inner(each, known) for each in value])
    return value


@cache
def _written(operation: Any) -> Callable[[Any, Any], Any] | None:
    """For operations that only write into their arguments: picks these from (args, kwargs), as the operation does.

    Shapes stay as they are, so nothing has to be computed. None for all others, and for the few that resize.
    """
    described = schema(operation)
    name = described.name.rpartition("::")[2]
    places = [
        (index, argument.name)
        for index, argument in enumerate(described.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    fresh = any(value.alias_info is None for value in described.returns)
    if not places or fresh or torch.Tag.inplace_view in operation.tags or name in ("resize_", "resize_as_", "set_"):
        return None

    def pick(args: Any, kwargs: Any) -> Any:
        found = [kwargs[name] if name in kwargs else args[index] for index, name in places]
        return None if not described.returns else found[0] if len(described.returns) == 1 else tuple(found)

    return pick
