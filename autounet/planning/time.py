"""Shaping the work to a promised time: width, batch and steps first, then overlap and mirroring, then spacing.

Everything here is arithmetic over measured seconds; the pipeline measures and hands them in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autounet.ops.tiles import axis_starts
from autounet.schema.errors import DeadlineError
from autounet.schema.options import PlannerOptions
from autounet.schema.plan import Configuration
from autounet.schema.quantities import format_time

WIDTHS = (32, 24, 16, 8)
"""candidate features of the first stage, widest first; 32 is nnU-Net's"""
WIDER_STEPS = 2500
"""steps that a fold should still get with a wider network (benchmarks/schedule.py)"""
LARGER_BATCH_STEPS = 5000
"""steps that a fold should still get with a larger batch: in short trainings many steps win (the same benchmark)"""
LEAST_STEPS = 60
"""steps below which a fold has learnt nothing worth packing"""
INFERENCE_SHARE = 0.2
"""largest share of the time that validation may take before overlap and mirroring are given up"""
EXPORT_SECONDS_PER_VOXEL = 5e-7
"""back to the file's grid, writing, surface distances; generous, since what is left over goes to training"""
CLOSING_SECONDS = 15.0
"""selection, packing and report, beside the part that grows with the cases"""
FOLD_OVERHEAD_SECONDS = 4.0
"""building the network, opening the data, writing checkpoints; replaced by what the first fold measures"""


@dataclass(frozen=True)
class Timing:
    """Measured seconds of one configuration at one width."""

    step_overhead: float
    """of a training step, whatever its batch"""
    step_per_sample: float
    forward: float
    """one patch through the network in evaluation"""

    def step(self, batch: int) -> float:
        return self.step_overhead + batch * self.step_per_sample


@dataclass(frozen=True)
class Shape:
    """What the time allows."""

    options: PlannerOptions
    steps: int
    """expected per fold"""
    step_seconds: float
    validation_seconds: float
    """expected per fold"""
    reasons: tuple[str, ...]


def shape_to_time(
    seconds: float,
    folds: int,
    cases_per_fold: float,
    options: PlannerOptions,
    configure: Callable[[PlannerOptions], Configuration],
    measure: Callable[[Configuration], Timing],
    other_seconds: float = 0.0,
    step_limit: int | None = None,
) -> Shape:
    """The widest network, then the largest batch, that still gets a useful number of steps in every fold.

    `seconds` is what is left for all folds of one configuration, `other_seconds` what the rest of the command takes.
    More than `step_limit` steps are not wanted: the network may then be as wide as still does that many. `configure`
    plans for given options and `measure` times the result; both are called for the narrowest width first. A preset
    keeps its network and batch. Raises DeadlineError with the least time of the whole command.
    """
    fixed = options.preset is not None
    wider = min(WIDER_STEPS, step_limit or WIDER_STEPS)
    chosen: PlannerOptions | None = None
    for width in (options.base_features,) if fixed else sorted(WIDTHS):
        candidate = options.model_copy(update={"base_features": width})
        configuration = configure(candidate)
        measured = measure(configuration)
        batch = configuration.batch_size if fixed else options.minimum_batch
        steps = _steps(seconds, folds, cases_per_fold, configuration, measured, batch)
        if chosen is None or steps >= wider:
            chosen, timing = candidate, measured
        if steps < wider:
            break
    assert chosen is not None
    chosen, inference_reasons = _shape_inference(seconds, folds, cases_per_fold, chosen, configure, timing)
    configuration = configure(chosen)
    validation = cases_per_fold * volume_seconds(configuration, timing)
    training = seconds / folds - validation - FOLD_OVERHEAD_SECONDS
    least_batch = configuration.batch_size if fixed else options.minimum_batch
    least_training = LEAST_STEPS * timing.step(least_batch)
    if training < least_training:
        least = other_seconds + folds * (least_training + validation + FOLD_OVERHEAD_SECONDS)
        raise DeadlineError(
            f"the time is too short: with the smallest recipe ({LEAST_STEPS} steps in each of {folds} folds) the whole "
            f"command takes at least {format_time(math.ceil(1.05 * least))}. Give more --time, or fewer --folds",
            1.05 * least,
        )
    batch = (
        least_batch if fixed else max(least_batch, min(configuration.batch_size, _batch(training, timing, step_limit)))
    )
    if not fixed:
        chosen = chosen.model_copy(update={"batch_limit": batch})
    steps = int(training / timing.step(batch))
    steps = min(steps, step_limit) if step_limit else steps
    reasons = (
        f"{format_time(seconds)} for {folds} folds leave {format_time(training)} of training each: "
        f"a first stage of {chosen.base_features} features and a batch of {batch} get about {steps} steps "
        f"({timing.step(batch):.2f} s each as measured)"
        + ("; the preset keeps its network." if fixed else f"; a wider network pays from {WIDER_STEPS} steps on."),
        *inference_reasons,
    )
    return Shape(chosen, steps, timing.step(batch), validation, reasons)


def _batch(training: float, timing: Timing, step_limit: int | None) -> int:
    """The largest batch with a useful number of steps."""
    steps = min(LARGER_BATCH_STEPS, step_limit or LARGER_BATCH_STEPS)
    return math.floor((training / steps - timing.step_overhead) / timing.step_per_sample)


def _steps(seconds: float, folds: int, cases: float, configuration: Configuration, timing: Timing, batch: int) -> float:
    return (seconds / folds - cases * volume_seconds(configuration, timing)) / timing.step(batch)


def _shape_inference(
    seconds: float,
    folds: int,
    cases: float,
    options: PlannerOptions,
    configure: Callable[[PlannerOptions], Configuration],
    timing: Timing,
) -> tuple[PlannerOptions, tuple[str, ...]]:
    """Less overlap, then no mirroring, then coarser spacing, until validation takes its share at most."""
    allowed = INFERENCE_SHARE * seconds / folds
    changes: Sequence[tuple[dict[str, object], str]] = (
        ({}, ""),
        ({"overlap": 0.25}, "tiles overlap by a quarter instead of half"),
        ({"overlap": 0.25, "mirror": False}, "no mirrored views are averaged"),
        *(
            ({"overlap": 0.25, "mirror": False, "spacing_scale": scale}, f"the target spacing is {scale} times coarser")
            for scale in (1.25, 1.5, 2.0)
        ),
    )
    said: list[str] = []
    shaped = options
    for update, sentence in changes:
        shaped = options.model_copy(update=update)
        if sentence:
            said.append(sentence)
        if cases * volume_seconds(configure(shaped), timing) <= allowed:
            break
    return shaped, (
        (f"To keep validation within {INFERENCE_SHARE:.0%} of the time, {', '.join(said)}.",) if said else ()
    )


def volume_seconds(configuration: Configuration, timing: Timing) -> float:
    """Predicting, exporting and evaluating one case of median size with one model."""
    dims = configuration.network.dims
    shape = configuration.median_shape
    tiles = 1 if dims == 3 else shape[0]
    overlap = configuration.inference.overlap
    for size, patch in zip(shape[-dims:], configuration.patch_size, strict=True):
        tiles *= len(axis_starts(max(size, patch), patch, overlap))
    forward = tiles * 2 ** len(configuration.inference.mirror_axes) * timing.forward
    return forward + EXPORT_SECONDS_PER_VOXEL * math.prod(shape)
