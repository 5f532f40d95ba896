"""Jobs side by side: their order, what they tell, and what becomes of them when one fails or is killed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faulty
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick_runs import (  # noqa: F401 - used by the runs here
    narrow,
    no_trials,
    one_probe,
)

import autounet
from autounet.datasets import synthetic
from autounet.datasets.synthetic import make_demo_dataset
from autounet.ops.device import devices_like
from autounet.progress import Progress, Watcher, side_by_side_line, watched
from autounet.schema.errors import OptionError, UsageError, WorkerLost
from autounet.schema.run import EpochLog, RunRecord
from autounet.store.weights import load_weights
from autounet.time_budget.deadline import MOST_LANES, Lanes
from autounet.workflow import executor
from autounet.workflow.executor import SideBySideExecutor, on_device
from autounet.workflow.jobs import Job


class Recorder:
    """A runner that keeps what it is told."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.results: list[object] = []
        self.given: list[str] = []

    def __call__(self, job: Job) -> None:
        self.order.append(f"{job.name} here")

    def begin(self, job: Job) -> dict[str, Any]:
        self.order.append(f"{job.name} begins")
        return dict(job.args)

    def said(self, job: Job, entry: EpochLog) -> None: ...

    def given_back(self, job: Job) -> None:
        self.given.append(job.name)

    def ended(self, job: Job, result: object, seconds: float) -> None:
        self.order.append(f"{job.name} ended")
        self.results.append(result)


def jobs(folder: Path, *doing: str, needs: Sequence[str] = (), function: str = "train") -> list[Job]:
    return [
        Job(f"{function} {each}", tuple(needs), "1", folder / f"{each}.json", function,
            {"folder": str(folder), "doing": each})
        for each in doing
    ]  # fmt: skip


def run(graph: Sequence[Job], count: int = 2) -> Recorder:
    runner = Recorder()
    SideBySideExecutor(runner, lambda: None, Lanes(count, 1, 0.5), faulty.job).run(graph)
    return runner


