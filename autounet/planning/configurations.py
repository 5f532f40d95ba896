"""The four configurations, by nnU-Net's rules: 2-D slices, volumes, coarser volumes, and the cascade of the two.

3d_lowres exists where a patch of 3d_fullres sees less than a quarter of the median image, and 3d_cascade_fullres, which
refines its segmentation at full resolution, exists with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..schema.options import MIRRORED_STEPS
from ..schema.plan import (
    LEFT_RIGHT,
    Configuration,
    InferenceSpec,
    NetworkSpec,
    PreprocessSpec,
    Reason,
    Topic,
    swapped_outputs,
)
from ..schema.quantities import format_size
from .plan_inputs import PlanInputs
from .search import SearchInputs, SearchResult
from .spacing import CoarseGrid, find_lowres, grid_at, numbers

LOWRES, FULLRES, CASCADE = "3d_lowres", "3d_fullres", "3d_cascade_fullres"

Planned = tuple[Configuration, tuple[Reason, ...]]
"""a configuration, and the reasons for it"""


@dataclass(frozen=True)
class VolumeSearch:
    """The search for 3d_fullres, and the grid of 3d_lowres."""

    inputs: SearchInputs
    fullres: SearchResult
    lowres: CoarseGrid | None
    why: str
    """there is a 3d_lowres, or none"""


def find_volumes(inputs: PlanInputs) -> VolumeSearch:
    """Raises PlanError when images are too small or the budget is."""
    grid = inputs.grid
    search_inputs = inputs.search_inputs(FULLRES, grid.spacing, grid.median, grid.voxels)
    fullres = inputs.search(search_inputs)

    def patch_at(coarser: CoarseGrid) -> tuple[int, ...]:
        return inputs.patch(_lowres_inputs(inputs, coarser))

    given = inputs.options.lowres_spacing
    if given is not None:
        return VolumeSearch(
            search_inputs, fullres, grid_at(np.array(given), grid.spacing, grid.median), "its spacing is given"
        )
    lowres, why = find_lowres(grid.spacing, grid.median, fullres.patch, patch_at, in_turn=inputs.rules is not None)
    return VolumeSearch(search_inputs, fullres, lowres, why)


def plan_2d(inputs: PlanInputs) -> Planned:
    """Slices along the first network axis, through which nothing is resampled."""
    grid = inputs.grid
    result = inputs.search(inputs.search_inputs("2d", grid.spacing[1:], grid.median[1:], grid.voxels))
    spacing = (None, float(grid.spacing[1]), float(grid.spacing[2]))
    median = np.array([grid.median_cropped[0], *grid.median[1:]])
    reason = _reason("2d", "dice", "batch Dice, since the slices of a batch are seen as one image")
    return _configuration(inputs, "2d", result, spacing, median, batch_dice=True, reasons=(reason,))


def plan_3d_lowres(inputs: PlanInputs, volumes: VolumeSearch) -> Planned:
    """Volumes on a coarser grid, so that a patch sees more. Only where `volumes.lowres` is given."""
    assert volumes.lowres is not None
    coarser = volumes.lowres
    result = inputs.search(_lowres_inputs(inputs, coarser))
    reasons = (
        _reason(LOWRES, "spacing", f"spacing {numbers(coarser.spacing)} mm, since {volumes.why}"),
        _reason(LOWRES, "dice", "Dice per sample, since a patch sees at least a quarter of the median image"),
    )
    spacing = _triple(coarser.spacing)
    return _configuration(inputs, LOWRES, result, spacing, coarser.median, batch_dice=False, reasons=reasons)


def plan_3d_fullres(inputs: PlanInputs, volumes: VolumeSearch) -> Planned:
    """Volumes at the target spacing. Whether there is a 3d_lowres decides on batch Dice."""
    grid = inputs.grid
    if volumes.lowres is None:
        text = f"Dice per sample, since there is no {LOWRES}"
    else:
        text = "batch Dice, since a patch sees less than a quarter of the median image"
    batch_dice = volumes.lowres is not None
    spacing = _triple(grid.spacing)
    reasons = (_reason(FULLRES, "dice", text),)
    return _configuration(
        inputs, FULLRES, volumes.fullres, spacing, grid.median, batch_dice=batch_dice, reasons=reasons
    )


def plan_3d_cascade_fullres(inputs: PlanInputs, volumes: VolumeSearch) -> Planned:
    """3d_fullres with the one-hot segmentation of 3d_lowres, without the background, as further channels.

    Patch, batch and network are those of 3d_fullres; the default planner searches again where the further channels
    would exceed its budget.
    """
    extra = inputs.labels.count - 1
    inputs = replace(inputs, extra_channels=extra)
    result, grid = volumes.fullres, inputs.grid
    network = result.network.model_copy(update={"in_channels": result.network.in_channels + extra})
    text = f"as {FULLRES}, with the {extra} classes of {LOWRES} as further input channels, so trained after it"
    reasons = [_reason(CASCADE, "network", text)]
    if inputs.rules or inputs.memory.fits(network, result.patch, result.batch):
        used = inputs.memory.predicted(network, result.patch, result.batch)
        same = tuple(reason.model_copy(update={"configuration": CASCADE}) for reason in result.reasons)
        result = replace(result, network=network, memory_bytes=used, reasons=same)
    else:
        result = inputs.search(replace(volumes.inputs, configuration=CASCADE))
        text = f"these channels would exceed the memory with {FULLRES}'s patch and batch"
        reasons.append(_reason(CASCADE, "memory", text))
    configuration, why = _configuration(
        inputs, CASCADE, result, _triple(grid.spacing), grid.median, batch_dice=True, reasons=tuple(reasons)
    )
    return configuration.model_copy(update={"previous_stage": LOWRES, "prepared": FULLRES}), why


VOLUMES: dict[str, Callable[[PlanInputs, VolumeSearch], Planned]] = {
    LOWRES: plan_3d_lowres,
    FULLRES: plan_3d_fullres,
    CASCADE: plan_3d_cascade_fullres,
}
NEEDS_LOWRES = (LOWRES, CASCADE)


def _lowres_inputs(inputs: PlanInputs, coarser: CoarseGrid) -> SearchInputs:
    return inputs.search_inputs(LOWRES, coarser.spacing, coarser.median, coarser.voxels * inputs.grid.cases)


def _triple(spacing: np.ndarray) -> tuple[float, float, float]:
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def _configuration(
    inputs: PlanInputs,
    name: str,
    result: SearchResult,
    spacing: tuple[float | None, float, float],
    median: np.ndarray,
    batch_dice: bool,
    reasons: tuple[Reason, ...],
) -> Planned:
    options, profile = inputs.options, inputs.profile
    mirroring = _mirroring(inputs, name, result.network.dims)
    memory_bytes, memory_reasons = _traced(inputs, name, result)
    configuration = Configuration(
        preprocess=PreprocessSpec(
            orientation=options.orientation,
            transpose=inputs.grid.transpose,
            spacing=spacing,
            normalisation=inputs.normalisation,
        ),
        prepared=name,
        patch_size=result.patch,
        batch_size=result.batch,
        network=result.network,
        targets=inputs.targets,
        precision=profile.precision if profile else "fp32",  # type: ignore[arg-type]
        channels_last=profile.channels_last if profile else False,
        mirror_axes=mirroring.axes,
        swap_axis=mirroring.swap_axis,
        batch_dice=batch_dice,
        inference=InferenceSpec(
            overlap=options.overlap,
            mirror_axes=mirroring.predicted if options.mirror else (),
            average="logits" if options.preset else "probabilities",
        ),
        median_shape=tuple(int(np.ceil(length)) for length in median),
        limited_by=result.limited_by,
        predicted_memory_bytes=memory_bytes,
    )
    return configuration, (
        *result.reasons,
        *_depth_reason(inputs, name, result.network),
        *reasons,
        *memory_reasons,
        *mirroring.reasons,
    )


def _reason(name: str, topic: Topic, text: str) -> Reason:
    return Reason(configuration=name, topic=topic, text=text)


def _depth_reason(inputs: PlanInputs, name: str, network: NetworkSpec) -> tuple[Reason, ...]:
    if inputs.starting and inputs.starting.source(name):
        return ()  # the reason for the transferred network holds it
    features = "-".join(str(value) for value in network.features)
    depth = f"{len(network.features)} stages with {features} features"
    return (_reason(name, "network", f"{depth}; axes are halved while they stay at least 4 voxels long"),)


def _traced(inputs: PlanInputs, name: str, result: SearchResult) -> tuple[int, tuple[Reason, ...]]:
    """Bytes by the measure that is handed in; with a preset it only reports, and the plan stays nnU-Net's."""
    if inputs.rules is None or inputs.measure is None:
        return result.memory_bytes, ()
    peak = inputs.measure(result.network, result.patch, result.batch)
    target = format_size(inputs.options.memory_bytes)
    text = f"a training step is predicted to take {format_size(peak)} of the nominal {target}"
    if peak > inputs.options.memory_bytes:
        text = (
            f"warning: a training step is predicted to take {format_size(peak)}, more than the nominal {target}; if "
            f"the device has less, give a smaller --memory or leave out --preset {inputs.options.preset}"
        )
    return peak, (_reason(name, "memory", text),)


