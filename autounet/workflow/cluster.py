"""Parsl as the engine that gets machines from a scheduler and gives them work: `--executor FILE.toml`.

It is loaded, and the first block requested, only when there is something to do. All that it sends is encrypted, also on
loopback, where other users of the machine could listen; keys and logs lie outside of the output folder.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..processes import processes_of_a_training
from ..progress import stop_if_cancelled
from ..schema.cluster import ClusterOptions, cluster_options
from ..schema.errors import AutoUNetError, OptionError
from ..schema.options import RunOptions
from ..schema.plan import Plan
from ..schema.run import DeviceProfile
from ..store.run_folder import RunFolder
from .cluster_blocks import LINGER_SECONDS, parsl_executor
from .cluster_job import probe, run_call, try_there
from .make_plan import PlanMaker
from .training_schedule import TrainingSchedule
from .trial_steps import try_configurations, untried

log = logging.getLogger(__name__)

IDLE_SECONDS = 120.0
"""without work, after which blocks are given back"""
SILENT_SECONDS = 2.0 * LINGER_SECONDS
POLL_SECONDS = 0.5


def require_engine(options: ClusterOptions, out: Path) -> None:
    """Raises OptionError where Parsl, or what it needs for the provider, is not installed, or keys would lie in OUT."""
    needed = ["parsl", *(["kubernetes"] if options.provider == "kubernetes" else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        raise OptionError(
            f"--executor needs {' and '.join(missing)}, which is not installed",
            "Install the extra cluster: pip install 'autounet[cluster]'"
            + (" kubernetes" if "kubernetes" in missing else ""),
        )
    command = {"slurm": "sbatch", "pbspro": "qsub", "lsf": "bsub"}.get(options.provider)
    if command and shutil.which(command) is None:
        raise OptionError(
            f"{options.provider} has no {command} on this machine", f"Give the command where {command} works"
        )
    place = _engine_folder(options)
    if place.resolve().is_relative_to(out.resolve()):
        raise OptionError(
            f"folder = {place} lies in {out}, which must keep no keys", "Give a folder outside of the output folder"
        )


def _engine_folder(options: ClusterOptions) -> Path:
    """Home folders are what nodes of clusters share."""
    return Path(options.folder).expanduser() if options.folder else Path.home() / ".autounet" / "cluster"


class Cluster:
    """Does things on machines that a scheduler gives."""

    def __init__(self, options: ClusterOptions) -> None:
        self.options = options
        self.kernel: Any = None
        self.executor: Any = None
        self.handlers: list[logging.Handler] = []
        """of Parsl's own log"""
        self.folder: Path | None = None

    def submit(self, function: Callable[..., Any], /, *values: Any) -> Future[Any]:
        """`function(*values)` there; all of it has to be picklable, and the function one of a module."""
        from parsl import python_app

        if self.kernel is None:
            self._start()
        submitted: Future[Any] = python_app(function, data_flow_kernel=self.kernel)(*values)
        return submitted

    def hold(self, block: str) -> None:
        """Give no more jobs to a block that is ending; Parsl has no public call for it."""
        for manager in self.executor.connected_managers():
            if manager["block_id"] == block:
                self.executor._hold_manager(manager["manager"])

    def call(self, function: Callable[..., object], **values: Any) -> Any:
        """`function(tell, **values)` in a process there: its result. Raises what it raises, and Cancelled."""
        future = self.submit(run_call, function, values, self.options.cores)
        while not future.done():
            stop_if_cancelled()
            with _ignored_timeout():
                future.exception(POLL_SECONDS)
        if (error := future.exception()) is not None:
            raise engine_error(error)
        return future.result()

    def device(self, asked: str | None) -> str:
        """That jobs use. Raises OptionError where the file says another kind than --device."""
        device = "cuda" if self.options.gpus else "cpu"
        if asked not in (None, "auto") and asked.partition(":")[0] != device:
            raise OptionError(
                f"--device {asked}, and gpus = {self.options.gpus} in the file that --executor names",
                "Leave out --device, or correct gpus",
            )
        return device

    def probed(self, device: str) -> DeviceProfile:
        """As a job sees it. On a CPU a job has its own memory, or its part of the node's."""
        profile: DeviceProfile = self.call(probe, device=device)
        if profile.device != "cpu":
            return profile
        memory = self.options.memory or profile.memory_bytes // self.options.jobs_per_block
        return profile.model_copy(update={"memory_bytes": min(profile.memory_bytes, memory)})

    def _start(self) -> None:
        """Raises OptionError where the engine does not start, as where the address is not one of this machine."""
        from parsl import Config, DataFlowKernel

        logging.getLogger("parsl").propagate = False  # it has a log of its own in the engine's folder
        place = _engine_folder(self.options)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_old_keys(place)
        self.folder = Path(tempfile.mkdtemp(prefix="run_", dir=place))
        options = self.options
        log.info(
            "jobs go to %s: at most %d at the same time, in %d block%s; files of the engine: %s",
            options.provider, options.workers, options.blocks, "s" if options.blocks > 1 else "", self.folder,
        )  # fmt: skip
        self.executor = parsl_executor(options)
        config = Config(
            executors=[self.executor],
            run_dir=str(self.folder),
            retries=0,  # whether and how often is decided by `ClusterExecutor`, job by job
            strategy="simple",
            strategy_period=1 if options.provider == "local" else 5,
            max_idletime=IDLE_SECONDS,
            usage_tracking=0,
        )
        before = list(logging.getLogger("parsl").handlers)
        try:
            self.kernel = DataFlowKernel(config)
            self.handlers = [each for each in logging.getLogger("parsl").handlers if each not in before]
        except Exception as error:
            raise OptionError(
                f"the engine for {options.provider} did not start: {error}", "Check address and provider in the file"
            ) from error

    def close(self, well: bool) -> None:
        """Blocks are given back. What is in the engine's folder is kept where things went wrong."""
        if self.kernel is None:
            return
        hub = self.executor.interchange_proc
        if hub is None or hub.poll() is not None:  # it was ended from outside, and Parsl would wait for its answer
            atexit.unregister(self.kernel.atexit_cleanup)
            self.executor.provider.cancel(list(self.executor.provider.resources))
        else:
            self.kernel.cleanup()
        for handler in self.handlers:  # Parsl leaves its log open
            handler.close()
        logging.getLogger("parsl").propagate = True
        self.kernel = None
        assert self.folder is not None
        if well:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            log.info("logs of the engine and of its blocks: %s", self.folder)


