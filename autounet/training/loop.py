"""Training one fold, from top to bottom."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

import autounet

from ..ops.device import peak_memory
from ..schema.errors import BudgetExceeded
from ..schema.quantities import format_size
from ..schema.run import Compilation, EpochLog, RunRecord, fold_name
from ..schema.stage_inputs import TrainingInputs, TrainingPlace
from ..step import Precision, algorithms, configuration_loss
from ..store.run_folder import FoldFolder
from ..store.weights import save_weights
from ..workers import keep_freed_memory
from .compiled import compile_network
from .guard import RATE_AFTER_SETBACK, require_learned, save_when_due, set_back
from .interval import Interval
from .journal import Journal
from .loader import BatchLoader
from .monitor import (
    KEPT_BYTES,
    PatchMonitor,
    judging_batches,
    left_behind,
    left_behind_sentence,
    monitored_batches,
)
from .ranks import Alone, advance, emphasise
from .schedule import Horizon, cool_down_after, learning_rate, sentence
from .sources import class_patches, train_source, validation_source
from .state import Checkpoint, TrainState, Unstable, new_state
from .torchrun import crew_of


def train_fold(
    inputs: TrainingInputs,
    place: TrainingPlace,
    horizon: Horizon,
    on_log: Callable[[EpochLog], None] | None = None,
    on_step: Callable[[float], None] = lambda progress: None,
) -> RunRecord:
    """Train one fold to its horizon; continue where an interrupted training by the same inputs left off.

    With `inputs.monitored` it ends sooner when it has converged (`schedule.py`), after its learning rate has fallen.

    Writes `weights.safetensors`, `record.json`, `log.jsonl`, `progress.png` and, while running, `state.pt` into the
    place's folder. `on_log` is called with every line of the log, `on_step` with the progress after every
    step: where that raises Cancelled, the state is saved first. Where the loss is no number any more, or nothing is
    segmented any more, the training goes back (`guard.py`), and at the second time raises AutoUNetError. Raises
    BudgetExceeded when the device has too little memory, and ValueError where of a previous stage and the folder of its
    labels only one is given.
    """
    if (place.previous is None) != (inputs.configuration.previous_stage is None):
        raise ValueError(f"{place.configuration_name}: previous stage and the folder of its labels go together")
    keep_freed_memory()
    with algorithms(inputs.options.deterministic), budget_errors(place):
        went_back = False
        while True:
            try:
                with crew_of(inputs, place) as crew:
                    return _train(inputs, place, horizon, crew, on_log, on_step, went_back)
            except Unstable as error:
                found = error.with_traceback(None)  # which would keep the network in memory
            set_back(inputs, place, found)
            went_back = True


def _train(
    inputs: TrainingInputs,
    place: TrainingPlace,
    horizon: Horizon,
    crew: Alone,
    on_log: Callable[[EpochLog], None] | None,
    on_step: Callable[[float], None],
    went_back: bool,
) -> RunRecord:
    """`went_back`: whether the state that is there was put there on purpose, and not left by an interruption."""
    began = time.monotonic()
    folder, device = FoldFolder(place.folder), torch.device(place.device)
    folder.path.mkdir(parents=True, exist_ok=True)
    configuration, options = inputs.configuration, inputs.options
    precision = Precision(configuration.precision, configuration.channels_last)
    state = new_state(inputs, place.initial, precision, device)
    checkpoint = Checkpoint(folder.state, inputs.key)
    event = checkpoint.restore(state)
    crew.begin(state)
    network = compile_network(inputs, place, state, precision, horizon)
    earlier = state.elapsed
    loss = configuration_loss(configuration, inputs.labels, options)
    monitors = Monitors.of(inputs, place, precision, device)
    loader = BatchLoader(crew.source(train_source(inputs, place)), state.step, place.workers, device)
    journal = Journal(folder.path, state.step, on_log, f"{place.configuration_name} {fold_name(inputs.fold)}")
    interval = Interval()

    emphasise(monitors.emphasised(inputs, state), loader, loss, crew)
    progress = horizon.progress(state.step, state.elapsed, state.cool_down)
    while progress < 1:
        rate = learning_rate(options, horizon, state.step, state.elapsed, state.cool_down)
        rate *= 1 if state.setback is None else RATE_AFTER_SETBACK
        crew.step(rate)
        batch = next(loader).to(device, precision.channels_last)
        value = advance(state, loss, batch, precision, options, rate)
        interval.add(state.step, batch.cases, value)
        state.elapsed = earlier + time.monotonic() - began
        progress = horizon.progress(state.step, state.elapsed, state.cool_down)
        due = journal.due(state.step, progress)
        if due or device.type == "cpu":  # a GPU would have to be waited for
            interval.look(state)
        with checkpoint.saved_when_cancelled(state):
            on_step(progress)
        if not due or not (interval.losses or progress >= 1):
            continue
        measured = interval.line(place, state, progress, rate, loader.waited(), journal)
        line = observed(measured, inputs, state, monitors, journal, horizon)
        require_learned([*journal.curve, line], state)
        emphasise(monitors.emphasised(inputs, state), loader, loss, crew)
        if progress < 1:
            save_when_due(checkpoint, state, [*journal.curve, line], options.deterministic, folder.good_state)
        journal.add(line)
        interval = Interval()

    loader.close()
    network.close()
    events = [*place.warnings, *place.events, state.setback, None if went_back else event]
    events += [*(line.event for line in journal.curve), *loader.events]
    return finish(inputs, place, state, journal, checkpoint, [each for each in events if each], network.told)


class Monitors(NamedTuple):
    """What measures Dice on patches: of validation cases, and of training cases."""

    validation: PatchMonitor
    training: PatchMonitor

    @classmethod
    def of(cls, inputs: TrainingInputs, place: TrainingPlace, precision: Precision, device: torch.device) -> Monitors:
        configuration, deciding = inputs.configuration, bool(inputs.monitored)
        given = (place.labels, precision, device, configuration.targets)
        shown = monitored_batches(configuration.batch_size, deciding)
        return cls(
            PatchMonitor(validation_source(inputs, place), *given, shown, KEPT_BYTES if deciding else 0),
            PatchMonitor(class_patches(inputs, place), *given, judging_batches(configuration.batch_size)),
        )

    def emphasised(self, inputs: TrainingInputs, state: TrainState) -> tuple[int, ...]:
        """Dense classes that samples show more often: those that are left behind, and those of such regions."""
        if not inputs.options.emphasis:
            return ()
        members = (self.training.targets[channel].members for channel in state.left_behind)
        return tuple(sorted(set().union(*members)))


def observed(
    line: EpochLog,
    inputs: TrainingInputs,
    state: TrainState,
    monitors: Monitors,
    journal: Journal,
    horizon: Horizon,
) -> EpochLog:
    """The line of the log with the Dice on patches, and what follows from it, which `state` then holds.

    Where the training has converged, it cools down; else classes may be left behind, or no longer.
    """
    ends = line.progress >= 1
    if ends or monitors.validation.affordable(state.elapsed):
        line = line.model_copy(update={"validation_dice": monitors.validation.measure(state.evaluated)})
    if inputs.monitored and state.cool_down is None:
        state.cool_down = cool_down_after([*journal.curve, line], horizon, inputs.options.schedule)
        if state.cool_down is not None:
            progress = horizon.progress(state.step, state.elapsed, state.cool_down)
            event = "; ".join(filter(None, [line.event, sentence(state.cool_down, horizon)]))
            line = line.model_copy(update={"progress": progress, "event": event, "converged": True})
    if ends or is_judged(line, inputs, monitors.training, journal, horizon):
        line = line.model_copy(update={"training_dice": monitors.training.measure(state.evaluated)})
    return judged(line, inputs, state, monitors.training, journal)


def is_judged(
    line: EpochLog, inputs: TrainingInputs, monitor: PatchMonitor, journal: Journal, horizon: Horizon
) -> bool:
    """Whether it is time to measure the Dice on patches of training cases, on which samples depend.

    Where the same weights are promised, or the length is given in steps, steps decide, and not how long they took.
    """
    if not inputs.options.deterministic and horizon.seconds is not None:
        return monitor.affordable(line.seconds)
    return monitor.due(line.step - max((each.step for each in journal.curve if each.training_dice), default=0))


def judged(
    line: EpochLog, inputs: TrainingInputs, state: TrainState, monitor: PatchMonitor, journal: Journal
) -> EpochLog:
    """The line with the classes that are left behind, and a sentence where they are others than before."""
    names = [target.name for target in monitor.targets]
    before = [names[channel] for channel in state.left_behind]
    line = line.model_copy(update={"left_behind": left_behind([*journal.curve, line], before)})
    state.left_behind = tuple(names.index(name) for name in line.left_behind)
    told = [line.event, left_behind_sentence(line, before, inputs.options.emphasis)]
    return line.model_copy(update={"event": "; ".join(filter(None, told)) or None})


def finish(
    inputs: TrainingInputs,
    place: TrainingPlace,
    state: TrainState,
    journal: Journal,
    checkpoint: Checkpoint,
    events: Sequence[str],
    compilation: Compilation,
) -> RunRecord:
    """Write weights, curves and, last, the record: a fold with a record is finished."""
    folder = FoldFolder(place.folder)
    state.require_finite()
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
        }
        | {each.package: each.version for each in inputs.plugins},
        plugins=inputs.plugins,
        events=tuple(events),
        left_behind=journal.curve[-1].left_behind if journal.curve else (),
        compilation=compilation,
    )
    record.save(folder.record)
    checkpoint.remove()
    folder.good_state.unlink(missing_ok=True)
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
