"""The network, grid and intensities of the model that training starts from, for another data set.

As in nnU-Net's own fine-tuning (documentation/pretraining_and_finetuning.md: plans move between data sets whole, with
network, patch size and normalisation), since a kernel has learnt a size in millimetres and an intensity after its
normalisation. What depends on the new images and the device alone stays this planner's: batch, precision, mirroring,
orientation, and a patch no larger than the images or the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from ..nets import FAMILIES
from ..nets.family import covering_size
from ..schema.dataset import Channel
from ..schema.errors import OptionError, PlanError
from ..schema.fingerprint import Fingerprint
from ..schema.options import PlannerOptions
from ..schema.plan import ChannelNormalisation, Configuration, Limit, Limits, NetworkSpec
from ..schema.record import Part
from .memory import Memory
from .search import Found, Task, batch_reason, choose_batch, no_patch_fits
from .spacing import Grid, grid_on, numbers, own_target
from .topology import SIMILAR

USUAL_NAMES = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
FULL_RESOLUTION = ("3d_fullres", "3d_cascade_fullres")
"""one network, but for the channels of the previous stage"""


class StartingModel(Part):
    """The architecture of a packed model, and the images that it is for; no weights."""

    name: str
    """for sentences"""
    channels: tuple[Channel, ...]
    """of its images, in the order in which its networks see them"""
    configurations: dict[str, Configuration]

    @property
    def names(self) -> tuple[str, ...]:
        """The usual configurations that a plan takes over where none is asked for."""
        found = {name: self.source(name) for name in USUAL_NAMES}
        return tuple(name for name, source in found.items() if source == name or source not in (None, *USUAL_NAMES))

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
        return unusual[0] if len(unusual) == 1 and unusual[0] not in USUAL_NAMES else None

    def matched(self, names: tuple[str, ...]) -> tuple[int | None, ...]:
        """For each channel here the position of its own in the model; None: the model has none like it.

        By name, in any case of letters. Where no name is known to the model but the number is the same, by position.
        """
        theirs = [channel.name.casefold() for channel in self.channels]
        found = tuple(theirs.index(each.casefold()) if each.casefold() in theirs else None for each in names)
        if len(names) == len(theirs) and not any(index is not None for index in found):
            return tuple(range(len(names)))
        return found


GRID_SOURCES = (*FULL_RESOLUTION, "2d")
"""whose spacing is that of the full resolution, the first that the model has"""


def options_for(options: PlannerOptions, model: StartingModel) -> PlannerOptions:
    """`options` with the family and width of the model's networks, and the spacing of its 3d_lowres.

    Raises OptionError where the model lacks a configuration that is asked for, or has none that could be planned.
    """
    asked = options.configurations or model.names
    missing = [name for name in asked if model.source(name) is None]
    if missing or not asked:
        wanted, there = (missing or ["that a plan has"])[0], ",".join(model.configurations)
        raise OptionError(
            f"--init {model.name}: the model has no configuration {wanted}; it has {there}. Give --configurations "
            f"{','.join(model.names) or 'and another model'}"
        )
    network = model.configurations[model.source(asked[-1]) or ""].network
    update = {
        "family": network.family,
        "base_features": network.features[0],
        "lowres_spacing": options.lowres_spacing or _lowres_spacing(model),
    }
    return options.model_copy(update=update)


def _lowres_spacing(model: StartingModel) -> tuple[float, float, float] | None:
    spacing = model.configurations["3d_lowres"].preprocess.spacing if "3d_lowres" in model.configurations else None
    return None if spacing is None or spacing[0] is None else (spacing[0], *spacing[1:])


def taken_grid(fingerprint: Fingerprint, model: StartingModel, scale: float) -> Grid:
    """The grid of the model's full resolution, times `scale`; the data set's own where the two differ much.

    An axis more than `SIMILAR` times coarser or finer than the data's own target would lose what the images show, or
    interpolate most of what the network sees.
    """
    target, transpose, reasons = own_target(fingerprint)
    name = next((each for each in (*GRID_SOURCES, *model.configurations) if each in model.configurations), "")
    theirs = model.configurations[name].preprocess
    if theirs.orientation == fingerprint.orientation and fingerprint.dimension == 3:
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
        reasons = [*reasons, f"The model's spacing of {numbers(given[shown])} mm is not taken, since it {why}."]
        return grid_on(fingerprint, target, transpose, reasons, scale)
    taken = target.copy()
    taken[order] = given
    said = f"Target spacing {numbers(given[shown])} mm: the model's, whose kernels have learnt sizes in mm"
    return grid_on(fingerprint, taken, transpose, [f"{said} (the data's own is {numbers(own[shown])} mm)."], scale)


def taken_normalisation(
    fingerprint: Fingerprint, model: StartingModel, own: Sequence[ChannelNormalisation], reasons: Sequence[str]
) -> tuple[tuple[ChannelNormalisation, ...], tuple[str, ...]]:
    """With the model's values where a channel has its scheme; `own` and its `reasons`, one a channel, elsewhere."""
    theirs = next(iter(model.configurations.values())).preprocess.normalisation
    schemes, said = [], []
    names = tuple(channel.name for channel in fingerprint.channels)
    channels = tuple(channel.name for channel in model.channels)
    for name, index, scheme, reason in zip(names, model.matched(names), own, reasons, strict=True):
        if index is not None and theirs[index].scheme == scheme.scheme:
            scheme = theirs[index]
            reason = f"Channel {name}: normalised as {channels[index]} of the model ({scheme.scheme}), by its values."
        elif index is not None:
            reason += f" The model's channel is normalised otherwise ({theirs[index].scheme})."
        schemes.append(scheme)
        said.append(reason)
    return tuple(schemes), tuple(said)


