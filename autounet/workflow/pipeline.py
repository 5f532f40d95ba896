"""One run of one output folder: fingerprint, plan, preprocess, train, select, report.

Each stage needs those before it; whatever is done and still valid is kept. The first two make records; from the plan
on the work is a list of jobs (`jobs.py`), whose functions are in `stages.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..crossval.calibrate import OutOfFoldEntropy
from ..evaluation import DEFAULT_METRICS
from ..report import write_report
from ..schema.errors import AutoUNetError, BudgetExceeded, OptionError, RecordError
from ..schema.options import PlannerOptions, RunOptions
from ..schema.plan import Plan
from ..schema.quantities import format_time
from ..schema.run import DeviceProfile
from ..schema.selection import Selection
from ..store.run_folder import RunFolder
from ..time_budget.deadline import Deadline, TimeAllotment
from ..time_budget.run_length import work_of
from ..tracking import require_tracker
from ..workers import available_cores
from .context import Setup
from .dataset_stage import Known, read_data
from .defaults import check_options, parse_folds, promised_seconds
from .fine_tuning import FineTuning, known_weights
from .jobs import Job, JobGraph, SequentialExecutor
from .make_plan import PlanMaker
from .memory_calibration import calibrated
from .output_folder import locked, require_output_folder
from .parsing import with_stored
from .plan_stage import describe_plan, plan_smaller, plan_stage, time_plan
from .schedule import TrainingSchedule, training_schedule
from .stages import run_job
from .tracked import NO_TRACKER, Tracked, tracking
from .trial_steps import MOST_ATTEMPTS, try_configurations

log = logging.getLogger(__name__)

STAGES = ("fingerprint", "plan", "preprocess", "train", "select", "report")


@dataclass(frozen=True)
class RunOutcome:
    """What a command with DATA leaves."""

    written: Path
    """by the last stage"""
    known: Known
    plan: Plan | None = None
    schedule: TrainingSchedule | None = None
    maker: PlanMaker | None = None
    """plans the same data set for other options"""


def run_pipeline(data: Path, out: Path, options: RunOptions, until: str = "report", replan: bool = False) -> RunOutcome:
    """Everything up to and including the stage `until`, into the folder `out`.

    Raises AutoUNetError; what was done until then is kept.
    """
    data, folder = Path(data), RunFolder(Path(out))
    options = with_stored(options, folder.options)
    check_options(options)
    options = known_weights(options, folder.path)
    workers = available_cores() if options.workers is None else options.workers
    # the clock starts with the command; a CPU's default hour is known only once the device is
    deadline = Deadline(options.seconds, folder.clock)
    require_output_folder(folder.path, data)
    with locked(folder.path), _clock(deadline):
        known = read_data(data, folder, options, PlannerOptions(preset=options.preset).orientation, workers)
        if until == "fingerprint":
            return RunOutcome(folder.fingerprint, known)

        profile = device_profile(folder, options.device or "auto")
        _check_names(options, len(known.splits.folds))
        promised = promised_seconds(options, profile)
        if promised and not options.seconds:
            log.info("no time given: a CPU gets %s (say --time, --epochs or --iterations)", format_time(promised))
            deadline.promise(promised)
        setup = Setup(folder, options, workers, deadline, profile, known)
        plan = plan_stage(setup, promised, replan)
        schedule = _schedule(setup, plan)
        _fine_tuning(setup, schedule).check()
        options.save(folder.options)  # only now: they have proved possible
        if until == "plan":
            plan = time_plan(setup, plan, schedule)
            return RunOutcome(folder.plan, known, plan, schedule, PlanMaker.of(setup, promised))

        with tracking(options, folder.path, known.dataset.name) as tracked:
            plan, schedule = _run_jobs(setup, plan, promised, until, tracked)
            written = folder.path
            if until == "report":
                entropy = OutOfFoldEntropy(
                    folder, known.dataset, schedule.configurations, Selection.load(folder.selection)
                )
                written = write_report(folder.path, entropy)
            tracked.finish(plan, written if until == "report" else None)
        return RunOutcome(written, known, plan, schedule)


def describe(outcome: RunOutcome, explained: bool) -> str:
    """What `plan` prints once the plan is made: the length of the run, and with `explained` the table before it."""
    assert outcome.plan is not None
    assert outcome.schedule is not None
    assert outcome.maker is not None
    work = work_of(outcome.known.fingerprint, outcome.maker.setup.workers)
    return describe_plan(outcome.plan, outcome.schedule, work, outcome.maker.with_options, explained)


@contextmanager
def _clock(deadline: Deadline) -> Iterator[None]:
    """The deadline is cleared when the command succeeds or fails; an interrupted command keeps it."""
    try:
        yield
    except AutoUNetError:
        deadline.end()
        raise
    except BaseException:
        deadline.save()
        raise
    deadline.end()


def _run_jobs(
    setup: Setup, plan: Plan, promised: float | None, until: str, tracked: Tracked
) -> tuple[Plan, TrainingSchedule]:
    """Preprocess, then train and validate, then select and pack: as far as `until`.

    Where a configuration needs more memory than it may, it is planned again, smaller, and the rest goes on. Returns the
    plan as it is then, and what was trained.
    """
    for attempt in range(MOST_ATTEMPTS + 1):
        schedule = _schedule(setup, plan)
        try:
            _execute(setup, plan, schedule, until, tracked)
            break
        except BudgetExceeded as error:
            if attempt == MOST_ATTEMPTS:
                raise
            setup, plan = plan_smaller(setup, plan, promised, error)
    setup.deadline.save()
    return plan, schedule


def _execute(setup: Setup, plan: Plan, schedule: TrainingSchedule, until: str, tracked: Tracked) -> None:
    known, options = setup.known, setup.options
    graph = JobGraph(
        folder=setup.folder,
        dataset=known.dataset,
        content={facts.identifier: facts.content_hash for facts in known.facts},
        class_voxels=known.fingerprint.class_voxels,
        schedule=schedule,
        device=setup.profile.device,
        workers=setup.workers,
        loader_workers=setup.loader_workers,
        initial=_fine_tuning(setup, schedule).of,
        events=plan.events,
    )
    jobs = graph.preparation()
    trainings: list[Job] = []
    if STAGES.index(until) >= STAGES.index("train"):
        _require_device(setup.folder, setup.profile)
        for name in schedule.left_out:
            log.warning("%s is left out: it needs every fold of its previous stage. Give --folds all, or name it", name)
        trainings = graph.training()
    pending = [(job.function, job.configuration) for job in trainings if not job.is_done()]
    shares = TimeAllotment(setup.deadline, schedule.configurations, len(known.dataset.cases), pending)
    if trainings:
        shares.check()
        try_configurations(
            schedule,
            setup.folder,
            known.dataset,
            setup.profile,
            max(plan.options.memory_bytes, setup.asked_bytes),  # as the plan was made for, or as allowed since
            plan.options.preset is not None,
        )
    jobs += trainings
    if STAGES.index(until) >= STAGES.index("select"):
        jobs.append(graph.selection(jobs, options.data, known.fingerprint, options.metrics or DEFAULT_METRICS))
    SequentialExecutor(lambda job: run_job(job, shares, tracked, setup.deadline), setup.deadline.save).run(jobs)


def _fine_tuning(setup: Setup, schedule: TrainingSchedule) -> FineTuning:
    return FineTuning(
        setup.options, setup.known.dataset, schedule.configurations, schedule.train_options, setup.folder.plan
    )


def _schedule(setup: Setup, plan: Plan) -> TrainingSchedule:
    known = setup.known
    return training_schedule(
        plan, setup.options, known.dataset, known.splits, known.fingerprint.dimension, setup.deadline.promised
    )


def device_profile(folder: RunFolder, device: str) -> DeviceProfile:
    """The device, probed once per output folder and device that is asked for."""
    try:
        known = DeviceProfile.load(folder.device)
        if device in ("auto", known.device) or (device, known.device) == ("cuda", "cuda:0"):
            return known  # without loading torch
    except RecordError:
        pass
    from ..ops.device import choose_device
    from ..training.probe import probe_device

    profile = calibrated(probe_device(choose_device(device)))
    profile.save(folder.device)
    return profile


def _require_device(folder: RunFolder, profile: DeviceProfile) -> None:
    """The device of the plan must still be there."""
    from ..ops.device import choose_device

    try:
        choose_device(profile.device)
    except OptionError as error:
        raise OptionError(
            f"{folder.device} was probed elsewhere: {error.message}", "Delete it to probe this machine"
        ) from None


def _check_names(options: RunOptions, folds: int) -> None:
    """Names that only the training would stumble over, hours later."""
    if options.track not in (None, NO_TRACKER):
        require_tracker(str(options.track))
    if options.loss:
        from ..losses import LOSSES

        if options.loss not in LOSSES:
            raise OptionError(f"--loss {options.loss} is unknown", f"Choose one of {', '.join(sorted(LOSSES))}")
    parse_folds(options.folds, folds)
