"""Shaping the work to a promised time: width, batch and steps first, then overlap and mirroring, then spacing.

Everything here is arithmetic over measured seconds; the pipeline measures and hands them in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..schema.errors import DeadlineError, PlanError
from ..schema.fingerprint import Fingerprint
from ..schema.options import PlannerOptions
from ..schema.plan import Configuration, Limits
from ..schema.quantities import format_time
from .cost_model import Timing, case_seconds

WIDTHS = (32, 24, 16, 8)
"""candidate features of the first stage, widest first; 32 is nnU-Net's"""
WIDER_STEPS = 2500
"""steps that a fold should still get with a wider network; chosen, tried only where other work disturbed the times"""
LARGER_BATCH_STEPS = 5000
"""steps that a fold should still get with a larger batch; chosen like the one above"""
FREE_SHARE = 0.8
"""a wider network that keeps this share of the narrowest one's steps is taken anyway: narrow ones leave matrix units
idle"""
FEW_STEPS = 1000
"""steps below which a smaller patch, and so more steps, wins (benchmarks/results/schedule_2026-11-22.md, DRIVE)"""
LEAST_PATCH = {2: 96**2, 3: 48**3}
"""voxels by dimension, whatever the shape, which follows the images'; smaller patches see too little"""
LEAST_STEPS = 60
"""steps below which a fold has learnt nothing worth packing"""
INFERENCE_SHARE = 0.2
"""largest share of the time that validation may take before overlap and mirroring are given up"""
CLOSING_SECONDS = 15.0
"""selection, packing and report, beside the part that grows with the cases"""
FOLD_OVERHEAD_SECONDS = 4.0
"""building the network, opening the data, writing checkpoints; replaced by what the first fold measures"""


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
    limits: Limits = field(default_factory=Limits)
    """where the time decided; None elsewhere"""


@dataclass(frozen=True)
class Frame:
    """The time of one configuration, and what has to be done in it."""

    seconds: float
    """for training and validating all folds"""
    folds: int
    cases_per_fold: float
    other_seconds: float = 0.0
    """what the rest of the command takes"""
    step_limit: int | None = None
    """more steps than these are not wanted"""
    fingerprint: Fingerprint | None = None
    """of the cases to be validated; None: all are of median size"""

    def wanted(self, steps: int) -> int:
        return min(steps, self.step_limit or steps)


@dataclass(frozen=True)
class Candidate:
    """A configuration under trial, with its measured timing."""

    frame: Frame
    options: PlannerOptions
    configuration: Configuration
    timing: Timing

    @property
    def least_batch(self) -> int:
        """A preset keeps its batch."""
        return self.configuration.batch_size if self.options.preset else self.options.minimum_batch

    @property
    def validation(self) -> float:
        """Seconds per fold."""
        return self.frame.cases_per_fold * case_seconds(self.configuration, self.timing, self.frame.fingerprint)

    @property
    def training(self) -> float:
        """Seconds per fold."""
        return self.frame.seconds / self.frame.folds - self.validation - FOLD_OVERHEAD_SECONDS

    @property
    def steps(self) -> float:
        """Per fold, with the least batch. Validation that takes more than its share will be cut to it."""
        fold = self.frame.seconds / self.frame.folds
        training = fold - min(self.validation, INFERENCE_SHARE * fold) - FOLD_OVERHEAD_SECONDS
        return training / self.timing.step(self.least_batch)


Configure = Callable[[PlannerOptions], Configuration]
Measure = Callable[[Configuration], Timing]


def shape_to_time(frame: Frame, options: PlannerOptions, configure: Configure, measure: Measure) -> Shape:
    """The widest network, then the largest batch, that still gets a useful number of steps in every fold.

    Where even the narrowest gets few steps, the patch becomes smaller. `configure` plans for given options and
    `measure` times the result; both are called for the narrowest width first. A preset keeps its network, patch and
    batch, and `base_features` that are given stay. Raises DeadlineError with the least time of the whole command.
    """

    def attempt(**changes: object) -> Candidate:
        changed = options.model_copy(update=changes)
        configuration = configure(changed)
        return Candidate(frame, changed, configuration, measure(configuration))

    given = options.base_features
    best = attempt() if options.preset else _smaller_patch(attempt, _widest(attempt, frame, given))
    best, inference_reasons = _shape_inference(best, configure)
    _require_time(best)
    batch = best.least_batch if options.preset else _batch(best)
    steps = frame.wanted(int(best.training / best.timing.step(batch)))
    chosen = best.options if options.preset else best.options.model_copy(update={"batch_limit": batch})
    patch = " x ".join(str(length) for length in best.configuration.patch_size)
    width = best.configuration.network.features[0]
    reason = (
        f"fitted to the time: {format_time(frame.seconds)} for {frame.folds} folds leave "
        f"{format_time(best.training)} of training each: "
        f"{width} features in the first stage, a patch of {patch} and a batch of {batch} get about "
        f"{steps} steps ({best.timing.step(batch):.2f} s each as measured)"
    )
    rule = "; the width is given" if given else f"; wider pays from {WIDER_STEPS} steps on"
    rule = "; the preset keeps its network" if options.preset else rule
    limits = Limits(
        patch="time" if chosen.patch_limit != options.patch_limit else None,
        batch="time" if batch < best.configuration.batch_size else None,
        width="time" if not (options.preset or given) and width < max(WIDTHS) else None,
    )
    return Shape(chosen, steps, best.timing.step(batch), best.validation, (reason + rule, *inference_reasons), limits)