@dataclass(frozen=True)
class Taking:
    """How one configuration of the model becomes one of the new plan."""

    task: Task
    memory: Memory
    source: str
    trained: Configuration
    network: NetworkSpec
    """the model's, with the new numbers of channels and outputs"""
    budget: int

    def find(self) -> Found:
        """Raises PlanError where not even the smallest patch of this network fits."""
        patch, limit = self._patch()
        batch, batch_limit = choose_batch(self.task, self.memory, self.network, patch)
        return Found(
            patch=patch,
            batch=batch,
            network=self.network,
            memory_bytes=self.memory.predicted(self.network, patch, batch),
            limited_by=Limits(patch=limit, batch=batch_limit, width="option"),
            reasons=(
                *self._network_reasons(),
                self._patch_reason(patch, limit),
                batch_reason(self.task, batch, batch_limit),
            ),
        )

    def _patch(self) -> tuple[tuple[int, ...], Limit]:
        """The model's, no larger than the median image needs, made smaller until the least batch fits."""
        family, divisor = FAMILIES[self.network.family], self.network.divisor
        covering = partial(covering_size, family, self.network)
        theirs = self.trained.patch_size
        needed = covering([int(np.ceil(length)) for length in self.task.median])
        patch = tuple(min(pair) for pair in zip(theirs, needed, strict=True))
        if prod(patch) < 2 * prod(divisor):
            patch = theirs  # one voxel at the bottleneck has no variance to be normalised by
        limit: Limit = "option" if patch == theirs else "image"
        while not self._fits(patch):
            limit = "memory" if self.task.allows(patch) else "option"
            smaller = [
                (patch[axis] / self.task.median[axis], axis)
                for axis in range(len(patch))
                if patch[axis] > divisor[axis] and prod(_less(patch, axis, divisor)) >= 2 * prod(divisor)
            ]
            if not smaller:
                raise PlanError(f"{no_patch_fits(self.task, self.memory, self.budget)} Or leave out --init")
            wished = _less(patch, max(smaller)[1], divisor)
            patch = family.valid_size(self.network, wished)
            if patch != wished:
                raise PlanError(f"{no_patch_fits(self.task, self.memory, self.budget)} Or leave out --init")
        return patch, limit

    def _fits(self, patch: tuple[int, ...]) -> bool:
        return (
            self.task.allows(patch) and self.memory.predicted(self.network, patch, self.task.least_batch) <= self.budget
        )

    def _network_reasons(self) -> Iterator[str]:
        name, network, theirs = self.task.name, self.network, self.trained.network
        features = "-".join(map(str, network.features))
        yield (
            f"{name}: the network of the model's {self.source} ({network.family}, {len(network.features)} stages with "
            f"{features} features), so that its weights fit."
        )
        if network.in_channels != theirs.in_channels:
            yield f"{name}: {network.in_channels} input channels instead of the model's {theirs.in_channels}."
        if network.out_channels != theirs.out_channels:
            yield f"{name}: {network.out_channels} outputs instead of the model's {theirs.out_channels}: new heads."

    def _patch_reason(self, patch: tuple[int, ...], limit: Limit) -> str:
        size, theirs = (" x ".join(map(str, each)) for each in (patch, self.trained.patch_size))
        why = {
            "image": f"the median image rounded up; the model's is {theirs}",
            "memory": f"the model's {theirs} made smaller to fit by {self.memory.source}",
        }
        if patch == self.trained.patch_size:
            return f"{self.task.name}: patch {size}, the model's."
        return f"{self.task.name}: patch {size}, {why.get(limit, f'within the limit given; the model has {theirs}')}."


def _less(patch: tuple[int, ...], axis: int, divisor: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length - divisor[index] * (index == axis) for index, length in enumerate(patch))
