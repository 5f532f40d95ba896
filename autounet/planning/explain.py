"""What a plan's configurations are limited by, and what twice the memory would change, as plain text."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..schema.options import GIB, PlannerOptions
from ..schema.plan import Configuration, Limit, Limits, Plan
from ..schema.quantities import format_seconds, format_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WORDS: dict[Limit | None, str] = {
    "memory": "memory",
    "image": "image size",
    "data": "data-set size",
    "time": "time",
    "option": "option given",
    "search": "largest considered",
    "minimum": "smallest batch",
    None: "not known",
}
WHY: dict[tuple[str, Limit], str] = {
    ("patch", "image"): "the patch covers the median image",
    ("patch", "search"): "the patch is the largest that is considered",
    ("patch", "time"): "the time limits the patch",
    ("patch", "option"): "an option limits the patch",
    ("batch", "data"): "the batch covers its share of the data set (5 % by the rules)",
    ("batch", "time"): "the time limits the batch",
    ("batch", "option"): "an option limits the batch",
    ("batch", "minimum"): "the batch is the smallest allowed",
    ("width", "time"): "the time limits the width",
    ("width", "option"): "an option limits the width",
}


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
"""field of `ExplanationRow` -> heading; the rest are sentences below the table"""
UNKNOWN = "-"
WITHOUT_LIMIT = 10_000
"""characters, to measure a table that nothing narrows"""


@dataclass(frozen=True)
class ExplanationRow:
    """One configuration in words; an empty text where something is not known."""

    name: str
    patch: str
    """voxels, network axis order"""
    batch: str
    stages: str
    features: str
    """of the first and the last stage"""
    spacing: str
    """mm, network axis order"""
    memory: str
    """predicted / budget"""
    step: str
    """predicted time of a training step"""
    length: str
    """predicted time of the whole run with this configuration alone"""
    limited_by: str
    """of the patch and of the batch"""
    doubled: str
    """what would change with twice the memory"""


def explain(
    plan: Plan, doubled: Mapping[str, Configuration], seconds: Mapping[str, float]
) -> tuple[ExplanationRow, ...]:
    """A row for each configuration, in the plan's order.

    `doubled` holds what the planner makes of each with twice the memory (`with_double_memory`), `seconds` the predicted
    length of a run with each, where it is known.
    """
    return tuple(
        ExplanationRow(
            name=name,
            patch=_size(each.patch_size),
            batch=str(each.batch_size),
            stages=str(len(each.network.features)),
            features=f"{each.network.features[0]}-{each.network.features[-1]}",
            spacing="x".join(f"{value:.2f}" for value in each.spacing),
            memory=f"{each.predicted_memory_bytes / GIB:.1f}/{plan.options.memory_bytes / GIB:.1f} GB",
            step="" if each.predicted_step_seconds is None else format_seconds(each.predicted_step_seconds),
            length=format_time(seconds[name]) if name in seconds else "",
            limited_by=_limits_in_words(each.limited_by),
            doubled=_change(each, doubled.get(name)),
        )
        for name, each in plan.configurations.items()
    )


def with_double_memory(plan: Plan, make: Callable[[PlannerOptions], Plan]) -> dict[str, Configuration]:
    """Each configuration as `make` plans it with twice the memory. What the time decided is kept.

    A configuration that the rules no longer make is left out.
    """
    made: dict[str, Plan] = {}
    doubled = {}
    for name, configuration in plan.configurations.items():
        options = _doubled_options(plan.options, configuration)
        key = options.digest()
        if key not in made:
            made[key] = make(options)
        if name in made[key].configurations:
            doubled[name] = made[key].configurations[name]
    return doubled


def _doubled_options(options: PlannerOptions, configuration: Configuration) -> PlannerOptions:
    limits = configuration.limited_by
    changes: dict[str, object] = {"memory_bytes": 2 * options.memory_bytes, "configurations": None}
    if limits.width == "time":
        changes["base_features"] = configuration.network.features[0]
    if limits.batch == "time":
        changes["batch_limit"] = configuration.batch_size
    if limits.patch == "time":
        changes["patch_limit"] = math.prod(configuration.patch_size)
    return options.model_copy(update=changes)


def _change(now: Configuration, then: Configuration | None) -> str:
    if then is None:
        return "the rules would not make this configuration"
    pairs = (
        ("patch", _size(now.patch_size), _size(then.patch_size)),
        ("batch", str(now.batch_size), str(then.batch_size)),
        ("stages", str(len(now.network.features)), str(len(then.network.features))),
        ("width", str(now.network.features[0]), str(then.network.features[0])),
    )
    changes = [f"{what} {before} -> {after}" for what, before, after in pairs if before != after]
    if changes:
        return ", ".join(changes)
    why = _why_nothing(now.limited_by)
    return f"nothing: {why}" if why else "nothing"


def _why_nothing(limits: Limits) -> str:
    each = (("patch", limits.patch), ("batch", limits.batch), ("width", limits.width))
    return _joined([WHY[what, limit] for what, limit in each if limit is not None and (what, limit) in WHY])


def _limits_in_words(limits: Limits) -> str:
    parts = [f"{WORDS[limits.patch]} (patch)", f"{WORDS[limits.batch]} (batch)"]
    if limits.patch == limits.batch:
        parts = [WORDS[limits.patch]]
    if limits.width is not None and limits.width not in (limits.patch, limits.batch):
        parts.append(f"{WORDS[limits.width]} (width)")
    return ", ".join(parts)


def _joined(sentences: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(sentences[:-1]), *sentences[-1:]]))


def _size(values: Sequence[int]) -> str:
    return "x".join(str(value) for value in values)


def explanation(rows: Sequence[ExplanationRow], width: int, budget: str) -> str:
    """Plain text of lines of at most `width` characters: a table, then what limits each configuration.

    A configuration has a row; where that does not fit into the width, a column; and where that does not either, a
    block of lines. `budget` is twice the memory, in words.
    """
    table = next((each for each in (_table_of_rows(rows), _table_of_columns(rows)) if _needed(each) <= width), None)
    lines = _rendered(table, width) if table is not None else _blocks(rows)
    for row in rows:
        lines += ["", *_wrapped(f"{row.name}: limited by {row.limited_by}", width)]
        lines += _wrapped(f"  with {budget}: {row.doubled}", width)
    return "\n".join(lines) + "\n"


def _table_of_rows(rows: Sequence[ExplanationRow]) -> Table:
    table = _empty()
    for field, title in TITLES.items():
        table.add_column(title, justify="left" if field == "name" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[getattr(row, field) or UNKNOWN for field in TITLES])
    return table


def _table_of_columns(rows: Sequence[ExplanationRow]) -> Table:
    table = _empty()
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right", no_wrap=True)
    for field, title in list(TITLES.items())[1:]:
        table.add_row(title, *[getattr(row, field) or UNKNOWN for row in rows])
    return table


def _blocks(rows: Sequence[ExplanationRow]) -> list[str]:
    lines = []
    for row in rows:
        lines.append(row.name)
        lines += [f"  {title}: {getattr(row, field) or UNKNOWN}" for field, title in list(TITLES.items())[1:]]
    return lines


def _empty() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _console(width: int) -> Console:
    from rich.console import Console

    return Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)


def _needed(table: Table) -> int:
    from rich.measure import Measurement

    console = _console(WITHOUT_LIMIT)
    return Measurement.get(console, console.options, table).maximum


def _rendered(table: Table, width: int) -> list[str]:
    console = _console(width)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="    ", drop_whitespace=True) or [text]