def _widest(attempt: Callable[..., Candidate], frame: Frame, given: int | None) -> Candidate:
    """A width that is given stays."""
    narrowest, *wider = sorted(WIDTHS) if given is None else (given,)
    best = first = attempt(base_features=narrowest)
    for width in wider:
        candidate = attempt(base_features=width)
        if candidate.steps < min(frame.wanted(WIDER_STEPS), FREE_SHARE * first.steps):
            break
        best = candidate
    return best


def _smaller_patch(attempt: Callable[..., Candidate], best: Candidate) -> Candidate:
    """Half of the voxels, again and again, while steps are few and the patch stays useful."""
    least = LEAST_PATCH[best.configuration.network.dims]
    while best.steps < best.frame.wanted(FEW_STEPS):
        voxels = math.prod(best.configuration.patch_size)
        try:
            smaller = attempt(base_features=best.options.base_features, patch_limit=voxels // 2)
        except PlanError:
            break  # nothing smaller is a U-Net
        if math.prod(smaller.configuration.patch_size) < least or smaller.steps <= best.steps:
            break
        best = smaller
    return best


def _batch(best: Candidate) -> int:
    """The largest batch with a useful number of steps."""
    per_step = best.training / best.frame.wanted(LARGER_BATCH_STEPS)
    return max(best.least_batch, min(best.configuration.batch_size, best.timing.largest_batch(per_step)))


def _require_time(best: Candidate) -> None:
    frame, least_training = best.frame, LEAST_STEPS * best.timing.step(best.least_batch)
    if best.training >= least_training:
        return
    least = frame.other_seconds + frame.folds * (least_training + best.validation + FOLD_OVERHEAD_SECONDS)
    raise DeadlineError(
        f"the time is too short: with the smallest recipe ({LEAST_STEPS} steps in each of {frame.folds} folds) the "
        f"whole command takes at least {format_time(math.ceil(1.05 * least))}. Give more --time, or fewer --folds",
        1.05 * least,
    )


def _shape_inference(best: Candidate, configure: Configure) -> tuple[Candidate, tuple[str, ...]]:
    """Less overlap, then no mirroring, then coarser spacing, until validation takes its share at most."""
    allowed = INFERENCE_SHARE * best.frame.seconds / best.frame.folds
    changes: list[tuple[dict[str, object], str]] = [
        ({}, ""),
        ({"overlap": 0.25}, "tiles overlap by a quarter instead of half"),
        ({"overlap": 0.25, "mirror": False}, "no mirrored views are averaged"),
    ]
    for scale in (1.25, 1.5, 2.0):
        coarser: dict[str, object] = {"overlap": 0.25, "mirror": False, "spacing_scale": scale}
        changes.append((coarser, f"the target spacing is {scale} times coarser"))
    said: list[str] = []
    shaped = best
    for update, sentence in changes:
        options = best.options.model_copy(update=update)
        shaped = replace(best, options=options, configuration=configure(options))
        if sentence:
            said.append(sentence)
        if shaped.validation <= allowed:
            break
    if not said:
        return shaped, ()
    return shaped, (f"to keep validation within {INFERENCE_SHARE:.0%} of the time, {', '.join(said)}",)


LOOP_SHARE = 1.02
"""validation patches shown while training take up to 2 % more (`training.monitor.TIME_SHARE`)"""
PREPARE_SECONDS_PER_VOXEL = 4e-7
"""reading, resampling and writing one voxel of one channel on one core; generous, since what is left over goes to
training"""
CLOSING_SECONDS_PER_CASE = 0.03
"""of selection, packing and report; added to what they take at least"""


@dataclass(frozen=True)
class Work:
    """What a whole command does beside training and validation."""

    cases: int
    voxels: int
    """of all images as stored, every channel counted"""
    workers: int
    """processes that preprocess; 0 and 1: this one"""


@dataclass(frozen=True)
class RunLength:
    """Seconds of each part of a run."""

    preprocessing: float
    training: float
    """of all folds"""
    validation: float
    """of all folds"""
    closing: float

    @property
    def total(self) -> float:
        return self.preprocessing + self.training + self.validation + self.closing


def work_of(fingerprint: Fingerprint, workers: int) -> Work:
    voxels = sum(math.prod(case.shape) for case in fingerprint.cases)
    return Work(len(fingerprint.cases), voxels * len(fingerprint.channels), workers)


def preprocessing_seconds(work: Work) -> float:
    """Of one prepared folder."""
    return work.voxels * PREPARE_SECONDS_PER_VOXEL / max(1, work.workers)


def closing_seconds(work: Work) -> float:
    return CLOSING_SECONDS + CLOSING_SECONDS_PER_CASE * work.cases


def run_length(configuration: Configuration, work: Work, folds: int) -> RunLength | None:
    """Of one configuration trained alone on `folds` folds; None where its step time or its steps are not known."""
    step, steps = configuration.predicted_step_seconds, configuration.predicted_steps
    if step is None or steps is None:
        return None
    return RunLength(
        preprocessing=preprocessing_seconds(work),
        training=folds * (LOOP_SHARE * steps * step + FOLD_OVERHEAD_SECONDS),
        validation=folds * (configuration.predicted_validation_seconds or 0.0),
        closing=closing_seconds(work),
    )


def total_length(trained: Sequence[tuple[Configuration, int]], work: Work) -> float | None:
    """Seconds of a run that trains each configuration on so many folds; None where one of them is not known.

    Those with the same prepared folder share its preprocessing.
    """
    lengths = [run_length(configuration, work, folds) for configuration, folds in trained]
    if not lengths or any(length is None for length in lengths):
        return None
    folders = len({configuration.prepared for configuration, _ in trained})
    parts = sum(length.training + length.validation for length in lengths if length is not None)
    return parts + folders * preprocessing_seconds(work) + closing_seconds(work)
