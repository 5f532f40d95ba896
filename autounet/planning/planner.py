"""The plan: which configurations there are, and everything that prepared data, weights and memory depend on.

The rules are nnU-Net v2's (Isensee et al., Nature Methods 2021). `preset='nnunet'` gives exactly the plans of
nnU-Net 2.8.1; the default follows the same rules in canonical orientation, never exceeds its memory budget by rounding
the batch up, normalises by the channel's kind, and leaves out mirroring where it would swap left and right classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autounet.nets import FAMILIES
from autounet.planning.lowres import find_lowres_spacing
from autounet.planning.memory import Measure, MeasuredMemory, Memory, ProxyMemory
from autounet.planning.normalisation import find_normalisation
from autounet.planning.search import Found, Task, find_patch, search
from autounet.planning.spacing import Grid, find_grid, numbers
from autounet.planning.topology import Topology
from autounet.schema.errors import OptionError, PlanError
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.labels import Labels
from autounet.schema.options import PlannerOptions, TrainOptions
from autounet.schema.plan import (
    ChannelNormalisation,
    Configuration,
    InferenceSpec,
    NetworkSpec,
    Plan,
    PreprocessSpec,
)
from autounet.schema.quantities import format_size
from autounet.schema.run import DeviceProfile

LEFT_RIGHT = 2
"""canonical array axis (z, y, x) that runs from one side of the body to the other"""


@dataclass(frozen=True)
class Setting:
    """What all configurations of one plan share."""

    fingerprint: Fingerprint
    labels: Labels
    options: PlannerOptions
    profile: DeviceProfile | None
    memory: Memory
    grid: Grid
    normalisation: tuple[ChannelNormalisation, ...]

    def task(self, name: str, spacing: np.ndarray, median: np.ndarray, voxels: float) -> Task:
        return Task(
            name,
            spacing,
            median,
            voxels,
            self.options.minimum_batch,
            self.options.batch_limit,
            self.options.patch_limit,
        )

    def propose(self, topology: Topology) -> NetworkSpec:
        return FAMILIES[self.options.family].propose(
            len(topology.patch),
            len(self.fingerprint.channels),
            self.labels.count,
            topology.strides,
            topology.kernel_sizes,
            self.options.base_features,
            True,
        )

    def search(self, task: Task) -> Found:
        return search(task, self.memory, self.propose, self.options.memory_bytes)


Result = tuple[Configuration, tuple[str, ...]]


def plan(
    fingerprint: Fingerprint,
    labels: Labels,
    options: PlannerOptions,
    train_options: TrainOptions,
    device_profile: DeviceProfile | None = None,
    measure: Measure | None = None,
) -> Plan:
    """Every configuration that the rules create, or those of `options.configurations`.

    `measure(network, patch, batch)` gives the peak bytes of a training step; None, or preset nnunet: nnU-Net's proxy.
    `train_options` is there for measures that depend on the optimiser; the rules do not. Raises OptionError for
    unknown names and PlanError when images are too small, the budget is, or the data cannot have a configuration.
    """
    _check_options(fingerprint, labels, options)
    grid = find_grid(fingerprint, options.spacing_scale)
    normalisation, normalisation_reasons = find_normalisation(fingerprint, options.preset == "nnunet")
    memory = _memory(labels, options, measure)
    setting = Setting(fingerprint, labels, options, device_profile, memory, grid, normalisation)
    reasons = [_orientation_reason(options), *grid.reasons, *normalisation_reasons]
    reasons.append(f"Memory: {format_size(options.memory_bytes)}, judged by {memory.source}.")
    configurations = {}
    for name, build in CONFIGURATIONS.items():
        if options.configurations is not None and name not in options.configurations:
            continue
        if (impossible := _impossible(setting, name)) is not None:
            if options.configurations is not None:
                raise PlanError(f"{name} cannot be planned: {impossible}")
            reasons.append(f"No {name}: {impossible}.")
            continue
        configurations[name], found = build(setting)
        reasons += found
    reasons += _device_reasons(device_profile)
    return Plan(
        configurations=_share_prepared(configurations),
        options=options,
        reasons=tuple(reasons),
        fingerprint=fingerprint.digest(),
    )


def plan_2d(setting: Setting) -> Result:
    """Slices along the first network axis, through which nothing is resampled."""
    grid = setting.grid
    found = setting.search(setting.task("2d", grid.spacing[1:], grid.median[1:], grid.voxels))
    spacing = (None, float(grid.spacing[1]), float(grid.spacing[2]))
    median = np.array([grid.median_cropped[0], *grid.median[1:]])
    reason = "2d: batch Dice, since the slices of a batch are seen as one image."
    return _configuration(setting, "2d", found, spacing, median, batch_dice=True, reason=reason)


def plan_3d_fullres(setting: Setting) -> Result:
    """Volumes at the target spacing. Whether a 3d_lowres would be made decides on batch Dice."""
    grid = setting.grid
    found = setting.search(setting.task("3d_fullres", grid.spacing, grid.median, grid.voxels))

    def patch_at(spacing: np.ndarray, median: np.ndarray, voxels: float) -> tuple[int, ...]:
        task = setting.task("3d_lowres", spacing, median, voxels * grid.cases)
        return find_patch(task, setting.memory, setting.propose, setting.options.memory_bytes)[0]

    lowres = find_lowres_spacing(grid.spacing, grid.median, found.patch, patch_at)
    if lowres is None:
        reason = "3d_fullres: Dice per sample, since a patch sees at least a quarter of the median image."
    else:
        reason = (
            "3d_fullres: batch Dice, since a patch sees less than a quarter of the median image. A coarser "
            f"configuration at {numbers(lowres)} mm would see more."
        )
    spacing = (float(grid.spacing[0]), float(grid.spacing[1]), float(grid.spacing[2]))
    return _configuration(
        setting, "3d_fullres", found, spacing, grid.median, batch_dice=lowres is not None, reason=reason
    )


CONFIGURATIONS: dict[str, Callable[[Setting], Result]] = {"2d": plan_2d, "3d_fullres": plan_3d_fullres}
"""in the order of plan.json"""


def _configuration(
    setting: Setting,
    name: str,
    found: Found,
    spacing: tuple[float | None, float, float],
    median: np.ndarray,
    batch_dice: bool,
    reason: str,
) -> Result:
    options, profile = setting.options, setting.profile
    mirror_axes, mirror_reasons = _mirror_axes(setting, found.network.dims)
    configuration = Configuration(
        preprocess=PreprocessSpec(
            orientation=options.orientation,
            transpose=setting.grid.transpose,
            spacing=spacing,
            normalisation=setting.normalisation,
        ),
        prepared=name,
        patch_size=found.patch,
        batch_size=found.batch,
        network=found.network,
        precision=profile.precision if profile else "fp32",  # type: ignore[arg-type]
        channels_last=profile.channels_last if profile else False,
        mirror_axes=mirror_axes,
        batch_dice=batch_dice,
        inference=InferenceSpec(overlap=options.overlap, mirror_axes=mirror_axes if options.mirror else ()),
        median_shape=tuple(int(np.ceil(length)) for length in median),
        predicted_memory_bytes=found.memory_bytes,
    )
    features = "-".join(str(value) for value in found.network.features)
    depth = f"{name}: {len(found.network.features)} stages with {features} features; axes are halved while they stay"
    return configuration, (*found.reasons, f"{depth} at least 4 voxels long.", reason, *mirror_reasons)


def _mirror_axes(setting: Setting, dims: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """All axes of the network, but not left-right when classes come in left and right pairs."""
    axes = tuple(range(dims))
    if not setting.labels.pairs or setting.options.preset == "nnunet":
        return axes, ()
    order = setting.grid.transpose[-dims:]
    kept = tuple(axis for axis in axes if order[axis] != LEFT_RIGHT)
    return kept, (f"{dims}-D: not mirrored from left to right, since classes come in left and right pairs.",)


def _memory(labels: Labels, options: PlannerOptions, measure: Measure | None) -> Memory:
    if options.preset == "nnunet":
        # nnU-Net counts the entries of dataset.json's labels: regions instead of classes, and the ignore label
        named = 1 + len(labels.regions) if labels.regions else labels.count
        return ProxyMemory(options.memory_bytes, named + (labels.ignore is not None), rounded=True)
    if measure is None:
        return ProxyMemory(options.memory_bytes, labels.count, rounded=False)
    return MeasuredMemory(options.memory_bytes, measure)


def _check_options(fingerprint: Fingerprint, labels: Labels, options: PlannerOptions) -> None:
    if options.family not in FAMILIES:
        raise OptionError(f"no network family '{options.family}'. There are: {', '.join(FAMILIES)}")
    unknown = [name for name in options.configurations or () if name not in CONFIGURATIONS]
    if unknown or options.configurations == ():
        asked = ", ".join(unknown) or "nothing"
        raise OptionError(f"asked to plan {asked}. Configurations are: {', '.join(CONFIGURATIONS)}")
    if fingerprint.orientation != options.orientation:
        raise PlanError(
            f"the fingerprint was made in orientation {fingerprint.orientation}, and the plan is to be made in "
            f"{options.orientation}. Make the fingerprint again"
        )
    if labels.count < 2:
        raise PlanError("there is no class beside the background. Check the labels")


def _impossible(setting: Setting, name: str) -> str | None:
    """Why the data cannot have this configuration."""
    if name == "2d" or setting.grid.median[0] != 1:
        return None
    return "the images are two-dimensional" if setting.fingerprint.dimension == 2 else "the images have one slice each"


def _share_prepared(configurations: dict[str, Configuration]) -> dict[str, Configuration]:
    """Configurations with equal preprocessing use one folder, named after the first of them."""
    folders: dict[str, str] = {}
    return {
        name: configuration.model_copy(update={"prepared": folders.setdefault(configuration.preprocess.digest(), name)})
        for name, configuration in configurations.items()
    }


def _orientation_reason(options: PlannerOptions) -> str:
    if options.preset == "nnunet":
        return "Preset nnunet: the rules and numbers of nnU-Net 2.8.1, in the orientation as stored."
    return "Images are turned to the canonical orientation first, so that an axis means the same in every case."


def _device_reasons(profile: DeviceProfile | None) -> list[str]:
    if profile is None:
        return ["Precision fp32: no device was probed."]
    layout = "channels-last" if profile.channels_last else "contiguous"
    why = "chosen by measurement on" if profile.throughput else "the rule for"
    return [f"Precision {profile.precision} with {layout} arrays: {why} {profile.name}."]
