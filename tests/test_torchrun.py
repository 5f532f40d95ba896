"""One training by processes that a launcher has started: as torchrun does on two machines of one process each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_ranks import OPTIONS, assert_alike
from training_cases import task

from autounet.datasets.synthetic import make_demo_dataset
from autounet.processes import Launch, launched
from autounet.schema.run import RunRecord, read_log
from autounet.store.weights import load_weights
from autounet.training import Horizon, train_fold

TESTS = Path(__file__).parent
LONG = 5_000
"""steps that no test waits for"""

MEMBER = """
import os
import sys
import time
from pathlib import Path
from test_ranks import BOTH, OPTIONS
from training_cases import task
from autounet.processes import launched
from autounet.progress import ends_when_asked, stop_if_cancelled
from autounet.schema.errors import DataError
from autounet.training import Horizon, torchrun, train_fold

def fails(*_):
    raise DataError("the disk of this machine is full", "Make room")

def take_part(work, device, cases, on_case):
    assert (work, device) == ("some work", "cpu")
    for case in cases:
        (root / f"{case}.{launch.rank}").touch()
        while len({path.suffix for path in root.iterdir()}) < 2:  # until both have one
            time.sleep(0.01)
        if launch.rank and what == "leaves":
            os._exit(1)
        if launch.rank and what == "fails at a case":
            fails()
        on_case()

torchrun.SILENT_SECONDS, torchrun.BEAT_SECONDS = 4, 0.5
root, steps, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
launch = launched()
if launch.rank:
    if what == "fails":
        torchrun.follow = fails
    torchrun.serve(launch, take_part)
elif steps == 0:
    with torchrun.leading():
        torchrun.together("some work", "cpu", list("abcdefgh"), lambda: print("done", file=sys.stderr), take_part)
else:
    with torchrun.leading(), ends_when_asked():
        for _ in range(2 if what == "twice" else 1):
            given = task(root, Horizon(steps=steps), options=OPTIONS, devices=BOTH)
            train_fold(*given, on_step=lambda progress: stop_if_cancelled())
            (root / "models").rename(root / "first") if what == "twice" and not (root / "first").exists() else None
"""


def start(root: Path, steps: int, what: str = "") -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }  # fmt: skip
    command = [sys.executable, "-c", MEMBER, str(root), str(steps), what]
    return [
        subprocess.Popen(command, env={**given, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]


def ended(members: list[subprocess.Popen[str]]) -> list[str]:
    """What they said, within the time that a training has to end in."""
    try:
        return [each.communicate(timeout=60)[1] for each in members]
    finally:
        for each in members:
            each.kill()


def wait_for_steps(root: Path, members: list[subprocess.Popen[str]]) -> None:
    log = root / "models" / "fold_0" / "log.jsonl"
    while not (log.exists() and read_log(log)):
        assert [each.poll() for each in members] == [None, None], ended(members)
        time.sleep(0.05)


def test_a_launch_trains_one_fold_after_the_other_as_one_process_does(tmp_path: Path) -> None:
    members = start(tmp_path / "together", 12, "twice")
    said = ended(members)
    assert [each.returncode for each in members] == [0, 0], said
    train_fold(*task(tmp_path / "alone", Horizon(steps=12), options=OPTIONS))
    alone = tmp_path / "alone" / "models" / "fold_0"
    assert_alike(alone, tmp_path / "together" / "models" / "fold_0")
    first, second = (
        load_weights(tmp_path / "together" / name / "fold_0" / "weights.safetensors") for name in ("first", "models")
    )
    assert all((value == second[name]).all() for name, value in first.items())
    record = RunRecord.load(tmp_path / "together" / "models" / "fold_0" / "record.json")
    assert record.steps == 12


def test_a_member_that_is_killed_ends_the_training_and_says_so(tmp_path: Path) -> None:
    members = start(tmp_path, LONG)
    wait_for_steps(tmp_path, members)
    members[1].kill()
    said = ended(members)
    assert members[0].returncode == 1
    assert "WorkerLost: another process of the training has ended, or cannot be reached" in said[0]


def test_the_error_of_a_member_is_told_by_the_first(tmp_path: Path) -> None:
    members = start(tmp_path, 5, "fails")
    said = ended(members)
    assert [each.returncode for each in members] == [1, 0], said
    assert "process 1 of 2: the disk of this machine is full" in said[0]


def test_all_are_asked_to_end_and_the_first_saves_its_state(tmp_path: Path) -> None:
    members = start(tmp_path, LONG)
    wait_for_steps(tmp_path, members)
    for each in reversed(members):
        each.send_signal(signal.SIGTERM)
    said = ended(members)
    assert [each.returncode for each in members] == [128 + signal.SIGTERM, 0], said
    assert (tmp_path / "models" / "fold_0" / "state.pt").exists()


def test_cases_go_to_whoever_is_free_and_each_is_done_once(tmp_path: Path) -> None:
    members = start(tmp_path, 0)
    said = ended(members)
    assert [each.returncode for each in members] == [0, 0], said
    done = [path.name for path in tmp_path.iterdir()]
    assert sorted(name[0] for name in done) == list("abcdefgh")
    assert said[0].count("done") == sum(name.endswith(".0") for name in done) < 8


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fails at a case", "process 1 of 2: the disk of this machine is full"),
        ("leaves", "process 1 of 2 has ended, or cannot be reached"),
    ],
)
def test_a_member_that_does_not_do_its_cases_ends_the_first(tmp_path: Path, what: str, message: str) -> None:
    members = start(tmp_path, 0, what)
    said = ended(members)
    assert members[0].returncode == 1
    assert f"WorkerLost: {message}" in said[0]


@pytest.mark.slow
def test_a_first_process_that_is_killed_takes_the_others_with_it(tmp_path: Path) -> None:
    members = start(tmp_path, LONG)
    wait_for_steps(tmp_path, members)
    members[0].kill()
    said = ended(members)
    assert members[1].returncode == 1
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
