"""The one training step: forward, loss, backward, clip, update. Memory tracing, probing and training all run this."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from autounet.losses import Batch, Loss
from autounet.schema.options import TrainOptions

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """Number format of the convolutions, and the memory order of images and weights."""

    name: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False

    def autocast(self, device_type: str) -> AbstractContextManager[object]:
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(device_type, dtype=AUTOCAST[self.name])

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` on `device` in the memory order of this precision."""
        model = model.to(device)
        if self.channels_last:
            volumetric = any(parameter.ndim == 5 for parameter in model.parameters())
            model = model.to(memory_format=torch.channels_last_3d if volumetric else torch.channels_last)
        return model

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """fp16 gradients underflow without scaling; bf16 and fp32 need none."""
        return torch.amp.GradScaler(device.type) if self.name == "fp16" else None


def build_optimiser(options: TrainOptions, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum (nnU-Net) or AdamW, in their fused form: one pass over the weights."""
    common = {"lr": options.learning_rate, "weight_decay": options.weight_decay, "fused": True}
    if options.optimiser == "adamw":
        return torch.optim.AdamW(parameters, **common)
    return torch.optim.SGD(parameters, momentum=options.momentum, nesterov=options.momentum > 0, **common)


def train_step(
    model: nn.Module,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    batch: Batch,
    precision: Precision,
    clip: float,
) -> Tensor:
    """One update of `model` (in train() mode) on a batch that is on its device; returns the detached loss.

    Gradients are clipped to a total norm of `clip`.
    """
    optimiser.zero_grad(set_to_none=True)
    with precision.autocast(batch.image.device.type):
        outputs = model(batch.image)
    value = loss(outputs, batch)
    if scaler is None:
        value.backward()
    else:
        scaler.scale(value).backward()
        scaler.unscale_(optimiser)
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    if scaler is None:
        optimiser.step()
    else:
        scaler.step(optimiser)
        scaler.update()
    return value.detach()
