"""How long a whole run takes: preprocessing, training, validation and what follows, of each configuration and all."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..schema.fingerprint import Fingerprint
from ..schema.plan import Configuration, Plan
from ..schema.quantities import format_seconds, format_time
from .cost_model import Timing, case_seconds

log = logging.getLogger(__name__)

FOLD_OVERHEAD_SECONDS = 4.0
"""building the network, opening the data, writing checkpoints; replaced by what the first fold measures"""
CLOSING_SECONDS = 15.0
"""selection, packing and report, apart from the part that grows with the cases"""
LOOP_SHARE = 1.02
"""validation patches shown while training take up to 2 % more (`training.monitor.TIME_SHARE`)"""
PREPARE_SECONDS_PER_VOXEL = 4e-7
"""reading, resampling and writing one voxel of one channel on one core; generous, since time left over goes to
training"""
CLOSING_SECONDS_PER_CASE = 0.03
"""of selection, packing and report; added to what they take at least"""


@dataclass(frozen=True)
class RunWork:
    """What a run costs apart from training and validation: the size of the data and the workers that read it."""

    cases: int
    voxels: int
    """of all images as stored, every channel counted"""
    workers: int
    """processes that preprocess; 0 and 1: this one"""


@dataclass(frozen=True)
class RunLength:
    """Seconds of each part of a run."""

    preprocessing: float
    training: float
    """of all folds"""
    validation: float
    """of all folds"""
    closing: float

    @property
    def total(self) -> float:
        return self.preprocessing + self.training + self.validation + self.closing


def work_of(fingerprint: Fingerprint, workers: int) -> RunWork:
    voxels = sum(math.prod(case.shape) for case in fingerprint.cases)
    return RunWork(len(fingerprint.cases), voxels * len(fingerprint.channels), workers)


def preprocessing_seconds(work: RunWork) -> float:
    """Of one prepared folder."""
    return work.voxels * PREPARE_SECONDS_PER_VOXEL / max(1, work.workers)


def closing_seconds(work: RunWork) -> float:
    return CLOSING_SECONDS + CLOSING_SECONDS_PER_CASE * work.cases


def run_length(configuration: Configuration, work: RunWork, folds: int) -> RunLength | None:
    """Of one configuration trained alone on `folds` folds; None where its step time or its steps are not known."""
    step, steps = configuration.predicted_step_seconds, configuration.predicted_steps
    if step is None or steps is None:
        return None
    return RunLength(
        preprocessing=preprocessing_seconds(work),
        training=folds * (LOOP_SHARE * steps * step + FOLD_OVERHEAD_SECONDS),
        validation=folds * (configuration.predicted_validation_seconds or 0.0),
        closing=closing_seconds(work),
    )


def total_length(trained: Sequence[tuple[Configuration, int]], work: RunWork) -> float | None:
    """Seconds of a run that trains each configuration on so many folds; None where one of them is not known.

    Those with the same prepared folder share its preprocessing.
    """
    lengths = [run_length(configuration, work, folds) for configuration, folds in trained]
    if not lengths or any(length is None for length in lengths):
        return None
    folders = len({configuration.prepared for configuration, _ in trained})
    parts = sum(length.training + length.validation for length in lengths if length is not None)
    return parts + folders * preprocessing_seconds(work) + closing_seconds(work)


def with_step_times(
    plan: Plan,
    names: Sequence[str],
    measure: Callable[[str, Configuration], Timing],
    steps: int,
    cases_per_fold: float,
    fingerprint: Fingerprint | None = None,
) -> Plan:
    """The plan with measured step and validation seconds, and the `steps` of a fold, in the named configurations.

    Those that have a step time already keep theirs.
    """
    configurations = dict(plan.configurations)
    for name in names:
        configuration = configurations[name]
        if configuration.predicted_step_seconds is not None:
            continue
        timing = measure(name, configuration)
        estimates = {
            "predicted_steps": steps,
            "predicted_step_seconds": timing.step(configuration.batch_size),
            "predicted_validation_seconds": cases_per_fold * case_seconds(configuration, timing, fingerprint),
        }
        configurations[name] = configuration.model_copy(update=estimates)
        log.info("measured: %s takes %s a step", name, format_seconds(timing.step(configuration.batch_size)))
    return plan.model_copy(update={"configurations": configurations})


def length_lines(plan: Plan, folds: Mapping[str, int], work: RunWork, to_convergence: bool = False) -> list[str]:
    """One line for each configuration that is trained, on `folds` folds, and one for all of them together.

    `to_convergence`: trainings may end before their steps.
    """
    about = "at most" if to_convergence else "about"
    trained = [(plan.configurations[name], count) for name, count in folds.items()]
    lines = [
        _length_line(name, configuration, count, work, about)
        for name, (configuration, count) in zip(folds, trained, strict=True)
    ]
    total = total_length(trained, work)
    if total is not None and len(trained) > 1:
        lines.append(f"all of them: {about} {format_time(total)} on this device")
    return lines


def _length_line(name: str, configuration: Configuration, folds: int, work: RunWork, about: str) -> str:
    length = run_length(configuration, work, folds)
    if length is None:
        return f"{name}: its steps were not timed"
    times = "1 training" if folds == 1 else f"{folds} folds"
    return (
        f"{name}: {configuration.predicted_steps:,} steps x {times}: {about} {format_time(length.total)} on this "
        f"device ({format_seconds(configuration.predicted_step_seconds or 0.0)} a step; preprocessing "
        f"{format_time(length.preprocessing)}, validation {format_time(length.validation)})"
    )
