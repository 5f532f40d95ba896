"""Parts of running on a cluster: the TOML file, job states, the executor's decisions, what a scheduler is told."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import faulty
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_executor import Recorder, jobs

from autounet.schema.cluster import ClusterOptions, cluster_options, read_cluster_options
from autounet.schema.errors import AutoUNetError, OptionError, UsageError, WorkerLost
from autounet.schema.options import RunOptions
from autounet.time_budget.deadline import Deadline, Lanes
from autounet.workflow import cluster as engine
from autounet.workflow import cluster_job
from autounet.workflow.cluster import SILENT_SECONDS, Cluster, cluster_of, remove_old_keys, require_engine
from autounet.workflow.cluster_executor import ClusterExecutor
from autounet.workflow.job_state import JobRun, Pulse, began_at, job_folder, read_attempts, read_jobs
from autounet.workflow.jobs import Job
from autounet.workflow.status import job_line


def read(folder: Path, text: str) -> ClusterOptions:
    file = folder / "cluster.toml"
    file.write_text(text)
    return read_cluster_options(file)


SLURM = 'provider = "slurm"\naddress = "127.0.0.1"\n'


def test_a_file_says_what_each_job_gets(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        SLURM + 'partition = "gpu"\nwalltime = "1-12:00:00"\nmemory = "48GB"\ngpus = 1\n'
        'jobs_per_block = 2\nblocks = 3\nbefore = ["module load cuda"]\n',
    )
    assert found.walltime == 36 * 3600
    assert found.memory == 48 * 1024**3
    assert found.workers == 6
    assert read(tmp_path, SLURM + 'walltime = "90m"').walltime == 5400
    assert cluster_options("local") is cluster_options(None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "provider is missing"),
        ("provider = [", "not readable TOML"),
        ('provider = "slrum"', "slrum is unknown. Did you mean slurm"),
        ('provider = "local"\ncore = 2', "the key core is unknown. Did you mean cores"),
        ('provider = "local"\ncores = "two"', "cores = 'two'"),
        ('provider = "local"\ncores = 0', "cores = 0"),
        ('provider = "local"\nblocks = 2', "jobs_per_block"),
        ('provider = "local"\nwalltime = "1h"', "walltime is for slurm and pbspro and lsf"),
        ('provider = "local"\naddress = "0.0.0.0"', "address = '0.0.0.0'"),
        ('provider = "local"\naddress = "here"', "address = 'here'"),
        ('provider = "local"\nmemory = "much"', "memory: 'much' is not a size"),
        ('provider = "local"\nbefore = ["a\\nb"]', "each entry is one line"),
        ('provider = "slurm"', "address is missing"),
        (SLURM + "walltime = 12", "has no unit"),
        (SLURM + 'partition = "a b"', "partition = 'a b'"),
        ('provider = "kubernetes"\naddress = "10.0.0.1"', "image is missing"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, text)
    assert message in str(raised.value)
    assert str(tmp_path / "cluster.toml") in str(raised.value)


def test_a_missing_engine_scheduler_or_file_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(UsageError, match=r"does not exist\. Give local"),
        cluster_of(RunOptions(executor=str(tmp_path / "no.toml")), tmp_path),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = read(tmp_path, SLURM)
    with pytest.raises(OptionError, match="slurm has no sbatch on this machine"):
        require_engine(slurm, tmp_path / "out")
    inside = read(tmp_path, f'provider = "local"\nfolder = "{tmp_path / "out" / "engine"}"')
    with pytest.raises(OptionError, match="must keep no keys"):
        require_engine(inside, tmp_path / "out")
    local = RunOptions(executor=str(tmp_path / "cluster.toml"), devices_per_training=2)
    read(tmp_path, 'provider = "local"')
    with pytest.raises(OptionError, match="a job of a cluster uses one device"), cluster_of(local, tmp_path):
        pass
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"parsl, which is not installed\. .*autounet\[cluster\]"):
        require_engine(read(tmp_path, 'provider = "local"'), tmp_path / "out")


class Here:
    """In place of Parsl: the call is made at once, in this process, or as `answers` say."""

    def __init__(self, retries: int = 1, *answers: Exception) -> None:
        self.options = ClusterOptions(provider="local", jobs_per_block=2, retries=retries)
        self.answers = list(answers)
        self.held: list[str] = []

    def hold(self, block: str) -> None:
        self.held.append(block)
        self.held_now(block)

    def held_now(self, block: str) -> None: ...

    def submit(self, function: Any, /, *values: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.answers:
            future.set_exception(self.answers.pop(0))
        else:
            future.set_result(function(*values))
        return future


class ClusterRecorder(Recorder):
    def queued(self, seconds: float) -> None: ...


class ManagerLost(Exception):
    """By its name one of Parsl's."""


