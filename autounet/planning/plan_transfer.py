"""The network, grid and intensities of the model that training starts from, for another data set.

As in nnU-Net's own fine-tuning (documentation/pretraining_and_finetuning.md: plans move between data sets whole, with
network, patch size and normalisation), since a kernel has learnt a size in millimetres and an intensity after its
normalisation. What depends on the new images and the device alone stays this planner's: batch, precision, mirroring,
orientation, and a patch no larger than the images or the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from ..nets import FAMILIES
from ..nets.family import covering_size
from ..schema.dataset import Channel
from ..schema.errors import OptionError
from ..schema.fingerprint import Fingerprint
from ..schema.option_rules import CONFIGURATIONS
from ..schema.options import PlannerOptions
from ..schema.plan import ChannelNormalisation, Configuration, Limit, Limits, NetworkSpec, Reason
from ..schema.record import ConfigurationName, Part
from .memory import Memory
from .search import SearchInputs, SearchResult, batch_reason, choose_batch, no_patch_fits
from .spacing import SIMILAR, Grid, grid_on, numbers, own_target, spacing_reason

FULL_RESOLUTION = ("3d_fullres", "3d_cascade_fullres")
"""one network, but for the channels of the previous stage"""


class StartingModel(Part):
    """The architecture of a packed model, and the images that it is for; no weights."""

    name: str
    """for sentences"""
    channels: tuple[Channel, ...]
    """of its images, in the order in which its networks see them"""
    configurations: dict[ConfigurationName, Configuration]

    @property
    def names(self) -> tuple[str, ...]:
        """The configurations that a plan transfers where none is given."""
        sources = {name: self.source(name) for name in CONFIGURATIONS}
        return tuple(
            name for name, source in sources.items() if source == name or source not in (None, *CONFIGURATIONS)
        )

    def source(self, name: str) -> str | None:
        """The configuration of the model that configuration `name` starts from; None: there is none.

        That of the same name. 3d_fullres and 3d_cascade_fullres stand in for each other, as their networks agree; a
        name that only nnU-Net's users know, as an imported model may have, stands for 2d or 3d_fullres where it is
        the only one of these dimensions.
        """
        if name in self.configurations:
            return name
        if name in FULL_RESOLUTION and (other := next((n for n in FULL_RESOLUTION if n in self.configurations), None)):
            return other
        dims = {"2d": 2, "3d_fullres": 3}.get(name)
        unusual = [key for key, each in self.configurations.items() if each.network.dims == dims]
        return unusual[0] if len(unusual) == 1 and unusual[0] not in CONFIGURATIONS else None

    def matched(self, names: tuple[str, ...]) -> tuple[int | None, ...]:
        """For each channel here the position of its own in the model; None: the model has none like it.

        By name, in any case of letters. Where no name is known to the model but the number is the same, by position.
        """
        theirs = [channel.name.casefold() for channel in self.channels]
        positions = tuple(theirs.index(each.casefold()) if each.casefold() in theirs else None for each in names)
        if len(names) == len(theirs) and not any(index is not None for index in positions):
            return tuple(range(len(names)))
        return positions


GRID_SOURCES = (*FULL_RESOLUTION, "2d")
"""whose spacing is that of the full resolution, the first that the model has"""


def transfer_options(options: PlannerOptions, model: StartingModel) -> PlannerOptions:
    """`options` with the family and width of the model's networks, and the spacing of its 3d_lowres.

    Raises OptionError where the model lacks a wanted configuration, or has none that could be planned.
    """
    requested = options.configurations or model.names
    missing = [name for name in requested if model.source(name) is None]
    if missing or not requested:
        wanted, names = (missing or ["that a plan has"])[0], ",".join(model.names)
        raise OptionError(
            f"--init {model.name}: the model has no configuration {wanted}; it has {','.join(model.configurations)}",
            f"Give --configurations {names}" if names else "Give another model",
        )
    network = model.configurations[model.source(requested[-1]) or ""].network
    update = {
        "family": network.family,
        "base_features": network.features[0],
        "lowres_spacing": options.lowres_spacing or _lowres_spacing(model),
    }
    return options.model_copy(update=update)


def _lowres_spacing(model: StartingModel) -> tuple[float, float, float] | None:
    spacing = model.configurations["3d_lowres"].preprocess.spacing if "3d_lowres" in model.configurations else None
    return None if spacing is None or spacing[0] is None else (spacing[0], *spacing[1:])


def transferred_grid(fingerprint: Fingerprint, model: StartingModel, scale: float) -> Grid:
    """The grid of the model's full resolution, times `scale`; the data set's own where the two differ much.

    An axis more than `SIMILAR` times coarser or finer than the data's own target would lose what the images show, or
    interpolate most of what the network sees.
    """
    target, transpose, reasons = own_target(fingerprint)
    name = next((each for each in (*GRID_SOURCES, *model.configurations) if each in model.configurations), "")
    theirs = model.configurations[name].preprocess
    turned = [each.orientation != "as_stored" for each in (theirs, fingerprint)]
    if turned[0] == turned[1] and fingerprint.dimension == 3:
        transpose = theirs.transpose
    order = list(transpose)
    own = target[order]
    given = [mine if value is None else value for mine, value in zip(own, theirs.spacing, strict=True)]
    if fingerprint.dimension == 2:
        given[0] = own[0]
    ratio = max(max(a / b, b / a) for a, b in zip(given, own, strict=True))
    shown = slice(1, None) if fingerprint.dimension == 2 or theirs.spacing[0] is None else slice(None)
    if name == "3d_lowres" or ratio > SIMILAR:
        why = "is its coarser one" if name == "3d_lowres" else f"is more than {SIMILAR:g} times another along an axis"
        text = f"the model's spacing of {numbers(given[shown])} mm is not used, since it {why}"
        reasons = [*reasons, spacing_reason(text)]
        return grid_on(fingerprint, target, transpose, reasons, scale)
    target = target.copy()
    target[order] = given
    reason = spacing_reason(
        f"target spacing {numbers(given[shown])} mm: the model's, whose kernels have learnt sizes in mm (the data's "
        f"own is {numbers(own[shown])} mm)"
    )
    return grid_on(fingerprint, target, transpose, [reason], scale)


def transferred_normalisation(
    fingerprint: Fingerprint, model: StartingModel, own: Sequence[ChannelNormalisation], reasons: Sequence[Reason]
) -> tuple[tuple[ChannelNormalisation, ...], tuple[Reason, ...]]:
    """With the model's values where a channel has its scheme; `own` and its `reasons`, one a channel, elsewhere."""
    theirs = next(iter(model.configurations.values())).preprocess.normalisation
    schemes, transferred = [], []
    names = tuple(channel.name for channel in fingerprint.channels)
    channels = tuple(channel.name for channel in model.channels)
    for name, index, own_scheme, reason in zip(names, model.matched(names), own, reasons, strict=True):
        scheme = own_scheme
        if index is not None and theirs[index].scheme == own_scheme.scheme:
            scheme = theirs[index]
            text = f"channel {name}: normalised as {channels[index]} of the model ({scheme.scheme}), by its values"
            reason = Reason(configuration=None, topic="normalisation", text=text)
        schemes.append(scheme)
        transferred.append(reason)
        if index is not None and theirs[index].scheme != own_scheme.scheme:
            text = f"channel {name}: the model's channel is normalised otherwise ({theirs[index].scheme})"
            transferred.append(Reason(configuration=None, topic="normalisation", text=text))
    return tuple(schemes), tuple(transferred)


