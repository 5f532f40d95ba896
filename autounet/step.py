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
    clip_gradients([p for p in model.parameters() if p.grad is not None], clip)
    if scaler is None:
        optimiser.step()
    else:
        scaler.step(optimiser)
        scaler.update()
    return value.detach()


def clip_gradients(parameters: list[nn.Parameter], clip: float) -> None:
    """Scale all gradients together to a norm of at most `clip`.

    On a CPU gradients below it are left alone, which saves a pass over them; a GPU would have to wait to find out.
    """
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or not norm <= clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