def run(out: Path, graph: list[Job], cluster: Here) -> ClusterRecorder:
    runner = ClusterRecorder()
    ClusterExecutor(runner, lambda: None, cluster, out, faulty.job).run(graph)  # type: ignore[arg-type]
    return runner


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    while cluster_job._process:
        cluster_job._process.pop().end(1)


def test_only_what_failed_runs_again_and_the_reason_is_kept(tmp_path: Path) -> None:
    graph = [*jobs(tmp_path, "dies once", "b"), *jobs(tmp_path, "c", needs=("train dies once",), function="validate")]
    runner = run(tmp_path, graph, Here())
    assert runner.given == ["train dies once"]
    began = [line.rpartition(" ")[0] for line in (tmp_path / "began").read_text().splitlines()]
    assert sorted(began) == ["b", "c", "dies once", "dies once"]
    (attempt,) = read_attempts(job_folder(tmp_path, "train dies once"))
    assert "ended from outside (status -9)" in attempt.reason
    assert all(job.is_done() for job in graph)
    assert {job.state for job in read_jobs(tmp_path)} == {"done"}
    assert "b has been done" in job_folder(tmp_path, "train b").log.read_text()
    assert run(tmp_path, graph, Here()).order == []


def test_what_fails_too_often_ends_the_run_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match=r"failed 2 times.*status -9"):
        run(tmp_path, jobs(tmp_path, "dies"), Here(retries=1))
    assert len((tmp_path / "began").read_text().splitlines()) == 2
    with pytest.raises(ZeroDivisionError) as raised:
        run(tmp_path, jobs(tmp_path, "fails"), Here(retries=0))
    assert "a mistake in the program" in str(raised.value)
    (failed,) = [job for job in read_jobs(tmp_path) if job.name == "train fails"]
    assert failed.state == "failed"
    assert "ZeroDivisionError: a mistake in the program" in job_line(failed)


def test_blocks_that_are_lost_count_and_other_errors_of_the_engine_end_the_run(tmp_path: Path) -> None:
    runner = run(tmp_path, jobs(tmp_path, "a"), Here(1, ManagerLost("node 7 is gone")))
    assert runner.given == ["train a"]
    assert "node 7 is gone" in read_attempts(job_folder(tmp_path, "train a"))[0].reason
    with pytest.raises(WorkerLost, match="failed 2 times"):
        run(tmp_path, jobs(tmp_path, "b"), Here(1, *(ManagerLost(f"node {number}") for number in (7, 8, 9))))
    counted = [attempt.counted for attempt in read_attempts(job_folder(tmp_path, "train b"))]
    assert counted == [False, True, True], "the first block may go before it begins, as at its walltime"


def test_a_block_that_is_ending_gets_no_more_jobs_and_what_it_did_not_begin_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = tmp_path / "leaving"
    sign.touch()
    monkeypatch.setenv(cluster_job.LEAVING, str(sign))
    monkeypatch.setenv("PARSL_WORKER_BLOCK_ID", "7")
    cluster = Here(retries=0)
    monkeypatch.setattr(cluster, "held_now", lambda block: sign.unlink())  # the next one goes to another block
    runner = run(tmp_path, jobs(tmp_path, "a"), cluster)
    assert cluster.held == ["7"]
    assert runner.given == ["train a"]
    (attempt,) = read_attempts(job_folder(tmp_path, "train a"))
    assert "was not begun: its block is ending" in attempt.reason
    assert not attempt.counted
    assert job_folder(tmp_path, "train a").run.exists()


def state(folder: Path, name: str, key: str = "1", **changes: Any) -> JobRun:
    place = job_folder(folder, name)
    made = JobRun(**{"key": key, "attempt": "x", "state": "running", "host": "elsewhere", "began": 0.0, **changes})
    made.save(place.run)
    return made


def test_a_job_lives_while_its_processes_do_or_its_signs_of_life_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autounet.workflow.job_state.SILENT_SECONDS", 0.2)
    pulse, run_ = Pulse(), state(tmp_path, "a")
    assert pulse.goes_on(run_)
    time.sleep(0.3)
    assert not pulse.goes_on(run_)
    assert pulse.goes_on(run_.model_copy(update={"beat": 1}))
    assert not pulse.goes_on(None)
    own = psutil.Process()
    here = run_.model_copy(update={"host": os.uname().nodename, "processes": {own.pid: own.create_time()}})
    assert pulse.goes_on(here)
    assert not pulse.goes_on(here.model_copy(update={"processes": {own.pid: own.create_time() - 5}}))
    assert began_at(2**22 + 1) is None


