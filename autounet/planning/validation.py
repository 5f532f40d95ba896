"""Whether a plan, perhaps edited by hand, can hold for this data."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from autounet.nets import FAMILIES
from autounet.schema.errors import PlanError
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.labels import Labels
from autounet.schema.plan import Configuration, NetworkSpec, Plan


def validate(plan: Plan, fingerprint: Fingerprint, labels: Labels) -> None:
    """Raises PlanError that lists everything wrong, each with the configuration, the value and the remedy."""
    problems = [
        f"{name}: {problem}"
        for name, configuration in plan.configurations.items()
        for problem in _problems(configuration, fingerprint, labels)
    ]
    if problems:
        raise PlanError("the plan cannot be used:\n" + "\n".join(problems))


def _problems(configuration: Configuration, fingerprint: Fingerprint, labels: Labels) -> Iterator[str]:
    yield from _preprocess_problems(configuration, fingerprint)
    network = configuration.network
    if network.family not in FAMILIES:
        yield f"no network family '{network.family}'. There are: {', '.join(FAMILIES)}"
        return
    try:
        FAMILIES[network.family].options.model_validate(network.options)
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        yield f"network.options do not fit the family {network.family}: {details}"
    topology = list(_topology_problems(network))
    yield from topology
    if not topology:
        yield from _patch_problems(configuration)
    if network.in_channels != len(fingerprint.channels):
        yield f"network.in_channels is {network.in_channels}, and the data have {len(fingerprint.channels)} channels"
    if network.out_channels != labels.count:
        yield f"network.out_channels is {network.out_channels}, and there are {labels.count} classes with background"
    for axes, place in (
        (configuration.mirror_axes, "mirror_axes"),
        (configuration.inference.mirror_axes, "inference.mirror_axes"),
    ):
        if any(axis not in range(network.dims) for axis in axes) or len(set(axes)) != len(axes):
            yield f"{place} is {axes}: name each axis from 0 to {network.dims - 1} at most once"


def _preprocess_problems(configuration: Configuration, fingerprint: Fingerprint) -> Iterator[str]:
    preprocess = configuration.preprocess
    if sorted(preprocess.transpose) != [0, 1, 2]:
        yield f"preprocess.transpose is {preprocess.transpose}: it must hold 0, 1 and 2 once each"
    if preprocess.orientation != fingerprint.orientation:
        yield f"preprocess.orientation is {preprocess.orientation}, the fingerprint's is {fingerprint.orientation}"
    if any(value is not None and not value > 0 for value in preprocess.spacing):
        yield f"preprocess.spacing is {preprocess.spacing}: every spacing must be greater than 0"
    if preprocess.spacing[0] is None and configuration.network.dims == 3:
        yield "preprocess.spacing has no first entry: only 2-D networks go without resampling through the plane"
    if len(preprocess.normalisation) != len(fingerprint.channels):
        count, channels = len(preprocess.normalisation), len(fingerprint.channels)
        yield f"preprocess.normalisation has {count} entries, and the data have {channels} channels"
    if configuration.network.dims == 3 and fingerprint.dimension == 2:
        yield "a 3-D network cannot be trained on two-dimensional images: remove this configuration"


def _topology_problems(network: NetworkSpec) -> Iterator[str]:
    if len(network.features) < 2:
        yield "the network has one stage: give it two or more"
    if any(step < 1 for stride in network.strides for step in stride):
        yield f"network.strides are {network.strides}: every stride must be 1 or more"
    elif any(step != 1 for step in network.strides[0]):
        yield f"the first of network.strides is {network.strides[0]}: it must be 1 along every axis"
    if any(size < 1 or size % 2 == 0 for kernel in network.kernel_sizes for size in kernel):
        yield f"network.kernel_sizes are {network.kernel_sizes}: every size must be odd"
    if min((*network.features, *network.encoder_blocks, *network.decoder_blocks), default=1) < 1:
        yield "network.features, encoder_blocks and decoder_blocks must be 1 or more"


def _patch_problems(configuration: Configuration) -> Iterator[str]:
    network, patch = configuration.network, configuration.patch_size
    if min(patch) < 1:
        yield f"patch_size is {patch}: every length must be 1 or more"
        return
    above = FAMILIES[network.family].valid_size(network, patch)
    if above == patch:
        return
    below = tuple(
        length if length == valid else max(valid - step, step)
        for length, valid, step in zip(patch, above, network.divisor, strict=True)
    )
    nearest = _size(above) if below == above else f"{_size(below)} and {_size(above)}"
    yield (
        f"patch_size {_size(patch)} is not divisible by the strides ({_size(network.divisor)} in all). "
        f"The nearest valid sizes are {nearest}"
    )


def _size(values: tuple[int, ...]) -> str:
    return " x ".join(str(value) for value in values)
