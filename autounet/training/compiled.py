"""The network of a training compiled by torch, where a trial on its device finds that quicker and the time repays it.

What is compiled is a function that calls the network, and not a module around it: weights, checkpoints and whatever is
exported have the names that they have without. The loss, the clipping of gradients and the optimiser stay as they are.
A network without a break in its graph is asked for (`fullgraph`): all families have none (`tests/test_compiled.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..losses import Batch
from ..losses.deep_supervision import output_weights
from ..schema.names import printable
from ..schema.options import CompileSetting
from ..schema.plan import TrainedConfiguration
from ..schema.quantities import format_seconds, format_size, format_time
from ..schema.run import Compilation
from ..schema.stage_inputs import TrainingInputs, TrainingPlace
from ..step import Precision
from ..time_budget.benchmark import median_seconds
from .schedule import Horizon
from .state import TrainState

logger = logging.getLogger(__name__)

COMPILING_SECONDS = {"cpu": 200.0, "cuda": 120.0}
"""that compiling takes, roughly. On a busy core of a CPU a plain network of four stages took 113 s in 3-D, another
202 s in 2-D; GPUs were not measured"""
SAVED = {"cpu": 0.04, "cuda": 0.2}
"""share of the time of a step that is saved, roughly: on a CPU by the network in 3-D. That in 2-D took three times as
long compiled, which a trial finds out. GPUs were not measured"""
PAYS = 2.0
"""times what compiling takes have to be saved, before it is tried: neither of both is known then"""
LEAST_STEPS = 1000
"""left, below which nobody looks how long a step takes"""
TRIAL_STEPS, TRIAL_SECONDS = 9, 20.0
"""of either kind that are timed, at most"""
QUICKER = 0.97
"""of the time of a step that is not compiled: less of a difference is noise"""
COMPILER_BYTES = 300 * 1024**2
"""of the process on a CPU that torch's compiler fills; measured: 262 MB"""
SPARE = 0.05
"""of the planned memory that may be needed more"""
SHORT_STEP = 0.05
"""seconds of a step on a GPU up to which its kernels are so short that starting them (some 1500 at 10 us each) is a
good part of its time: CUDA graphs then start all at once. They keep memory of their own, which larger steps need more
of and gain less from"""
REASON_LENGTH = 200
BACKEND = "inductor"

Forward = Callable[[Tensor], tuple[Tensor, ...]]


