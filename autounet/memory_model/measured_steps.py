"""Memory of training steps on random numbers: measured in a process of its own, or estimated from one small step."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from ..losses import Batch, Loss, even_weight
from ..nets import FAMILIES
from ..ops.device import peak_resident
from ..schema.errors import AutoUNetError, OutOfMemory
from ..schema.labels import Labels, TargetKind, planned_targets, targets_of
from ..schema.options import TrainOptions
from ..schema.plan import Configuration, NetworkSpec, PreprocessSpec
from ..step import Precision, algorithms, build_optimiser, configuration_loss, train_step
from ..workers import INHERITED, PROCESS_WIDE, Inherited, keep_freed_memory, take_over, without_main

STEPS = 3
"""the first one makes the optimiser's state, and on a CPU the heap still grows in the second"""
KILLED = -9
"""exit status of a process that the system ended for want of memory"""


@dataclass(frozen=True)
class StepSetting:
    """What the memory of a training step depends on, apart from network, patch and batch."""

    labels: Labels
    options: TrainOptions
    precision: Precision
    device: str
    """cpu or cuda; for every other kind the GPU's code is traced"""
    partial: bool = False
    """cases in which not every class was annotated occur, which takes more memory in the loss"""


def step_loss(spec: NetworkSpec, labels: Labels, options: TrainOptions) -> Loss:
    """The loss of any configuration with this network; patch, batch and preprocessing do not change it.

    What the network learns shows in its outputs: where they could be both, it is what the planner chooses.
    """
    planned = planned_targets(labels)
    targets: TargetKind = planned if spec.out_channels == len(targets_of(labels, planned)) else "classes"
    return configuration_loss(
        Configuration(
            preprocess=PreprocessSpec(spacing=(1, 1, 1), normalisation=()),
            prepared="",
            patch_size=spec.divisor,
            batch_size=1,
            network=spec,
            targets=targets,
            batch_dice=True,
            median_shape=(1, 1, 1),
            predicted_memory_bytes=0,
        ),
        labels,
        options,
    )


class Measured(NamedTuple):
    """Bytes of one process."""

    before: int
    """resident after imports, before the network was made; 0 on a GPU"""
    peak: int
    """at most, beyond `before`: resident on a CPU, allocated on a GPU"""
    reserved: int
    """most that torch's allocator held on a GPU; equal to `peak` on a CPU"""


class MemoryProbe(NamedTuple):
    """What is measured: training steps of a network with a patch and batch on a device."""

    spec: NetworkSpec
    patch: tuple[int, ...]
    batch: int
    setting: StepSetting
    device: str


