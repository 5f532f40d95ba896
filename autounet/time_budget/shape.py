"""Fit a plan to a promised time: grid, width, patch, batch and steps first, then overlap and mirroring.

Everything here is arithmetic over measured seconds, and over what coarser grids keep of the labels; the workflow
measures both and hands them in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..schema.errors import DeadlineError, PlanError
from ..schema.fingerprint import Fingerprint
from ..schema.options import MIRRORED_STEPS, PlannerOptions
from ..schema.plan import Configuration, Limits
from ..schema.quantities import format_time
from .cost_model import Timing, case_seconds
from .expected_error import EASY, HARD, LEARNING, learning_error
from .run_length import FOLD_OVERHEAD_SECONDS

WIDTHS = (32, 24, 16, 8)
"""candidate features of the first stage, widest first; 32 is nnU-Net's"""
WIDER_STEPS = 5000
"""steps that a fold should still get with a wider network. Chosen: Task04 has 0.867 with 2,526 steps of 32 features and
0.877 with 4,404 of 16 features in the same time (benchmarks/results/recipes_2026-11-30.md)"""
LARGER_BATCH_STEPS = 5000
"""steps that a fold should still get with a larger batch; chosen like the one above"""
FEW_STEPS = 1000
"""steps below which a smaller patch, and so more steps, is tried: DRIVE had 0.725 with a quarter of the patch and 194
steps in the time of 71 steps and 0.644 (benchmarks/results/recipes_2026-11-30.md)"""
SCALES = (1.25, 1.5, 2.0, 2.5, 3.0)
"""coarser grids that are compared with the target spacing, in units of its finest axis"""
GRID_GAIN = 0.9
"""share of a grid's error that a coarser one has to fall below to be chosen instead"""
LEAST_PATCH = {2: 96**2, 3: 48**3}
"""voxels by dimension, whatever the shape, which follows the images'; smaller patches see too little"""
LEAST_STEPS = 60
"""steps below which a fold has learnt nothing useful"""
INFERENCE_SHARE = 0.2
"""largest share of the time that validation may take before overlap and mirroring are given up"""


@dataclass(frozen=True)
class TimeFittedPlan:
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
    grids: tuple[float, ...] = ()
    """scales of the grid between which it depends on the data set's own factor of `learning_error`; none: on nothing"""


def coverage(configuration: Configuration) -> float:
    """Share of the median image that a patch shows."""
    image = math.prod(configuration.median_shape[-configuration.network.dims :])
    return math.prod(configuration.patch_size) / image


@dataclass(frozen=True)
class TimeBudget:
    """The time of one configuration, and what has to be done in it."""

    seconds: float
    """for training and validating all folds"""
    folds: int
    cases_per_fold: float
    other_seconds: float = 0.0
    """what the rest of the command takes"""
    step_limit: int | None = None
    """most steps of a fold, by --epochs or --iterations"""
    fingerprint: Fingerprint | None = None
    """of the cases to be validated; None: all are of median size"""
    learning: float = LEARNING
    """factor of `learning_error`"""

    def limited(self, steps: int) -> int:
        return min(steps, self.step_limit or steps)


@dataclass(frozen=True)
class TimedConfiguration:
    """A configuration under trial, with its measured timing."""

    budget: TimeBudget
    options: PlannerOptions
    configuration: Configuration
    timing: Timing
    kept: float = 1.0
    """Dice that the labels keep on its grid"""

    @property
    def least_batch(self) -> int:
        """A preset keeps its batch."""
        return self.configuration.batch_size if self.options.preset else self.options.minimum_batch

    @property
    def validation(self) -> float:
        """Seconds per fold."""
        return self.budget.cases_per_fold * case_seconds(self.configuration, self.timing, self.budget.fingerprint)

    @property
    def training(self) -> float:
        """Seconds per fold."""
        return self.budget.seconds / self.budget.folds - self.validation - FOLD_OVERHEAD_SECONDS

    @property
    def steps(self) -> float:
        """Per fold, with the least batch. Validation that takes more than its share will be cut to it."""
        return self._steps()

    def _steps(self, patch: float = 1.0, image: float = 1.0) -> float:
        """With so many times the voxels of the patch, and of the image."""
        fold = self.budget.seconds / self.budget.folds
        training = fold - min(image * self.validation, INFERENCE_SHARE * fold) - FOLD_OVERHEAD_SECONDS
        overhead = min(self.timing.step_overhead, full := self.timing.step(self.least_batch))
        return training / (overhead + patch * (full - overhead))

    @property
    def error(self) -> float:
        """What is expected to be missing to a Dice of 1.

        Borders that the grid blurs and borders that were not learnt are taken to be independent.
        """
        unlearnt = learning_error(self.steps, coverage(self.configuration), self.width, self.budget.learning)
        return math.hypot(1 - self.kept, unlearnt)

    @property
    def width(self) -> int:
        return self.configuration.network.features[0]

    def error_on(self, scale: float, kept: float) -> float:
        """That of the same network on a grid `scale` times coarser than the finest axis, without another measurement.

        A patch that shows the whole image becomes smaller there, another shows more of it; and it is made smaller while
        steps are few, as it will be.
        """
        spacing, dims = self.configuration.network_spacing, self.configuration.network.dims
        sizes, finest = self.configuration.median_shape[-dims:], scale * min(spacing)
        image = math.prod(sizes)
        coarse = math.prod(size * own / max(own, finest) for size, own in zip(sizes, spacing, strict=True))
        patch = math.prod(self.configuration.patch_size)
        shown = min(patch, coarse)
        while self._steps(shown / patch, coarse / image) < self.budget.limited(FEW_STEPS):
            if shown / 2 < LEAST_PATCH[dims]:
                break
            shown /= 2
        steps = self._steps(shown / patch, coarse / image)
        return math.hypot(1 - kept, learning_error(steps, shown / coarse, self.width, self.budget.learning))


