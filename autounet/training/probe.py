"""What this device is good for: precision and memory order, and how fast samples are made."""

from __future__ import annotations

import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..ops.device import free_memory
from ..schema.geometry import CaseProperties, Geometry
from ..schema.plan import ChannelNormalisation, PreprocessSpec
from ..schema.run import FIXED_AUGMENTED_BY, AugmentedBy, DeviceProfile
from ..step import Precision
from ..store import open_prepared, write_prepared
from ..time_budget.benchmark import median_seconds
from ..time_budget.cost_model import RATE_PREFIX
from ..workers import available_cores, keep_freed_memory
from .augment import P_ROTATION, P_SCALING, Augmentation, Excerpt, Spatial
from .samples import one_thread

PATCHES = {"2d": (256, 256), "3d": (40, 40, 40)}
"""large enough that voxels outweigh the start of the transforms; below 128 x 128 or 24^3 a voxel costs a half more"""
ROUNDS = 12
"""samples of each kind: those that are rotated or scaled, and the others"""
STORED = (32, 128, 128)
"""voxels of the case that is read"""
READINGS = 4


def measure_sample_rates() -> dict[str, float]:
    """`DeviceProfile.sample_rates`, in about a second. Processor time counts: other work does not disturb it."""
    rates = {}
    with one_thread():
        for kind in ("light", "full"):
            for dims, patch in PATCHES.items():
                for by, prefix in RATE_PREFIX.items():
                    augmentation = Augmentation(kind, patch, (0, 1), by=by)  # type: ignore[arg-type]
                    rates[f"{prefix}{kind}_{dims}"] = np.prod(patch) / _augmenting_seconds(augmentation)
    rates["reading"] = np.prod(STORED) / _reading_seconds()
    return {name: float(f"{rate:.3g}") for name, rate in rates.items()}


def quicker(rates: Mapping[str, float]) -> AugmentedBy:
    """What augments samples of all kinds together in less time."""
    kinds = [f"{kind}_{dims}" for kind in ("light", "full") for dims in PATCHES]
    return min(RATE_PREFIX, key=lambda by: sum(1 / rates[RATE_PREFIX[by] + kind] for kind in kinds))


def _augmenting_seconds(augmentation: Augmentation) -> float:
    """Mean of one sample with one channel and two classes.

    A few samples would hold too many or too few that are rotated or scaled, which take most of the time: as many of
    both kinds are timed, and weighted by their probabilities.
    """
    generator = np.random.default_rng(0)
    moved_share = 1 - (1 - P_ROTATION) * (1 - P_SCALING)
    taken: dict[bool, list[float]] = {True: [], False: []}
    while min(map(len, taken.values())) <= ROUNDS:
        spatial = augmentation.draw(generator)
        seconds = taken[spatial.moves]
        if len(seconds) <= ROUNDS:
            seconds.append(_seconds_of(augmentation, spatial))
    moved, kept = (float(np.mean(taken[kind][1:])) for kind in (True, False))  # the first of each warms up
    return moved_share * moved + (1 - moved_share) * kept


def _seconds_of(augmentation: Augmentation, spatial: Spatial) -> float:
    generator = np.random.default_rng(spatial.seed)
    image = torch.from_numpy(generator.normal(size=(1, *spatial.source_size)).astype(np.float32))
    labels = labels_of_boxes(spatial.source_size)
    began = time.thread_time()
    augmentation.apply([Excerpt.of(spatial, image, labels)])
    return time.thread_time() - began


def labels_of_boxes(size: tuple[int, ...]) -> torch.Tensor:
    """(*size) int16: a box of class 2 inside one of class 1."""
    labels = torch.zeros(size, dtype=torch.int16)
    for label in (1, 2):
        labels[tuple(slice(label * length // 6, length - label * length // 6) for length in size)] = label
    return labels


def _reading_seconds() -> float:
    """Of one channel of a stored case of noise, which hardly compresses; the shortest of a few."""
    spec = PreprocessSpec(spacing=(1.0, 1.0, 1.0), normalisation=(ChannelNormalisation(scheme="none"),))
    properties = CaseProperties(
        identifier="probe",
        key="",
        spec=spec,
        geometry=Geometry(shape=STORED),
        axes=(0, 1, 2),
        flips=(False, False, False),
        network_shape=STORED,
        network_spacing=(1.0, 1.0, 1.0),
        box=tuple((0, length) for length in STORED),  # type: ignore[arg-type]
        shape=STORED,
    )
    image = np.random.default_rng(0).normal(size=(1, *STORED)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder), properties, image, None, {})
        taken = []
        for _ in range(READINGS):
            case = open_prepared(Path(folder), "probe")
            began = time.process_time()
            case.image[:]
            taken.append(time.process_time() - began)
            del case
    return min(taken)


CHANNELS, SIZE, BATCH = 32, (16, 48, 32), 2
"""of the probed 3x3x3 convolution; large enough that arithmetic outweighs the start of threads"""
SMALL_SIZE, HOPELESS = (8, 8, 8), 10.0
"""of a first try, and how many times slower than the fastest a variant may be there to be measured at full size"""
PROBE_SECONDS = 0.6
"""for all precisions and memory orders together"""
PROBE_ROUNDS = 6
"""at most; every round runs each variant once, so that a busy moment slows all of them"""
CPU_VARIANTS = tuple(Precision(name, order) for name in ("fp32", "bf16") for order in (False, True))
WORTHWHILE = 1.2
"""times that bf16 has to be faster than fp32: a busy machine must not decide between two that are nearly equal, because
the plan, and so every trained fold, depends on the choice"""


def probe_device(device: str) -> DeviceProfile:
    """Precision and memory order, measured on a CPU and by rule elsewhere, and sample rates: takes about 2 s.

    On a CPU a convolution's forward and backward are timed in each. The minimum over interleaved rounds counts: other
    work on the machine only ever adds time.
    """
    keep_freed_memory()
    place = torch.device(device)
    measured = _convolution_gflops(CPU_VARIANTS, place) if place.type == "cpu" else {}
    best = best_measured(measured) if measured else usual_precision(place)
    rates = measure_sample_rates()
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
        sample_rates=rates,
        augmented_by=quicker(rates) if place.type == "cpu" else FIXED_AUGMENTED_BY,
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
    """Forward and both backward products of a 3x3x3 convolution in each variant.

    0 where the device cannot do it, or where a small one is so slow that the large ones would take minutes: processors
    without arithmetic in bf16 take 150 times as long as in fp32.
    """
    fastest: dict[Precision, float] = {}
    small = {variant: _shortest(_convolution(variant, device, SMALL_SIZE), device) for variant in variants}
    limit = HOPELESS * min(small.values())
    works = {variant: _convolution(variant, device, SIZE) for variant in variants if small[variant] <= limit}
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


def _shortest(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of the second and later of a few runs; infinite where the device cannot do it."""
    try:
        return min([median_seconds(work, device, steps=1, warm_up=0) for _ in range(3)][1:])
    except RuntimeError:
        return math.inf


def _convolution(precision: Precision, device: torch.device, size: tuple[int, int, int]) -> Callable[[], None]:
    layer = precision.place(nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1), device)
    image = torch.randn(BATCH, CHANNELS, *size, device=device)
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
