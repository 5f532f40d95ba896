"""Processes that make batches are killed, hang, or have no memory to hand over: the batches stay the same."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import psutil
import pytest
from test_samples import NAMES, equal, source
from training_cases import task, write_case

from autounet.schema.errors import RecordError
from autounet.store import open_prepared
from autounet.training import Horizon, loader, train_fold
from autounet.training.loader import BatchLoader
from autounet.workers import ended_by


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        write_case(tmp_path / "prepared", name, (10, 12 + number, 9), number)
    return tmp_path / "prepared"


def children() -> list[psutil.Process]:
    """Processes of this one that make batches."""
    return [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]


def test_a_killed_worker_is_explained_and_the_batches_stay_the_same(folder, caplog, monkeypatch):
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.2)
    handler = signal.getsignal(signal.SIGCHLD)
    with caplog.at_level(logging.WARNING):
        alone, together = BatchLoader(source(folder), 4, 0), BatchLoader(source(folder), 4, 2)
        for number, (one, other) in enumerate(zip(islice(alone, 14), together, strict=False)):
            assert equal(one, other)
            assert one.cases == other.cases
            if number == 1:
                together.emphasise((2,))
                alone.emphasise((2,))
            if number in (3, 8):
                os.kill(children()[0].pid, signal.SIGKILL)
        together.close()
    assert [event.rpartition(". ")[2].partition(" batches")[2] for event in together.events] == [
        " are made by 1 of them, and are the same ones",
        " are made in the process of the training, and are the same ones",
    ]
    for event in together.events:
        assert "was killed by SIGKILL, most likely because memory ran out (status -9)" in event
        assert "(cases " in event
        assert " are free now" in event
        assert event in caplog.text
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_an_error_with_words_comes_out_of_a_worker_as_it_is(folder, monkeypatch):
    """torch would make one of its own of it, whose message is a traceback."""
    told, batches = source(folder), BatchLoader(source(folder), 0, 0)
    (folder / f"{NAMES[0]}.json").unlink()
    monkeypatch.setattr(told, "batch", lambda *_: open_prepared(folder, NAMES[0]))
    made = pickle.loads(pickle.dumps(loader._BatchTable(told, False)[(0, ())]))
    with pytest.raises(RecordError, match=rf"{NAMES[0]}\.json does not exist\. Give the same command again"):
        batches._waited_for(iter([made]), 0)


@pytest.mark.parametrize(("free", "left"), [(64 * 1024, 0), (10**9, 2), (None, 2)])
def test_workers_are_as_many_as_there_is_shared_memory_for(folder, monkeypatch, free, left):
    monkeypatch.setattr(loader, "shared_memory_free", lambda: free)
    made = BatchLoader(source(folder), 0, 2)
    assert made._workers == left
    assert (len(made.events) == 1) == (left < 2)
    if left < 2:
        assert "64 KB free" in made.events[0]
        assert "--shm-size" in made.events[0]
        assert "--workers 0" in made.events[0]


def test_workers_that_give_nothing_are_given_up(folder, monkeypatch):
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(loader, "MOST_SECONDS", 0.3)
    monkeypatch.setattr(loader, "lost_workers", lambda made: [])
    made = BatchLoader(source(folder), 0, 1)  # a process needs longer than that to start
    assert equal(next(made), next(BatchLoader(source(folder), 0, 0)))
    assert "no batch has come from 1 worker processes in 0.3 s" in made.events[0]


def test_shared_memory_that_fills_up_is_noticed(folder, monkeypatch):
    left = [10**9, 0]
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(loader, "shared_memory_free", lambda: left.pop(0) if len(left) > 1 else left[0])
    made = BatchLoader(source(folder), 0, 1)
    next(made)
    assert "is full" in made.events[0]


def test_a_training_says_what_became_of_its_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "shared_memory_free", lambda: 64 * 1024)
    record = train_fold(*task(tmp_path, Horizon(steps=2), workers=2))
    assert any("/dev/shm has 64 KB free" in event for event in record.events)


SMALL = """
import sys
from test_samples import source
from autounet.training.loader import BatchLoader, shared_memory_free
from pathlib import Path
if __name__ == "__main__":
    assert shared_memory_free() <= 64 * 1024, shared_memory_free()
    made = BatchLoader(source(Path(sys.argv[1])), 0, 2)
    for _ in range(4):
        next(made)
    assert "--shm-size" in made.events[0]
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /dev/shm")
def test_64_kb_of_shared_memory_do_not_hang(folder, tmp_path):
    mounted = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if not shutil.which("unshare") or subprocess.run([*mounted, mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    (tmp_path / "small.py").write_text(SMALL)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""), *filter(None, sys.path)])
    subprocess.run(
        [*mounted, f'{mount} && exec "$0" "$@"', sys.executable, tmp_path / "small.py", folder],
        check=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_how_a_process_ended_is_said():
    assert ended_by(-9) == "was killed by SIGKILL, most likely because memory ran out (status -9)"
    assert "/dev/shm is full" in ended_by(-7)
    assert "ulimit -t" in ended_by(-signal.SIGXCPU)
    assert ended_by(3) == "ended by itself (exit code 3)"
    assert ended_by(None) == "ended by itself"
    assert ended_by(-250) == "was killed by signal 250"
