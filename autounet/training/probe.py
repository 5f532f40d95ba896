"""What this device is good for: precision and memory order, and how fast samples are made."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from autounet.allocator import keep_freed_memory
from autounet.schema.device import DeviceProfile
from autounet.step import Precision
from autounet.training.memory import free_memory
from autounet.training.sample_rates import measure_sample_rates
from autounet.training.timing import median_seconds
from autounet.workers import available_cores

CHANNELS, SIZE, BATCH = 32, (32, 48, 32), 2
"""of the probed 3x3x3 convolution; large enough that arithmetic outweighs the start of threads"""
PROBE_SECONDS = 1.2
"""for all precisions and memory orders together"""
PROBE_ROUNDS = 6
"""at most; every round runs each variant once, so that a busy moment slows all of them"""
CPU_VARIANTS = tuple(Precision(name, order) for name in ("fp32", "bf16") for order in (False, True))
WORTHWHILE = 1.2
"""times that bf16 has to be faster than fp32: a busy machine must not decide between two that are nearly equal, because
the plan, and so every trained fold, depends on the choice"""


def probe_device(device: str) -> DeviceProfile:
    """Precision and memory order, measured on a CPU and by rule elsewhere, and sample rates: takes under 5 s.

    On a CPU a convolution's forward and backward are timed in each. The minimum over interleaved rounds counts: other
    work on the machine only ever adds time.
    """
    keep_freed_memory()
    place = torch.device(device)
    measured = _convolution_gflops(CPU_VARIANTS, place) if place.type == "cpu" else {}
    best = best_measured(measured) if measured else usual_precision(place)
    return DeviceProfile(
        device=device,
        name=_name(place),
        cores=available_cores(),
        memory_bytes=free_memory(place),
        precision=best.name,
        channels_last=best.channels_last,
        throughput={
            f"{precision.name}{'_channels_last' if precision.channels_last else ''}": round(value, 1)
            for precision, value in measured.items()
        },
        sample_rates=measure_sample_rates(),
    )


def best_measured(gflops: Mapping[Precision, float]) -> Precision:
    """The fastest in fp32, or the fastest of all where that is worthwhile."""
    plain = max((precision for precision in gflops if precision.name == "fp32"), key=lambda each: gflops[each])
    best = max(gflops, key=lambda each: gflops[each])
    return best if gflops[best] >= WORTHWHILE * gflops[plain] else plain


def usual_precision(device: torch.device) -> Precision:
    """bf16 on GPUs that compute in it (compute capability 8 and above), fp16 on older ones, fp32 beside CUDA.

    Nothing is timed: a GPU works behind the program's back, and one convolution alone says little about a network
    whose time also goes into norms and copies. Arrays stay contiguous, as in nnU-Net: torch's norms on CUDA are
    written for that order, and a network that converts at every norm loses what channels-last convolutions gain.
    """
    if device.type != "cuda":
        return Precision("fp32")
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision("bf16" if native else "fp16")


def _convolution_gflops(variants: Iterable[Precision], device: torch.device) -> dict[Precision, float]:
    """Forward and both backward products of a 3x3x3 convolution in each variant; 0 where the device cannot do it."""
    works = {variant: _convolution(variant, device) for variant in variants}
    fastest: dict[Precision, float] = {}
    began = time.monotonic()
    for number in range(PROBE_ROUNDS + 1):  # the first is the warm-up
        for variant in list(works):
            try:
                seconds = median_seconds(works[variant], device, steps=1, warm_up=0)
            except RuntimeError:
                del works[variant]
                fastest.pop(variant, None)
                continue
            if number:
                fastest[variant] = min(seconds, fastest.get(variant, seconds))
        if number and time.monotonic() - began > PROBE_SECONDS:
            break
    operations = 3 * 2 * 27 * CHANNELS**2 * BATCH * math.prod(SIZE)
    return {variant: operations / fastest[variant] / 1e9 if variant in fastest else 0.0 for variant in variants}


def _convolution(precision: Precision, device: torch.device) -> Callable[[], None]:
    layer = precision.place(nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1), device)
    image = torch.randn(BATCH, CHANNELS, *SIZE, device=device)
    layout = torch.channels_last_3d if precision.channels_last else torch.contiguous_format
    image = image.contiguous(memory_format=layout).requires_grad_()

    def once() -> None:
        with precision.autocast(device.type):
            layer(image).float().sum().backward()

    return once


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {available_cores()} cores"
