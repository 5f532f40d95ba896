"""The stages of `autounet run`: fingerprint, plan, preprocess, train, select, report.

One `Pipeline` per output folder. Each stage runs those before it; whatever is done and still valid is kept.
The first two stages make the records; from the plan on, the work is a graph of jobs (`running/fold_jobs.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from ..crossval.calibrate import OutOfFoldEntropy
from ..report import write_report
from ..schema.errors import AutoUNetError, BudgetExceeded, OptionError, PlanError, RecordError
from ..schema.labels import overlapping_targets
from ..schema.options import PlannerOptions, RunOptions, with_stored
from ..schema.plan import Plan, swapped_classes
from ..schema.quantities import format_time
from ..schema.record import digest
from ..schema.run import DeviceProfile
from ..schema.selection import Selection
from ..time_budget.deadline import Deadline
from ..tracking import NO_TRACKER, require_tracker, track_run
from ..workers import available_cores
from .calibrate import calibrated
from .context import Context, Setup
from .dataset_stage import DataRecords, read_data
from .defaults import check_options, parse_folds, planner_options, promised_seconds, step_limit
from .fine_tuning import Starting, known_weights, network_source
from .jobs import SequentialExecutor
from .make_plan import PlanFile, PlanMaker
from .output_folder import locked, require_output_folder
from .plan_summary import timed
from .stages import FoldJobs
from .trial_steps import MOST_ATTEMPTS, try_configurations

log = logging.getLogger(__name__)

STAGES = ("fingerprint", "plan", "preprocess", "train", "select", "report")


class Pipeline:
    """Paths and records of one output folder, and the stages over them."""

    def __init__(self, data: Path, out: Path, options: RunOptions, replan: bool = False) -> None:
        self.data, self.out, self.replan = Path(data), Path(out), replan
        self.options = with_stored(options, self.out / "options.json")
        check_options(self.options)
        self.options = known_weights(self.options, self.out)
        self.workers = available_cores() if self.options.workers is None else self.options.workers
        # the clock starts with the command; a CPU's default hour is known only once the device is
        self.deadline = Deadline(self.options.seconds, self.out / "clock.json")
        self.plan_file = PlanFile(self.out)

    def run(self, until: str = "report") -> Path:
        """Everything up to and including a stage. Returns the path of what that stage wrote."""
        require_output_folder(self.out, self.data)
        with locked(self.out), self._clock():
            self.known = self.fingerprint_stage()
            if until == "fingerprint":
                return self.out / "fingerprint.json"
            self.plan = self.plan_stage()
            Starting(self.context).check()
            self.options.save(self.out / "options.json")  # only now: they have proved possible
            if until == "plan":
                self._time_plan()
                return self.out / "plan.json"
            with track_run(self.options, self.out, self.known.dataset.name) as self.tracked:
                self.job_stages(until)
                path = self._report() if until == "report" else self.out
                self.tracked.finish(self.plan, path if until == "report" else None)
            return path

    def _report(self) -> Path:
        """With the uncertainty of the out-of-fold scores, where these are kept."""
        selection = Selection.load(self.out / "selection.json")
        context = self.context
        return write_report(
            self.out, OutOfFoldEntropy(self.out, context.known.dataset, context.configurations, selection)
        )

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """The promise ends with the command, whether well or with an error; an interrupted command keeps its clock."""
        try:
            yield
        except AutoUNetError:
            self.deadline.end()
            raise
        except BaseException:
            self.deadline.save()
            raise
        self.deadline.end()

    def fingerprint_stage(self) -> DataRecords:
        """Scan, read every case once, check, split: dataset.json, splits.json, fingerprint.json, findings.json."""
        orientation = PlannerOptions(preset=self.options.preset).orientation
        return read_data(self.data, self.out, self.options, orientation, self.workers)

    def plan_stage(self) -> Plan:
        """Probe the device, plan, and shape the plan to the time: device.json, plan.json.

        A plan.json that differs from the one written is a person's: validated and kept. A plan made from the same
        options is kept, also when data change and it is still valid; other options make a new one.
        """
        self._check_names()
        seconds = promised_seconds(self.options, self.profile)
        if seconds and not self.options.seconds:
            log.info("no time given: a CPU gets %s (say --time, --epochs or --iterations)", format_time(seconds))
            self.deadline.promise(seconds)
        asked, maker = self._asked(seconds), self._maker(seconds)
        existing = None if self.replan else self.plan_file.load()
        if existing:
            edited = self.plan_file.is_edited(existing)
            if (edited or self.plan_file.asked == asked) and (kept := self._kept(maker, existing, edited)):
                return kept
        plan = maker.new()
        maker.check(plan, edited=False)
        self.plan_file.keep(plan, asked)
        return plan

    def job_stages(self, until: str) -> None:
        """Preprocess, then train and validate, then select and pack: as far as `until`.

        Where a configuration needs more memory than it may, it is planned again, smaller, and the rest goes on.
        """
        for _ in range(MOST_ATTEMPTS):
            try:
                self._run_jobs(until)
                return
            except BudgetExceeded as error:
                self._plan_smaller(error)
        self._run_jobs(until)

    def _run_jobs(self, until: str) -> None:
        context = self.context
        work = FoldJobs(context, self.tracked)
        jobs = work.preprocess_jobs()
        if STAGES.index(until) >= STAGES.index("train"):
            self._require_device()
            jobs += work.train_jobs()
            try_configurations(context)
        if STAGES.index(until) >= STAGES.index("select"):
            jobs.append(work.select_job(jobs))
        SequentialExecutor(lambda job: work.functions[job.function](**job.args), self.deadline.save).run(jobs)
        self.deadline.save()

    def _plan_smaller(self, error: BudgetExceeded) -> None:
        """Only a plan of our own: a preset is nnU-Net's, and an edited plan a person's."""
        if self.plan.options.preset or self.plan_file.is_edited(self.plan):
            raise error
        seconds = promised_seconds(self.options, self.profile)
        self.plan, self.profile = self._maker(seconds).smaller(self.plan, error)
        self.profile.save(self.out / "device.json")
        self.plan_file.keep_changed(self.plan)

    def _maker(self, seconds: float | None) -> PlanMaker:
        return PlanMaker.of(self.setup, seconds)

    @property
    def setup(self) -> Setup:
        return Setup(self.out, self.options, self.workers, self.deadline, self.profile, self.known)

    @property
    def context(self) -> Context:
        """What jobs see, once there is a plan."""
        return self.setup.with_plan(self.plan)

    @cached_property
    def profile(self) -> DeviceProfile:
        """The device, probed once per output folder and asked-for device."""
        asked = self.options.device or "auto"
        try:
            known = DeviceProfile.load(self.out / "device.json")
            if asked in ("auto", known.device) or (asked, known.device) == ("cuda", "cuda:0"):
                return known  # without loading torch
        except RecordError:
            pass
        from ..ops.device import choose_device
        from ..training.probe import probe_device

        profile = calibrated(probe_device(choose_device(asked)))
        profile.save(self.out / "device.json")
        return profile

    def _require_device(self) -> None:
        """The device of the plan must still be there."""
        from ..ops.device import choose_device

        try:
            choose_device(self.profile.device)
        except OptionError as error:
            file = self.out / "device.json"
            raise OptionError(f"{file} was probed elsewhere: {error}. Delete it to probe this machine") from None

    def plan_with(self, options: PlannerOptions) -> Plan:
        """The plan of this data set for given planner options, without regard to time."""
        return self._maker(promised_seconds(self.options, self.profile)).with_options(options)

    def _check_names(self) -> None:
        """Names that only the training would stumble over, hours later."""
        if self.options.track not in (None, NO_TRACKER):
            require_tracker(str(self.options.track))
        if self.options.loss:
            from ..losses import LOSSES

            if self.options.loss not in LOSSES:
                raise OptionError(f"--loss {self.options.loss} is unknown; choose one of {', '.join(sorted(LOSSES))}")
        parse_folds(self.options.folds, len(self.known.splits.folds))

    def _asked(self, seconds: float | None) -> str:
        """Digest of what a plan is made for; an option that only says the default changes nothing."""
        made_for: list[object] = [planner_options(self.options, self.profile).digest(), self.profile.precision, seconds]
        if seconds:
            made_for += [step_limit(self.options), parse_folds(self.options.folds, len(self.known.splits.folds))]
        labels = self.known.dataset.labels
        if labels.regions:
            made_for.append([target.members for target in overlapping_targets(labels)])
        if labels.pairs:
            made_for.append(swapped_classes(labels))
        if source := network_source(self.options):
            made_for.append(f"init {source.checksum}")
        return digest(made_for)

    def _time_plan(self) -> None:
        """Add how long steps and validation take, for people who decide whether to start; a person's plan stays."""
        ours = not self.plan_file.is_edited(self.plan)
        self.plan = timed(self.context)
        if ours:
            self.plan_file.keep_changed(self.plan)

    def _kept(self, maker: PlanMaker, plan: Plan, edited: bool) -> Plan | None:
        """The plan that is there; None when it no longer fits the data. Raises PlanError when a person edited it."""
        try:
            maker.check(plan, edited)
        except PlanError as error:
            if edited:
                raise PlanError(f"the edited plan.json cannot be used: {error}. --replan makes a new one") from None
            log.info("the plan no longer fits the data (%s): a new one is made", error)
            return None
        if edited:
            log.info("plan.json was edited: validated and kept (--replan makes a new one)")
            return maker.traced(plan)
        if plan.fingerprint != self.known.fingerprint.digest():
            log.info("the data changed and the plan is still valid: kept (--replan makes a new one)")
        return plan