def test_an_attempt_that_goes_on_is_waited_for_and_one_of_another_key_is_asked_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autounet.workflow.job_state.SILENT_SECONDS", 1.0)
    graph = jobs(tmp_path, "a", "b")
    state(tmp_path, "train a")
    state(tmp_path, "train b", key="older")
    runner = run(tmp_path, graph, Here())
    assert runner.given == ["train a"]  # which fell silent
    assert job_folder(tmp_path, "train b").stop("x").exists()
    assert sorted(line.split()[0] for line in (tmp_path / "began").read_text().splitlines()) == ["a", "b"]


@given(st.integers(0, 40), st.integers(1, 64), st.integers(1, 32))
def test_folds_on_a_cluster_are_planned_side_by_side(trainings: int, workers: int, cores: int) -> None:
    lanes = Lanes.elsewhere(trainings, workers, cores)
    assert 1 <= lanes.count <= max(1, min(workers, trainings))
    assert lanes.threads == cores
    if trainings:
        rounds = -(-trainings // lanes.count)
        assert lanes.share == rounds / trainings
        assert rounds == -(-trainings // workers)


def test_queueing_takes_nothing_of_the_promise(tmp_path: Path) -> None:
    deadline = Deadline(60.0, tmp_path / "clock.json")
    deadline.not_counted(40.0)
    assert deadline.spent() < 0
    deadline.started -= 50
    assert 9 < deadline.spent() < 15


def test_an_unknown_error_of_the_engine_says_what_it_is() -> None:
    from parsl.jobs.errors import TooManyJobFailuresError

    error = engine.engine_error(TooManyJobFailuresError("Error 1:\n\tEXIT CODE: 127"))
    assert isinstance(error, AutoUNetError)
    assert "EXIT CODE: 127" in str(error)


FAKE = {
    "sbatch": '#!/bin/bash\ncp "$1" {folder}/script\nsetsid bash "$1" > {folder}/out 2>&1 &\necho $! > {folder}/id\n'
    'echo "Submitted batch job $!"\n',
    "squeue": '#!/bin/bash\nid=$(cat {folder}/id)\nkill -0 $id 2>/dev/null && echo "$id R"\n',
    "sacct": "#!/bin/bash\nexit 1\n",
    "scancel": '#!/bin/bash\nkill -TERM -- "-$1"\necho "$1" >> {folder}/cancelled\n',
    "srun": '#!/bin/bash\nuntil [[ -z $1 || $1 == bash ]]; do shift; done\n"$@"\n',
}
"""stand-ins for Slurm's commands: its jobs are process groups of this machine"""


def test_a_block_of_slurm_is_requested_works_and_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in FAKE.items():
        (place / name).write_text(text.format(folder=tmp_path))
        (place / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    options = read(
        tmp_path,
        SLURM + 'partition = "short"\naccount = "us"\nwalltime = "2h"\ncores = 3\nmemory = "2GB"\n'
        f'folder = "{tmp_path / "engine"}"\noptions = ["--constraint=fast"]\nbefore = ["export FROM_BEFORE=1"]\n',
    )
    require_engine(options, tmp_path / "out")
    cluster = Cluster(options)
    try:
        number, before, listening = cluster.call(faulty.surroundings)
        ports = {each.laddr.ip for process in (psutil.Process(), *psutil.Process().children(recursive=True))
                 for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}  # fmt: skip
        secrets = list((tmp_path / "engine").rglob("*.key_secret"))
        assert secrets
        assert all(stat.S_IMODE(each.stat().st_mode) & 0o077 == 0 for each in (tmp_path / "engine").iterdir())
    finally:
        cluster.close(well=True)
    assert before == "1"
    assert {each.removeprefix("::ffff:") for each in ports | listening} == {"127.0.0.1"}
    script = (tmp_path / "script").read_text()
    for line in ("--partition=short", "--account=us", "--time=120", "--cpus-per-task=3", "--mem=2g",
                 "--constraint=fast", "--signal=USR1@60"):  # fmt: skip
        assert f"#SBATCH {line}" in script
    assert "--exclusive" not in script
    assert (tmp_path / "cancelled").exists()
    assert not psutil.wait_procs([psutil.Process(number)] if psutil.pid_exists(number) else [], timeout=40)[1]
    assert not list((tmp_path / "engine").iterdir())


def test_keys_of_a_killed_command_are_deleted_by_a_later_one(tmp_path: Path) -> None:
    for name, seconds in (("run_old", SILENT_SECONDS + 60), ("run_new", 60.0)):
        keys = tmp_path / name / "000" / "autounet" / "certificates"
        keys.mkdir(parents=True)
        for file in (keys / "a.key_secret", tmp_path / name / "000" / "parsl.log"):
            file.write_text("")
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            os.utime(path, (time.time() - seconds,) * 2)
    remove_old_keys(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run_old/000/parsl.log", "run_new/000/parsl.log", "run_new/000/autounet/certificates/a.key_secret"}
