"""How a plan is made for one data set and device: within the traced memory, and fitted to the promised time."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..memory_model import TrainingMemory, training_memory
from ..planning import plan as make_plan
from ..planning import validate as validate_plan
from ..planning.memory import MeasuredMemory
from ..planning.plan_transfer import StartingModel, transfer_options
from ..schema.dataset import partly_annotated
from ..schema.options import MIRRORED_STEPS, PlannerOptions, RunOptions, TrainOptions
from ..schema.plan import Configuration, Limits, NetworkSpec, Plan, Reason
from ..schema.quantities import format_size
from ..schema.run import DeviceProfile
from ..time_budget.cost_model import Timing
from ..time_budget.deadline import Deadline
from ..time_budget.expected_error import LEARNING, may_prefer_slices, slices_instead
from ..time_budget.run_length import closing_seconds, preprocessing_seconds, work_of
from ..time_budget.shape import TimeBudget, fit_to_time
from .dataset_stage import DataRecords, KeptLabels
from .defaults import (
    FULL_STEPS,
    loader_workers,
    parse_folds,
    planner_options,
    requested_configurations,
    step_limit,
    train_options,
    trained_names,
)
from .executor import lanes_of
from .fine_tuning import require_model, starting_model, transfer_reason
from .training_schedule import training_schedule
from .trial_steps import prediction_memory

log = logging.getLogger(__name__)

TRIAL = "trial"
"""in place of a configuration's name"""
MOST_EXCESS = 1.5
"""factor at which a plan whose full trace still exceeds the budget is left to the trial steps"""
BUSY = 0.5
"""of a core, below which what is timed on a CPU was waiting for other work: alone it has all of one, or of several"""
SCALING_ERROR = 1.004
"""memory that is scaled from two traces is within this factor of a full trace, but for networks with large kernels"""


class Fitted(NamedTuple):
    """One configuration as it fits its time."""

    configuration: Configuration
    reasons: list[Reason]
    grids: tuple[float, ...]
    """scales between which a trial on the data would decide"""
    kept: float
    """Dice that labels keep on its grid"""


