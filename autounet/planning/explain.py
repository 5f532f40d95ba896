"""What a plan's configurations are limited by, and what twice the memory would change: rows that people can read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..schema.options import GIB, PlannerOptions
from ..schema.plan import Configuration, Limit, Limits, Plan
from ..schema.quantities import format_seconds, format_time

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


@dataclass(frozen=True)
class Row:
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


def explain(plan: Plan, doubled: Mapping[str, Configuration], seconds: Mapping[str, float]) -> tuple[Row, ...]:
    """A row for each configuration, in the plan's order.

    `doubled` holds what the planner makes of each with twice the memory (`with_double_memory`), `seconds` the predicted
    length of a run with each, where it is known.
    """
    return tuple(
        Row(
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
