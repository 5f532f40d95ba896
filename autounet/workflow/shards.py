"""Prediction of a folder, and of the cases of a validation, by several processes, through the executors of a run.

On this machine each device has a process, which asks for one case after another. On a cluster a job has a shard of the
cases. Who predicts a case writes its files and its record; nothing but its name goes through this process.
"""

from __future__ import annotations

import math
import shutil
import signal
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..datasets import InputCase
from ..ops.device import choose_devices
from ..prediction.case_records import CaseRecords, Outcome
from ..prediction.folder import OnCase, OutputOptions, Work, case_records, predict_cases, predict_folder, predict_here
from ..prediction.predictor import Predictor
from ..processes import Caller, Wanted
from ..progress import ASKED_BY, Watcher, progress, stop_if_cancelled, watched
from ..schema.cluster import cluster_options
from ..schema.errors import Cancelled, OptionError, OutOfMemory
from ..schema.options import RunOptions
from ..schema.record import digest, require_no_links
from ..schema.run import EpochLog
from ..store.run_folder import JobFolder
from ..system_memory import is_out_of_memory
from ..time_budget.deadline import Lanes
from ..workers import available_cores
from . import cache
from .job_state import Pulse, job_folder, prediction_jobs, read_run
from .validation import ValidationWork

if TYPE_CHECKING:
    from .cluster import Cluster
    from .jobs import Job


Load = partial[Predictor]
"""called with a device, or None; picklable"""
MOST_CASES = 16
"""of a shard, whose first image is read while nothing is predicted"""
SHARDS_EACH = 4
"""for each job that goes on at the same time, where there are so many cases"""
POLL_SECONDS = 0.5
"""between two looks whether jobs of an earlier command have ended"""
TOLD_SECONDS = 1.0
"""between two reports of how far a shard is"""


def predict_on(
    device: str,
    executor: str | None,
    load: Load,
    source: Path,
    out: Path,
    outputs: OutputOptions,
    overwrite: bool = False,
    force: bool = False,
) -> Outcome:
    """`predict_folder` on one device in this process, on several of this machine in a process each, or on a cluster.

    A device may be named twice. Raises WorkerLost where processes are killed again and again.
    """
    rest = (source, out, outputs, overwrite, force)
    if cluster_options(executor) is not None:
        from .cluster import cluster_of

        if "," in device or device == "cuda:all":
            raise OptionError(f"--device {device}: a job of a cluster uses one device", "Leave out --device")
        with cluster_of(RunOptions(executor=executor), out) as cluster:
            assert cluster is not None
            outcome = predict_folder(load(None), *rest, partial(_on_cluster, load, cluster.device(device), cluster))
    elif len(devices := choose_devices(device)) > 1:
        outcome = predict_folder(load(None), *rest, partial(_side_by_side, load, devices))
    else:
        predictor = _load(load, devices[0])
        outcome = predict_folder(predictor, *rest, partial(in_this_process, predictor, None))
    outcome.log_counts()
    return outcome


