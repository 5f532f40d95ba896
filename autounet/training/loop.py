"""Training one fold, from top to bottom."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

import autounet

from ..ops.device import peak_memory
from ..schema.errors import AutoUNetError, BudgetExceeded
from ..schema.quantities import format_size
from ..schema.run import EpochLog, RunRecord, fold_name
from ..schema.stage_inputs import TrainingInputs, TrainingPlace
from ..step import Precision, algorithms, configuration_loss, train_step
from ..store.run_folder import FoldFolder
from ..store.weights import save_weights
from ..workers import keep_freed_memory
from .journal import Journal
from .monitor import PatchMonitor, monitored_batches
from .samples import batches
from .schedule import Horizon, cool_down_after, learning_rate, sentence
from .sources import train_source, validation_source
from .state import Checkpoint, TrainState, new_state


def train_fold(
    inputs: TrainingInputs,
    place: TrainingPlace,
    horizon: Horizon,
    on_log: Callable[[EpochLog], None] | None = None,
) -> RunRecord:
    """Train one fold to its horizon; continue where an interrupted training by the same inputs left off.

    With `inputs.monitored` it ends sooner when it has converged (`convergence.py`), after its learning rate has fallen.

    Writes `weights.safetensors`, `record.json`, `log.jsonl`, `progress.png` and, while running, `state.pt` into the
    place's folder. `on_log` is called with every line of the log. Raises AutoUNetError when the loss is no number any
    more, BudgetExceeded when the device has too little memory, and ValueError where of a previous stage and the folder
    of its labels only one is given.
    """
    if (place.previous is None) != (inputs.configuration.previous_stage is None):
        raise ValueError(f"{place.configuration_name}: previous stage and the folder of its labels go together")
    keep_freed_memory()
    with algorithms(inputs.options.deterministic), budget_errors(place):
        return _train(inputs, place, horizon, on_log)


def _train(
    inputs: TrainingInputs, place: TrainingPlace, horizon: Horizon, on_log: Callable[[EpochLog], None] | None
) -> RunRecord:
    began = time.monotonic()
    folder, device = FoldFolder(place.folder), torch.device(place.device)
    folder.path.mkdir(parents=True, exist_ok=True)
    configuration, options = inputs.configuration, inputs.options
    precision = Precision(configuration.precision, configuration.channels_last)
    state = new_state(inputs, place.initial, precision, device)
    checkpoint = Checkpoint(folder.state, inputs.key)
    event = checkpoint.restore(state)
    earlier = state.elapsed
    loss = configuration_loss(configuration, inputs.labels, options)
    loader = batches(train_source(inputs, place), state.step, place.workers, pin_memory=device.type == "cuda")
    monitor = PatchMonitor(
        validation_source(inputs, place), place.labels, precision, device, configuration.targets,
        monitored_batches(configuration.batch_size, bool(inputs.monitored)),
    )  # fmt: skip
    journal = Journal(folder.path, state.step, on_log, f"{place.configuration_name} {fold_name(inputs.fold)}")
    interval = Interval()

    progress = horizon.progress(state.step, state.elapsed, state.cool_down)
    while progress < 1:
        rate = learning_rate(options, horizon, state.step, state.elapsed, state.cool_down)
        state.set_learning_rate(rate)
        with interval.waiting():
            batch = next(loader).to(device, precision.channels_last)
        interval.losses.append(
            train_step(state.model, loss, state.optimiser, state.scaler, batch, precision, options.gradient_clip)
        )
        state.step += 1
        state.update_average(options.ema_decay)
        state.elapsed = earlier + time.monotonic() - began
        progress = horizon.progress(state.step, state.elapsed, state.cool_down)
        if not journal.due(state.step, progress):
            continue
        measured = interval.line(place, configuration.precision, state, progress, rate)
        line = observed(measured, inputs, state, monitor, journal, horizon)
        if progress < 1 and (checkpoint.due() or line.event):
            checkpoint.save(state)
        journal.add(line)
        interval = Interval()

    loader.close()
    ended = sentence(state.cool_down, horizon) if state.cool_down else None
    return finish(inputs, place, state, journal, checkpoint, [*place.events, *filter(None, (event, ended))])


def observed(
    line: EpochLog,
    inputs: TrainingInputs,
    state: TrainState,
    monitor: PatchMonitor,
    journal: Journal,
    horizon: Horizon,
) -> EpochLog:
    """The line of the log with the Dice on patches; where it has converged, `state` cools down and the line says so."""
    if line.progress >= 1 or monitor.affordable(state.elapsed):
        line = line.model_copy(update={"validation_dice": monitor.measure(state.evaluated)})
    if not inputs.monitored or state.cool_down is not None:
        return line
    state.cool_down = cool_down_after([*journal.curve, line], horizon, inputs.options.schedule)
    if state.cool_down is None:
        return line
    progress = horizon.progress(state.step, state.elapsed, state.cool_down)
    return line.model_copy(update={"progress": progress, "event": sentence(state.cool_down, horizon)})


class Interval:
    """The steps since the last line of the log: their losses, and how long they waited for data."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.waited = 0.0
        self.began = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    def line(self, place: TrainingPlace, precision: str, state: TrainState, progress: float, rate: float) -> EpochLog:
        return EpochLog(
            step=state.step,
            progress=progress,
            seconds=state.elapsed,
            learning_rate=rate,
            loss=mean_loss(self.losses, place.configuration_name, precision, state.step),
            step_seconds=(time.monotonic() - self.began) / len(self.losses),
            data_wait_seconds=self.waited / len(self.losses),
            peak_memory_bytes=peak_memory(torch.device(place.device)),
        )


