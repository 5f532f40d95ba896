"""What training steps on random numbers really take, each measurement in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from ..losses import Batch, even_weight
from ..nets import FAMILIES
from ..schema.errors import AutoUNetError, OutOfMemory
from ..schema.plan import NetworkSpec
from ..step import algorithms, build_optimiser, train_step
from ..workers import keep_freed_memory
from .traced import StepSetting, step_loss

STEPS = 3
"""the first one makes the optimiser's state, and on a CPU the heap still grows in the second"""


KILLED = -9
"""exit status of a process that the system ended for want of memory"""


class Measured(NamedTuple):
    """Bytes of one process."""

    before: int
    """resident after imports, before the network was made; 0 on a GPU"""
    peak: int
    """at most, beyond `before`: resident on a CPU, allocated on a GPU"""
    reserved: int
    """most that torch's allocator held on a GPU; equal to `peak` on a CPU"""


class Question(NamedTuple):
    spec: NetworkSpec
    patch: tuple[int, ...]
    batch: int
    setting: StepSetting
    device: str


def measure(question: Question, while_held: Callable[[], None] = lambda: None) -> Measured:
    """Three training steps in a spawned process; `while_held` is called while that process still has its memory.

    Raises OutOfMemory when memory runs out, and AutoUNetError when the process ends otherwise without an answer.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(question, theirs))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
        while_held()
        ours.send(None)
    except EOFError:
        answer = None
    process.join()
    what = f"training steps of patch {question.patch}, batch {question.batch} on {question.device}"
    if isinstance(answer, Measured):
        return answer
    if isinstance(answer, str):
        raise AutoUNetError(f"{what} failed: {answer}")
    if process.exitcode not in (0, KILLED):
        raise AutoUNetError(f"{what} could not be measured: their process ended with status {process.exitcode}")
    raise OutOfMemory(f"memory ran out in {what}. Free some memory and try again")


def _child(question: Question, connection: Connection) -> None:
    keep_freed_memory()
    device = torch.device(question.device)
    before = 0 if device.type == "cuda" else resident("VmRSS")
    try:
        model = take_steps(question, device)
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
        peak = resident("VmHWM") - before
        answer = Measured(before, peak, peak)
    connection.send(answer)
    connection.recv()
    del model


def take_steps(question: Question, device: torch.device) -> torch.nn.Module:
    """Returns the model, so that it may be kept alive."""
    spec, setting = question.spec, question.setting
    precision, options = setting.precision, setting.options
    with algorithms(options.deterministic):
        model = precision.place(FAMILIES[spec.family].build(spec), device).train()
        optimiser, scaler = build_optimiser(options, model.parameters()), precision.scaler(device)
        average = None if options.ema_decay is None else [each.detach().clone() for each in model.parameters()]
        loss = step_loss(spec, setting.labels, options)
        shape = (question.batch, *question.patch)
        image = torch.randn((question.batch, spec.in_channels, *question.patch))
        target = torch.randint(setting.labels.count, shape, dtype=torch.int16)
        known = torch.ones((question.batch, setting.labels.count), dtype=torch.bool) if setting.partial else None
        batch = Batch(image, target, known, even_weight(options.loss, shape))
        batch = batch.to(device, precision.channels_last)
        del image, target
        for _ in range(STEPS):
            train_step(model, loss, optimiser, scaler, batch, precision, options.gradient_clip)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        del average
    return model


def resident(line: str) -> int:
    """Bytes of this process by /proc: VmRSS now, VmHWM at most; where there is no /proc both are the peak so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return 1024 * next(int(each.split()[1]) for each in lines if each.startswith(f"{line}:"))