def measure(probe: MemoryProbe, while_held: Callable[[], None] = lambda: None) -> Measured:
    """Three training steps in a spawned process; `while_held` is called while that process still has its memory.

    Raises OutOfMemory when memory runs out, and AutoUNetError when the process ends otherwise without an answer.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(probe, theirs, INHERITED))
    with without_main():
        process.start()
    theirs.close()
    try:
        answer = ours.recv()
        while_held()
        ours.send(None)
    except EOFError:
        answer = None
    process.join()
    what = f"training steps of patch {probe.patch}, batch {probe.batch} on {probe.device}"
    if isinstance(answer, Measured):
        return answer
    if isinstance(answer, str):
        raise AutoUNetError(f"{what} failed: {answer}", "Try a smaller --memory, or --device cpu")
    if process.exitcode not in (0, KILLED):
        raise AutoUNetError(
            f"{what} could not be measured: their process ended with status {process.exitcode}",
            "Try again; if it happens again, try a smaller --memory, or --device cpu",
        )
    raise OutOfMemory(f"memory ran out in {what}", "Free some memory and try again")


def _child(probe: MemoryProbe, connection: Connection, given: Inherited) -> None:
    take_over(given)
    keep_freed_memory()
    device = torch.device(probe.device)
    before = 0 if device.type == "cuda" else psutil.Process().memory_info().rss
    try:
        model = take_steps(probe, device)
    except (torch.OutOfMemoryError, MemoryError):
        connection.send(None)
        connection.recv()
        return
    except (RuntimeError, ValueError) as error:
        connection.send(str(error))
        connection.recv()
        return
    if device.type == "cuda":
        answer = Measured(0, torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    else:
        peak = peak_resident() - before
        answer = Measured(before, peak, peak)
    connection.send(answer)
    connection.recv()
    del model


def take_steps(probe: MemoryProbe, device: torch.device) -> torch.nn.Module:
    """Returns the model, so that it may be kept alive."""
    spec, setting = probe.spec, probe.setting
    precision, options = setting.precision, setting.options
    with algorithms(options.deterministic):
        model = precision.place(FAMILIES[spec.family].build(spec), device).train()
        optimiser, scaler = build_optimiser(options, model.parameters()), precision.scaler(device)
        average = None if options.ema_decay is None else [each.detach().clone() for each in model.parameters()]
        loss = step_loss(spec, setting.labels, options)
        shape = (probe.batch, *probe.patch)
        image = torch.randn((probe.batch, spec.in_channels, *probe.patch))
        target = torch.randint(setting.labels.count, shape, dtype=torch.int16)
        known = torch.ones((probe.batch, setting.labels.count), dtype=torch.bool) if setting.partial else None
        batch = Batch(image, target, known, even_weight(options.loss, shape))
        batch = batch.to(device, precision.channels_last)
        del image, target
        for _ in range(STEPS):
            train_step(model, loss, optimiser, scaler, batch, precision, options.gradient_clip)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        del average
    return model


SAMPLES = 2
STATES = {"adamw": 2, "sgd": 1}
"""numbers that an optimiser keeps per weight"""


def saved_peak(spec: NetworkSpec, patch: tuple[int, ...], batch: int, setting: StepSetting) -> int:
    """Bytes: weights, averages, optimiser state, and the larger of what is saved and of the gradients."""
    with PROCESS_WIDE, torch.random.fork_rng():
        model = FAMILIES[spec.family].build(spec).train()
        model = setting.precision.place(model, torch.device("cpu"))
        least = FAMILIES[spec.family].valid_size(spec, [2 * step for step in spec.divisor])
        more = FAMILIES[spec.family].valid_size(spec, (*least[:-1], 2 * least[-1]))
        sizes = [SAMPLES * math.prod(size) for size in (least, more)]
        counts = [_saved(spec, model, size, setting) for size in (least, more)]
    voxels = batch * math.prod(patch)
    share = (voxels - sizes[0]) / (sizes[1] - sizes[0])
    saved, largest = (first + share * (second - first) for first, second in zip(*counts, strict=True))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    copies = 1 + STATES[setting.options.optimiser] + (setting.options.ema_decay is not None)
    data = voxels * (4 * spec.in_channels + 2)
    return round(copies * weights + data + max(saved + 2 * largest, weights))


def _saved(spec: NetworkSpec, model: torch.nn.Module, patch: tuple[int, ...], setting: StepSetting) -> tuple[int, int]:
    """Bytes of all saved tensors and of the largest; weights do not count, and each storage counts once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    precision: Precision = setting.precision
    image = torch.randn(SAMPLES, spec.in_channels, *patch)
    known = torch.ones((SAMPLES, setting.labels.count), dtype=torch.bool) if setting.partial else None
    labels = torch.zeros((SAMPLES, *patch), dtype=torch.int16)
    batch = Batch(image, labels, known, even_weight(setting.options.loss, labels.shape))
    batch = batch.to(torch.device("cpu"), precision.channels_last)
    loss = step_loss(spec, setting.labels, setting.options)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with precision.autocast("cpu"):
            outputs = model(batch.image)
        value = loss(outputs, batch)
    held = {output.untyped_storage().data_ptr(): output for output in outputs}
    sizes = [tensor.untyped_storage().nbytes() for tensor in (seen | held).values()]
    del value
    return sum(sizes), max(sizes)