def mean_loss(losses: list[torch.Tensor], name: str, precision: str, step: int) -> float:
    """Raises AutoUNetError when it is not a number any more: nothing trained after that is of use."""
    mean = float(torch.stack(losses).mean())
    if math.isfinite(mean):
        return mean
    remedy = (
        "Give another --loss or --seed"
        if precision == "fp32"
        else f'Set "precision" of {name} to "fp32" in plan.json (it is {precision}) and run again'
    )
    raise AutoUNetError(f"{name}: the loss became {mean} before step {step}", remedy)


def finish(
    inputs: TrainingInputs,
    place: TrainingPlace,
    state: TrainState,
    journal: Journal,
    checkpoint: Checkpoint,
    events: Sequence[str],
) -> RunRecord:
    """Write weights, curves and, last, the record: a fold with a record is finished."""
    folder = FoldFolder(place.folder)
    save_weights(folder.weights, state.evaluated.state_dict())
    journal.draw()
    record = RunRecord(
        configuration_name=place.configuration_name,
        configuration=inputs.configuration.key,
        fold=inputs.fold,
        options=inputs.options,
        train_cases=tuple(case.identifier for case in inputs.cases),
        validation_cases=place.validation_cases,
        device=place.device,
        steps=state.step,
        seconds=state.elapsed,
        curve=tuple(journal.curve),
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        peak_memory_bytes=peak_memory(torch.device(place.device)),
        versions={
            "autounet": autounet.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        events=tuple(events),
    )
    record.save(folder.record)
    checkpoint.remove()
    return record


@contextmanager
def budget_errors(place: TrainingPlace) -> Iterator[None]:
    """torch's error of a full GPU becomes BudgetExceeded, which says what to do.

    Nothing is made smaller here: a training that quietly differs from its plan could not be compared with the others.
    The pipeline plans again.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        used = peak_memory(torch.device(place.device)) or 0
        raise BudgetExceeded(
            f"the training does not fit into the memory of {place.device}: {format_size(used)} were in use when it "
            f"needed more, and the plan expected {format_size(place.planned_bytes)}",
            place.configuration_name,
            None,
            "Give a smaller --memory, so that patch and batch become smaller",
        ) from error
