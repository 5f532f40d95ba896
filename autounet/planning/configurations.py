"""The four configurations, by nnU-Net's rules: 2-D slices, volumes, coarser volumes, and the cascade of the two.

3d_lowres exists where a patch of 3d_fullres sees less than a quarter of the median image, and 3d_cascade_fullres, which
refines its segmentation at full resolution, exists with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..schema.errors import PlanError
from ..schema.plan import LEFT_RIGHT, Configuration, InferenceSpec, PreprocessSpec, swapped_outputs
from ..schema.quantities import format_size
from .search import Found, Task
from .setting import Setting
from .spacing import numbers

ENOUGH_CONTEXT = 0.25
"""share of the median image that a patch should see"""
COARSENING = 1.03
"""factor of the target spacing per attempt"""
LEAST_REDUCTION = 2.0
"""a coarser configuration is dropped when its median image has more than 1 / this of the voxels"""
SIMILAR = 2.0
NO_PATCH = (0, 0, 0)


@dataclass(frozen=True)
class Coarser:
    """A coarser grid; arrays are (3,) in network axis order."""

    spacing: np.ndarray
    """mm"""
    median: np.ndarray
    """size of the median image there, rounded"""
    voxels: float
    """of the median image, not rounded"""


PatchAt = Callable[[Coarser], tuple[int, ...]]
"""the patch that the planner finds on a grid; raises PlanError when there is none"""


def find_lowres(
    spacing: np.ndarray, median: np.ndarray, patch: tuple[int, ...], patch_at: PatchAt
) -> tuple[Coarser | None, str]:
    """The grid of 3d_lowres, or None when full resolution suffices; and why, as the rest of a sentence.

    `spacing`, `median` and `patch` are those of 3d_fullres. The finest axes are coarsened alone until the others are
    within a factor 2.
    """
    full_voxels = np.prod(median, dtype=np.float64)
    grid = Coarser(spacing, median, float(full_voxels))
    if _seen(patch, grid) >= ENOUGH_CONTEXT:
        return None, f"a patch of 3d_fullres sees {_seen(patch, grid):.0%} of the median image, at least a quarter"
    while _seen(patch, grid) < ENOUGH_CONTEXT:
        grid = _coarsened(grid, spacing, median)
        if min(grid.median) < 1:
            return None, "an axis would vanish before a patch saw a quarter of the median image"
        try:
            patch = patch_at(grid)
        except PlanError:
            # a grid for which there is no network is passed over, as in nnU-Net
            patch = NO_PATCH
    if full_voxels / grid.voxels < LEAST_REDUCTION:
        return None, (
            f"the grid on which a patch sees a quarter of the median image has {grid.voxels / full_voxels:.0%} of the "
            "voxels of 3d_fullres, more than half, and so is too similar"
        )
    return grid, "a patch of 3d_fullres sees less than a quarter of the median image, and one here at least that"


def _seen(patch: tuple[int, ...], grid: Coarser) -> float:
    """Share of the median image."""
    return float(np.prod(patch, dtype=np.float64) / grid.voxels)


def _coarsened(grid: Coarser, spacing: np.ndarray, median: np.ndarray) -> Coarser:
    coarse = grid.spacing.copy()
    finer = max(coarse) / coarse > SIMILAR
    coarse[finer if finer.any() else slice(None)] *= COARSENING
    return grid_at(coarse, spacing, median)


def grid_at(coarse: np.ndarray, spacing: np.ndarray, median: np.ndarray) -> Coarser:
    """The grid of spacing `coarse` for images whose median size is `median` at `spacing`."""
    size = spacing / coarse * median
    return Coarser(coarse, np.array([round(length) for length in size]), float(np.prod(size, dtype=np.float64)))


LOWRES, FULLRES, CASCADE = "3d_lowres", "3d_fullres", "3d_cascade_fullres"

Result = tuple[Configuration, tuple[str, ...]]
"""a configuration, and the reasons for it"""


@dataclass(frozen=True)
class Volumes:
    """What the 3-D configurations need of each other."""

    task: Task
    fullres: Found
    lowres: Coarser | None
    why: str
    """there is a 3d_lowres, or none; the rest of a sentence"""


def find_volumes(setting: Setting) -> Volumes:
    """Raises PlanError when images are too small or the budget is."""
    grid = setting.grid
    task = setting.task(FULLRES, grid.spacing, grid.median, grid.voxels)
    fullres = setting.search(task)

    def patch_at(coarser: Coarser) -> tuple[int, ...]:
        return setting.patch(_lowres_task(setting, coarser))

    given = setting.options.lowres_spacing
    if given is not None:
        return Volumes(task, fullres, grid_at(np.array(given), grid.spacing, grid.median), "its spacing is given")
    lowres, why = find_lowres(grid.spacing, grid.median, fullres.patch, patch_at)
    return Volumes(task, fullres, lowres, why)


def plan_2d(setting: Setting) -> Result:
    """Slices along the first network axis, through which nothing is resampled."""
    grid = setting.grid
    found = setting.search(setting.task("2d", grid.spacing[1:], grid.median[1:], grid.voxels))
    spacing = (None, float(grid.spacing[1]), float(grid.spacing[2]))
    median = np.array([grid.median_cropped[0], *grid.median[1:]])
    reason = "2d: batch Dice, since the slices of a batch are seen as one image."
    return _configuration(setting, "2d", found, spacing, median, batch_dice=True, reasons=(reason,))


def plan_3d_lowres(setting: Setting, volumes: Volumes) -> Result:
    """Volumes on a coarser grid, so that a patch sees more. Only where `volumes.lowres` is given."""
    assert volumes.lowres is not None
    coarser = volumes.lowres
    found = setting.search(_lowres_task(setting, coarser))
    reasons = (
        f"{LOWRES}: spacing {numbers(coarser.spacing)} mm, since {volumes.why}.",
        f"{LOWRES}: Dice per sample, since a patch sees at least a quarter of the median image.",
    )
    spacing = _triple(coarser.spacing)
    return _configuration(setting, LOWRES, found, spacing, coarser.median, batch_dice=False, reasons=reasons)


def plan_3d_fullres(setting: Setting, volumes: Volumes) -> Result:
    """Volumes at the target spacing. Whether there is a 3d_lowres decides on batch Dice."""
    grid = setting.grid
    if volumes.lowres is None:
        reason = f"{FULLRES}: Dice per sample, since there is no {LOWRES}."
    else:
        reason = f"{FULLRES}: batch Dice, since a patch sees less than a quarter of the median image."
    batch_dice = volumes.lowres is not None
    spacing = _triple(grid.spacing)
    return _configuration(
        setting, FULLRES, volumes.fullres, spacing, grid.median, batch_dice=batch_dice, reasons=(reason,)
    )


def plan_3d_cascade_fullres(setting: Setting, volumes: Volumes) -> Result:
    """3d_fullres with the one-hot segmentation of 3d_lowres, without the background, as further channels.

    Patch, batch and network are those of 3d_fullres; the default planner searches again where the further channels
    would exceed its budget.
    """
    extra = setting.labels.count - 1
    setting = replace(setting, extra_channels=extra)
    found, grid = volumes.fullres, setting.grid
    network = found.network.model_copy(update={"in_channels": found.network.in_channels + extra})
    reasons = [
        f"{CASCADE}: as {FULLRES}, with the {extra} classes that {LOWRES} finds as further input channels, "
        "and so trained after it.",
    ]
    if setting.rules or setting.memory.fits(network, found.patch, found.batch):
        used = setting.memory.predicted(network, found.patch, found.batch)
        told = tuple(reason.replace(f"{FULLRES}:", f"{CASCADE}:", 1) for reason in found.reasons)
        found = replace(found, network=network, memory_bytes=used, reasons=told)
    else:
        found = setting.search(replace(volumes.task, name=CASCADE))
        reasons.append(f"{CASCADE}: these channels would exceed the memory with {FULLRES}'s patch and batch.")
    configuration, why = _configuration(
        setting, CASCADE, found, _triple(grid.spacing), grid.median, batch_dice=True, reasons=tuple(reasons)
    )
    return configuration.model_copy(update={"previous_stage": LOWRES, "prepared": FULLRES}), why


VOLUMES: dict[str, Callable[[Setting, Volumes], Result]] = {
    LOWRES: plan_3d_lowres,
    FULLRES: plan_3d_fullres,
    CASCADE: plan_3d_cascade_fullres,
}
NEEDS_LOWRES = (LOWRES, CASCADE)


def _lowres_task(setting: Setting, coarser: Coarser) -> Task:
    return setting.task(LOWRES, coarser.spacing, coarser.median, coarser.voxels * setting.grid.cases)


def _triple(spacing: np.ndarray) -> tuple[float, float, float]:
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def _configuration(
    setting: Setting,
    name: str,
    found: Found,
    spacing: tuple[float | None, float, float],
    median: np.ndarray,
    batch_dice: bool,
    reasons: tuple[str, ...],
) -> Result:
    options, profile = setting.options, setting.profile
    mirroring = _mirroring(setting, found.network.dims)
    memory_bytes, memory_reasons = _traced(setting, name, found)
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
        targets=setting.targets,
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
        limited_by=found.limited_by,
        predicted_memory_bytes=memory_bytes,
    )
    return configuration, (
        *found.reasons,
        *_depth_reason(setting, name, found),
        *reasons,
        *memory_reasons,
        *mirroring.reasons,
    )


def _depth_reason(setting: Setting, name: str, found: Found) -> tuple[str, ...]:
    if setting.starting and setting.starting.source(name):
        return ()  # said already
    features = "-".join(str(value) for value in found.network.features)
    depth = f"{name}: {len(found.network.features)} stages with {features} features; axes are halved while they stay"
    return (f"{depth} at least 4 voxels long.",)


def _traced(setting: Setting, name: str, found: Found) -> tuple[int, tuple[str, ...]]:
    """Bytes as the measure finds them; with a preset it only reports, and the plan stays nnU-Net's."""
    if setting.rules is None or setting.measure is None:
        return found.memory_bytes, ()
    peak, target = setting.measure(found.network, found.patch, found.batch), setting.options.memory_bytes
    said = f"{name}: a training step is predicted to take {format_size(peak)}"
    if peak <= target:
        return peak, (f"{said} of the nominal {format_size(target)}.",)
    return peak, (
        f"Warning: {said}, more than the nominal {format_size(target)}. Give a smaller --memory, or leave out "
        f"--preset {setting.options.preset}, if the device does not have that much.",
    )


