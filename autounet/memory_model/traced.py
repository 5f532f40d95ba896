"""The one training step and the one forward pass, run on fake tensors: what memory they take, block by block."""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..losses import BORDER_WEIGHTED, Batch
from ..nets import FAMILIES
from ..schema.labels import LabelClass, Labels
from ..schema.options import TrainOptions
from ..schema.plan import NetworkSpec
from ..step import AUTOCAST, Precision, build_optimiser, train_step
from .fake_tensors import Recorder, fake_module, played
from .measured_steps import StepSetting, step_loss
from .peak import Event


class Trace(NamedTuple):
    setup: list[Event]
    """weights, optimiser state, averaged weights, batch: alive throughout"""
    step: list[Event]
    """one step; whatever begins in it also ends in it"""


class _PlayedPrecision(Precision):
    """Autocast of the simulated device, for tensors that torch sees on a CPU; fp16 on a CPU stays float32."""

    def autocast(self, device_type: str):  # type: ignore[no-untyped-def]
        if device_type == "cpu" or self.name == "fp32":
            return super().autocast("cpu")
        return torch.autocast("cpu", dtype=AUTOCAST[self.name])


class _NotDrawn(TorchFunctionMode):
    """Weights of a new network are not drawn. On the Meta device torch loads its symbolic algebra to do so."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function is Tensor.normal_ else function(*args, **(kwargs or {}))


def _meta_network(spec: NetworkSpec) -> nn.Module:
    with torch.device("meta"), _NotDrawn():
        return FAMILIES[spec.family].build(spec)


def trace_step(spec: NetworkSpec, patch: tuple[int, ...], batch: int, setting: StepSetting) -> Trace:
    """Every block of memory of a training step whose optimiser has its state.

    GradScaler (fp16 on a GPU) is left out: it keeps a few numbers and writes over the gradients.
    """
    options, precision = setting.options, setting.precision
    network = _meta_network(spec).train()
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
    network = _meta_network(spec).eval()
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


def self_test() -> None:
    """Trace one step of a small network and compare with what can be counted by hand.

    Raises RuntimeError where the bytes differ, and whatever a missing or changed private interface of torch raises.
    """
    labels = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="object", value=1)))
    spec = FAMILIES["plain"].propose(2, 1, 2, [(1, 1), (2, 2)], [(3, 3)] * 2, 4)
    parameters = [each.numel() for each in _meta_network(spec).parameters()]
    setting = StepSetting(labels, TrainOptions(optimiser="adamw"), Precision("bf16", True), "cuda")
    trace = trace_step(spec, (8, 8), 2, setting)
    # weights and two numbers each for AdamW, and its steps; image and labels
    by_hand = 3 * 4 * sum(parameters) + 4 * len(parameters) + 2 * 8**2 * (4 + 2)
    setup, left = (sum(event.size for event in part) for part in trace)
    if (setup, left) != (by_hand, 0) or not trace.step:
        raise RuntimeError(f"{setup} bytes were traced before a step and {by_hand} counted, {left} were left after it")
