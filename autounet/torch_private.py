"""torch's private names that this program uses, all of them: what may change with any version of torch.

The tracing of memory needs them (`memory_model.fake_tensors`). It tests itself before its first use, and where that
fails the memory model does without. And the loader of batches asks for the processes that torch has started.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READ_NUMBER = torch.ops.aten._local_scalar_dense.default
"""the operation behind `tensor.item()` and `if tensor:`"""
CONVERT = torch.ops.aten._to_copy.default
"""the operation behind `tensor.to(dtype)`"""
WITHOUT_TORCH_FUNCTION = torch._C._disabled_torch_function_impl
"""`__torch_function__` of a subclass of Tensor that has no functions of its own"""


class DispatchMode(TorchDispatchMode):
    """Inside, every operation goes through `__torch_dispatch__`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # saves loading the compiler, which takes seconds


_STUBBING = threading.RLock()


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside, torch's optimisers do not load its compiler, which takes over a second and which nobody asked for.

    They import `torch._dynamo` to tell it what it may not compile: they get one that is told nothing. Without effect
    where it is loaded already.
    """
    name = "torch._dynamo"
    with _STUBBING:  # other threads wait, which also keeps them from slowing down steps that are timed
        if name in sys.modules:
            yield
            return
        stub = ModuleType(name)
        stub.graph_break = lambda: None  # type: ignore[attr-defined]
        stub.disable = lambda function, recursive=True, **_: function  # type: ignore[attr-defined]
        sys.modules[name] = torch._dynamo = stub
        try:
            yield
        finally:
            del sys.modules[name], torch._dynamo


def wrapper(kind: type[Tensor], like: Tensor, device: torch.device) -> Any:
    """A tensor of class `kind` without storage: sizes, strides and type of `like`, and C++ sees it on `device`."""
    return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
        kind,
        like.size(),
        strides=like.stride(),
        storage_offset=like.storage_offset(),
        dtype=like.dtype,
        device=device,
    )


def storage_key(storage: torch.UntypedStorage) -> int:
    """Equal for the same storage while it is alive."""
    return storage._cdata


def schema(operation: Any) -> Any:
    """Names, arguments and results of an operation of torch, with what it writes to."""
    return operation._schema


@contextmanager
def autocast_in_float32(names: Sequence[str]) -> Iterator[None]:
    """Inside, autocast on a CPU computes these operations (`name` or `name.overload`) in float32."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in names:
            library.impl(name, _in_float32(name), "AutocastCPU")
        yield


def _in_float32(name: str) -> Callable[..., Tensor]:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def cast(value: Any) -> Any:
        lower = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        return value.float() if lower else value

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})

    return kernel


def lost_workers(made: Any) -> list[tuple[int | None, int | None]]:
    """Of the iterator of a DataLoader: each process that has ended, by its exit code and what it was working at.

    That is the number of a batch, by the order in which they were asked for; None where it had none to make.
    """
    waiting = {number: about[0] for number, about in made._task_info.items() if len(about) == 1}
    return [
        (process.exitcode, min((number for number, by in waiting.items() if by == worker), default=None))
        for worker, process in enumerate(made._workers)
        if process.exitcode is not None
    ]


@contextmanager
def without_child_signals() -> Iterator[None]:
    """A DataLoader's iterator made inside raises no error of a lost worker in the midst of whatever is going on.

    torch's handler of SIGCHLD does; without it the loss is noticed where a batch is waited for.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