@dataclass(frozen=True)
class PlanMaker:
    """Makes plans of one data set for one device."""

    options: RunOptions
    data: DataRecords
    profile: DeviceProfile
    deadline: Deadline
    workers: int
    """processes that read and prepare cases"""
    seconds: float | None
    """promised for the whole command"""
    memory: TrainingMemory
    excess: float = SCALING_ERROR
    """factor of predictions, raised where a full trace of a plan exceeded its budget"""
    starting: StartingModel | None = None
    """whose networks are transferred"""
    learning: float | None = None
    """how hard the data set is to learn, by a trial on it: a factor of `expected_error.learning_error`"""
    known_timings: dict[str, Timing] = field(default_factory=dict, compare=False)
    """by what was timed, whatever its batch: one plan is often made several times"""

    @classmethod
    def of(
        cls,
        options: RunOptions,
        data: DataRecords,
        profile: DeviceProfile,
        deadline: Deadline,
        workers: int,
        seconds: float | None,
    ) -> PlanMaker:
        """With the memory model of the device and of the training that the options ask for."""
        starting = starting_model(options)
        training = _train_options(options, data.fingerprint.dimension, seconds, starting, profile)
        memory = training_memory(data.dataset.labels, training, profile, bool(partly_annotated(data.dataset)))
        return cls(options, data, profile, deadline, workers, seconds, memory, starting=starting)

    def with_profile(self, profile: DeviceProfile) -> PlanMaker:
        other = PlanMaker.of(self.options, self.data, profile, self.deadline, self.workers, self.seconds)
        return replace(other, learning=self.learning)

    @property
    def asked_bytes(self) -> int:
        """The memory that the options allow now; a kept plan may have been made for another budget."""
        return planner_options(self.options, self.profile).memory_bytes

    def budget(self, plan: Plan) -> int:
        """Bytes that training may take: as the plan was made for, or as allowed since."""
        return max(plan.options.memory_bytes, self.asked_bytes)

    @property
    def train_options(self) -> TrainOptions:
        return self.memory.options

    def measure(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        """Peak bytes of a training step, as traced and corrected by what trial steps have shown."""
        return round(self.memory(spec, patch, batch) * self.profile.memory_correction * self.excess)

    def measure_roughly(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        """As `measure`, or more where that is known to fit without a trace: for plans that are only compared."""
        most = self.memory.at_most(spec, patch, batch)
        raised = None if most is None else round(most * self.profile.memory_correction * self.excess)
        return raised if raised is not None and raised <= self.asked_bytes else self.measure(spec, patch, batch)

    def measure_fully(self, spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        """The same by a trace of this very patch and batch: quicker than scaling for a single answer."""
        return round(self.memory.verify(spec, patch, batch) * self.profile.memory_correction)

    def with_options(self, options: PlannerOptions, compared: bool = False) -> Plan:
        """The plan of this data set for given planner options, without regard to time.

        Of one that is only `compared` with others patch, batch and network hold, and its bytes are none too few.
        A preset's is nnU-Net's; else the networks are those of the model that training starts from, if there is one.
        """
        known, measure = self.data, self.measure_fully if options.preset else self.measure
        if compared and not options.preset:
            measure = self.measure_roughly
        starting = None if options.preset else self.starting
        if not options.preset:
            require_model(self.options, starting)
        if starting is not None:
            options = transfer_options(options, starting)
        made = make_plan(
            known.fingerprint, known.dataset.labels, options, self.train_options, self.profile, measure, starting,
            round(self.memory.margin.bytes * self.profile.memory_correction * self.excess),
        )  # fmt: skip
        if starting is None:
            return made
        return made.model_copy(update={"reasons": (*made.reasons, transfer_reason(starting))})

    def check(self, plan: Plan, edited: bool) -> None:
        """Raises PlanError for a plan that is not valid; doubts are logged.

        Memory is checked for an edited plan only. Ours was made to fit, and what was trained by it stays valid when
        trial steps have raised the predictions since.
        """
        known = self.data
        memory = MeasuredMemory(self.budget(plan), self.measure) if edited else None
        for warning in validate_plan(plan, known.fingerprint, known.dataset.labels, memory):
            log.warning("%s", warning)

    def new(self) -> Plan:
        """A plan fitted to the promised time, if any, with the memory of training and of predicting traced in full."""
        plan = self.traced(self._planned())
        share = max(each.predicted_memory_bytes for each in plan.configurations.values()) / plan.options.memory_bytes
        if share > 1 and not plan.options.preset and self.excess < MOST_EXCESS:
            return replace(self, excess=self.excess * share).new()
        predictions = [self._prediction_reason(name, each) for name, each in plan.configurations.items()]
        return plan.model_copy(update={"reasons": (*plan.reasons, *predictions)})

    def traced(self, plan: Plan) -> Plan:
        """With the training memory of each configuration that is trained as it stands, by a full trace."""

        def estimated(each: Configuration) -> Configuration:
            peak = self.measure_fully(each.network, each.patch_size, each.batch_size)
            return each.model_copy(update={"predicted_memory_bytes": peak})

        trained = plan.chosen or tuple(plan.configurations)
        configurations = {
            name: estimated(each) if name in trained else each for name, each in plan.configurations.items()
        }
        return plan.model_copy(update={"configurations": configurations})

    def _prediction_reason(self, name: str, configuration: Configuration) -> Reason:
        """How much memory predicting the largest case with the networks of all folds takes."""
        known = self.data
        memory = prediction_memory(configuration, known.fingerprint, self.profile, len(known.splits.folds))
        if memory is None:
            text = "the memory that predicting takes is not known: this version of torch cannot be traced"
            return Reason(configuration=name, topic="prediction", text=text)
        text = f"predicting the largest case is expected to take {format_size(memory.device_bytes)}"
        text += "" if memory.shared else f", and {format_size(memory.host_bytes)} of main memory"
        if memory.device_bytes > (budget := self.asked_bytes):
            text = f"warning: {text}, more than the {format_size(budget)} that training may take"
        return Reason(configuration=name, topic="prediction", text=text)

    def _planned(self) -> Plan:
        whole = self.with_options(planner_options(self.options, self.profile))
        if self.seconds is None:
            return whole
        fitted, choice = self._chosen(whole)
        reasons = [reason for reason in whole.reasons if reason.configuration not in fitted]
        reasons += [*choice, *(reason for each in fitted.values() for reason in each.reasons)]
        changes = {
            "configurations": {
                **whole.configurations, **{name: each.configuration for name, each in fitted.items()}
            },
            "reasons": tuple(reasons),
            "chosen": tuple(fitted),
            "learning": self.learning,
            "undecided": next(iter(fitted.values())).grids if len(fitted) == 1 and self.learning is None else (),
        }  # fmt: skip
        return whole.model_copy(update=changes)

    def _chosen(self, whole: Plan) -> tuple[dict[str, Fitted], list[Reason]]:
        """What is trained in the promised time, fitted to it, and why it is not the main configuration.

        Raises DeadlineError where nothing fits.
        """
        names = trained_names(whole, self.options, limited=True)
        free = not (self.options.preset or self.starting or requested_configurations(self.options))
        if not free or names != ("3d_fullres",) or "2d" not in whole.configurations:
            return {
                name: self._fitted(whole, name, self._time_budget(whole, name, 1 / len(names))) for name in names
            }, []
        volumes = self._fitted(whole, "3d_fullres", self._time_budget(whole, "3d_fullres", 1.0))
        planned = whole.configurations["3d_fullres"]
        if may_prefer_slices(planned, volumes.configuration):
            slices = self._fitted(whole, "2d", self._time_budget(whole, "2d", 1.0))
            if why := slices_instead(planned, volumes.configuration, slices.configuration):
                return {"2d": slices}, [Reason(configuration="2d", topic="time", text=why)]
        return {"3d_fullres": volumes}, []

    def for_trial(self, name: str, seconds: float) -> tuple[Plan, float]:
        """A plan of `TRIAL` for one training of so many seconds that is not validated, and the Dice that labels keep.

        The networks are those of the configuration `name`. Raises DeadlineError.
        """
        whole = self.with_options(planner_options(self.options, self.profile))
        budget = TimeBudget(seconds=seconds, folds=1, cases_per_fold=0.0, fingerprint=self.data.fingerprint)
        fitted = self._fitted(whole, name, budget)
        return whole.model_copy(
            update={"configurations": {TRIAL: fitted.configuration}, "chosen": (TRIAL,)}
        ), fitted.kept

    def _fitted(self, whole: Plan, name: str, budget: TimeBudget) -> Fitted:
        """Raises DeadlineError."""
        lowres = whole.configurations.get("3d_lowres")
        coarse = lowres.preprocess.spacing if lowres else None
        largest = math.prod(whole.configurations[name].patch_size)

        def alone(options: PlannerOptions, compared: bool = False) -> Plan:
            # a narrower network, which needs less memory, is no reason for a larger patch
            limit = min(largest, options.patch_limit or largest)
            kept = {"configurations": (name,), "lowres_spacing": coarse, "patch_limit": limit}
            return self.with_options(options.model_copy(update=kept), compared)

        # pictures are told by their texture, which labels do not show: on coarser grids DRIVE and ISBI lost
        volumes = self.data.fingerprint.dimension == 3
        free = volumes and name in ("2d", "3d_fullres") and not (self.options.preset or self.starting)
        kept = KeptLabels(self.data, whole.configurations[name].preprocess) if free else None
        fitted = fit_to_time(
            budget,
            whole.options,
            lambda options: alone(options, True).configurations[name],
            self._timing,
            kept,
            0 if self.starting else MIRRORED_STEPS,
        )
        final = alone(fitted.options)
        configuration = final.configurations[name]
        decided = {limit: value for limit, value in fitted.limits.model_dump().items() if value}
        estimates = {
            "prepared": whole.configurations[name].prepared if fitted.options.spacing_scale == 1 else f"{name}_coarse",
            "predicted_steps": fitted.steps,
            "predicted_step_seconds": fitted.step_seconds,
            "predicted_validation_seconds": fitted.validation_seconds,
            "limited_by": Limits(**{**configuration.limited_by.model_dump(), **decided}),
        }
        reasons = [reason for reason in final.reasons if reason.configuration == name]
        reasons += [Reason(configuration=name, topic="time", text=text) for text in fitted.reasons]
        scale = fitted.options.spacing_scale
        detail = kept(scale) if kept and scale != 1 else 1.0
        return Fitted(configuration.model_copy(update=estimates), reasons, fitted.grids, detail)

    def _time_budget(self, whole: Plan, name: str, share: float) -> TimeBudget:
        """The share of one configuration of what is left when preprocessing and closing are kept back."""
        known, promised = self.data, self.seconds or 0.0
        schedule = training_schedule(
            whole, self.options, known.dataset, known.splits, known.fingerprint.dimension, promised
        )
        folds, work = schedule.folds_of(name), work_of(known.fingerprint, self.workers)
        left = (self.deadline.remaining() or 0.0) - preprocessing_seconds(work) - closing_seconds(work)
        return TimeBudget(
            seconds=share * left,
            folds=len(folds),
            cases_per_fold=0.0 if folds == (None,) else len(known.dataset.cases) / len(known.splits.folds),
            other_seconds=promised - share * left,
            step_limit=step_limit(self.options),
            fingerprint=known.fingerprint,
            learning=self.learning or LEARNING,
        )

    def timing(self, configuration: Configuration, options: TrainOptions, rough: bool = False) -> Timing:
        """Seconds of the run, measured on the device, by fewer steps where it is `rough`.

        Raises torch's OutOfMemoryError where not even a small step fits.
        """
        from ..time_budget.benchmark import time_configuration

        folds = len(parse_folds(self.options.folds, len(self.data.splits.folds)))
        lanes = lanes_of(self.options, self.profile, self.seconds, folds, configuration.predicted_memory_bytes)
        began, used = time.monotonic(), time.process_time()
        timing = time_configuration(
            configuration,
            self.data.dataset.labels,
            options,
            self.profile.device,
            self.profile.sample_rates,
            math.ceil(loader_workers(self.options, self.profile.device) / lanes.count),
            len(self.data.dataset.cases),
            rough,
            lanes.threads,
        ).times(lanes.share)
        share = (time.process_time() - used) / max(time.monotonic() - began, 1e-9)
        if self.profile.device == "cpu" and share < BUSY and not self.known_timings:  # said once
            log.warning(
                "other work on this machine: steps were timed with %.0f %% of a core, and the run is planned for as "
                "much. Where it is quieter, autounet plan --replan plans for more",
                100 * share,
            )
        return timing

    def _timing(self, configuration: Configuration) -> Timing:
        key = configuration.trained.model_copy(update={"batch_size": 1}).digest()
        if key in self.known_timings:
            return self.known_timings[key]
        timing = self.known_timings[key] = self.timing(configuration, self.train_options)
        width, batch = configuration.network.features[0], configuration.batch_size
        log.info("measured: %d features, batch %d: %.2f s a step", width, batch, timing.step(batch))
        return timing


def _train_options(
    options: RunOptions, dimension: int, seconds: float | None, starting: StartingModel | None, profile: DeviceProfile
) -> TrainOptions:
    """Of a training without a time limit, else of a short one, which takes more memory."""
    steps = 0 if seconds else step_limit(options) or FULL_STEPS
    family = next(iter(starting.configurations.values())).network.family if starting else None
    return train_options(options, steps, dimension, family, profile.augmented_by)
