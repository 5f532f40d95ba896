"""One run of one output folder: fingerprint, plan, preprocess, train, select, report.

Each stage needs those before it; whatever is done and still valid is kept. The first two make records; from the plan
on the work is a list of jobs (`jobs.py`), whose functions are in `stages.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..ops.device import devices_like
from ..progress import stop_if_cancelled, whole_run
from ..run_log import open_run_log
from ..schema.dataset import Dataset
from ..schema.errors import AutoUNetError, BudgetExceeded, Cancelled, DeadlineError, OptionError, RecordError
from ..schema.metrics import DEFAULT_METRICS
from ..schema.options import PlannerOptions, RunOptions
from ..schema.plan import Plan
from ..schema.quantities import format_time
from ..schema.run import DeviceProfile
from ..schema.selection import Selection
from ..store.file_hashes import FileHashes
from ..store.folder_lock import locked
from ..store.run_folder import RunFolder
from ..time_budget.deadline import Deadline, Lanes, TimeAllotment
from ..time_budget.run_length import work_of
from ..tracking import track_run
from ..tracking.run_tracking import RunTracker
from ..workers import available_cores
from .cluster import Cluster, cluster_of, try_trainings
from .cluster_executor import ClusterExecutor
from .dataset_stage import DataRecords, read_data
from .defaults import check_options, loader_workers, parse_folds, promised_seconds
from .executor import Runner, SequentialExecutor, SideBySideExecutor, lanes_of, training_devices
from .fine_tuning import FineTuning, known_weights
from .jobs import Job, JobGraph
from .make_plan import PlanMaker
from .output_folder import remove_temporary, require_output_folder, sole_in_process, with_stored
from .plan_stage import PlanFile, describe_plan, plan_smaller, plan_stage, time_plan, tried
from .read_status import run_seconds_left
from .training_schedule import TrainingSchedule, training_schedule
from .trial_steps import MOST_ATTEMPTS, bytes_of_a_fold, calibrated

log = logging.getLogger(__name__)

SHARDS_EACH = 2
"""of the cases of a grid, for each job of a cluster that goes on at the same time: they differ in length"""

STAGES = ("fingerprint", "plan", "preprocess", "train", "select", "report")


@dataclass(frozen=True)
class RunOutcome:
    """What a command with DATA leaves."""

    written: Path
    """by the last stage"""
    data: DataRecords
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
    # the clock starts with the command; a CPU's default hour is known only once the device is
    deadline = Deadline(options.seconds, folder.clock)
    with sole_in_process(options.deterministic):
        require_output_folder(folder.path, data, options.data)
        left = partial(run_seconds_left, folder.path)
        with (
            locked(folder.path) as killed, _clock(deadline), whole_run(left),
            cluster_of(options, folder.path) as cluster,
        ):  # fmt: skip
            if killed and cluster is None:  # a cluster's jobs go on without the command
                remove_temporary(folder.path)
            open_run_log(folder.log)
            log.debug("options: %s", options.model_dump_json(exclude_defaults=True))
            return _pipeline(data, folder, options, until, replan, deadline, cluster)


def _pipeline(
    data: Path,
    folder: RunFolder,
    options: RunOptions,
    until: str,
    replan: bool,
    deadline: Deadline,
    cluster: Cluster | None,
) -> RunOutcome:
    workers = available_cores() if options.workers is None else options.workers
    device = cluster.device(options.device) if cluster else options.device or "auto"
    if until != "fingerprint" and cluster is None:
        _require_known_device(folder, device)
    data_set = read_data(data, folder, options, PlannerOptions(preset=options.preset).orientation, workers)
    if until == "fingerprint":
        return RunOutcome(folder.fingerprint, data_set)

    stop_if_cancelled()
    parse_folds(options.folds, len(data_set.splits.folds))
    profile = device_profile(folder, device, cluster)
    training_devices(options, profile)  # refused before anything is planned for them
    promised = _promised(options, profile, deadline)
    if promised and cluster is not None:
        _require_device(folder, profile)  # on which steps are timed
    maker, file = PlanMaker.of(options, data_set, profile, deadline, workers, promised), PlanFile(folder)
    try:
        plan = plan_stage(maker, file, replan)
    except DeadlineError as error:
        if until != "plan":
            raise
        log.warning("%s. The plan is made without a limit of time", error.message)
        deadline.promise(None)
        maker = PlanMaker.of(options, data_set, profile, deadline, workers, None)
        plan = plan_stage(maker, file, replan)
    schedule = _schedule(maker, plan)
    _fine_tuning(folder, maker, schedule).check()
    options.save(folder.options)  # only now: they have proved possible
    if until != "plan":
        if cluster is None:  # where this command runs is no place for a training
            maker, plan = tried(folder, maker, file, plan)
    else:
        plan = time_plan(maker, file, plan, schedule)
        return RunOutcome(folder.plan, data_set, plan, schedule, maker)

    with track_run(options, folder.path, data_set.dataset.name) as tracker:
        plan, schedule = _run_jobs(folder, maker, file, plan, until, tracker, cluster)
        written = _report(folder, data_set.dataset, schedule) if until == "report" else folder.path
        tracker.finish(plan, written if until == "report" else None)
    return RunOutcome(written, data_set, plan, schedule)


def _promised(options: RunOptions, profile: DeviceProfile, deadline: Deadline) -> float | None:
    """The seconds of the whole command; a CPU's default hour is promised here."""
    promised = promised_seconds(options, profile)
    if promised and not options.seconds:
        log.info("no time given: a CPU gets %s (say --time, --epochs or --iterations)", format_time(promised))
        deadline.promise(promised)
    return promised


