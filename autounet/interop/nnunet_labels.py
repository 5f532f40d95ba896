"""nnU-Net's dataset.json of a trained model in our words: channels, classes and regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autounet.datasets.labels import build_labels, parse_labels
from autounet.datasets.layouts.found import channel_names
from autounet.schema.errors import AutoUNetError, ModelError
from autounet.schema.labels import Labels
from autounet.schema.options import DataOptions
from autounet.schema.targets import overlapping_targets


def read_channels(content: Mapping[str, Any], label: str) -> tuple[str, ...]:
    """Names in the order of the network's input. Raises ModelError when there are none."""
    try:
        names = channel_names(dict(content))
    except AutoUNetError as error:
        raise ModelError(f"{label}: {error}") from None
    if not names:
        raise ModelError(f"{label} names no channels (channel_names). Copy the dataset.json of the training beside it")
    return tuple(names)


def read_labels(content: Mapping[str, Any], label: str) -> Labels:
    """Classes by value, the ignore value, and regions in the order in which nnU-Net paints them.

    Raises ModelError when classes are not numbered from 0 without gaps, which nnU-Net's outputs are, or when painting
    regions in the order of `regions_class_order` gives what ours cannot.
    """
    declared = content.get("labels")
    try:
        classes, regions, ignore = parse_labels(declared)
        labels = build_labels(classes, regions, ignore, DataOptions())
        if regions:
            return _with_regions(content, labels, _outputs(declared), label)
    except AutoUNetError as error:
        raise ModelError(f"{label}: {error}") from None
    if labels.values != tuple(range(labels.count)):
        raise ModelError(f"{label}: the labels {labels.values} are not 0, 1, 2, ..., as nnU-Net numbers its outputs")
    if labels.count < 2:
        raise ModelError(f"{label} names no class besides the background. Copy the dataset.json of the training")
    return labels


def _outputs(declared: Any) -> dict[str, tuple[int, ...]]:
    """Name -> values of each of nnU-Net's outputs: all entries but the background and the ignore value, in order."""
    each = {name: tuple(dict.fromkeys(value if isinstance(value, list) else [int(value)]))
            for name, value in declared.items() if name != "ignore"}  # fmt: skip
    return {name: values for name, values in each.items() if set(values) != {0}}


def _with_regions(
    content: Mapping[str, Any], labels: Labels, outputs: Mapping[str, tuple[int, ...]], label: str
) -> Labels:
    """Classes that are outputs themselves keep their names; where the order forbids it, every output is a region."""
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(outputs):
        raise ModelError(f"{label}: {len(outputs)} regions need as many entries of regions_class_order, not {order!r}")
    wanted = [(frozenset(values), int(value)) for values, value in zip(outputs.values(), order, strict=True)]
    all_regions = build_labels({}, dict(outputs), labels.ignore, DataOptions())
    for candidate in (labels, all_regions):
        if _painted(candidate) == wanted:
            return candidate
    shown = ", ".join(f"{name} paints {value}" for name, value in zip(outputs, order, strict=True))
    raise ModelError(
        f"{label}: regions_class_order cannot be followed ({shown}): each region has to paint the first of its values "
        "that no later one holds, and each value has to be painted. Predict by nnU-Net"
    )


def _painted(labels: Labels) -> Sequence[tuple[frozenset[int], int]]:
    """File values of each of our outputs, and the one that it paints."""
    return [
        (frozenset(labels.values[member] for member in target.members), labels.values[target.paints])
        for target in overlapping_targets(labels)
    ]