def compiled_forward(model: nn.Module, cuda_graphs: bool = False) -> Forward:
    """A compiled function image (B, C, *P) -> outputs of `model`, those of weight 0 in the loss without gradients.

    A compiled network would give parameters that only those have a gradient of zero, with which weight decay and
    momentum go on, where one that is not compiled gives them none. Sizes are those of the first image, for good.
    """

    def forward(image: Tensor) -> tuple[Tensor, ...]:
        outputs = model(image)
        weights = output_weights([each.shape[2:] for each in outputs])
        return tuple(each if weight else each.detach() for each, weight in zip(outputs, weights, strict=True))

    mode = "reduce-overhead" if cuda_graphs else None
    compiled = torch.compile(forward, fullgraph=True, dynamic=False, backend=BACKEND, mode=mode)
    if not cuda_graphs:
        return compiled

    def started(image: Tensor) -> tuple[Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()  # what the step before has put out may be written over
        return compiled(image)

    return started


class Network:
    """What a training's steps call: its network, compiled until that fails."""

    def __init__(self, model: nn.Module, told: Compilation, forward: Forward | None = None) -> None:
        self.model, self.told = model, told
        self._forward = forward

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        if self._forward is None:
            return self.model(image)
        try:
            return self._forward(image)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler may raise: if it is the network's, it raises it again
            self._forward = None
            reason = f"it was, until it failed: {what_failed(error)}"
            self.told = self.told.model_copy(update={"compiled": False, "reason": reason})
            logger.warning("the network is not compiled any more: %s", what_failed(error))
            return self.model(image)

    def close(self) -> None:
        """Give back what a compiler keeps of it, such as CUDA graphs with their memory."""
        if self._forward is not None:
            self._forward = None
            torch.compiler.reset()


def compile_network(
    inputs: TrainingInputs, place: TrainingPlace, state: TrainState, precision: Precision, horizon: Horizon
) -> Network:
    """Decide whether the steps of a training call a compiled network, and set `state.forward` where they do.

    Neither weights nor statistics nor random numbers are other ones afterwards.
    """
    device, setting = torch.device(place.device), place.compile
    if why := untried(inputs, place, state, horizon):
        return Network(state.model, Compilation(compiled=False, reason=why))
    with unchanged(state.model, device):
        trial = Trial(state.model, inputs.configuration, precision, device)
        eager, needed = trial.run(state.model)
        told = Compilation(compiled=False, reason="", eager_seconds=eager)
        if setting == "auto" and (why := too_short(seconds_left(state, horizon, eager), device)):
            return Network(state.model, told.model_copy(update={"reason": why}))
        graphs = device.type == "cuda" and eager <= SHORT_STEP
        try:
            torch.compiler.reset()  # a process that has trained other networks keeps at most eight forms of a function
            forward = compiled_forward(state.model, cuda_graphs=graphs)
            began = time.monotonic()
            trial.once(forward)
            compiling = time.monotonic() - began
            seconds, more = trial.run(forward)
        except Exception as error:  # whatever a compiler may raise: the network itself has just run
            why = f"compiling failed: {what_failed(error)}"
            forward = None
        if forward is not None:
            times = {"compiled_seconds": seconds, "compiling_seconds": compiling, "cuda_graphs": graphs}
            told = told.model_copy(update=times)
            kept, why = judge(told, setting, more - needed, place.planned_bytes)
            forward = forward if kept else None
    level = logging.WARNING if told.compiled_seconds is None else logging.INFO
    logger.log(level, "the network is %s: %s", "compiled" if forward else "not compiled", why)
    told = told.model_copy(update={"compiled": forward is not None, "reason": why})
    if forward is None:
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return Network(state.model, told)
    state.forward = network = Network(state.model, told, forward)
    return network


def untried(inputs: TrainingInputs, place: TrainingPlace, state: TrainState, horizon: Horizon) -> str:
    """Why compiling is not tried, as far as that is known without timing a step; empty: it may be."""
    device = torch.device(place.device)
    if place.compile == "off":
        return "--compile off"
    if state.exchange is not None:
        return "devices share each batch, which works with networks that are not compiled"
    if place.compile == "on":
        return ""
    if inputs.options.deterministic:
        return "the same weights each time are asked for, and which is quicker may differ from time to time"
    if device.type not in COMPILING_SECONDS:
        return f"it is tried on CPUs and with CUDA, and this is {device.type}"
    if steps_left(state, horizon) < LEAST_STEPS:
        return f"fewer than {LEAST_STEPS} steps are left"
    if horizon.seconds is not None and (why := too_short(horizon.seconds - state.elapsed, device)):
        return why
    if device.type == "cpu" and place.planned_bytes * SPARE < COMPILER_BYTES:
        return f"the compiler takes about {format_size(COMPILER_BYTES)} of the memory, of which too little is planned"
    return ""


def steps_left(state: TrainState, horizon: Horizon) -> float:
    last = horizon.steps if state.cool_down is None else state.cool_down.end
    return float("inf") if last is None else last - state.step


def seconds_left(state: TrainState, horizon: Horizon, step_seconds: float) -> float:
    """Of a training at most, with steps that take so long."""
    by_time = float("inf") if horizon.seconds is None else horizon.seconds - state.elapsed
    return min(steps_left(state, horizon) * step_seconds, by_time)


def too_short(left: float, device: torch.device) -> str:
    """Why so many seconds of training do not repay compiling; empty where they may."""
    needed = PAYS * COMPILING_SECONDS[device.type] / SAVED[device.type]
    if left >= needed:
        return ""
    return f"the training is too short: compiling is tried where {format_time(needed)} or more are left to repay it"


def judge(told: Compilation, setting: CompileSetting, more: int, planned_bytes: int) -> tuple[bool, str]:
    """Whether a compiled network that needs so many bytes `more` is kept, and the sentence that says why."""
    assert told.eager_seconds is not None
    assert told.compiled_seconds is not None
    assert told.compiling_seconds is not None
    times = (
        f"forward and backward pass {format_seconds(told.compiled_seconds)} compiled, "
        f"{format_seconds(told.eager_seconds)} not; compiling took {format_time(told.compiling_seconds)}"
    )
    if setting == "on":
        return True, f"--compile on ({times})"
    if more > SPARE * planned_bytes:
        return False, f"it would need {format_size(more)} more memory ({times})"
    if told.compiled_seconds > QUICKER * told.eager_seconds:
        return False, f"it would not be quicker ({times})"
    return True, f"it is quicker ({times})"


class Trial:
    """Forward and backward passes as in a step, whose loss is not compiled and takes the same time."""

    def __init__(
        self, model: nn.Module, configuration: TrainedConfiguration, precision: Precision, device: torch.device
    ) -> None:
        self.model, self.precision = model, precision
        size = configuration.batch_size, configuration.network.in_channels, *configuration.patch_size
        image = torch.randn(size, generator=torch.Generator().manual_seed(0))
        self.image = Batch(image, image).to(device, precision.channels_last).image

    def once(self, forward: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self.model.zero_grad(set_to_none=True)
        with self.precision.autocast(self.image.device.type):
            outputs = forward(self.image)
        weights = output_weights([each.shape[2:] for each in outputs])
        parts = [each.float().square().mean() for each, weight in zip(outputs, weights, strict=True) if weight]
        torch.stack(parts).sum().backward()

    def run(self, forward: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[float, int]:
        """Median seconds, and the bytes that a GPU has reserved at most (0 on a CPU)."""
        device = self.image.device
        counted = device.type == "cuda"
        if counted:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        # two to warm up: CUDA graphs are recorded in the second
        seconds = median_seconds(lambda: self.once(forward), device, TRIAL_STEPS, TRIAL_SECONDS, warm_up=2)
        return seconds, torch.cuda.max_memory_reserved(device) if counted else 0


@contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards running statistics and random numbers are what they were, and there are no gradients."""
    before = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, value in zip(model.buffers(), before, strict=True):
                    buffer.copy_(value)


def what_failed(error: Exception) -> str:
    """The kind of the error and how its text begins, in one line."""
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON_LENGTH])