def test_jobs_go_on_side_by_side_and_wait_for_what_they_need(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first two end only once both have begun."""
    graph = [
        *jobs(tmp_path, "all", function="prepare"),
        *jobs(tmp_path, "waits for another", "b", needs=("prepare all",)),
        *jobs(tmp_path, "c", needs=("train b",), function="validate"),
        *jobs(tmp_path, "last", needs=("validate c", "train waits for another"), function="select"),
    ]
    told: list[Progress] = []
    with watched(Watcher(on_progress=told.append)), caplog.at_level(logging.WARNING, "autounet"):
        runner = run(graph)
    place = runner.order.index
    assert runner.order[0] == "prepare all here"
    assert runner.order[-1] == "select last here"
    assert place("train b ended") < place("validate c begins")
    assert sorted(map(str, runner.results)) == ["b", "c", "waits for another"]
    assert {each.task for each in told} == {"train waits for another", "train b", "validate c"}
    assert {record.getMessage() for record in caplog.records} >= {"b has been done", "c has been done"}
    assert all(each.is_done() for each in graph)
    assert run(graph).order == []


def test_a_killed_job_begins_again_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = jobs(tmp_path, "dies once", "b")
    runner = run(graph)
    assert runner.given == ["train dies once"]
    assert sorted(map(str, runner.results)) == ["b", "dies once"]
    assert (
        "train dies once: its process was killed by SIGKILL, most likely because memory ran out (status -9)"
        in caplog.text
    )
    began = [line.rpartition(" ")[0] for line in (tmp_path / "began").read_text().splitlines()]
    assert sorted(began) == ["b", "dies once", "dies once"]


def test_one_that_is_killed_again_and_again_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match="--workers 1"):
        run(jobs(tmp_path, "dies"))
    assert len((tmp_path / "began").read_text().splitlines()) == executor.MOST_LOST + 1


def test_what_fails_ends_the_others_which_save_what_they_have(tmp_path: Path) -> None:
    graph = jobs(tmp_path, "saves", "fails after another")
    with pytest.raises(OptionError, match="the disk is full"):
        run(graph)
    assert (tmp_path / "saved").exists()
    assert graph[0].is_done()  # it came to its end while it was asked to
    assert not graph[1].is_done()
    with pytest.raises(ZeroDivisionError, match="a mistake in the program") as raised:
        run(jobs(tmp_path, "fails"))
    assert "In the process of train fails" in raised.value.__notes__[0]


WITH_CHILDREN = """
from pathlib import Path
from test_executor import jobs, run
if __name__ == "__main__":
    run(jobs(Path({folder!r}), "hangs", "saves"))
"""


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", WITH_CHILDREN.format(folder=str(tmp_path))]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    began = tmp_path / "began"
    while not (began.exists() and len(began.read_text().splitlines()) == 2):
        assert parent.poll() is None
        time.sleep(0.05)
    children = psutil.Process(parent.pid).children()
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert len(gone) == len(children)


def small_dataset(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "SHAPES", ((16, 24, 24),))
        return make_demo_dataset(folder, cases=4)


def test_folds_side_by_side_get_the_weights_that_they_get_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With as many threads; and the run is cancelled once, whereupon what had begun continues where it was."""
    caplog.set_level("INFO", logger="autounet")
    data = small_dataset(tmp_path / "data")
    monkeypatch.setattr(executor, "LEAST_STEPS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given_options: dict[str, Any] = {
        "iterations": 6, "deterministic": True, "configurations": "3d_fullres", "device": "cpu", "folds": "0,1",
        "memory": "3GB",
    }  # fmt: skip
    autounet.plan(data, tmp_path / "one", **given_options)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    try:
        autounet.train(data, tmp_path / "one", workers=0, **given_options)
    finally:
        torch.set_num_threads(threads)
    assert "side by side" not in caplog.text
    monkeypatch.setattr(executor, "available_cores", lambda: 2)
    told: list[Progress] = []

    def stop() -> bool:
        return any(each.task.startswith("training") and each.done > 0 for each in told)

    with pytest.raises(autounet.Cancelled):
        autounet.train(data, tmp_path / "two", on_progress=told.append, cancel=stop, **given_options)
    autounet.train(data, tmp_path / "two", on_progress=told.append, **given_options)
    assert caplog.text.count("2 trainings side by side, with 1 threads each") == 2
    folds = sorted((tmp_path / "one" / "models" / "3d_fullres").glob("fold_*"))
    assert len(folds) > 1
    for fold in folds:
        other = tmp_path / "two" / fold.relative_to(tmp_path / "one")
        ours, theirs = (load_weights(each / "weights.safetensors") for each in (fold, other))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    records = [RunRecord.load(fold / "record.json") for fold in (tmp_path / "two").glob("models/*/fold_*")]
    assert any("continued at step" in event for record in records for event in record.events)


def test_a_run_that_is_asked_to_end_saves_its_state(tmp_path: Path) -> None:
    """As batch systems ask, with its folds side by side."""
    data, out = small_dataset(tmp_path / "data"), tmp_path / "out"
    command = [sys.executable, "-m", "autounet", "run", str(data), "--out", str(out), "--device", "cpu"]
    command += ["--time", "4m", "--configurations", "3d_fullres", "--folds", "0,1", "--memory", "1GB"]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, stderr=log)
        while not any(each.stat().st_size for each in out.glob("models/*/fold_*/log.jsonl")):
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        children = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGUSR1)
        assert run.wait(40) == 128 + signal.SIGUSR1
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert "asked to end by SIGUSR1" in (tmp_path / "log").read_text()
    assert list(out.glob("models/*/fold_*/state.pt"))
    assert not [each for each in out.rglob(".*") if re.fullmatch(r".*\.[0-9a-f]{8}\.\d+", each.name)]
    assert (out / "clock.json").exists()