def search_with_network(
    inputs: SearchInputs, memory: Memory, source: str, trained: Configuration, network: NetworkSpec, budget: int
) -> SearchResult:
    """Patch and batch for `network`, which is that of the model's configuration `source`, here `trained`.

    `network` has the numbers of channels and outputs of the new data. Raises PlanError where not even the smallest
    patch fits.
    """
    patch, limit = _fitting_patch(inputs, memory, trained, network, budget)
    batch, batch_limit = choose_batch(inputs, memory, network, patch)
    return SearchResult(
        patch=patch,
        batch=batch,
        network=network,
        memory_bytes=memory.predicted(network, patch, batch),
        limited_by=Limits(patch=limit, batch=batch_limit, width="option"),
        reasons=(
            *_network_reasons(inputs.configuration, source, trained.network, network),
            _patch_reason(inputs.configuration, patch, trained.patch_size, limit, memory),
            batch_reason(inputs, batch, batch_limit),
        ),
    )


def _fitting_patch(
    inputs: SearchInputs, memory: Memory, trained: Configuration, network: NetworkSpec, budget: int
) -> tuple[tuple[int, ...], Limit]:
    """The model's patch, no larger than the median image needs, made smaller until the least batch fits."""
    family, divisor = FAMILIES[network.family], network.divisor
    theirs = trained.patch_size
    needed = covering_size(family, network, [int(np.ceil(length)) for length in inputs.median])
    patch = tuple(min(pair) for pair in zip(theirs, needed, strict=True))
    if prod(patch) < 2 * prod(divisor):
        patch = theirs  # one voxel at the bottleneck has no variance to be normalised by
    limit: Limit = "option" if patch == theirs else "image"
    while not (inputs.allows(patch) and memory.predicted(network, patch, inputs.least_batch) <= budget):
        limit = "memory" if inputs.allows(patch) else "option"
        smaller = [
            (patch[axis] / inputs.median[axis], axis)
            for axis in range(len(patch))
            if patch[axis] > divisor[axis] and prod(_shortened(patch, axis, divisor)) >= 2 * prod(divisor)
        ]
        wanted = _shortened(patch, max(smaller)[1], divisor) if smaller else None
        if wanted is None or (patch := family.valid_size(network, wanted)) != wanted:
            raise no_patch_fits(inputs, memory, budget, ", or leave out --init")
    return patch, limit


def _shortened(patch: tuple[int, ...], axis: int, divisor: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length - divisor[index] * (index == axis) for index, length in enumerate(patch))


def _network_reasons(name: str, source: str, theirs: NetworkSpec, network: NetworkSpec) -> Iterator[Reason]:
    features = "-".join(map(str, network.features))
    texts = [
        f"the network of the model's {source} ({network.family}, {len(network.features)} stages with {features} "
        "features), so that its weights fit"
    ]
    if network.in_channels != theirs.in_channels:
        texts.append(f"{network.in_channels} input channels instead of the model's {theirs.in_channels}")
    if network.out_channels != theirs.out_channels:
        texts.append(f"{network.out_channels} outputs instead of the model's {theirs.out_channels}: new heads")
    return (Reason(configuration=name, topic="network", text=text) for text in texts)


def _patch_reason(name: str, patch: tuple[int, ...], theirs: tuple[int, ...], limit: Limit, memory: Memory) -> Reason:
    size, before = (" x ".join(map(str, each)) for each in (patch, theirs))
    why = {
        "image": f"the median image rounded up; the model's is {before}",
        "memory": f"the model's {before} made smaller to fit by {memory.source}",
    }
    text = "the model's" if patch == theirs else why.get(limit, f"within the limit given; the model has {before}")
    return Reason(configuration=name, topic="patch", text=f"patch {size}: {text}")
