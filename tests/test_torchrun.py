"""One training by processes that a launcher has started: as torchrun does on two machines of one process each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import launch_member
import pytest
from test_ranks import assert_alike
from training_cases import OPTIONS, task

from autounet.datasets.synthetic import make_demo_dataset
from autounet.processes import Launch, launched
from autounet.schema.run import RunRecord, read_log
from autounet.store.weights import load_weights
from autounet.training import Horizon, train_fold
from autounet.workers import without_main

TESTS = Path(__file__).parent
LONG = 5_000
"""steps that no test waits for"""


class Member(NamedTuple):
    process: ForkServerProcess
    stderr: Path

    @property
    def status(self) -> int | None:
        """None while it runs; minus the signal that ended it."""
        return self.process.exitcode


Start = Callable[..., list[Member]]


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Forks the members: it has loaded what they need, which takes seconds, and of torch it has used nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([launch_member.__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


@pytest.fixture
def start(server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Both members of a launch; none is left after the test."""
    started: list[Member] = []

    def launch(root: Path, steps: int, what: str = "") -> list[Member]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        folder = tmp_path_factory.mktemp("stderr")
        for rank in range(2):
            given = (root, steps, what, {**common, "RANK": str(rank)}, folder / str(rank))
            started.append(Member(server.Process(target=launch_member.member, args=given), folder / str(rank)))
            with without_main():
                started[-1].process.start()
        return started[-2:]

    yield launch
    for each in started:
        each.process.kill()
        each.process.join()


def ended(members: list[Member]) -> list[str]:
    """What they said, within the time that a training has to end in."""
    for each in members:
        each.process.join(60)
    assert None not in [each.status for each in members], "it goes on"
    return [each.stderr.read_text() for each in members]


def wait_for_steps(root: Path, members: list[Member]) -> None:
    log = root / "models" / "fold_0" / "log.jsonl"
    while not (log.exists() and read_log(log)):
        assert [each.status for each in members] == [None, None], [each.stderr.read_text() for each in members]
        time.sleep(0.05)


def test_a_launch_trains_one_fold_after_the_other_as_one_process_does(start: Start, tmp_path: Path) -> None:
    members = start(tmp_path / "together", 12, "twice")
    said = ended(members)
    assert [each.status for each in members] == [0, 0], said
    train_fold(*task(tmp_path / "alone", Horizon(steps=12), options=OPTIONS))
    alone = tmp_path / "alone" / "models" / "fold_0"
    assert_alike(alone, tmp_path / "together" / "models" / "fold_0")
    first, second = (
        load_weights(tmp_path / "together" / name / "fold_0" / "weights.safetensors") for name in ("first", "models")
    )
    assert all((value == second[name]).all() for name, value in first.items())
    record = RunRecord.load(tmp_path / "together" / "models" / "fold_0" / "record.json")
    assert record.steps == 12


def test_a_member_that_is_killed_ends_the_training_and_says_so(start: Start, tmp_path: Path) -> None:
    members = start(tmp_path, LONG)
    wait_for_steps(tmp_path, members)
    members[1].process.kill()
    said = ended(members)
    assert members[0].status == 1
    assert "WorkerLost: another process of the training has ended, or cannot be reached" in said[0]


def test_the_error_of_a_member_is_told_by_the_first(start: Start, tmp_path: Path) -> None:
    members = start(tmp_path, 5, "fails")
    said = ended(members)
    assert [each.status for each in members] == [1, 0], said
    assert "process 1 of 2: the disk of this machine is full" in said[0]


def test_all_are_asked_to_end_and_the_first_saves_its_state(start: Start, tmp_path: Path) -> None:
    members = start(tmp_path, LONG)
    wait_for_steps(tmp_path, members)
    for each in reversed(members):
        each.process.terminate()
    said = ended(members)
    assert [each.status for each in members] == [128 + signal.SIGTERM, 0], said
    assert (tmp_path / "models" / "fold_0" / "state.pt").exists()


def test_cases_go_to_whoever_is_free_and_each_is_done_once(start: Start, tmp_path: Path) -> None:
    members = start(tmp_path, 0)
    said = ended(members)
    assert [each.status for each in members] == [0, 0], said
    done = [path.name for path in tmp_path.iterdir()]
    assert sorted(name[0] for name in done) == list("abcdefgh")
    assert said[0].count("done") == sum(name.endswith(".0") for name in done) < 8


def test_where_the_first_fails_the_others_begin_no_other_case(start: Start, tmp_path: Path) -> None:
    members = start(tmp_path, 0, "the first fails")
    said = ended(members)
    assert [each.status for each in members] == [1, 0], said
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fails at a case", "process 1 of 2: the disk of this machine is full"),
        ("leaves", "process 1 of 2 has ended, or cannot be reached"),
    ],
)
def test_a_member_that_does_not_do_its_cases_ends_the_first(
    start: Start, tmp_path: Path, what: str, message: str
) -> None:
    members = start(tmp_path, 0, what)
    said = ended(members)
    assert members[0].status == 1
    assert f"WorkerLost: {message}" in said[0]


@pytest.mark.slow
def test_a_first_process_that_is_killed_takes_the_others_with_it(start: Start, tmp_path: Path) -> None:
    members = start(tmp_path, LONG)
    wait_for_steps(tmp_path, members)
    members[0].process.kill()
    said = ended(members)
    assert members[1].status == 1
    assert "the first process has ended, or cannot be reached any more" in said[1]


def test_only_several_processes_are_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() is None
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched() == Launch(1, 4, 0, 1)


@pytest.mark.slow
def test_torchrun_on_two_machines_trains_through_the_command_line(tmp_path: Path) -> None:
    data, out = make_demo_dataset(tmp_path / "data", cases=4), tmp_path / "out"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "autounet", "train", data, "--out", out, "--iterations", "10", "--folds", "0", "--configurations",
             "3d_fullres", "--device", "cpu", "--memory", "450MB"]  # fmt: skip
    machines = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nnodes",
                "2",
                "--nproc-per-node",
                "1",
                "--node-rank",
                str(rank),
                "--master-addr",
                "127.0.0.1",
                "--master-port",
                str(port),
                *map(str, words),
            ],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    assert [each.wait(300) for each in machines] == [0, 0]
    record = RunRecord.load(out / "models" / "3d_fullres" / "fold_0" / "record.json")
    assert any("each batch is shared by cpu, cpu" in event for event in record.events)
