"""What every stage and job of one run sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..schema.options import RunOptions, TrainOptions
from ..schema.plan import Configuration, Plan
from ..schema.run import DeviceProfile
from ..time_budget.deadline import Deadline
from ..workers import available_cores
from .dataset_stage import DataRecords
from .defaults import (
    FULL_STEPS,
    is_every_fold,
    parse_folds,
    planner_options,
    step_limit,
    train_options,
    trained_folds,
    trained_names,
)


@dataclass(frozen=True)
class Setup:
    """What is known of one output folder before there is a plan."""

    out: Path
    options: RunOptions
    workers: int
    """processes for reading and preprocessing"""
    deadline: Deadline
    profile: DeviceProfile
    known: DataRecords

    @property
    def asked_bytes(self) -> int:
        """The memory that the options allow now; a kept plan may have been made for another budget."""
        return planner_options(self.options, self.profile).memory_bytes

    @property
    def loader_workers(self) -> int:
        """Processes that make batches: beside a GPU all but one core, on a CPU none, since they would compete."""
        if self.options.workers is not None:
            return self.options.workers
        return 0 if self.profile.device == "cpu" else min(12, max(1, available_cores() - 1))

    def with_plan(self, plan: Plan) -> Context:
        return Context(self.out, self.options, self.workers, self.deadline, self.profile, self.known, plan)


@dataclass(frozen=True)
class Context(Setup):
    """The records of one output folder once the plan is made, and what follows from them."""

    plan: Plan

    @property
    def budget(self) -> int:
        """Bytes that training may take: as the plan was made for, or as allowed since."""
        return max(self.plan.options.memory_bytes, self.asked_bytes)

    @property
    def folds(self) -> tuple[int | None, ...]:
        """Those asked for: what is compared, and what each configuration is trained on; see `folds_of`."""
        return parse_folds(self.options.folds, len(self.known.splits.folds))

    @property
    def configurations(self) -> dict[str, Configuration]:
        """Those that are trained, a previous stage before what needs it."""
        return {name: self.plan.configurations[name] for name in self._names(self._every_fold)}

    @property
    def left_out(self) -> tuple[str, ...]:
        """Those that would be trained too if every fold were."""
        return tuple(name for name in self._names(True) if name not in self.configurations)

    def folds_of(self, name: str) -> tuple[int | None, ...]:
        """The folds that one configuration is trained on."""
        return trained_folds(name, self.configurations, self.folds, len(self.known.splits.folds))

    @property
    def steps(self) -> int | None:
        """Steps per fold: as asked, or the full recipe when nothing limits it; None when time alone does."""
        limited = step_limit(self.options)
        return limited if limited or self.deadline.promised else FULL_STEPS

    def train_options(self, configuration: Configuration) -> TrainOptions:
        known = [steps for steps in (configuration.predicted_steps, self.steps) if steps]
        # a model to start from decides on the family, which the options need not say
        family = configuration.network.family if self.options.starts_from == "model" else None
        return train_options(self.options, min(known, default=0), self.known.fingerprint.dimension, family)

    @property
    def _every_fold(self) -> bool:
        return is_every_fold(self.folds, len(self.known.splits.folds))

    def _names(self, every_fold: bool) -> tuple[str, ...]:
        return trained_names(self.plan, self.options, self.deadline.promised is not None, every_fold)

    def cases(self, fold: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Training and validation cases; fold None trains on all."""
        known = self.known
        if fold is None:
            return tuple(case.identifier for case in known.dataset.cases), ()
        splits = known.splits
        return splits.training(fold), splits.validation(fold)
