"""The only mutable state of a training, saved and restored whole."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..nets import FAMILIES
from ..nets.efficient import load_pretrained
from ..nets.transfer import transfer
from ..schema.errors import Cancelled, ModelError
from ..schema.plan import NetworkSpec
from ..schema.record import replacing
from ..schema.stage_inputs import InitialWeights, TrainingInputs
from ..step import Precision, build_optimiser
from ..store.weights import read_pretrained, require_uncompressed
from ..system_memory import is_out_of_memory, require_no_lack_of_memory
from ..workers import PROCESS_WIDE
from .schedule import CoolDown


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
    cool_down: CoolDown | None = None
    """how a training that has converged ends"""
    left_behind: tuple[int, ...] = ()
    """outputs of the network, classes or regions, that are left behind since the last line of the log"""
    skipped: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    """steps in a row, until now, whose loss or gradients were not finite, with their cases"""
    setback: str | None = None
    """that the training went back to an earlier state, and why; its learning rate is lower since then"""
    exchange: Callable[[Sequence[Tensor]], None] | None = None
    """what a step does with its gradients where other processes make samples of the same batch"""
    forward: Callable[[Tensor], Sequence[Tensor]] | None = None
    """what a step calls in place of `model`, which is the same compiled; None: `model`"""

    @property
    def evaluated(self) -> nn.Module:
        """The weights that validation and prediction use."""
        return self.model if self.average is None else self.average

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def update_average(self, decay: float | None, loss: Tensor) -> None:
        """Short memory at first, so that the random start is forgotten; `decay` after about 10 / (1 - decay) steps.

        Nothing changes where `loss` is NaN, which says that the step was skipped.
        """
        if self.average is None or decay is None:
            return
        decay = min(decay, (1 + self.step) / (10 + self.step))
        kept, current = list(self.average.parameters()), list(self.model.parameters())
        if loss.device.type != "cpu":
            average_where(~loss.isnan(), kept, current, decay)
        elif not loss.isnan():
            update = get_ema_multi_avg_fn(decay)  # AveragedModel asks each step for the device, which takes longer
            update(kept, current, self.step)
        for buffer, source in zip(self.average.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(source)  # running statistics are averages already

    def is_finite(self) -> bool:
        """Whether all weights and all that the optimiser keeps of them are numbers. A GPU has to be waited for."""
        networks = [self.model] if self.average is None else [self.model, self.average]
        found = [tensor for network in networks for tensor in network.state_dict().values()]
        found += [value for kept in self.optimiser.state.values() for value in kept.values() if torch.is_tensor(value)]
        return all([bool(tensor.isfinite().all()) for tensor in found if tensor.is_floating_point()])

    def require_finite(self) -> None:
        """Raises Unstable: what holds NaN or infinity is written nowhere."""
        if not self.is_finite():
            raise Unstable(f"at step {self.step} the weights, or what the optimiser keeps, are not finite", self)

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
            "cool_down": None if self.cool_down is None else astuple(self.cool_down),
            "left_behind": self.left_behind,
            "skipped": list(self.skipped),
            "setback": self.setback,
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
        self.cool_down = None if content["cool_down"] is None else CoolDown(*content["cool_down"])
        self.left_behind = tuple(content["left_behind"])
        self.skipped, self.setback = list(content["skipped"]), content["setback"]

    def save(self, path: Path, key: str) -> None:
        """Replace `path` in one step. `key` says of what training this is. Raises OSError."""
        with replacing(path) as temporary:
            try:
                torch.save({"key": key, **self.content()}, temporary)
            except RuntimeError as error:  # torch's word for a full disk
                if is_out_of_memory(error):
                    raise
                raise OSError(str(error)) from None  # `replacing` names the file

    def restore(self, path: Path, key: str) -> bool:
        """Take over everything from a file; False when it is of another training.

        Then, and on an error, nothing changes: a training must not begin at step 0 with half-trained weights.
        """
        require_uncompressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["key"] != key:
            return False
        before = copy.deepcopy(self.content())
        try:
            self.load(content)
            if not self.is_finite():
                raise ValueError("it holds values that are not finite")
        except Exception:
            self.load(before)
            raise
        return True


@torch.no_grad()
def average_where(finite: Tensor, average: list[nn.Parameter], weights: list[nn.Parameter], decay: float) -> None:
    """Move `average` towards `weights` where `finite`, one bool on their device, is true, without waiting for it."""
    share = torch.where(finite, 1 - decay, 0.0)
    for kept, current in zip(average, weights, strict=True):
        kept.lerp_(current, share)


def new_state(inputs: TrainingInputs, initial: Path | None, precision: Precision, device: torch.device) -> TrainState:
    """Random weights by the training's seed, or those of the file `initial`; torch's global generator is left seeded.

    Raises ModelError where the weights to start from do not fit.
    """
    spec = inputs.configuration.network
    with PROCESS_WIDE:
        torch.manual_seed(inputs.seed)
        built = FAMILIES[spec.family].build(spec)
    if inputs.initial is not None:
        assert initial is not None
        set_weights(built, spec, initial, inputs.initial)
    model = precision.place(built, device).train()
    average = None
    if inputs.options.ema_decay is not None:
        average = copy.deepcopy(model).eval().requires_grad_(False)
    return TrainState(model, build_optimiser(inputs.options, model.parameters()), precision.scaler(device), average)


def set_weights(network: nn.Module, spec: NetworkSpec, file: Path, how: InitialWeights) -> None:
    """Put the weights of a file into `network`, as built from `spec`. Raises ModelError naming the file."""
    content = read_pretrained(file)
    try:
        if how.trained is None:
            load_pretrained(network, content)
        else:
            transfer(network, spec, content, how.trained, how.new, how.channels)
    except ModelError as error:
        raise ModelError(f"{file}: {error.message}", error.remedy) from None


logger = logging.getLogger(__name__)

LEAST_SECONDS = 15.0
"""between two checkpoints"""
MOST_SECONDS = 240.0
"""between two checkpoints, however long writing takes: with the line of the log that one waits for, five minutes of
work are the most that an interruption costs"""
TIME_SHARE = 0.02
"""of a training that writing checkpoints may take, unless that is less often"""


class Unstable(Exception):
    """A training that cannot go on from where it is: see `guard.py`."""

    def __init__(self, what: str, state: TrainState) -> None:
        """`what` happened, as a sentence without its full stop."""
        super().__init__(what)
        self.what, self.elapsed, self.setback = what, state.elapsed, state.setback


class Checkpoint:
    """`state.pt` of an unfinished training with the key `key`."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._saved = time.monotonic()
        self._wait = LEAST_SECONDS

    def restore(self, state: TrainState) -> str | None:
        """Continue from the file where it is of this training. Returns what was done in words, None without a file."""
        if not self.path.exists():
            return None
        try:
            restored = state.restore(self.path, self.key)
        except Exception as error:
            require_no_lack_of_memory(self.path, error)
            logger.warning("%s cannot be read and is not used: %s", self.path, error)
            return f"the state of an interrupted training could not be read and was not used: {error}"
        if not restored:
            return "the state of an interrupted training with other settings was not used"
        logger.info("%s: training continues at step %d", self.path.parent, state.step)
        return f"continued at step {state.step} after an interruption"

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._wait

    def save(self, state: TrainState) -> None:
        """Raises Unstable, and leaves the file as it is, rather than write a state that holds NaN or infinity."""
        began = time.monotonic()
        state.require_finite()
        state.save(self.path, self.key)
        self._saved = time.monotonic()
        self._wait = min(MOST_SECONDS, max(LEAST_SECONDS, (self._saved - began) / TIME_SHARE))

    def keep(self, path: Path) -> None:
        """What was saved last is `path`, too, and stays so when the next one is saved."""
        with replacing(path) as temporary:
            try:
                os.link(self.path, temporary)
            except OSError:  # a file system without such links
                shutil.copyfile(self.path, temporary)

    @contextmanager
    def saved_when_cancelled(self, state: TrainState) -> Iterator[None]:
        """Where the block raises Cancelled, which is on purpose, no step is lost."""
        try:
            yield
        except Cancelled:
            with suppress(Unstable):  # the one before stays
                self.save(state)
            raise

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
