"""The plan: configurations, how channels are normalised, and all else that prepared data and weights depend on.

The rules are nnU-Net v2's (Isensee et al., Nature Methods 2021). A preset gives exactly the plans of one of the
planners of nnU-Net 2.8.1; the default follows the same rules in the patient's orientation, never exceeds its memory
budget by rounding the batch up, normalises by the channel's kind, and leaves out mirroring where it would swap left and
right classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..nets import FAMILIES
from ..schema.dataset import ChannelKind
from ..schema.errors import OptionError, PlanError, unknown_name
from ..schema.fingerprint import ChannelFingerprint, Fingerprint
from ..schema.labels import Labels, planned_targets, targets_of
from ..schema.option_rules import CONFIGURATIONS
from ..schema.options import PlannerOptions, TrainOptions
from ..schema.plan import ChannelNormalisation, Configuration, Plan, Reason, Topic
from ..schema.quantities import format_size
from ..schema.run import DeviceProfile
from .configurations import CASCADE, LOWRES, NEEDS_LOWRES, VOLUMES, VolumeSearch, find_volumes, plan_2d
from .memory import Measure, MeasuredMemory, Memory, ProxyMemory
from .plan_inputs import PlanInputs
from .plan_transfer import StartingModel, transferred_grid, transferred_normalisation
from .search import PRESETS, NominalMemory
from .spacing import Grid, find_grid, numbers


def plan(
    fingerprint: Fingerprint,
    labels: Labels,
    options: PlannerOptions,
    train_options: TrainOptions,
    device_profile: DeviceProfile | None = None,
    measure: Measure | None = None,
    starting: StartingModel | None = None,
    constant_bytes: int = 0,
) -> Plan:
    """Every configuration that the rules create, or those of `options.configurations` and their previous stages.

    `measure(network, patch, batch)` gives the peak bytes of a training step; None: nnU-Net's proxy decides what fits.
    With a preset the proxy always decides, and the measure only reports. Of what it gives, `constant_bytes` are there
    whatever the network, as far as known.
    The networks, spacing and normalisation of `starting` are transferred; `options` are then those that
    `plan_transfer.transfer_options` gives, without a preset.
    `train_options` is there for measures that depend on the optimiser; the rules do not. Raises OptionError for
    unknown names and PlanError when the images or the budget are too small or the data rule a configuration out.
    """
    _check_options(fingerprint, labels, options)
    scale = options.spacing_scale
    grid = transferred_grid(fingerprint, starting, scale) if starting else find_grid(fingerprint, scale)
    _check_grid(grid)
    normalisation, normalisation_reasons = find_normalisation(fingerprint, options.preset is not None)
    if starting:
        normalisation, normalisation_reasons = transferred_normalisation(
            fingerprint, starting, normalisation, normalisation_reasons
        )
    memory = _memory(labels, options, measure, constant_bytes)
    inputs = PlanInputs(
        fingerprint, labels, options, device_profile, memory, measure, grid, normalisation, starting=starting
    )
    planned, configuration_reasons = _configurations(inputs)
    return Plan(
        configurations=_share_prepared(planned),
        options=options,
        reasons=(
            _orientation_reason(options),
            *_target_reasons(labels),
            *grid.reasons,
            *normalisation_reasons,
            _general(
                "memory",
                f"the budget is {format_size(options.memory_bytes)}; what fits is predicted by {memory.source}",
            ),
            *configuration_reasons,
            _precision_reason(device_profile),
        ),
        fingerprint=fingerprint.digest(),
    )


def _configurations(inputs: PlanInputs) -> tuple[dict[str, Configuration], list[Reason]]:
    """By name in the order of `CONFIGURATIONS`, and the reasons, also for those that are not made."""
    requested = inputs.options.configurations
    wanted = set(requested or (inputs.starting.names if inputs.starting else CONFIGURATIONS))
    reasons: list[Reason] = []
    if CASCADE in wanted and LOWRES not in wanted:
        wanted.add(LOWRES)
        reasons.append(_presence_reason(LOWRES, f"planned too, since {CASCADE} needs its segmentations"))
    volumes, impossible = _volumes(inputs, wanted)
    if requested is not None and (refused := [name for name in requested if name in impossible]):
        raise PlanError(f"{refused[0]} cannot be planned: {impossible[refused[0]]}", "Leave it out of --configurations")
    absent = {name: impossible[name] for name in CONFIGURATIONS if name in wanted and name in impossible}
    reasons += [_presence_reason(name, f"not planned: {why}") for name, why in absent.items()]
    configurations = {}
    for name in CONFIGURATIONS:
        if name not in wanted or name in impossible:
            continue
        if name == "2d":
            try:
                configurations[name], why = plan_2d(inputs)
            except PlanError as error:
                # others may do where slices are too small for a U-Net; nnU-Net's own plans stay as they are
                if inputs.rules or name in (requested or ()) or not volumes:
                    raise
                why = (_presence_reason(name, f"not planned: {error.message}"),)
        elif volumes is not None:
            configurations[name], why = VOLUMES[name](inputs, volumes)
        reasons += why
    if not configurations:
        lines = [f"{name}: {reason}" for name, reason in absent.items()]
        raise PlanError("no configuration can be planned:\n" + "\n".join(lines))
    return configurations, reasons


def _volumes(inputs: PlanInputs, wanted: set[str]) -> tuple[VolumeSearch | None, dict[str, str]]:
    """What 3-D configurations need, if any is wanted; and those that there cannot be, each with the reason."""
    dims = FAMILIES[inputs.family].dims
    impossible = {} if 2 in dims else {"2d": f"the network family {inputs.family} is three-dimensional only"}
    if inputs.grid.median[0] == 1:
        flat = inputs.fingerprint.dimension == 2
        why = "the images are two-dimensional" if flat else "the images have one slice each"
        return None, impossible | dict.fromkeys(VOLUMES, why)
    if 3 not in dims:
        return None, dict.fromkeys(VOLUMES, f"the network family {inputs.family} is two-dimensional only")
    if not wanted & set(VOLUMES):
        return None, impossible
    volumes = find_volumes(inputs)
    if volumes.lowres is None:
        impossible |= dict.fromkeys(NEEDS_LOWRES, volumes.why)
    return volumes, impossible


def _memory(labels: Labels, options: PlannerOptions, measure: Measure | None, constant_bytes: int) -> Memory:
    if options.preset:
        # nnU-Net counts the entries of dataset.json's labels: regions instead of classes, the ignore label, and the
        # background only where it is listed
        named = 1 + len(labels.regions) if labels.regions else labels.count
        entries = labels.entries or named + (labels.ignore is not None)
        return NominalMemory(PRESETS[options.preset], options.memory_bytes, entries)
    if measure is None:
        return ProxyMemory(options.memory_bytes, len(targets_of(labels, planned_targets(labels))))
    return MeasuredMemory(options.memory_bytes, measure, constant=constant_bytes)


def _check_options(fingerprint: Fingerprint, labels: Labels, options: PlannerOptions) -> None:
    if options.family not in FAMILIES:
        raise unknown_name("--family", options.family, FAMILIES)
    unknown = [name for name in options.configurations or () if name not in CONFIGURATIONS]
    if unknown or options.configurations == ():
        problem = f"there is no configuration {', '.join(unknown)}" if unknown else "no configuration is named"
        raise OptionError(problem, f"Choose some of {', '.join(CONFIGURATIONS)}")
    if fingerprint.orientation != options.orientation:
        raise PlanError(
            f"the fingerprint was made in orientation {fingerprint.orientation}, not in {options.orientation}",
            "Make the fingerprint again",
        )
    if labels.count < 2:
        raise PlanError("the labels have no class but the background", "Check the label files")


def _check_grid(grid: Grid) -> None:
    if min(grid.median) < 1:
        raise PlanError(
            f"at the target spacing of {numbers(grid.spacing)} mm the median image has {numbers(grid.median)} voxels: "
            "the images differ too much in size and spacing",
            "Check the spacing in the files",
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


def _general(topic: Topic, text: str) -> Reason:
    return Reason(configuration=None, topic=topic, text=text)


def _presence_reason(name: str, text: str) -> Reason:
    """Why a configuration is planned or not."""
    return Reason(configuration=name, topic="configurations", text=text)


def _orientation_reason(options: PlannerOptions) -> Reason:
    if options.preset:
        planner = PRESETS[options.preset].planner
        text = f"preset {options.preset}: the rules of nnU-Net 2.8.1's {planner}, in the orientation as stored"
    else:
        text = "images are turned first to right, front and up, so that an axis means the same in every case"
    return _general("orientation", text)


def _target_reasons(labels: Labels) -> Iterator[Reason]:
    """Nothing without regions, as in most data sets."""
    if labels.objects is not None:
        yield _general(
            "targets",
            f"since objects ({labels.objects}) are told apart, networks learn how deep inside its own each voxel lies: "
            f"a sigmoid output for all of an object, and for each of {labels.count - 2} depths for what is deeper",
        )
    elif labels.regions:
        names = [target.name for target in targets_of(labels, planned_targets(labels))]
        yield _general(
            "targets",
            "since there are regions, which may overlap, networks have a sigmoid output for each of "
            f"{', '.join(names)}; in a segmentation later ones overwrite earlier ones",
        )


def _precision_reason(profile: DeviceProfile | None) -> Reason:
    if profile is None:
        return _general("precision", "precision fp32: no device was probed")
    layout = "channels-last" if profile.channels_last else "contiguous"
    why = "chosen by measurement on" if profile.throughput else "the rule for"
    return _general("precision", f"precision {profile.precision} with {layout} arrays: {why} {profile.name}")


CROPPED_ENOUGH = 3 / 4
"""z-score looks at non-zero voxels only when the crop leaves less than this share of the median image (nnU-Net)"""
SMALLEST_STD = 1e-8
UNIT_MAXIMA = (1.0, 255.0, 65535.0)
"""largest values of photographs: already scaled, 8 bits, 16 bits"""
NNUNET_NAMES = {"ct": "ct", "nonorm": "none", "zscore": "zscore", "rescale_to_0_1": "rescale", "rgb_to_0_1": "unit"}
"""nnU-Net decides by the channel's whole name; any other name is z-scored"""
KINDS = {ChannelKind.ct: "ct", ChannelKind.photo: "unit", ChannelKind.mri: "zscore", ChannelKind.other: "zscore"}