def remove_old_keys(place: Path) -> None:
    """Of commands that were killed: without a word in any log for `SILENT_SECONDS`, when their blocks have ended."""
    for run in place.glob("run_*"):
        with suppress(OSError):
            last = max(file.stat().st_mtime for file in (run, *run.rglob("*")))
            for keys in run.rglob("certificates") if time.time() - last > SILENT_SECONDS else ():
                shutil.rmtree(keys)


@contextmanager
def _ignored_timeout() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        return


@contextmanager
def cluster_of(options: RunOptions, out: Path) -> Iterator[Cluster | None]:
    """The cluster that the options name, for the time inside; None where this machine does the jobs."""
    where = cluster_options(options.executor)
    if where is None:
        yield None
        return
    require_engine(where, out)
    if (count := processes_of_a_training(options.devices_per_training)) > 1:
        raise OptionError(
            f"one training in {count} processes: a job of a cluster uses one device",
            "Leave out --devices-per-training and torchrun, or --executor",
        )
    cluster = Cluster(where)
    try:
        yield cluster
    except BaseException:
        cluster.close(well=False)
        raise
    cluster.close(well=True)


def engine_error(error: BaseException) -> BaseException:
    """An error of the engine as one that a user can do something about; others as they are."""
    if type(error).__module__.partition(".")[0] != "parsl":
        return error
    return AutoUNetError(
        f"the cluster did not do its work: {type(error).__name__}: {str(error).strip()}",
        "See the logs of the engine; the same command continues where it was",
    )


def try_trainings(
    schedule: TrainingSchedule, folder: RunFolder, maker: PlanMaker, plan: Plan, cluster: Cluster | None
) -> None:
    """Trial steps, where the trainings will go on."""
    budget, preset = maker.budget(plan), plan.options.preset is not None
    if cluster is None:
        try_configurations(schedule, folder, maker.data.dataset, maker.profile, budget, preset)
    elif untried(schedule, folder, maker.profile, budget):
        cluster.call(
            try_there, schedule=schedule, folder=folder, dataset=maker.data.dataset, profile=maker.profile,
            budget=budget, preset=preset,
        )  # fmt: skip
