"""The one training step: forward, loss, backward, clip, update. Memory tracing, probing and training all run this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .losses import Batch, Loss, build_loss
from .losses.deep_supervision import DeepSupervision
from .schema.labels import Labels
from .schema.options import TrainOptions
from .schema.plan import TrainedConfiguration

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """Number format of the convolutions, and the memory order of images and weights."""

    name: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False

    def autocast(self, device_type: str) -> AbstractContextManager[object]:
        """For training and prediction alike; fp16 is for GPUs, on a CPU float32 stands in for it."""
        if self.name == "fp32" or (self.name == "fp16" and device_type == "cpu"):
            return nullcontext()
        return torch.autocast(device_type, dtype=AUTOCAST[self.name])

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` on `device` in the memory order of this precision."""
        model = model.to(device)
        if self.channels_last:
            volumetric = any(parameter.ndim == 5 for parameter in model.parameters())
            order = torch.channels_last_3d if volumetric else torch.channels_last
            model = model.to(memory_format=order)  # type: ignore[call-overload]  # missing in torch's stubs
        return model

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """fp16 gradients underflow without scaling; bf16 and fp32, and so a CPU, need none."""
        return torch.amp.GradScaler(device.type) if self.name == "fp16" and device.type != "cpu" else None


@contextmanager
def algorithms(deterministic: bool) -> Iterator[None]:
    """Inside, when asked, only algorithms with one possible result; else cuDNN times its convolutions, the best stays.

    Enter it before CUDA starts: cuBLAS reads its workspace's size once, and the loss's matrix products are repeatable
    with this one only. What else a step runs holds on a GPU: fused optimisers work number by number, `scatter_add_`
    has a sorting form that torch then takes, and networks go up by transposed convolutions. A family that interpolates
    has no such form for its gradient; torch raises its own error there.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    deterministic = deterministic or before[0]
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != before[0]:  # the call loads torch's compiler, which takes a second
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        if deterministic != before[0]:
            torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def configuration_loss(configuration: TrainedConfiguration, labels: Labels, options: TrainOptions) -> DeepSupervision:
    """The loss `options` name, for as many outputs as the configuration's network has in training, and its targets."""
    network = configuration.network
    levels = len(network.decoder_blocks) if network.deep_supervision else 1
    regions = configuration.targets == "regions"
    return build_loss(options.loss, labels, configuration.batch_dice, levels, overlapping=regions)


def build_optimiser(options: TrainOptions, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum (nnU-Net) or AdamW, in their fused form: one pass over the weights."""
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=rate, weight_decay=decay, momentum=options.momentum, nesterov=options.momentum > 0, fused=True
    )


def train_step(
    model: nn.Module,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    batch: Batch,
    precision: Precision,
    clip: float,
    exchange: Callable[[Sequence[Tensor]], None] | None = None,
    forward: Callable[[Tensor], Sequence[Tensor]] | None = None,
) -> Tensor:
    """One update of `model` (in train() mode) on a batch that is on its device; returns the detached loss.

    Gradients are clipped to a total norm of `clip`, after `exchange` has changed them in place. Where the loss or a
    gradient is not finite the step is skipped: weights, running statistics and the optimiser stay as they are, and the
    loss returned is NaN. A GPU does not wait to find it out. Gradients that overflow because of `scaler` are no fault:
    it skips them and scales by less. With `exchange` the gradients decide, which are the same in all processes.
    `forward` computes what `model` does, in another way.
    """
    optimiser.zero_grad(set_to_none=True)
    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with precision.autocast(batch.image.device.type):
        outputs = (forward or model)(batch.image)
    value = loss(outputs, batch)
    if scaler is None:
        value.backward()
    else:
        scaler.scale(value).backward()
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if exchange is not None:
        exchange([parameter.grad for parameter in trained if parameter.grad is not None])
    if scaler is not None:
        scaler.unscale_(optimiser)
    norm = clip_gradients(trained, clip)
    finite = norm.isfinite()
    if norm.device.type != "cpu" or scaler is not None:
        make_momentum(optimiser)
    known = torch.ones_like(finite) if exchange is not None else value.detach().isfinite()
    if scaler is None:
        finite &= known
        step_where(finite, optimiser)
    else:
        finite |= scaler.scale(torch.ones_like(norm)) > LEAST_SCALE
        finite &= known
        scaler.step(optimiser)
        scaler.update()
    for buffer, before in statistics:
        buffer.copy_(torch.where(finite, buffer, before))
    return torch.where(finite, value.detach(), torch.nan)


LEAST_SCALE = 1.0
"""of a loss in fp16: gradients that are not finite although no more is multiplied to them are not the scale's fault"""


def step_where(finite: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Update the weights where `finite`, one bool on their device, is true; else neither they nor `optimiser` change.

    On a GPU fused optimisers look at it in their kernels, as they do for a GradScaler; others are waited for.
    """
    if finite.device.type == "cpu" or not optimiser.defaults.get("fused"):
        if finite:
            optimiser.step()
        return
    step_in_kernels(finite, optimiser)


def make_momentum(optimiser: torch.optim.Optimizer) -> None:
    """Give SGD its state before its first step, which it would leave uninitialised where that one is skipped.

    A momentum of 0 makes the same first step as none.
    """
    if isinstance(optimiser, torch.optim.SGD) and not optimiser.state:
        for group in optimiser.param_groups:
            used = [each for each in group["params"] if each.grad is not None] if group["momentum"] else []
            for parameter in used:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def step_in_kernels(finite: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """`step_where` for a fused optimiser without waiting for `finite`."""
    optimiser.grad_scale, optimiser.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
    try:
        optimiser.step()
    finally:
        del optimiser.grad_scale, optimiser.found_inf  # type: ignore[attr-defined]


def clip_gradients(parameters: list[nn.Parameter], clip: float) -> Tensor:
    """Scale all gradients together to a norm of at most `clip`; returns the norm they had.

    On a CPU gradients below it are left alone, which saves a pass over them; a GPU would have to wait to find out.
    """
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or not norm <= clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm
