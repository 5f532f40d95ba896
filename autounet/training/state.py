"""The only mutable state of a training, saved and restored whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autounet.atomic import replacing
from autounet.nets import FAMILIES
from autounet.step import Precision, build_optimiser
from autounet.training.task import FoldTask


@dataclass
class TrainState:
    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    average: nn.Module | None
    """moving average of the weights, when asked for"""
    step: int = 0
    elapsed: float = 0.0
    """seconds of training in earlier runs of the same command"""

    @property
    def evaluated(self) -> nn.Module:
        """The weights that validation and prediction use."""
        return self.model if self.average is None else self.average

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def update_average(self, decay: float | None) -> None:
        """Short memory at first, so that the random start is forgotten; `decay` after about 10 / (1 - decay) steps."""
        if self.average is None or decay is None:
            return
        decay = min(decay, (1 + self.step) / (10 + self.step))
        averages = list(self.average.parameters())
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in self.model.parameters()], 1 - decay)
        for kept, current in zip(self.average.buffers(), self.model.buffers(), strict=True):
            kept.copy_(current)  # running statistics are averages already

    def content(self) -> dict[str, Any]:
        """Everything that `load` takes, not copied."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "generator": torch.get_rng_state(),
            "step": self.step,
            "elapsed": self.elapsed,
        }

    def load(self, content: Mapping[str, Any]) -> None:
        """Take over a `content`. One that does not fit may be half taken over when the error comes."""
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        if self.scaler is not None and content["scaler"] is not None:
            self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        torch.set_rng_state(content["generator"])
        self.step = content["step"]
        self.elapsed = content["elapsed"]

    def save(self, path: Path, key: str) -> None:
        """Replace `path` in one step. `key` says of what training this is. Raises OSError."""
        with replacing(path) as temporary:
            try:
                torch.save({"key": key, **self.content()}, temporary)
            except RuntimeError as error:  # torch's word for a full disk
                raise OSError(f"{path} cannot be written: {error}") from None

    def restore(self, path: Path, key: str) -> bool:
        """Take over everything from a file; False when it is of another training.

        Then, and on an error, nothing changes: a training must not begin at step 0 with half-trained weights.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["key"] != key:
            return False
        before = copy.deepcopy(self.content())
        try:
            self.load(content)
        except Exception:
            self.load(before)
            raise
        return True


def new_state(task: FoldTask, precision: Precision, device: torch.device) -> TrainState:
    """Weights drawn from the task's seed, or those it starts from; torch's global generator is left seeded by it.

    Raises ModelError where the weights to start from do not fit.
    """
    torch.manual_seed(task.seed)
    spec = task.configuration.network
    built = FAMILIES[spec.family].build(spec)
    if task.start is not None:
        task.start.set(built, spec)
    model = precision.place(built, device).train()
    average = None
    if task.options.ema_decay is not None:
        average = copy.deepcopy(model).eval().requires_grad_(False)
    return TrainState(model, build_optimiser(task.options, model.parameters()), precision.scaler(device), average)
