"""The stages of `autounet run`: fingerprint, plan, preprocess, train, select, report.

One `Pipeline` per output folder. Each stage runs those before it; whatever is done and still valid is kept.
The first two stages make the records; from the plan on, the work is a graph of jobs (`jobs.py`, `fold_jobs.py`).
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

from autounet.planning import plan as make_plan
from autounet.planning import validate as validate_plan
from autounet.report import write_report
from autounet.running.deadline import Deadline
from autounet.running.fold_jobs import FoldJobs
from autounet.running.jobs import Job, SequentialExecutor, locked, read_key, write_key
from autounet.running.reading import read_data
from autounet.running.recipes import (
    FULL_STEPS,
    check_options,
    parse_folds,
    planner_options,
    promised_seconds,
    step_limit,
    train_options,
    trained_names,
)
from autounet.running.time_shaping import TimeFrame, shape_to_device
from autounet.schema.errors import OptionError, RecordError
from autounet.schema.options import PlannerOptions, RunOptions, TrainOptions
from autounet.schema.plan import Plan
from autounet.schema.quantities import format_time
from autounet.schema.record import digest
from autounet.schema.run import DeviceProfile
from autounet.workers import available_cores

log = logging.getLogger(__name__)

STAGES = ("fingerprint", "plan", "preprocess", "train", "select", "report")


class Pipeline:
    """Paths and records of one output folder, and the stages over them."""

    def __init__(self, data: Path, out: Path, options: RunOptions, replan: bool = False) -> None:
        self.data, self.out, self.replan = Path(data), Path(out), replan
        self.options = _with_stored(options, self.out / "options.json")
        check_options(self.options)
        self.workers = available_cores() if self.options.workers is None else self.options.workers
        # The clock starts with the command; a CPU's default hour is known only once the device is.
        self.deadline = Deadline(self.options.seconds, self.out / "clock.json")

    def run(self, until: str = "report") -> Path:
        """Everything up to and including a stage. Returns the path of what that stage wrote."""
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out):
            self.options.save(self.out / "options.json")
            self.fingerprint_stage()
            if until == "fingerprint":
                return self.out / "fingerprint.json"
            self.plan_stage()
            if until == "plan":
                return self.out / "plan.json"
            self._executor().run(self.jobs(until))
            self.deadline.save()
            return write_report(self.out) if until == "report" else self.out

    def fingerprint_stage(self) -> None:
        """Scan, read every case once, check, split: dataset.json, splits.json, fingerprint.json, findings.json."""
        orientation = PlannerOptions(preset=self.options.preset).orientation
        known = read_data(self.data, self.out, self.options, orientation, self.workers)
        self.dataset, self.facts, self.splits, self.fingerprint = known

    def plan_stage(self) -> None:
        """Probe the device, plan, and shape the plan to the time: device.json, plan.json.

        A plan.json that differs from the one written is a person's: validated and kept. A plan made from the same
        inputs is kept; changed data keep a plan that is still valid, changed options renew it.
        """
        self._check_names()
        file, done = self.out / "plan.json", self.out / "plan.key"
        seconds = promised_seconds(self.options, self.profile)
        if seconds and not self.options.seconds:
            log.info("no time given: a CPU gets %s (say --time, --epochs or --iterations)", format_time(seconds))
            self.deadline.promise(seconds)
        asked = digest([self.options.model_dump(mode="json", exclude={"workers", "data"}), self.profile.device])
        existing = None if self.replan else _load_plan(file)
        if existing is not None:
            written, _, made_for = (read_key(done) or "::").partition(":")
            edited = bool(written) and written != existing.digest()
            if edited or made_for == asked:
                self._keep(existing, edited)
                return
        self.plan = self._new_plan(seconds)
        validate_plan(self.plan, self.fingerprint, self.dataset.labels)
        self.plan.save(file)
        write_key(done, f"{self.plan.digest()}:{asked}")

    def _check_names(self) -> None:
        """Names that only the training would stumble over, hours later."""
        from autounet.losses import LOSSES

        if self.options.loss and self.options.loss not in LOSSES:
            raise OptionError(f"--loss {self.options.loss} is unknown; choose one of {', '.join(sorted(LOSSES))}")
        parse_folds(self.options.folds, len(self.splits.folds))

    def _keep(self, plan: Plan, edited: bool) -> None:
        validate_plan(plan, self.fingerprint, self.dataset.labels)
        if edited:
            log.info("plan.json was edited: validated and kept")
        elif plan.fingerprint != self.fingerprint.digest():
            log.info("the data changed and the plan is still valid: kept (--replan makes a new one)")
        self.plan = plan

    def _new_plan(self, seconds: float | None) -> Plan:
        options = planner_options(self.options, self.profile)
        whole = self.plan_with(options)
        if seconds is None:
            return whole
        names = trained_names(whole, self.options, limited=True)
        frame = TimeFrame(
            seconds=self.deadline.remaining() or 0.0,
            folds=len(self.folds) * len(names),
            cases_per_fold=len(self.dataset.cases) / len(self.splits.folds) if self.folds != (None,) else 0.0,
            workers=self.workers,
        )
        shape = shape_to_device(frame, self, options, names[-1])
        plan = self.plan_with(shape.options)
        estimates = {
            "predicted_steps": shape.steps,
            "predicted_step_seconds": shape.step_seconds,
            "predicted_validation_seconds": shape.validation_seconds,
        }
        changed = {name: plan.configurations[name].model_copy(update=estimates) for name in names}
        trained = f"The time is limited, so of the plan {' and '.join(names)} is trained."
        return plan.model_copy(
            update={
                "configurations": {**plan.configurations, **changed},
                "reasons": (*plan.reasons, trained, *shape.reasons),
            }
        )

    def plan_with(self, options: PlannerOptions) -> Plan:
        return make_plan(self.fingerprint, self.dataset.labels, options, self.train_options(0), self.profile)

    @cached_property
    def profile(self) -> DeviceProfile:
        """The device, probed once per output folder and asked-for device."""
        from autounet.device import choose_device
        from autounet.training.probe import probe_device

        device = choose_device(self.options.device or "auto")
        try:
            known = DeviceProfile.load(self.out / "device.json")
            if known.device == device:
                return known
        except RecordError:
            pass
        profile = probe_device(device)
        profile.save(self.out / "device.json")
        return profile

    def train_options(self, expected_steps: int) -> TrainOptions:
        return train_options(self.options, expected_steps)

    @property
    def steps(self) -> int | None:
        """Steps per fold: as asked, or the full recipe when nothing limits it."""
        limited = step_limit(self.options)
        return limited if limited or self.deadline.promised else FULL_STEPS

    @property
    def loader_workers(self) -> int:
        """Processes that make batches: beside a GPU all but one core, on a CPU none, since they would compete."""
        if self.options.workers is not None:
            return self.options.workers
        return 0 if self.profile.device == "cpu" else min(12, max(1, available_cores() - 1))

    @property
    def folds(self) -> tuple[int | None, ...]:
        return parse_folds(self.options.folds, len(self.splits.folds))

    def trained_names(self) -> tuple[str, ...]:
        return trained_names(self.plan, self.options, limited=self.deadline.promised is not None)

    def jobs(self, until: str) -> list[Job]:
        """The graph from the plan on, in an order that respects it."""
        stages = STAGES[: STAGES.index(until) + 1]
        self.fold_jobs = FoldJobs(self)
        jobs = self.fold_jobs.preprocess_jobs()
        if "train" in stages:
            jobs += self.fold_jobs.train_jobs()
        if "select" in stages:
            jobs.append(self.fold_jobs.select_job(jobs))
        return jobs

    def _executor(self) -> SequentialExecutor:
        return SequentialExecutor(lambda job: self.fold_jobs.functions[job.function](**job.args), self.deadline.save)


def _with_stored(options: RunOptions, file: Path) -> RunOptions:
    """An omitted option takes the stored value."""
    try:
        stored = RunOptions.load(file)
    except RecordError:
        if file.exists():
            raise
        return options
    given = options.model_dump(exclude_none=True, exclude_defaults=True)
    data = {**stored.data.model_dump(), **given.pop("data", {})}
    return RunOptions.model_validate({**stored.model_dump(), **given, "data": data})


def _load_plan(file: Path) -> Plan | None:
    return Plan.load(file) if file.exists() else None