Configure = Callable[[PlannerOptions], Configuration]
Measure = Callable[[Configuration], Timing]
Kept = Callable[[float], float]
"""scale of a coarser grid -> Dice that labels keep on it and back"""
Attempt = Callable[..., TimedConfiguration]
"""(what to start from, changed options) -> configured and timed"""


def fit_to_time(
    budget: TimeBudget,
    options: PlannerOptions,
    configure: Configure,
    measure: Measure,
    kept: Kept | None = None,
    mirrored_steps: int = MIRRORED_STEPS,
) -> TimeFittedPlan:
    """The grid of the least expected error, on it the widest network, then the largest batch, that still gets a useful
    number of steps in every fold.

    Where even the narrowest gets few steps, the patch becomes smaller. `configure` plans for given options and
    `measure` times the result; both are called for the narrowest width first. Without `kept` the grid stays as it is.
    With fewer than `mirrored_steps` nothing is mirrored. A preset keeps its network, patch and batch, and
    `base_features` that are given stay. Raises DeadlineError with the least time of the whole command.
    """

    def attempt(best: TimedConfiguration | None = None, **changes: object) -> TimedConfiguration:
        changed = (best.options if best else options).model_copy(update=changes)
        configuration = configure(changed)
        detail = kept(changed.spacing_scale) if kept and changed.spacing_scale != 1 else 1.0
        return TimedConfiguration(budget, changed, configuration, measure(configuration), detail)

    given = options.base_features
    grid_reasons: tuple[str, ...] = ()
    grids: tuple[float, ...] = ()
    if options.preset:
        best = attempt()
    else:
        first = attempt(base_features=given or min(WIDTHS))
        if kept:
            grids = _possible_grids(first, kept)
        best, grid_reasons = _coarser(attempt, first, kept) if kept else (first, ())
        best = _smaller_patch(attempt, best if given else _wider(attempt, best))
        if best.options.mirror_samples and best.steps < mirrored_steps:
            changed = best.options.model_copy(update={"mirror_samples": False})
            best = replace(best, options=changed, configuration=configure(changed))
    best, inference_reasons = _fit_inference(best, configure)
    _require_time(best)
    batch = best.least_batch if options.preset else _batch(best)
    steps = budget.limited(int(best.training / best.timing.step(batch)))
    chosen = best.options if options.preset else best.options.model_copy(update={"batch_limit": batch})
    width = best.width
    limits = Limits(
        patch="time" if chosen.patch_limit != options.patch_limit else None,
        batch="time" if batch < best.configuration.batch_size else None,
        width="time" if not (options.preset or given) and width < max(WIDTHS) else None,
    )
    reasons = (*grid_reasons, _fitted_reason(best, batch, steps, given), *inference_reasons)
    return TimeFittedPlan(chosen, steps, best.timing.step(batch), best.validation, reasons, limits, grids)


def _fitted_reason(best: TimedConfiguration, batch: int, steps: int, given: int | None) -> str:
    patch, seconds = " x ".join(map(str, best.configuration.patch_size)), best.timing.step(batch)
    rule = "the width is given" if given else f"wider pays from {WIDER_STEPS} steps on"
    rule = "the preset keeps its network" if best.options.preset else rule
    return (
        f"fitted to the time: {format_time(best.budget.seconds)} for {best.budget.folds} folds leave "
        f"{format_time(best.training)} of training each: {best.width} features in the first stage, a patch of {patch} "
        f"and a batch of {batch} get about {steps} steps ({seconds:.2f} s each as measured); {rule}"
    )