def _report(folder: RunFolder, dataset: Dataset, schedule: TrainingSchedule) -> Path:
    from ..crossval.calibrate import OutOfFoldEntropy
    from ..report import write_report

    selection = Selection.load(folder.selection)
    return write_report(folder.path, OutOfFoldEntropy(folder, dataset, schedule.configurations, selection))


def describe(outcome: RunOutcome, explained: bool) -> str:
    """What `plan` prints once the plan is made: the length of the run, and with `explained` the table before it."""
    assert outcome.plan is not None
    assert outcome.schedule is not None
    assert outcome.maker is not None
    work = work_of(outcome.data.fingerprint, outcome.maker.workers)
    return describe_plan(outcome.plan, outcome.schedule, work, outcome.maker.with_options, explained)


@contextmanager
def _clock(deadline: Deadline) -> Iterator[None]:
    """The deadline is cleared when the command succeeds or fails; an interrupted or cancelled one keeps it."""
    try:
        yield
    except Cancelled:
        deadline.save()
        raise
    except AutoUNetError:
        deadline.end()
        raise
    except BaseException:
        deadline.save()
        raise
    deadline.end()


def _run_jobs(
    folder: RunFolder,
    maker: PlanMaker,
    file: PlanFile,
    plan: Plan,
    until: str,
    tracker: RunTracker,
    cluster: Cluster | None,
) -> tuple[Plan, TrainingSchedule]:
    """Preprocess, then train and validate, then select and pack: as far as `until`.

    Where a configuration needs more memory than it may, it is planned again, smaller, and the rest goes on. Returns the
    plan as it is then, and what was trained.
    """
    for attempt in range(MOST_ATTEMPTS + 1):
        schedule = _schedule(maker, plan)
        try:
            _execute(folder, maker, plan, schedule, until, tracker, cluster)
            break
        except BudgetExceeded as error:
            if attempt == MOST_ATTEMPTS:
                raise
            maker, plan = plan_smaller(maker, file, plan, error)
            maker.profile.save(folder.device)
    maker.deadline.save()
    return plan, schedule


