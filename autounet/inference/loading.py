"""From weights on disk to a network that predicts."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..schema.errors import ModelError, OutOfMemory
from ..schema.plan import Configuration

if TYPE_CHECKING:
    from torch import nn


def load_network(configuration: Configuration, weights: Path, device: str) -> nn.Module:
    """The configuration's network with the weights of a safetensors file, in eval mode on `device`.

    Raises ModelError when the file is missing or damaged, or does not fit the network.
    """
    import torch

    from ..nets import FAMILIES
    from ..store.weights import load_weights

    spec = configuration.network
    if spec.family not in FAMILIES:
        raise ModelError(f"{weights}: unknown network family {spec.family!r}; known are {', '.join(sorted(FAMILIES))}")
    try:
        state = load_weights(weights)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{weights} cannot be read as weights: {error}. Copy or train the model again.") from error
    with torch.device("meta"):  # initial values would be thrown away
        network = FAMILIES[spec.family].build(spec)
    if set(dict(network.named_buffers())) - set(state):
        network = FAMILIES[spec.family].build(spec)  # buffers that are computed, not saved
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{weights} does not fit the plan's network: {error}") from None
    network = network.requires_grad_(False).eval().to(device)
    if configuration.channels_last:
        layout = torch.channels_last if spec.dims == 2 else torch.channels_last_3d
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
    return network


log = logging.getLogger(__name__)

MARKS = (
    "out of memory",  # CUDA's allocator and driver, MPS, XPU
    "can't allocate memory",  # torch's allocator on a CPU (c10/core/impl/alloc_cpu.cpp)
    "not enough memory",  # the same on Windows
    "std::bad_alloc",
    "ALLOC_FAILED",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; other RuntimeErrors are not to be taken for that."""
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
    """After a forward of so many inputs was too much: how many are tried, and the scores, at last on the CPU.

    Raises OutOfMemory when a single one was too much with the scores on the CPU.
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
    raise OutOfMemory(f"memory ran out on {device} with one input of {shape} at a time, the least there is. {remedy}")
