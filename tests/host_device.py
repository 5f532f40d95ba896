"""A device of tests that is not the CPU and keeps its memory on the host: torch's PrivateUse1, in Python alone.

`with elsewhere() as seen:` makes `torch.device("elsewhere")` one that trains and predicts. Its tensors hold a tensor
of the CPU that does the work, so that results are those of the CPU. As on a GPU an operation refuses tensors of two
devices (but numbers, which torch lets pass), and `seen` counts what would make the CPU wait for the device: values read
from it, and copies to the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

NAME = "elsewhere"
ATEN = torch.ops.aten
COPIES = {ATEN._to_copy.default, ATEN.copy_.default}
READS = {
    ATEN._local_scalar_dense.default, ATEN.is_nonzero.default, ATEN.equal.default, ATEN.nonzero.default,
    ATEN.masked_select.default, ATEN._unique2.default, ATEN.repeat_interleave.Tensor,
}  # fmt: skip
"""whose result, or its shape, is a number that only the device knows; indexing by truth values is another"""


class Elsewhere(Tensor):
    """A tensor of the device, and the one of the CPU that holds its values."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        tensor: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        tensor.here = here
        return tensor

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file holds the values, and whoever loads it says where they go (`map_location`)."""
        return self.here.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(
        cls, operation: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return compute(operation, args, kwargs or {}, Counter())


def compute(operation: Callable[..., Any], args: tuple, kwargs: dict, seen: Counter[str]) -> Any:
    """The operation on the CPU's tensors, with its results where they belong.

    Raises RuntimeError for tensors of two devices, as torch does.
    """
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    away = [each for each in tensors if isinstance(each, Elsewhere)]
    on_cpu = [each for each in tensors if not isinstance(each, Elsewhere) and each.ndim]
    if away and on_cpu and operation not in COPIES:
        raise RuntimeError(f"{operation}: tensors of {tuple(on_cpu[0].shape)} on the CPU and others on {NAME}")
    wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if away and (what := waits(operation, args, wanted)):
        seen[what] += 1
    args, given = tree_map(lambda each: each.here if isinstance(each, Elsewhere) else each, (args, kwargs))
    if wanted == NAME:
        given = {**given, "device": torch.device("cpu")}
    results = operation(*args, **given)
    known = {id(each.here): each for each in away}
    stays = wanted == NAME or (bool(away) and wanted is None)

    def placed(result: object) -> object:
        if not isinstance(result, Tensor) or not stays:
            return result
        return known[id(result)] if id(result) in known else Elsewhere(result)

    return tree_map(placed, results)


def waits(operation: Callable[..., Any], args: tuple, wanted: str | None) -> str:
    """What the CPU has to wait for the device for; empty: nothing. A copy to the device goes on by itself."""
    if operation in READS:
        return "values read"
    if operation is ATEN.index.Tensor and any(each is not None and each.dtype is torch.bool for each in args[1]):
        return "values read"
    home = operation is ATEN.copy_.default and isinstance(args[1], Elsewhere) and not isinstance(args[0], Elsewhere)
    return "copies to the CPU" if home or wanted == "cpu" else ""


class OnTheHost(TorchDispatchMode):
    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return compute(operation, args, kwargs or {}, self.seen)


class HostGenerator(torch.Generator):
    """Of any device."""

    def __new__(cls, device: object = None) -> HostGenerator:
        return super().__new__(cls, "cpu")


class Backend:
    """What torch asks its module about: nobody else in the process finds a device."""

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 0

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """The CPU's generator is seeded anyway."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


# before the first backward pass of the process, which makes a queue for each kind of device that there is then
torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())


@contextmanager
def elsewhere() -> Iterator[Counter[str]]:
    """Inside, the device is there. Yields the count of what made the CPU wait for it.

    Its generators of random numbers are the CPU's.
    """
    seen: Counter[str] = Counter()
    with OnTheHost(seen), mock.patch.object(torch, "Generator", HostGenerator):
        yield seen
