"""One command at a time in an output folder; its lock dies with its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autounet.schema.errors import OptionError
from autounet.workflow.output_folder import Owner, locked, owner
from autounet.workflow.read_status import read_status

HOLD = """
import sys, time
from pathlib import Path
from autounet.workflow.output_folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that works in the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_the_message_says_who_works_in_the_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    place = f"another autounet is working in {tmp_path} (process {holder.pid} on {socket.gethostname()})"
    with pytest.raises(OptionError) as caught, locked(tmp_path):
        pass
    assert caught.value.message == place
    assert caught.value.remedy == "Wait for it, or give another --out"
    assert owner(tmp_path) == Owner("working", holder.pid)


def test_a_killed_process_frees_its_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert owner(tmp_path) == Owner("gone")
    assert read_status(tmp_path).state == "interrupted"
    with locked(tmp_path):
        assert owner(tmp_path) == Owner("working", os.getpid())
    assert owner(tmp_path) == Owner("gone")
    assert read_status(tmp_path).state == "stopped"
    with pytest.raises(OptionError), locked(tmp_path):
        raise OptionError("an error of its own")
    assert read_status(tmp_path).state == "stopped"


def test_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    try:
        assert owner(tmp_path) == Owner("gone")
    finally:
        child.kill()
        child.wait()


LOOK = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(0.3)
"""


def test_a_look_at_the_lock_never_refuses_a_command(tmp_path: Path) -> None:
    """`status` takes the lock for an instant; a command waits longer than that."""
    command = [sys.executable, "-c", LOOK, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with locked(tmp_path):
            assert owner(tmp_path) == Owner("working", os.getpid())


def test_a_folder_without_a_lock_is_left_as_it_is(tmp_path: Path) -> None:
    assert owner(tmp_path) == Owner("gone")
    assert list(tmp_path.iterdir()) == []
