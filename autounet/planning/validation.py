"""Whether a plan, perhaps edited by a person, is valid for the data and fits into the memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from pydantic import ValidationError

from ..nets import FAMILIES
from ..schema.errors import PlanError
from ..schema.fingerprint import Fingerprint
from ..schema.labels import Labels, planned_targets, targets_of
from ..schema.plan import LEFT_RIGHT, Configuration, NetworkSpec, Plan, swapped_outputs
from ..schema.quantities import format_size
from .memory import Memory


def validate(plan: Plan, fingerprint: Fingerprint, labels: Labels, memory: Memory | None = None) -> tuple[str, ...]:
    """Raises PlanError that lists everything wrong, each with the configuration, the value and the remedy.

    `memory` predicts whether a training fits; None: that is not checked. The memory of a preset's plan is nominal:
    there a training that does not fit is returned as a warning.
    """
    problems: list[str] = list(_shared_problems(plan))
    warnings: list[str] = []
    for name, configuration in plan.configurations.items():
        invalid = [f"{name}: {problem}" for problem in _problems(configuration, fingerprint, labels)]
        problems += invalid
        if memory is not None and not invalid:
            too_large = [f"{name}: {problem}" for problem in _memory_problems(configuration, memory)]
            (warnings if plan.options.preset else problems).extend(too_large)
    if problems:
        raise PlanError("the plan is not valid:\n" + "\n".join(problems))
    return tuple(warnings)


def _shared_problems(plan: Plan) -> Iterator[str]:
    """What one configuration alone does not show."""
    if len(kinds := {each.targets for each in plan.configurations.values()}) > 1:
        yield f"targets are {' and '.join(sorted(kinds))}: give all configurations the same, so that they compare"
    homes: dict[str, str] = {}
    for name, configuration in plan.configurations.items():
        for what, value in (("the name of a configuration", name), ("prepared", configuration.prepared)):
            if not re.fullmatch(r"\w[\w.+-]*", value):
                yield f"{name}: {what} is {value!r}: it names a folder and may hold letters, digits, _, -, + and ."
        first = homes.setdefault(configuration.prepared, name)
        if plan.configurations[first].preprocess != configuration.preprocess:
            yield (
                f"{first} and {name} share prepared/{configuration.prepared} and differ in preprocess: edit both, or "
                "give one another name in prepared"
            )
        previous = configuration.previous_stage
        if previous is not None and (previous == name or previous not in plan.configurations):
            yield f"{name}: previous_stage is {previous}: it must be another configuration of this plan"


def _problems(configuration: Configuration, fingerprint: Fingerprint, labels: Labels) -> Iterator[str]:
    yield from _preprocess_problems(configuration, fingerprint)
    yield from network_problems(configuration)
    network = configuration.network
    if network.family not in FAMILIES:
        return
    classes = 0 if configuration.previous_stage is None else labels.count - 1
    if network.in_channels != len(fingerprint.channels) + classes:
        more = f" and the previous stage {classes} classes" if classes else ""
        channels = len(fingerprint.channels)
        yield (
            f"network.in_channels is {network.in_channels}, and the data have {channels} channels{more}: "
            f"it must be {channels + classes}"
        )
    yield from _target_problems(configuration, labels)
    yield from _mirror_problems(configuration, fingerprint, labels)


def network_problems(configuration: Configuration) -> Iterator[str]:
    """What is wrong with the network and its patch, whatever the data are."""
    network = configuration.network
    if network.family not in FAMILIES:
        yield f"network.family is {network.family}: it must be one of {', '.join(FAMILIES)}"
        return
    of_family = list(_family_problems(network))
    yield from of_family
    topology = list(_topology_problems(network))
    yield from topology
    if not topology and not of_family:
        yield from _patch_problems(configuration)


def _target_problems(configuration: Configuration, labels: Labels) -> Iterator[str]:
    """With regions, a person may prefer to train on the classes all the same."""
    kind, outputs = configuration.targets, configuration.network.out_channels
    if kind == "regions" and planned_targets(labels) == "classes":
        yield f'targets is regions, and the labels have none: give "classes" and out_channels {labels.count}'
        return
    names = [target.name for target in targets_of(labels, kind)]
    if outputs != len(names):
        what = "classes with background" if kind == "classes" else f"targets ({', '.join(names)})"
        yield f"network.out_channels is {outputs}, and there are {len(names)} {what}: it must be {len(names)}"


def _mirror_problems(configuration: Configuration, fingerprint: Fingerprint, labels: Labels) -> Iterator[str]:
    dims, swap, predicted = configuration.network.dims, configuration.swap_axis, configuration.inference.mirror_axes
    for axes, place in ((configuration.mirror_axes, "mirror_axes"), (predicted, "inference.mirror_axes")):
        if any(axis not in range(dims) for axis in axes) or len(set(axes)) != len(axes):
            yield f"{place} is {axes}: name each axis from 0 to {dims - 1} at most once"
    if swap is None:
        return
    preprocess = configuration.preprocess
    order = preprocess.transpose[-dims:]
    known = preprocess.orientation != "as_stored" and fingerprint.oriented
    if swap not in range(dims) or order[swap] != LEFT_RIGHT or not known or not labels.pairs:
        yield (
            f"swap_axis is {swap}: it must be the axis from left to right of images turned to the patient's axes, with "
            "classes in left and right pairs, or null"
        )
    elif swap in predicted and swapped_outputs(labels, configuration.targets) is None:
        yield f"inference.mirror_axes is {predicted}: leave out {swap}, since a region has no mirror image"


def _family_problems(network: NetworkSpec) -> Iterator[str]:
    family = FAMILIES[network.family]
    try:
        family.options.model_validate(network.options)
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        yield f"network.options do not fit the family {network.family}: {details}"
        return
    if network.dims not in family.dims:
        yield f"network.dims is {network.dims}: for the family {network.family} it must be {family.dims[0]}"
    if network.deep_supervision and not family.deep_supervision:
        yield f"network.deep_supervision is true, and the family {network.family} has one output: set it to false"
    yield from family.problems(network)


def _preprocess_problems(configuration: Configuration, fingerprint: Fingerprint) -> Iterator[str]:
    preprocess = configuration.preprocess
    if sorted(preprocess.transpose) != [0, 1, 2]:
        yield f"preprocess.transpose is {preprocess.transpose}: it must hold 0, 1 and 2 once each"
    if preprocess.orientation != fingerprint.orientation:
        yield f"preprocess.orientation is {preprocess.orientation}: it must be {fingerprint.orientation}"
    if any(value is not None and not (math.isfinite(value) and value > 0) for value in preprocess.spacing):
        yield f"preprocess.spacing is {preprocess.spacing}: every spacing must be a number greater than 0"
    if preprocess.spacing[0] is None and configuration.network.dims == 3:
        yield (
            f"preprocess.spacing is {preprocess.spacing}: the first entry must be a number, since only 2-D networks go "
            "without resampling through the plane"
        )
    if len(configuration.median_shape) != 3 or min(configuration.median_shape) < 1:
        yield f"median_shape is {configuration.median_shape}: it needs three lengths of 1 or more"
    if len(preprocess.normalisation) != len(fingerprint.channels):
        count, channels = len(preprocess.normalisation), len(fingerprint.channels)
        yield f"preprocess.normalisation has {count} entries: it must have {channels}, one for each channel"
    if configuration.network.dims == 3 and fingerprint.dimension == 2:
        yield "network.dims is 3, and the images are two-dimensional: remove this configuration"


def _topology_problems(network: NetworkSpec) -> Iterator[str]:
    if len(network.features) < 2:
        yield f"network.features is {network.features}: there must be two stages or more"
    if any(step < 1 for stride in network.strides for step in stride):
        yield f"network.strides are {network.strides}: every stride must be 1 or more"
    elif any(step != 1 for step in network.strides[0]):
        yield f"the first of network.strides is {network.strides[0]}: it must be 1 along every axis"
    if any(size < 1 or size % 2 == 0 for kernel in network.kernel_sizes for size in kernel):
        yield f"network.kernel_sizes are {network.kernel_sizes}: every size must be odd"
    if min((*network.features, *network.encoder_blocks, *network.decoder_blocks), default=1) < 1:
        yield (
            f"network.features is {network.features}, encoder_blocks {network.encoder_blocks} and decoder_blocks "
            f"{network.decoder_blocks}: every number must be 1 or more"
        )


def _patch_problems(configuration: Configuration) -> Iterator[str]:
    network, patch = configuration.network, configuration.patch_size
    if min(patch) < 1:
        yield f"patch_size is {patch}: every length must be 1 or more"
        return
    valid_size = FAMILIES[network.family].valid_size
    above = valid_size(network, patch)
    if above == patch:
        return
    below = _size_below(network, patch)
    nearest = _size(above) if below in (None, above) else f"{_size(below or ())} and {_size(above)}"
    padded = valid_size(network, network.divisor) == network.divisor
    wrong = "divisible by the strides" if padded else f"an input of a {network.family} network with its strides"
    yield (
        f"patch_size {_size(patch)} is not {wrong} ({_size(network.divisor)} in all). "
        f"The nearest valid sizes are {nearest}"
    )


def _size_below(network: NetworkSpec, patch: tuple[int, ...]) -> tuple[int, ...] | None:
    """The largest valid size that is no longer than `patch` along any axis, but at least the smallest valid length.

    None where a family has no such size within two steps of the strides.
    """
    valid_size = FAMILIES[network.family].valid_size
    smallest = valid_size(network, (1,) * network.dims)
    lengths = []
    for axis, (length, least, step) in enumerate(zip(patch, smallest, network.divisor, strict=True)):
        wanted = max(length, least)
        tries = (tried for tried in range(wanted, max(least, wanted - 2 * step) - 1, -1))
        fitting = (tried for tried in tries if valid_size(network, _replaced(smallest, axis, tried))[axis] == tried)
        largest = next(fitting, None)
        if largest is None:
            return None
        lengths.append(largest)
    below = tuple(lengths)
    return below if valid_size(network, below) == below else None


def _memory_problems(configuration: Configuration, memory: Memory) -> Iterator[str]:
    network, patch, batch = configuration.network, configuration.patch_size, configuration.batch_size
    if memory.fits(network, patch, batch):
        return
    largest = memory.largest_batch(network, patch, batch)
    smaller = _fitting_patch(configuration, memory)
    remedies = [f"batch_size {largest}, the largest that fits"] if largest >= 1 else []
    if smaller is not None:
        remedies.append(f"patch_size {_size(smaller)} with this batch")
    advice = " or ".join(remedies) or "fewer features; no patch fits with this network"
    yield (
        f"a batch of {batch} patches of {_size(patch)} does not fit into the memory: "
        f"{format_size(memory.predicted(network, patch, batch))} by {memory.source}. Give {advice}, or more --memory"
    )


def _fitting_patch(configuration: Configuration, memory: Memory) -> tuple[int, ...] | None:
    """The first valid patch that fits with the planned batch, made smaller along its longest axis step by step."""
    network, patch = configuration.network, configuration.patch_size
    valid_size = FAMILIES[network.family].valid_size
    while not memory.fits(network, patch, configuration.batch_size):
        shorter = [
            valid_size(network, _replaced(patch, axis, length - step))
            for axis, (length, step) in enumerate(zip(patch, network.divisor, strict=True))
            if length > step
        ]
        smaller = [size for size in shorter if math.prod(size) < math.prod(patch)]
        if not smaller:
            return None
        patch = min(smaller, key=lambda size: (max(size), math.prod(size)))
    return patch


def _replaced(size: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return (*size[:axis], length, *size[axis + 1 :])


def _size(values: tuple[int, ...]) -> str:
    return " x ".join(str(value) for value in values)
