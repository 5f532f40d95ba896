"""The one training step and the one forward pass, run on fake tensors: what memory they take, block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ..losses import BORDER_WEIGHTED, Batch, Loss, even_weight
from ..nets import FAMILIES
from ..schema.labels import Labels, TargetKind, planned_targets, targets_of
from ..schema.options import TrainOptions
from ..schema.plan import Configuration, NetworkSpec, PreprocessSpec
from ..step import AUTOCAST, Precision, build_optimiser, configuration_loss, train_step
from .fake_tensors import Event, Recorder, fake_module, played


@dataclass(frozen=True)
class StepSetting:
    """What a training step depends on beside the network, the patch and the batch."""

    labels: Labels
    options: TrainOptions
    precision: Precision
    device: str
    """cpu or cuda; for every other kind the GPU's code is traced"""
    partial: bool = False
    """cases in which not every class was annotated occur, which takes more memory in the loss"""


class Trace(NamedTuple):
    setup: list[Event]
    """weights, optimiser state, averaged weights, batch: alive throughout"""
    step: list[Event]
    """one step; whatever begins in it also ends in it"""


class _PlayedPrecision(Precision):
    """Autocast as the played device has it. torch, seeing the CPU, is told so; fp16 on a CPU stays float32."""

    def autocast(self, device_type: str):  # type: ignore[no-untyped-def]
        if device_type == "cpu" or self.name == "fp32":
            return super().autocast("cpu")
        return torch.autocast("cpu", dtype=AUTOCAST[self.name])


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


def trace_step(spec: NetworkSpec, patch: tuple[int, ...], batch: int, setting: StepSetting) -> Trace:
    """Every block of memory of a training step whose optimiser has its state.

    GradScaler (fp16 on a GPU) is left out: it keeps a few numbers and writes over the gradients.
    """
    options, precision = setting.options, setting.precision
    with torch.device("meta"):
        network = FAMILIES[spec.family].build(spec).train()
    with played(setting.device) as recorder:
        model = fake_module(network, precision.channels_last)
        average = [] if options.ema_decay is None else [torch.empty_like(each) for each in model.parameters()]
        optimiser = build_optimiser(options, model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        annotated = setting.labels.count if setting.partial else 0
        data = fake_batch(spec, patch, batch, precision, options.loss in BORDER_WEIGHTED, annotated)
        setup = _take(recorder)
        played_precision = _PlayedPrecision(precision.name, precision.channels_last)
        loss = step_loss(spec, setting.labels, options)
        train_step(model, loss, optimiser, None, data, played_precision, options.gradient_clip)
        optimiser.zero_grad(set_to_none=True)
        step = _take(recorder)
        del average
    return Trace(setup, step)


def trace_forward(spec: NetworkSpec, patch: tuple[int, ...], batch: int, precision: Precision, device: str) -> Trace:
    """Every block of memory of one forward pass in evaluation on `batch` patches, its float32 logits included."""
    with torch.device("meta"):
        network = FAMILIES[spec.family].build(spec).eval()
    with played(device) as recorder, torch.no_grad():
        model = fake_module(network, precision.channels_last)
        setup = _take(recorder)
        image = fake_batch(spec, patch, batch, precision).image
        with _PlayedPrecision(precision.name, precision.channels_last).autocast(device):
            logits = model(image).to(torch.float32, copy=True)
        del image, logits
        step = _take(recorder)
    return Trace(setup, step)


def fake_batch(
    spec: NetworkSpec,
    patch: tuple[int, ...],
    batch: int,
    precision: Precision,
    weighted: bool = False,
    annotated: int = 0,
) -> Batch:
    """Images and labels as the loader gives them, with a weight per voxel, and which of so many classes were annotated,
    when asked; needs `played`."""
    spatial = torch.channels_last if spec.dims == 2 else torch.channels_last_3d
    layout = spatial if precision.channels_last else torch.contiguous_format
    image = torch.empty((batch, spec.in_channels, *patch), memory_format=layout)
    labels = torch.empty((batch, *patch), dtype=torch.int16)
    known = torch.empty((batch, annotated), dtype=torch.bool) if annotated else None
    return Batch(image, labels, known, torch.empty((batch, *patch)) if weighted else None)


def _take(recorder: Recorder) -> list[Event]:
    """The events so far; the recorder goes on with none.

    Blocks that end together do so in the order of their numbers: autocast drops its copies of the weights in no order.
    """
    events: list[Event] = []
    for begin, run in groupby(recorder.events, key=lambda event: event.size > 0):
        together = list(run)
        events += together if begin else sorted(together)
    recorder.events.clear()
    return events


BATCH = 2
STATES = {"adamw": 2, "sgd": 1}
"""numbers that an optimiser keeps per weight"""


def saved_peak(spec: NetworkSpec, patch: tuple[int, ...], batch: int, setting: StepSetting) -> int:
    """Bytes: weights, averages, optimiser state, and the larger of what is saved and of the gradients."""
    with torch.random.fork_rng():
        model = FAMILIES[spec.family].build(spec).train()
        model = setting.precision.place(model, torch.device("cpu"))
        least = FAMILIES[spec.family].valid_size(spec, [2 * step for step in spec.divisor])
        more = FAMILIES[spec.family].valid_size(spec, (*least[:-1], 2 * least[-1]))
        sizes = [BATCH * math.prod(size) for size in (least, more)]
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
    pass

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    precision: Precision = setting.precision
    image = torch.randn(BATCH, spec.in_channels, *patch)
    known = torch.ones((BATCH, setting.labels.count), dtype=torch.bool) if setting.partial else None
    labels = torch.zeros((BATCH, *patch), dtype=torch.int16)
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
