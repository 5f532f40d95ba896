"""The plan: which configurations there are, and everything that prepared data, weights and memory depend on.

The rules are nnU-Net v2's (Isensee et al., Nature Methods 2021). A preset gives exactly the plans of one of the
planners of nnU-Net 2.8.1; the default follows the same rules in canonical orientation, never exceeds its memory budget
by rounding the batch up, normalises by the channel's kind, and leaves out mirroring where it would swap left and right
classes.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..nets import FAMILIES
from ..schema.errors import OptionError, PlanError
from ..schema.fingerprint import Fingerprint
from ..schema.labels import Labels, planned_targets, targets_of
from ..schema.options import PlannerOptions, TrainOptions
from ..schema.plan import Configuration, Plan
from ..schema.quantities import format_size
from ..schema.run import DeviceProfile
from .configurations import CASCADE, LOWRES, NEEDS_LOWRES, VOLUMES, Volumes, find_volumes, plan_2d
from .memory import Measure, MeasuredMemory, Memory, ProxyMemory
from .normalisation import find_normalisation
from .plan_transfer import USUAL_NAMES, StartingModel, taken_grid, taken_normalisation
from .presets import PRESETS, NominalMemory
from .setting import Setting
from .spacing import Grid, find_grid, numbers

CONFIGURATIONS = USUAL_NAMES
"""in the order of plan.json: a previous stage comes before the one that needs it"""


def plan(
    fingerprint: Fingerprint,
    labels: Labels,
    options: PlannerOptions,
    train_options: TrainOptions,
    device_profile: DeviceProfile | None = None,
    measure: Measure | None = None,
    starting: StartingModel | None = None,
) -> Plan:
    """Every configuration that the rules create, or those of `options.configurations` and their previous stages.

    `measure(network, patch, batch)` gives the peak bytes of a training step; None: nnU-Net's proxy judges. With a
    preset the proxy always judges, and the measure only reports.
    The networks of `starting` are taken over, with its spacing and normalisation; `options` are then those that
    `taking_over.options_for` gives, and no preset.
    `train_options` is there for measures that depend on the optimiser; the rules do not. Raises OptionError for
    unknown names and PlanError when images are too small, the budget is, or the data cannot have a configuration.
    """
    _check_options(fingerprint, labels, options)
    scale = options.spacing_scale
    grid = taken_grid(fingerprint, starting, scale) if starting else find_grid(fingerprint, scale)
    _check_grid(grid)
    normalisation, normalisation_reasons = find_normalisation(fingerprint, options.preset is not None)
    if starting:
        normalisation, normalisation_reasons = taken_normalisation(
            fingerprint, starting, normalisation, normalisation_reasons
        )
    memory = _memory(labels, options, measure)
    setting = Setting(
        fingerprint, labels, options, device_profile, memory, measure, grid, normalisation, starting=starting
    )
    made, configuration_reasons = _configurations(setting)
    return Plan(
        configurations=_share_prepared(made),
        options=options,
        reasons=(
            _orientation_reason(options),
            *_target_reasons(labels),
            *grid.reasons,
            *normalisation_reasons,
            f"Memory: {format_size(options.memory_bytes)}, judged by {memory.source}.",
            *configuration_reasons,
            *_device_reasons(device_profile),
        ),
        fingerprint=fingerprint.digest(),
    )


def _configurations(setting: Setting) -> tuple[dict[str, Configuration], list[str]]:
    """By name in the order of `CONFIGURATIONS`, and the reasons, also for those that are not made."""
    asked = setting.options.configurations
    wanted, reasons = set(asked or (setting.starting.names if setting.starting else CONFIGURATIONS)), []
    if CASCADE in wanted and LOWRES not in wanted:
        wanted.add(LOWRES)
        reasons.append(f"{LOWRES} is planned too, since {CASCADE} needs its segmentations.")
    volumes, impossible = _volumes(setting, wanted)
    if asked is not None and (refused := [name for name in asked if name in impossible]):
        raise PlanError(f"{refused[0]} cannot be planned: {impossible[refused[0]]}")
    reasons += _absences(impossible, wanted)
    configurations = {}
    for name in CONFIGURATIONS:
        if name not in wanted or name in impossible:
            continue
        if name == "2d":
            try:
                configurations[name], found = plan_2d(setting)
            except PlanError as error:
                # others may do where slices are too small for a U-Net; nnU-Net's own plans stay as they are
                if setting.rules or name in (asked or ()) or not volumes:
                    raise
                found = (f"No {name}: {error}.",)
        elif volumes is not None:
            configurations[name], found = VOLUMES[name](setting, volumes)
        reasons += found
    if not configurations:
        raise PlanError("nothing can be planned:\n" + "\n".join(_absences(impossible, wanted)))
    return configurations, reasons


def _volumes(setting: Setting, wanted: set[str]) -> tuple[Volumes | None, dict[str, str]]:
    """What 3-D configurations need, if any is wanted; and those that there cannot be, each with the reason."""
    dims = FAMILIES[setting.family].dims
    impossible = {} if 2 in dims else {"2d": f"the network family {setting.family} is three-dimensional only"}
    if setting.grid.median[0] == 1:
        flat = setting.fingerprint.dimension == 2
        why = "the images are two-dimensional" if flat else "the images have one slice each"
        return None, impossible | dict.fromkeys(VOLUMES, why)
    if 3 not in dims:
        return None, dict.fromkeys(VOLUMES, f"the network family {setting.family} is two-dimensional only")
    if not wanted & set(VOLUMES):
        return None, impossible
    volumes = find_volumes(setting)
    if volumes.lowres is None:
        impossible |= dict.fromkeys(NEEDS_LOWRES, volumes.why)
    return volumes, impossible


def _absences(impossible: dict[str, str], wanted: set[str]) -> Iterator[str]:
    """One sentence for all configurations with the same reason."""
    for why in dict.fromkeys(impossible.values()):
        names = [name for name in CONFIGURATIONS if name in wanted and impossible.get(name) == why]
        if names:
            yield f"No {' and no '.join(names)}: {why}."


def _memory(labels: Labels, options: PlannerOptions, measure: Measure | None) -> Memory:
    if options.preset:
        # nnU-Net counts the entries of dataset.json's labels: regions instead of classes, and the ignore label
        named = 1 + len(labels.regions) if labels.regions else labels.count
        return NominalMemory(PRESETS[options.preset], options.memory_bytes, named + (labels.ignore is not None))
    if measure is None:
        return ProxyMemory(options.memory_bytes, len(targets_of(labels, planned_targets(labels))))
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


def _check_grid(grid: Grid) -> None:
    if min(grid.median) < 1:
        raise PlanError(
            f"at the target spacing of {numbers(grid.spacing)} mm the median image has {numbers(grid.median)} voxels: "
            "the images differ too much in size and spacing. Check the spacing that the files state"
        )


def _share_prepared(configurations: dict[str, Configuration]) -> dict[str, Configuration]:
    """Configurations with equal preprocessing use one folder, named as the first of them says."""
    folders: dict[str, str] = {}
    return {
        name: configuration.model_copy(
            update={"prepared": folders.setdefault(configuration.preprocess.digest(), configuration.prepared)}
        )
        for name, configuration in configurations.items()
    }


def _orientation_reason(options: PlannerOptions) -> str:
    if options.preset:
        planner = PRESETS[options.preset].planner
        return f"Preset {options.preset}: the rules of nnU-Net 2.8.1's {planner}, in the orientation as stored."
    return "Images are turned to the canonical orientation first, so that an axis means the same in every case."


def _target_reasons(labels: Labels) -> Iterator[str]:
    """Nothing without regions, as in most data sets."""
    if labels.regions:
        names = [target.name for target in targets_of(labels, planned_targets(labels))]
        yield (
            "Since there are regions, which may overlap, networks have a sigmoid output for each of "
            f"{', '.join(names)}; a segmentation is painted in this order."
        )


def _device_reasons(profile: DeviceProfile | None) -> list[str]:
    if profile is None:
        return ["Precision fp32: no device was probed."]
    layout = "channels-last" if profile.channels_last else "contiguous"
    why = "chosen by measurement on" if profile.throughput else "the rule for"
    return [f"Precision {profile.precision} with {layout} arrays: {why} {profile.name}."]
