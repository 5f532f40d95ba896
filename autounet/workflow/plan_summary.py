"""How long the run that a plan describes will take, for people who decide whether to start it."""

from __future__ import annotations

import io
import logging
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ..planning.explain import Row, explain, with_double_memory
from ..schema.fingerprint import Fingerprint
from ..schema.options import PlannerOptions, TrainOptions
from ..schema.plan import Configuration, Plan
from ..schema.quantities import format_seconds, format_size, format_time
from ..time_budget.cost_model import case_seconds
from ..time_budget.shape import Work, run_length, total_length
from .context import Context, Setup
from .defaults import FULL_STEPS, train_options
from .make_plan import PlanFile
from .schedule import TrainingSchedule
from .time_shaping import Clock

TITLES = {
    "name": "",
    "patch": "patch",
    "batch": "batch",
    "stages": "stages",
    "features": "features",
    "spacing": "spacing mm",
    "memory": "memory",
    "step": "step",
    "length": "whole run",
}
"""field of `Row` -> heading; the rest are sentences below the table"""
UNKNOWN = "-"
WITHOUT_LIMIT = 10_000
"""characters, to measure a table that nothing narrows"""


def explanation(rows: Sequence[Row], width: int, budget: str) -> str:
    """Plain text of lines of at most `width` characters: a table, then what limits each configuration.

    A configuration has a row; where that does not fit into the width, a column; and where that does not either, a
    block of lines. `budget` is twice the memory, in words.
    """
    table = next((each for each in (_as_rows(rows), _as_columns(rows)) if _needed(each) <= width), None)
    lines = _rendered(table, width) if table is not None else _as_blocks(rows)
    for row in rows:
        lines += ["", *_wrapped(f"{row.name}: limited by {row.limited_by}", width)]
        lines += _wrapped(f"  with {budget}: {row.doubled}", width)
    return "\n".join(lines) + "\n"


def _as_rows(rows: Sequence[Row]) -> Table:
    table = _empty()
    for field, title in TITLES.items():
        table.add_column(title, justify="left" if field == "name" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[getattr(row, field) or UNKNOWN for field in TITLES])
    return table


def _as_columns(rows: Sequence[Row]) -> Table:
    table = _empty()
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right", no_wrap=True)
    for field, title in list(TITLES.items())[1:]:
        table.add_row(title, *[getattr(row, field) or UNKNOWN for row in rows])
    return table


def _as_blocks(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        lines.append(row.name)
        lines += [f"  {title}: {getattr(row, field) or UNKNOWN}" for field, title in list(TITLES.items())[1:]]
    return lines


def _empty() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)


def _needed(table: Table) -> int:
    console = _console(WITHOUT_LIMIT)
    return Measurement.get(console, console.options, table).maximum


def _rendered(table: Table, width: int) -> list[str]:
    console = _console(width)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="    ", drop_whitespace=True) or [text]


log = logging.getLogger(__name__)


def time_plan(setup: Setup, plan: Plan) -> Plan:
    """The plan with how long steps and validation take, for people who decide whether to start; saved if it is ours."""
    file = PlanFile(setup.folder)
    ours = not file.is_edited(plan)
    plan = timed(setup.with_plan(plan))
    if ours:
        file.keep_changed(plan)
    return plan


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


def described(
    plan: Plan,
    schedule: TrainingSchedule,
    work: Work,
    make: Callable[[PlannerOptions], Plan],
    explained: bool,
) -> str:
    """What `plan` prints once the plan is made: the length of the run, and with `explained` the table before it.

    `make` plans the same data set for other planner options.
    """
    folds = {name: len(schedule.folds_of(name)) for name in schedule.configurations}
    text = "\n".join(length_lines(plan, folds, work)) + "\n"
    if not explained:
        return text
    count = len(schedule.folds)
    lengths = {name: run_length(each, work, folds.get(name, count)) for name, each in plan.configurations.items()}
    seconds = {name: length.total for name, length in lengths.items() if length is not None}
    rows = explain(plan, with_double_memory(plan, make), seconds)
    width = shutil.get_terminal_size(fallback=(80, 24)).columns
    return f"{explanation(rows, width, format_size(2 * plan.options.memory_bytes))}\n{text}"