class MirrorAxes(NamedTuple):
    """Spatial axes of a network."""

    axes: tuple[int, ...]
    """mirrored by augmentation"""
    predicted: tuple[int, ...]
    """mirrored at test time"""
    swap_axis: int | None
    reasons: tuple[Reason, ...]


def _mirroring(inputs: PlanInputs, name: str, dims: int) -> MirrorAxes:
    """All axes, or with few steps none. Along left-right the classes of each pair change places, or it is left out."""
    axes, pairs = tuple(range(dims)), inputs.labels.pairs
    if not inputs.options.mirror_samples:
        text = f"nothing is mirrored in fewer than {MIRRORED_STEPS:,} steps: images as they lie are learnt sooner"
        return MirrorAxes((), (), None, (_reason(name, "mirroring", text),))
    if not pairs:
        return MirrorAxes(axes, axes, None, ())
    if inputs.rules:
        text = "mirrored along every axis, as nnU-Net does, although classes come in left and right pairs"
        return MirrorAxes(axes, axes, None, (_reason(name, "mirroring", text),))
    order = inputs.grid.transpose[-dims:]
    across = next((axis for axis in axes if order[axis] == LEFT_RIGHT), None)
    if across is None:
        return MirrorAxes(axes, axes, None, ())
    without = tuple(axis for axis in axes if axis != across)
    obstacle = _mirroring_obstacle(inputs)
    if obstacle is not None:
        text = f"not mirrored from left to right, since classes come in left and right pairs and {obstacle}"
        return MirrorAxes(without, without, None, (_reason(name, "mirroring", text),))
    names = ", ".join(f"{left} and {right}" for left, right in pairs)
    swapped = _reason(name, "mirroring", f"mirrored from left to right, {names} change places")
    if swapped_outputs(inputs.labels, inputs.targets) is None:
        text = "predictions are not mirrored so, since not every region has a mirror image among the targets"
        return MirrorAxes(axes, without, across, (swapped, _reason(name, "mirroring", text)))
    return MirrorAxes(axes, axes, across, (swapped,))


def _mirroring_obstacle(inputs: PlanInputs) -> str | None:
    """Why left and right cannot be exchanged."""
    if not inputs.fingerprint.oriented:
        return "the files do not say where left is"
    if unlike := inputs.fingerprint.unlike:
        return f"{', '.join(f'{left} and {right}' for left, right in unlike)} are no mirror images of each other"
    return None
