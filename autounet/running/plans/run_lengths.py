"""How long the run that a plan describes will take, for people who decide whether to start it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping

from autounet.planning.explain import explain, with_double_memory
from autounet.planning.run_length import Work, run_length, total_length, work_of
from autounet.planning.timing import case_seconds
from autounet.running.context import Context
from autounet.running.plans.explaining import explanation
from autounet.running.plans.time_shaping import Clock
from autounet.running.recipes import FULL_STEPS, train_options
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.options import PlannerOptions, TrainOptions
from autounet.schema.plan import Configuration, Plan
from autounet.schema.quantities import format_seconds, format_size, format_time

log = logging.getLogger(__name__)


def timed(context: Context) -> Plan:
    """The context's plan with the times of what it trains, measured on its device, for a run without a time limit."""
    known, steps = context.known, context.steps or FULL_STEPS
    cases = len(known.dataset.cases)
    clock = Clock(
        known.dataset.labels, context.profile.device, context.profile.sample_rates, context.loader_workers, cases
    )  # fmt: skip
    validated = 0.0 if context.folds == (None,) else cases / len(known.splits.folds)
    options = train_options(context.options, steps, known.fingerprint.dimension)
    names, fingerprint = tuple(context.configurations), known.fingerprint
    return with_step_times(context.plan, names, clock, options, steps, validated, fingerprint)


def with_step_times(
    plan: Plan,
    names: tuple[str, ...],
    clock: Clock,
    options: TrainOptions,
    steps: int,
    cases_per_fold: float,
    fingerprint: Fingerprint | None = None,
) -> Plan:
    """The plan with measured step and validation seconds, and the steps of a fold, in the named configurations.

    Those that have a step time already keep theirs. `steps` are a fold's, `options` those of such a training.
    """
    configurations = dict(plan.configurations)
    for name in names:
        configuration = configurations[name]
        if configuration.predicted_step_seconds is not None:
            continue
        timing = clock.timing(configuration, options)
        estimates = {
            "predicted_steps": steps,
            "predicted_step_seconds": timing.step(configuration.batch_size),
            "predicted_validation_seconds": cases_per_fold * case_seconds(configuration, timing, fingerprint),
        }
        configurations[name] = configuration.model_copy(update=estimates)
        log.info("measured: %s takes %s a step", name, format_seconds(timing.step(configuration.batch_size)))
    return plan.model_copy(update={"configurations": configurations})


def length_lines(plan: Plan, folds: Mapping[str, int], work: Work) -> list[str]:
    """One line for each configuration that is trained, on `folds` folds, and one for all of them together."""
    trained = [(plan.configurations[name], count) for name, count in folds.items()]
    lines = [
        _length_line(name, configuration, count, work)
        for name, (configuration, count) in zip(folds, trained, strict=True)
    ]
    total = total_length(trained, work)
    if total is not None and len(trained) > 1:
        lines.append(f"all of them: about {format_time(total)} on this device")
    return lines


def _length_line(name: str, configuration: Configuration, folds: int, work: Work) -> str:
    length = run_length(configuration, work, folds)
    if length is None:
        return f"{name}: its steps were not timed"
    times = "1 training" if folds == 1 else f"{folds} folds"
    return (
        f"{name}: {configuration.predicted_steps:,} steps x {times}: about {format_time(length.total)} on this device "
        f"({format_seconds(configuration.predicted_step_seconds or 0.0)} a step; preprocessing "
        f"{format_time(length.preprocessing)}, validation {format_time(length.validation)})"
    )


def described(context: Context, make: Callable[[PlannerOptions], Plan], explained: bool) -> str:
    """What `plan` prints once the plan is made: the length of the run, and with `explained` the table before it.

    `make` plans the same data set for other planner options.
    """
    plan, work = context.plan, work_of(context.known.fingerprint, context.workers)
    folds = {name: len(context.folds_of(name)) for name in context.configurations}
    text = "\n".join(length_lines(plan, folds, work)) + "\n"
    if not explained:
        return text
    count = len(context.folds)
    lengths = {name: run_length(each, work, folds.get(name, count)) for name, each in plan.configurations.items()}
    seconds = {name: length.total for name, length in lengths.items() if length is not None}
    rows = explain(plan, with_double_memory(plan, make), seconds)
    width = shutil.get_terminal_size(fallback=(80, 24)).columns
    return f"{explanation(rows, width, format_size(2 * plan.options.memory_bytes))}\n{text}"