class _Mirroring(NamedTuple):
    """Spatial axes of a network."""

    axes: tuple[int, ...]
    """mirrored by augmentation"""
    predicted: tuple[int, ...]
    """mirrored at test time"""
    swap_axis: int | None
    reasons: tuple[str, ...]


def _mirroring(setting: Setting, dims: int) -> _Mirroring:
    """All axes. Along left-right the classes of each pair change places; where that cannot be, it is left out."""
    axes, pairs = tuple(range(dims)), setting.labels.pairs
    if not pairs:
        return _Mirroring(axes, axes, None, ())
    if setting.rules:
        why = f"{dims}-D: mirrored along every axis, as nnU-Net does, although classes come in left and right pairs."
        return _Mirroring(axes, axes, None, (why,))
    order = setting.grid.transpose[-dims:]
    across = next((axis for axis in axes if order[axis] == LEFT_RIGHT), None)
    if across is None:
        return _Mirroring(axes, axes, None, ())
    without = tuple(axis for axis in axes if axis != across)
    left_out = f"{dims}-D: not mirrored from left to right, since classes come in left and right pairs and"
    if not setting.fingerprint.oriented:
        return _Mirroring(without, without, None, (f"{left_out} the files do not say where left is.",))
    if unlike := setting.fingerprint.unlike:
        told = ", ".join(f"{left} and {right}" for left, right in unlike)
        return _Mirroring(without, without, None, (f"{left_out} {told} are no mirror images of each other.",))
    named = ", ".join(f"{left} and {right}" for left, right in pairs)
    swapped = f"{dims}-D: mirrored from left to right, {named} change places."
    if swapped_outputs(setting.labels, setting.targets) is None:
        why = f"{dims}-D: predictions are not, since not every region has a mirror image among the targets."
        return _Mirroring(axes, without, across, (swapped, why))
    return _Mirroring(axes, axes, across, (swapped,))
