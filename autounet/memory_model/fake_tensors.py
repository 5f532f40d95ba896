"""Tensors without numbers that a training step runs on as on real ones, and a record of the memory it takes.

The one module that touches torch's private interfaces: `Tensor._make_wrapper_subclass`, `__torch_dispatch__` modes and
the Meta kernels, which compute shapes only.

torch's own FakeTensorMode gives the same bytes (a test compares them), but it loads and asks the compiler: 2.5 s of
processor time once and 0.4 s a step of a 3-D U-Net of six stages, where this needs 0.2 s a step. And in a torch built
without CUDA a backward pass over its tensors on a GPU aborts the process, as autograd finds no device guard. Here all
arithmetic takes place on Meta tensors. C++ sees tensors on the CPU; what a network in Python asks, `x.device`, answers
with the device that is played. So a plan for a GPU is the same wherever it is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .kernels import KERNELS, META

ROUNDING = 512
"""bytes to which torch's allocator on CUDA rounds every block (kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp); on
a CPU it is 64, which makes no difference that one could see"""


class Event(NamedTuple):
    """A block of memory begins, or ends (negative bytes)."""

    block: int
    size: int


def alive_peak(events: Iterable[Event], rounding: int = ROUNDING) -> int:
    """The most bytes alive at once, each block rounded up: what `torch.cuda.max_memory_allocated` counts."""
    now = peak = 0
    for _, size in events:
        rounded = -(-abs(size) // rounding) * rounding
        now += rounded if size > 0 else -rounded
        peak = max(peak, now)
    return peak


def correspond(one: Sequence[Event], two: Sequence[Event]) -> bool:
    """Whether the same blocks begin and end in the same order, whatever their sizes."""
    return [(event.block, event.size > 0) for event in one] == [(event.block, event.size > 0) for event in two]


def scaled(small: Sequence[Event], large: Sequence[Event], share: float) -> list[Event]:
    """Corresponding events, each size on the line through both: `share` 0 gives `small`, 1 gives `large`."""
    return [Event(a.block, round(a.size + share * (b.size - a.size))) for a, b in zip(small, large, strict=True)]


aten = torch.ops.aten
CPU = torch.device("cpu")

CUDA_IN_FLOAT32 = (
    "layer_norm", "group_norm", "rms_norm", "softmax.int", "log_softmax.int", "softplus", "cumsum",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_trilinear3d",
)  # fmt: skip
"""what autocast computes in float32 on CUDA and leaves alone on a CPU (torch's "CUDA Ops that can autocast to
float32"), as far as networks use it"""


class Fake(Tensor):
    """Stands for a tensor; `meta_tensor` is on the Meta device, whose storage is what is counted."""

    meta_tensor: Tensor
    shown: torch.device

    @staticmethod
    def __new__(cls, meta_tensor: Tensor, shown: torch.device) -> Fake:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            meta_tensor.size(),
            strides=meta_tensor.stride(),
            storage_offset=meta_tensor.storage_offset(),
            dtype=meta_tensor.dtype,
            device=CPU,
        )
        made.meta_tensor, made.shown = meta_tensor, shown
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

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
    """Wherever Python names the played device, torch is told CPU: it may be built without the other."""

    def __init__(self, played: torch.device) -> None:
        super().__init__()
        self.played = played

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def known(value: Any) -> Any:
            return CPU if isinstance(value, torch.device) and value == self.played else value

        return function(*map(known, args), **{name: known(value) for name, value in (kwargs or {}).items()})


class Recorder(TorchDispatchMode):
    """Runs every operation on Meta tensors and notes when storages begin and end."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # saves loading the compiler, which takes seconds

    def __init__(self, played: torch.device) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._played = played
        self._alive: dict[int, tuple[int, Any]] = {}
        self._blocks = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation is aten._local_scalar_dense.default:
            # The answer to any question about values is yes: some voxels have no loss, which takes more memory than
            # none, and the gradients need no clipping, which takes none.
            return True
        written = _written(operation)
        if written is not None:
            return written(args, kwargs)
        known: dict[int, Fake] = {}
        inner = _inner(tuple(args), known)
        named = {name: _inner(value, known) for name, value in kwargs.items()}
        return self._outer(KERNELS.get(operation, operation)(*inner, **named), known)

    def _outer(self, value: Any, known: dict[int, Fake]) -> Any:
        if isinstance(value, Tensor):
            if id(value) in known:
                return known[id(value)]
            self._count(value.untyped_storage())
            return Fake(value, self._played)
        if isinstance(value, list | tuple):
            return type(value)(self._outer(each, known) for each in value)
        return value

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
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
    """Inside, every tensor made is fake and says that it is on `device` ('cpu' or 'cuda')."""
    shown = torch.device("cuda:0" if device == "cuda" else device)
    with ExitStack() as stack:
        if shown.type == "cuda":
            library = stack.enter_context(torch.library._scoped_library("aten", "IMPL"))
            for name in CUDA_IN_FLOAT32:
                library.impl(name, _in_float32(name), "AutocastCPU")
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
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = fake(tensor)  # type: ignore[assignment]
    return module


def _inner(value: Any, known: dict[int, Fake]) -> Any:
    if isinstance(value, Fake):
        known[id(value.meta_tensor)] = value
        return value.meta_tensor
    if isinstance(value, Tensor):
        return value.to(META)  # a number that Python code wrapped
    if isinstance(value, torch.device):
        return META
    if isinstance(value, list | tuple):
        return type(value)(_inner(each, known) for each in value)
    return value


@cache
def _written(operation: Any) -> Callable[[Any, Any], Any] | None:
    """For operations that only write into their arguments: picks these from (args, kwargs), as the operation does.

    Shapes stay as they are, so nothing has to be computed. None for all others, and for the few that resize.
    """
    schema = operation._schema
    name = schema.name.rpartition("::")[2]
    places = [
        (index, argument.name)
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    fresh = any(value.alias_info is None for value in schema.returns)
    if not places or fresh or torch.Tag.inplace_view in operation.tags or name in ("resize_", "resize_as_", "set_"):
        return None

    def pick(args: Any, kwargs: Any) -> Any:
        found = [kwargs[name] if name in kwargs else args[index] for index, name in places]
        return None if not schema.returns else found[0] if len(schema.returns) == 1 else tuple(found)

    return pick


def _in_float32(name: str) -> Callable[..., Tensor]:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def cast(value: Any) -> Any:
        lower = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        return value.float() if lower else value

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})

    return kernel
