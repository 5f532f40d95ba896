"""What one run trains: which configurations, on which folds, for how long and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..schema.dataset import Dataset, Splits
from ..schema.errors import OptionError
from ..schema.options import RunOptions, TrainOptions
from ..schema.plan import Configuration, Plan
from .defaults import FULL_STEPS, is_every_fold, parse_folds, step_limit, train_options, trained_folds, trained_names


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
    plan: Plan, options: RunOptions, dataset: Dataset, splits: Splits, dimension: int, promised: float | None
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
        return train_options(options, expected, dimension, configuration.network.family if of_model else None)

    schedule = TrainingSchedule(
        configurations=configurations,
        left_out=tuple(name for name in whole if name not in configurations),
        folds=folds,
        splits=splits,
        cases=tuple(case.identifier for case in dataset.cases),
        steps=steps,
        promised_seconds=promised,
        train_options={name: options_of(each) for name, each in configurations.items()},
    )
    schedule.check_cascades()
    return schedule