def _best_grid(first: TimedConfiguration, kept: Kept) -> float:
    """Scale of the finest grid with nearly the least expected error."""
    errors = {1.0: first.error_on(1.0, 1.0)}
    for scale in SCALES:
        detail = kept(scale)
        if 1 - detail >= min(errors.values()):
            break  # coarser grids keep less still
        errors[scale] = first.error_on(scale, detail)
    return next(scale for scale, error in errors.items() if GRID_GAIN * error <= min(errors.values()))


def _possible_grids(first: TimedConfiguration, kept: Kept) -> tuple[float, ...]:
    """Scales of the grid for data sets that are learnt easily and hard; none where they are the same."""
    scales = {
        _best_grid(replace(first, budget=replace(first.budget, learning=factor)), kept) for factor in (EASY, HARD)
    }
    return tuple(sorted(scales)) if len(scales) > 1 else ()


def _coarser(attempt: Attempt, first: TimedConfiguration, kept: Kept) -> tuple[TimedConfiguration, tuple[str, ...]]:
    """On the finest grid with nearly the least expected error, and why."""
    chosen = _best_grid(first, kept)
    if chosen == 1:
        return first, ()
    best = attempt(first, spacing_scale=chosen)
    if best.error >= first.error:
        return first, ()
    why = (
        f"the grid is {chosen:g} times coarser than the finest axis of the target spacing: labels keep a Dice of "
        f"{best.kept:.3f} on it, and {first.width} features get about {best.steps / first.steps:.1f} times the steps. "
        f"So the expected error falls from {first.error:.2f} to {best.error:.2f}; "
        "with more time the target spacing is kept"
    )
    return best, (why,)


def _wider(attempt: Attempt, best: TimedConfiguration) -> TimedConfiguration:
    """As wide as steps stay useful, or the expected error falls."""
    for width in sorted(WIDTHS)[1:]:
        candidate = attempt(best, base_features=width)
        if candidate.steps < best.budget.limited(WIDER_STEPS) and candidate.error >= best.error:
            break
        best = candidate
    return best


def _smaller_patch(attempt: Attempt, best: TimedConfiguration) -> TimedConfiguration:
    """Half of the voxels, again and again, while steps are few, the patch stays useful and the expected error falls."""
    least = LEAST_PATCH[best.configuration.network.dims]
    while best.steps < best.budget.limited(FEW_STEPS):
        voxels = math.prod(best.configuration.patch_size)
        try:
            smaller = attempt(best, patch_limit=voxels // 2)
        except PlanError:
            break  # nothing smaller is a U-Net
        if math.prod(smaller.configuration.patch_size) < least or smaller.error >= best.error:
            break
        best = smaller
    return best


def _batch(best: TimedConfiguration) -> int:
    """The largest batch with a useful number of steps."""
    per_step = best.training / best.budget.limited(LARGER_BATCH_STEPS)
    return max(best.least_batch, min(best.configuration.batch_size, best.timing.largest_batch(per_step)))


def _require_time(best: TimedConfiguration) -> None:
    budget, least_training = best.budget, LEAST_STEPS * best.timing.step(best.least_batch)
    if best.training >= least_training:
        return
    least = budget.other_seconds + budget.folds * (least_training + best.validation + FOLD_OVERHEAD_SECONDS)
    raise DeadlineError(
        f"the time is too short: even with {LEAST_STEPS} steps in each of {budget.folds} folds the whole command takes "
        f"at least {format_time(math.ceil(1.05 * least))}",
        1.05 * least,
        "Give more --time, or fewer --folds",
    )


def _fit_inference(best: TimedConfiguration, configure: Configure) -> tuple[TimedConfiguration, tuple[str, ...]]:
    """Less overlap, then no mirroring, then coarser spacing, until validation takes its share at most."""
    allowed = INFERENCE_SHARE * best.budget.seconds / best.budget.folds
    changes: list[tuple[dict[str, object], str]] = [
        ({}, ""),
        ({"overlap": 0.25}, "tiles overlap by a quarter instead of half"),
    ]
    if best.options.mirror_samples:
        changes.append(({"overlap": 0.25, "mirror": False}, "no mirrored views are averaged"))
    for scale in (1.25, 1.5, 2.0):
        coarser = scale * best.options.spacing_scale
        last: dict[str, object] = {"overlap": 0.25, "mirror": False, "spacing_scale": coarser}
        changes.append((last, f"the grid is {coarser:g} times coarser than the finest axis"))
    changed: list[str] = []
    fitted = best
    for update, sentence in changes:
        options = best.options.model_copy(update=update)
        fitted = replace(best, options=options, configuration=configure(options))
        if sentence:
            changed.append(sentence)
        if fitted.validation <= allowed:
            break
    if not changed:
        return fitted, ()
    return fitted, (f"to keep validation within {INFERENCE_SHARE:.0%} of the time, {', '.join(changed)}",)