@given(st.integers(0, 40), st.integers(1, 64), st.none() | st.integers(1, 12))
def test_lanes_leave_no_core_alone_and_no_round_half_empty(trainings: int, cores: int, most: int | None) -> None:
    lanes = Lanes.of(trainings, cores, most)
    assert lanes == Lanes() if cores == 1 or trainings < 2 else lanes.count <= trainings
    if lanes.count == 1:
        assert lanes == Lanes()
        return
    assert lanes.count <= (most or max(cores, MOST_LANES))
    assert lanes.threads is not None
    assert 1 <= lanes.threads * lanes.count <= max(cores, lanes.count)
    rounds = -(-trainings // lanes.count)
    assert trainings > (rounds - 1) * lanes.count
    assert lanes.count == -(-trainings // rounds)
    assert 1 / lanes.count <= lanes.share <= 1


def test_two_cores_train_the_folds_together_and_one_core_one_by_one() -> None:
    assert Lanes.of(5, 1) == Lanes.of(1, 16) == Lanes()
    assert Lanes.of(5, 2) == Lanes(5, 1, 0.5)
    assert Lanes.of(5, 16) == Lanes(5, 3, 0.2)
    assert Lanes.of(15, 2) == Lanes(5, 1, 0.5)
    assert Lanes.of(5, 2, most=2) == Lanes(2, 1, 0.6)


def test_each_job_gets_a_device_of_its_own_and_its_part_of_the_workers(tmp_path: Path) -> None:
    graph = [
        Job(f"validate {name}", (), "1", tmp_path / f"{name}.json", "validate",
            {"folder": str(tmp_path), "doing": name, "device": "cuda:0"})
        for name in ("waits for another", "b", "c")
    ]  # fmt: skip
    lanes = Lanes.on(["cuda:0", "cuda:1", "cuda:2"], 3, 6)
    assert lanes == Lanes(3, 2, 1 / 3, ("cuda:0", "cuda:1", "cuda:2"))
    SideBySideExecutor(Recorder(), lambda: None, lanes, faulty.device_of_job).run(graph)
    assert sorted((tmp_path / "devices").read_text().split()) == ["cuda:0", "cuda:1", "cuda:2"]
    assert Lanes.on(["cuda:0"], 5, 8) == Lanes.on(["cuda:0", "cuda:1"], 1, 8) == Lanes()
    assert Lanes.on(["cuda:0", "cuda:1", "cuda:2"], 5, 8) == Lanes(3, 2, 2 / 5, ("cuda:0", "cuda:1", "cuda:2"))
    assert on_device({"workers": 4}, None, 2) == {"workers": 1}


class Gpu(NamedTuple):
    name: str
    total_memory: int


def test_gpus_that_are_alike_train_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu("large", 80), Gpu("small", 16), Gpu("large", 80)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: gpus[int(name[-1])])
    assert devices_like("cuda:0", "auto") == devices_like("cuda:0", "cuda:all") == ["cuda:0", "cuda:2"]
    assert devices_like("cuda:1", "cuda:1") == ["cuda:1"]
    assert devices_like("cuda:1", "cuda:1,cuda:0") == ["cuda:1", "cuda:0"]
    assert devices_like("cpu", "cpu") == ["cpu"]
    for wanted in ("cuda:0,cuda:0", "cuda:0,cpu", "cpu,cpu"):
        with pytest.raises(OptionError, match="different GPUs"):
            devices_like(wanted.split(",")[0], wanted)
    with pytest.raises(OptionError, match="--device cuda:7 is not here"):
        devices_like("cuda:0", "cuda:0,cuda:7")


def test_several_devices_may_be_asked_of_a_run_and_are_looked_for(tmp_path: Path) -> None:
    data = make_demo_dataset(tmp_path / "data", cases=2)
    for wanted in ("cuda:98,cuda:99", "cuda:98, cuda:99", "cpu,cuda:99"):
        with pytest.raises(OptionError, match="is not here; there is cpu"):
            autounet.plan(data, tmp_path / "out", device=wanted)
    with pytest.raises(OptionError, match="different GPUs"):
        autounet.plan(data, tmp_path / "out", device="cpu,cpu")
    with pytest.raises(UsageError, match="--device 'cpu,': a device has no name"):
        autounet.plan(data, tmp_path / "out", device="cpu,")
    for wanted in ("cuda:x", "tpu,cpu"):
        with pytest.raises(UsageError, match="--device"):
            autounet.plan(data, tmp_path / "out", device=wanted)


def test_a_line_says_once_what_tasks_begin_with_alike() -> None:
    told = [Progress(f"training 2d fold_{fold}", 0.1 * fold, run_seconds_left=120.0) for fold in (1, 2)]
    told.append(Progress("validating 2d fold_0", 0.5))
    line = side_by_side_line(told)
    assert line == "training 2d fold_1: 10 %, fold_2: 20 %, validating 2d fold_0: 50 %, 2 min of the whole run"
