"""Training one fold, from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from ..schema.errors import AutoUNetError
from ..schema.run import EpochLog, RunRecord, fold_name
from ..step import Precision, algorithms, configuration_loss, train_step
from ..store.weights import save_weights
from ..workers import keep_freed_memory
from .journal import Journal
from .memory import budget_errors, peak_memory
from .monitor import PatchMonitor
from .record import finished_record, run_record
from .samples import batches
from .schedule import learning_rate
from .sources import train_source, validation_source
from .state import Checkpoint, new_state
from .task import FoldTask


def train_fold(task: FoldTask, on_log: Callable[[EpochLog], None] | None = None) -> RunRecord:
    """Train one fold to its horizon; continue where an interrupted run left off; return at once when it is finished.

    Writes `weights.safetensors`, `record.json`, `log.jsonl`, `progress.png` and, while running, `state.pt` into the
    task's folder. `on_log` is called with every line of the log. Raises AutoUNetError when the folder holds another
    finished training, and BudgetExceeded when the device has too little memory.
    """
    finished = finished_record(task)
    if finished is not None:
        return finished
    with algorithms(task.options.deterministic), budget_errors(task):
        return _train(task, on_log)


def _train(task: FoldTask, on_log: Callable[[EpochLog], None] | None) -> RunRecord:
    # what is trained, on what, towards what
    began = time.monotonic()
    keep_freed_memory()
    task.folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(task.device)
    configuration, options = task.configuration, task.options
    precision = Precision(configuration.precision, configuration.channels_last)
    state = new_state(task, precision, device)
    checkpoint = Checkpoint(task)
    event = checkpoint.restore(state)
    earlier = state.elapsed
    loss = configuration_loss(configuration, task.labels, options)
    loader = batches(train_source(task), state.step, task.workers, pin_memory=device.type == "cuda")
    monitor = PatchMonitor(validation_source(task), task.labels, precision, device, configuration.targets)
    journal = Journal(task.folder, state.step, on_log, f"{task.configuration_name} {fold_name(task.fold)}")
    losses: list[torch.Tensor] = []  # since the last line of the journal, as are the next two
    line_began, waited = time.monotonic(), 0.0

    progress = task.horizon.progress(state.step, state.elapsed)
    while progress < 1:
        asked = time.monotonic()
        batch = next(loader).to(device, precision.channels_last)
        waited += time.monotonic() - asked

        rate = learning_rate(options.schedule, options.learning_rate, progress)
        state.set_learning_rate(rate)
        losses.append(
            train_step(state.model, loss, state.optimiser, state.scaler, batch, precision, options.gradient_clip)
        )
        state.step += 1
        state.update_average(options.ema_decay)
        state.elapsed = earlier + time.monotonic() - began
        progress = task.horizon.progress(state.step, state.elapsed)
        if not journal.due(state.step, progress):
            continue

        line = EpochLog(
            step=state.step,
            progress=progress,
            seconds=state.elapsed,
            learning_rate=rate,
            loss=mean_loss(losses, task, state.step),
            step_seconds=(time.monotonic() - line_began) / len(losses),
            data_wait_seconds=waited / len(losses),
            peak_memory_bytes=peak_memory(device),
        )
        if progress >= 1 or monitor.affordable(state.elapsed):
            line = line.model_copy(update={"validation_dice": monitor.measure(state.evaluated)})
        if progress < 1 and checkpoint.due():
            checkpoint.save(state)
        journal.add(line)
        losses.clear()
        line_began, waited = time.monotonic(), 0.0

    loader.close()

    # the record comes last: a fold with a record is finished
    save_weights(task.folder / "weights.safetensors", state.evaluated.state_dict())
    journal.draw()
    record = run_record(task, state, journal.curve, [*task.events, *([event] if event else [])])
    record.save(task.folder / "record.json")
    checkpoint.remove()
    return record


def mean_loss(losses: list[torch.Tensor], task: FoldTask, step: int) -> float:
    """Raises AutoUNetError when it is not a number any more: nothing trained after that is of use."""
    mean = float(torch.stack(losses).mean())
    if math.isfinite(mean):
        return mean
    name, precision = task.configuration_name, task.configuration.precision
    remedy = (
        "Give another --loss or --seed"
        if precision == "fp32"
        else f'Set "precision" of {name} to "fp32" in plan.json (it is {precision}) and run again'
    )
    raise AutoUNetError(f"{name}: the loss became {mean} before step {step}. {remedy}")