def _execute(
    folder: RunFolder,
    maker: PlanMaker,
    plan: Plan,
    schedule: TrainingSchedule,
    until: str,
    tracker: RunTracker,
    cluster: Cluster | None,
) -> None:
    # with all that trains, validates and selects, which planning does without
    from .shards import validate_side_by_side
    from .stages import JobRunner, forget_damaged

    options, data, profile, deadline = maker.options, maker.data, maker.profile, maker.deadline
    graph = JobGraph(
        folder=folder,
        dataset=data.dataset,
        content={facts.identifier: facts.content_hash for facts in data.facts},
        class_voxels=data.fingerprint.class_voxels,
        unseen=data.fingerprint.unseen,
        schedule=schedule,
        device=profile.device,
        workers=maker.workers,
        loader_workers=loader_workers(options, profile.device),
        compile=options.compile or "auto",
        devices=training_devices(options, profile),
        shards=SHARDS_EACH * cluster.options.workers if cluster else 1,
        initial=_fine_tuning(folder, maker, schedule).of,
        events=plan.events,
    )
    jobs = graph.preparation()
    hashes = FileHashes.load(folder.checked)
    forget_damaged(jobs, folder.path, hashes)
    trainings: list[Job] = []
    if STAGES.index(until) >= STAGES.index("train"):
        if cluster is None:
            _require_device(folder, profile)
        for name in schedule.left_out:
            log.warning("%s is left out: it needs every fold of its previous stage. Give --folds all, or name it", name)
        trainings = graph.training()
        forget_damaged(trainings, folder.path, hashes)
    pending = [(job.function, job.configuration) for job in trainings if not job.is_done()]
    lanes = _lanes(maker, schedule, trainings)
    allotment = TimeAllotment(deadline, schedule.configurations, len(data.dataset.cases), pending, lanes)
    if trainings:
        allotment.check()
        try_trainings(schedule, folder, maker, plan, cluster)
    jobs += trainings
    if STAGES.index(until) >= STAGES.index("select"):
        selection = graph.selection(jobs, options.data, data.fingerprint, options.metrics or DEFAULT_METRICS)
        forget_damaged([selection], folder.path, hashes)
        jobs.append(selection)
    hashes.save(folder.checked)
    runner = JobRunner(allotment, tracker, deadline, validate_side_by_side)
    if cluster is not None:
        ClusterExecutor(runner, deadline.save, cluster, folder.path).run(jobs)
    else:
        _executor(runner, deadline, lanes).run(jobs)


def _executor(runner: Runner, deadline: Deadline, lanes: Lanes) -> SequentialExecutor:
    """That of this process, or of several where trainings go on side by side."""
    if lanes.count < 2:
        return SequentialExecutor(runner, deadline.save)
    where = f" on {', '.join(lanes.devices)}" if lanes.devices else ""
    log.info("%d trainings side by side%s, with %d threads each", lanes.count, where, lanes.threads or 1)
    return SideBySideExecutor(runner, deadline.save, lanes)


def _lanes(maker: PlanMaker, schedule: TrainingSchedule, jobs: Sequence[Job]) -> Lanes:
    """Of the trainings still to come; of all of them where the same weights are promised, which depend on threads."""
    options = maker.options
    trainings = [job for job in jobs if job.function == "train" and (options.deterministic or not job.is_done())]
    lanes = lanes_of(options, maker.profile, schedule.promised_seconds, len(trainings))
    if lanes.count < 2 or lanes.devices or options.executor not in (None, "local"):
        return lanes
    fingerprint, profile = maker.data.fingerprint, maker.profile
    most = max(bytes_of_a_fold(each, fingerprint, profile) for each in schedule.configurations.values())
    return lanes_of(options, profile, schedule.promised_seconds, len(trainings), most)


def _fine_tuning(folder: RunFolder, maker: PlanMaker, schedule: TrainingSchedule) -> FineTuning:
    dataset = maker.data.dataset
    return FineTuning(maker.options, dataset, schedule.configurations, schedule.train_options, folder.plan)


def _schedule(maker: PlanMaker, plan: Plan) -> TrainingSchedule:
    data, dimension, by = maker.data, maker.data.fingerprint.dimension, maker.profile.augmented_by
    return training_schedule(plan, maker.options, data.dataset, data.splits, dimension, maker.deadline.promised, by)


def _require_known_device(folder: RunFolder, device: str) -> None:
    """Raises OptionError for a device that is neither here nor known to the output folder, before data are read."""
    if "," in device or (device not in ("auto", "cpu") and _known_profile(folder, device) is None):
        from ..ops.device import choose_devices

        devices_like(choose_devices(device)[0], device)


def _known_profile(folder: RunFolder, device: str) -> DeviceProfile | None:
    """As probed before, without loading torch."""
    try:
        known = DeviceProfile.load(folder.device)
    except RecordError:
        return None
    same = device in ("auto", known.device) or (device, known.device) == ("cuda", "cuda:0")
    return known if same else None


def device_profile(folder: RunFolder, device: str, cluster: Cluster | None = None) -> DeviceProfile:
    """The device, the first of several, probed once per output folder and device that is asked for: where jobs are."""
    device = "cuda" if device == "cuda:all" else device.partition(",")[0].strip()
    known = _known_profile(folder, device)
    if known is not None:
        return known
    from ..ops.device import choose_device
    from ..training.probe import probe_device

    log.info("measuring the device")
    profile = cluster.probed(device) if cluster else calibrated(probe_device(choose_device(device)))
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