def _load(load: Load, device: str) -> Predictor:
    try:
        return load(device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise OutOfMemory(f"the networks do not fit into the memory of {device}", "Give fewer --folds, or another --device")


def in_this_process(
    predictor: Predictor, on_case: OnCase | None, records: CaseRecords, cases: Sequence[InputCase]
) -> list[InputCase]:
    _end_attempts(records.out)
    return predict_here(predictor, on_case, records, cases)


def _side_by_side(
    load: Load, devices: Sequence[str], records: CaseRecords, cases: Sequence[InputCase]
) -> list[InputCase]:
    """In a process for each device, which asks for one case after another."""
    from .executor import SideBySideExecutor

    _end_attempts(records.out)
    given = records.unfinished(cases)
    chosen = tuple(devices[: len(given)])
    jobs = [_job(f"prediction {number}", "", load, device, records.work) for number, device in enumerate(chosen, 1)]
    lanes = Lanes(len(chosen), max(1, available_cores() // max(1, len(chosen))), devices=chosen)
    SideBySideExecutor(CaseQueue(given), lambda: None, lanes, predict_job).run(jobs)
    shutil.rmtree(prediction_jobs(records.out), ignore_errors=True)
    return given


def _on_cluster(
    load: Load, device: str, cluster: Cluster, records: CaseRecords, cases: Sequence[InputCase]
) -> list[InputCase]:
    """As jobs with shards of all cases: a command given again has the same shards, and finds those that go on."""
    from .cluster_executor import ClusterExecutor

    work, jobs = records.work._replace(out=records.out.absolute()), []
    size = max(1, min(MOST_CASES, math.ceil(len(cases) / (SHARDS_EACH * cluster.options.workers))))
    for first in range(0, len(cases), size):
        shard = tuple(cases[first : first + size])
        key = digest([work.overwrite and work.run, work.force, *map(records.case_key, shard)])
        jobs.append(_job(f"predict cases {first + 1} to {first + len(shard)}", key, load, device, work, shard))
    _end_attempts(work.out, jobs)
    given = records.unfinished(cases)
    jobs = [job for job in jobs if not set(given).isdisjoint(job.args["cases"])]
    for job in jobs:  # whether a case is done is said by its record
        cache.forget(job.done)
    if jobs:
        ClusterExecutor(CaseQueue(), lambda: None, cluster, prediction_jobs(work.out), predict_job).run(jobs)
    return given


def _job(name: str, key: str, load: Load, device: str, work: Work, cases: Sequence[InputCase] | None = None) -> Job:
    from .jobs import Job

    values = {"load": load, "device": device, "work": work, "cases": cases}
    return Job(name, (), key, job_folder(prediction_jobs(work.out), name).done, "predict", values)


def _end_attempts(out: Path, jobs: Iterable[Job] = ()) -> None:
    """Ask what goes on of a command that was killed to end, and wait for that; but those of `jobs`.

    Without these nothing is kept of earlier ones.
    """
    place, keys, pulse = prediction_jobs(out), {job.done.parent: job.key for job in jobs}, Pulse()
    require_no_links(out, [path / "itself" for path in (place, *place.rglob("*"))])
    folders = [JobFolder(path) for path in place.glob("jobs/*/")]
    while going_on := [
        (folder, run.attempt)
        for folder in folders
        if (run := read_run(folder)) is not None and run.key != keys.get(folder.path) and pulse.goes_on(run)
    ]:
        for folder, attempt in going_on:
            folder.stop(attempt).touch()
        stop_if_cancelled()
        time.sleep(POLL_SECONDS)
    if not keys:
        shutil.rmtree(place, ignore_errors=True)


C = TypeVar("C")


class CaseQueue(Generic[C]):
    """Runs jobs that ask for one case after another. What a process had that was killed goes to others."""

    def __init__(self, cases: Iterable[C] = (), on_case: Callable[[], object] = lambda: None) -> None:
        """`on_case` is called when a job has ended a case, as it shows by asking for another."""
        self.waiting, self.on_case = deque(cases), on_case
        self.taken: dict[str, list[C]] = defaultdict(list)
        """by each job"""

    def wanted(self, job: Job) -> C | None:
        """None where there is none any more."""
        if self.taken[job.name]:
            self.on_case()
        if not self.waiting:
            return None
        self.taken[job.name].append(self.waiting.popleft())
        return self.taken[job.name][-1]

    def given_back(self, job: Job) -> None:
        """What is finished of it is passed over by who gets it."""
        self.waiting.extendleft(reversed(self.taken.pop(job.name, [])))

    def begin(self, job: Job) -> dict[str, Any]:
        return dict(job.args)

    def __call__(self, job: Job) -> None: ...
    def said(self, job: Job, entry: EpochLog) -> None: ...
    def queued(self, seconds: float) -> None: ...
    def ended(self, job: Job, result: object, seconds: float) -> None: ...


_predictor: dict[tuple[Any, ...], Predictor] = {}
"""of this process, which does one job after another"""


def predict_job(tell: Caller, name: str, values: dict[str, Any], called: float) -> None:
    """In a process of its own the cases of a shard, or those that it is given when it asks.

    Asked to end it does so in the middle of a case, and leaves nothing that is half written.
    """

    def leave(*_: object) -> None:
        for number in ASKED_BY:
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(1)

    for number in ASKED_BY:
        signal.signal(number, leave)
    try:
        _predict(tell, **values)
    except SystemExit:
        raise Cancelled("the prediction was asked to end", "The same command continues where it was") from None
    finally:
        for number in ASKED_BY:
            signal.signal(number, signal.SIG_DFL)


def _predict(tell: Caller, load: Load, device: str, work: Work, cases: Sequence[InputCase] | None) -> None:
    """`cases` None: those that it asks for."""
    chosen = (load.func, *load.args, *load.keywords.items(), device)
    if chosen not in _predictor:
        _predictor.clear()
        _predictor[chosen] = _load(load, device)
    predictor, records = _predictor[chosen], case_records(_predictor[chosen], work)
    if cases is None:
        predict_cases(predictor, None, records, iter(partial(tell.ask, Wanted()), None))
        return
    watcher = Watcher(on_progress=tell, lines=False, interval=TOLD_SECONDS)
    with watched(watcher), progress(f"predicting {len(cases)} cases", len(cases)) as meter:
        predict_cases(predictor, lambda _: meter.advance(), records, cases)


def validate_side_by_side(devices: Sequence[str], work: ValidationWork, on_case: Callable[[], object]) -> None:
    """In a process for each device, which asks for one case after another."""
    from .executor import SideBySideExecutor
    from .jobs import Job

    lanes = Lanes(len(devices), max(1, available_cores() // len(devices)), devices=tuple(devices))
    with tempfile.TemporaryDirectory(prefix="autounet_") as place:
        jobs = [
            Job(f"validation {n}", (), "", Path(place) / f"{n}.json", "take_part", {"work": work, "device": device})
            for n, device in enumerate(devices, 1)
        ]
        SideBySideExecutor(CaseQueue(work.keys, on_case), lambda: None, lanes).run(jobs)