def find_normalisation(
    fingerprint: Fingerprint, as_nnunet: bool
) -> tuple[tuple[ChannelNormalisation, ...], tuple[Reason, ...]]:
    """One scheme and one reason per channel. With `as_nnunet` the channel's name decides, as there; else its kind."""
    cropped = remaining_share(fingerprint) < CROPPED_ENOUGH
    schemes, reasons = [], []
    for channel in fingerprint.channels:
        wanted = NNUNET_NAMES.get(channel.name.casefold(), "zscore") if as_nnunet else KINDS[channel.kind]
        scheme, reason = _scheme(channel, wanted, cropped, as_nnunet)
        schemes.append(scheme)
        reasons.append(Reason(configuration=None, topic="normalisation", text=f"channel {channel.name}: {reason}"))
    return tuple(schemes), tuple(reasons)


def remaining_share(fingerprint: Fingerprint) -> float:
    """Median over the cases of the share of voxels that the crop to non-zero leaves."""
    return float(np.median([np.prod(case.cropped_shape) / np.prod(case.shape) for case in fingerprint.cases]))


def _scheme(
    channel: ChannelFingerprint, wanted: str, cropped: bool, as_nnunet: bool
) -> tuple[ChannelNormalisation, str]:
    if wanted == "ct" and (scheme := _ct(channel)) is not None:
        return scheme, (
            f"CT, so clipped to the foreground's 0.5th and 99.5th percentile ({scheme.lower:.4g} to "
            f"{scheme.upper:.4g}) and scaled by its mean {scheme.mean:.4g} and deviation {scheme.std:.4g}"
        )
    if wanted == "rescale":
        raise PlanError(
            f"channel {channel.name}: nnU-Net's rescale_to_0_1 is not supported",
            "Name the channel zscore or rgb_to_0_1 in dataset.json, or leave out --preset nnunet",
        )
    if wanted == "unit":
        largest = UNIT_MAXIMA[1] if as_nnunet else _unit_maximum(channel)
        return ChannelNormalisation(scheme="unit", lower=0.0, upper=largest), (
            f"a photograph, so divided by {largest:g}"
        )
    if wanted == "none":
        return ChannelNormalisation(scheme="none"), "not normalised, as its name says"
    lack = "CT without foreground statistics, so " if wanted == "ct" else ""
    where = (
        f"over non-zero voxels only, as the crop leaves less than {CROPPED_ENOUGH:.0%} of the images"
        if cropped
        else "over the whole image"
    )
    return ChannelNormalisation(scheme="zscore", nonzero_only=cropped), f"{lack}z-scored per case, {where}"


def _ct(channel: ChannelFingerprint) -> ChannelNormalisation | None:
    """None when no case has foreground."""
    mean, std, lower, upper = channel.mean, channel.std, channel.percentile_00_5, channel.percentile_99_5
    if mean is None or std is None or lower is None or upper is None:
        return None
    return ChannelNormalisation(scheme="ct", mean=mean, std=max(std, SMALLEST_STD), lower=lower, upper=upper)


def _unit_maximum(channel: ChannelFingerprint) -> float:
    """The smallest usual range that holds the foreground."""
    maximum = channel.maximum if channel.maximum is not None else UNIT_MAXIMA[1]
    return next((limit for limit in UNIT_MAXIMA if maximum <= limit), maximum)
