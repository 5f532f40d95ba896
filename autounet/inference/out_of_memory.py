"""Less memory where it ran out: fewer inputs at a time, and at last the scores in the CPU's memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..schema.errors import OutOfMemory

log = logging.getLogger(__name__)

MARKS = (
    "out of memory",  # CUDA's allocator and driver, MPS, XPU
    "can't allocate memory",  # torch's allocator on a CPU (c10/core/impl/alloc_cpu.cpp)
    "not enough memory",  # the same on Windows
    "std::bad_alloc",
    "ALLOC_FAILED",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch raises a RuntimeError for that, as for much else, and only its text tells."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)


def free_cached(device: torch.device) -> None:
    """Give back what torch's allocator holds without using it, so that pieces can become one block again."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@functools.cache
def warn_once(message: str) -> None:
    log.warning("%s", message)


def accumulators(whole: Sequence[int], spatial: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Zeros (K, *T) for scores and (*T) for the sum of weights, on the CPU where the device has no room for them.

    Both at once: later nothing large is allocated but by networks.
    """
    try:
        return torch.zeros(whole, device=device), torch.zeros(spatial, device=device)
    except (MemoryError, RuntimeError) as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    warn_once(f"memory ran out on {device}: the scores are kept in the CPU's memory instead")
    free_cached(device)
    return torch.zeros(whole), torch.zeros(spatial)


def with_less_memory(inputs: int, scores: Tensor, device: torch.device, patch: Sequence[int]) -> tuple[int, Tensor]:
    """Number of inputs to try next, after a forward of `inputs` was too much, and the scores, at last on the CPU.

    Raises OutOfMemory when a single input was too much with the scores on the CPU.
    """
    free_cached(device)
    if inputs > 1:
        warn_once(f"memory ran out on {device} with {inputs} inputs at a time: {inputs // 2} are tried")
        return inputs // 2, scores
    if scores.device.type != "cpu":
        warn_once(f"memory ran out on {device} with one input at a time: the scores are kept in the CPU's memory")
        scores = scores.cpu()
        free_cached(device)
        return inputs, scores
    remedy = "Use a machine with more" if device.type == "cpu" else "Free some of it, or use --device cpu"
    shape = "x".join(map(str, patch))
    raise OutOfMemory(f"memory ran out on {device} with one input of {shape} at a time, the least there is", remedy)
