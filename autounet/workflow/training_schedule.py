"""What is trained: configurations, folds, steps, and the options of each training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from ..schema.dataset import Dataset, Splits
from ..schema.errors import OptionError
from ..schema.options import RunOptions, TrainOptions
from ..schema.plan import Configuration, Plan
from ..schema.run import FIXED_AUGMENTED_BY, AugmentedBy
from .defaults import (
    FULL_STEPS,
    ends_when_converged,
    is_every_fold,
    parse_folds,
    step_limit,
    train_options,
    trained_folds,
    trained_names,
)

MOST_UNCHANGED_PASSES = 10.0
"""times that a short training sees the data, up to which its samples are not augmented: nothing is learnt by heart
yet, and images as they lie are learnt sooner. Chosen: Task04 0.904 instead of 0.894 after 7 passes, ACDC 0.806 instead
of 0.793 after 5 and 0.700 instead of 0.653 after 1, OpenKBP 0.680 instead of 0.655 after 3, DRIVE 0.713 and 0.716 after
7 (benchmarks/results/recipes_2026-11-30.md)"""


@dataclass(frozen=True)
class TrainingSchedule:
    configurations: Mapping[str, Configuration]
    """that are trained, a previous stage before what needs it"""
    left_out: tuple[str, ...]
    """configurations that would be trained too if every fold were"""
    folds: tuple[int | None, ...]
    """what is compared, and what each configuration is trained on; but see `folds_of`"""
    splits: Splits
    cases: tuple[str, ...]
    """of the data set"""
    steps: int | None
    """per fold; None: until the time is used up"""
    promised_seconds: float | None
    """of the whole command"""
    to_convergence: bool
    """whether a training ends before its steps once it has converged"""
    train_options: Mapping[str, TrainOptions]
    """of each configuration"""

    def folds_of(self, name: str) -> tuple[int | None, ...]:
        """The folds that one configuration is trained on: every one of a previous stage."""
        return trained_folds(name, self.configurations, self.folds, len(self.splits.folds))

    def training_cases(self, fold: int | None) -> tuple[str, ...]:
        """All cases where `fold` is None."""
        return self.cases if fold is None else self.splits.training(fold)

    def validation_cases(self, fold: int | None) -> tuple[str, ...]:
        return () if fold is None else self.splits.validation(fold)

    @property
    def fold_of_case(self) -> dict[str, int]:
        """Of the cases of the compared folds."""
        return {case: fold for fold in self.folds if fold is not None for case in self.splits.validation(fold)}

    def check_cascades(self) -> None:
        """Raises OptionError where a next stage learns from cases that cannot be split."""
        for name, configuration in self.configurations.items():
            if configuration.previous_stage and len(self.splits.folds) < 2:
                raise OptionError(
                    f"{name} learns from segmentations by {configuration.previous_stage} of cases that it was not "
                    "trained on, and one case or group cannot be split",
                    f"Give more cases, or --configurations without {name}",
                )


def training_schedule(
    plan: Plan,
    options: RunOptions,
    dataset: Dataset,
    splits: Splits,
    dimension: int,
    promised: float | None,
    augmented_by: AugmentedBy = FIXED_AUGMENTED_BY,
) -> TrainingSchedule:
    """`dimension` is that of the images, `promised` the seconds of the whole command. Raises OptionError, PlanError."""
    count = len(splits.folds)
    folds = parse_folds(options.folds, count)
    names, whole = (
        trained_names(plan, options, promised is not None, every_fold)
        for every_fold in (is_every_fold(folds, count), True)
    )
    limit = step_limit(options)
    steps = limit if limit or promised else FULL_STEPS
    configurations = {name: plan.configurations[name] for name in names}
    # a model to start from decides on the family, which the options need not say
    of_model = options.starts_from == "model"

    def options_of(configuration: Configuration) -> TrainOptions:
        expected = min((each for each in (configuration.predicted_steps, steps) if each), default=0)
        family = configuration.network.family if of_model else None
        chosen = train_options(options, expected, dimension, family, augmented_by)
        seldom = passes(configuration, expected, len(dataset.cases)) <= MOST_UNCHANGED_PASSES
        light = options.augmentation is None and chosen.augmentation == "light"
        plain = light and not (chosen.elastic or configuration.mirror_axes or of_model)
        return chosen.model_copy(update={"augmentation": "none"}) if plain and seldom else chosen

    schedule = TrainingSchedule(
        configurations=configurations,
        left_out=tuple(name for name in whole if name not in configurations),
        folds=folds,
        splits=splits,
        cases=tuple(case.identifier for case in dataset.cases),
        steps=steps,
        promised_seconds=promised,
        to_convergence=ends_when_converged(options, promised),
        train_options={name: options_of(each) for name, each in configurations.items()},
    )
    schedule.check_cascades()
    return schedule


def passes(configuration: Configuration, steps: int, cases: int) -> float:
    """How often a training of so many steps sees each voxel of so many cases, on average."""
    dims = configuration.network.dims
    sizes = configuration.median_shape[-dims:]
    seen = math.prod(min(patch, size) for patch, size in zip(configuration.patch_size, sizes, strict=True))
    return steps * configuration.batch_size * seen / max(1, cases * math.prod(configuration.median_shape))


def ensembles(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every pair, and all; planning sees to it that all configurations learn the same."""
    return [*combinations(names, 2), *([names] if len(names) > 2 else [])]
