"""One command at a time in an output folder; its lock dies with its process."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autounet.schema.errors import OptionError, RecordError
from autounet.store.folder_lock import Owner, locked, owner
from autounet.workflow.output_folder import remove_temporary
from autounet.workflow.read_status import read_status

HOLD = """
import sys, time
from pathlib import Path
from autounet.store.folder_lock import locked
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


def test_what_a_killed_command_had_begun_to_write_is_removed(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """Not what a process that lives writes, nor what is a user's or of `predict`."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = ["metrics.json", "crossval/3d_fullres/c.nii.gz", "models/2d/fold_0/state.pt"]
    begun = [tmp_path / name for name in names]
    for path in [*begun, tmp_path / "predicted" / "c.nii.gz"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = ".nii.gz" if path.suffix == ".gz" else ""
        for process in (dead.pid, os.getpid()):
            path.with_name(f".{path.name}.0123abcd.{process}{ending}").touch()
    folder = tmp_path / f".model.0123abcd.{dead.pid}"
    folder.mkdir()
    (folder / "bundle.json").touch()
    for name in (".hidden", ".mine.1", "crossval/.mine.abc.7"):
        (tmp_path / name).touch()
    before = set(tmp_path.rglob("*"))
    holder.kill()
    holder.wait()
    with locked(tmp_path) as killed:
        assert killed
        remove_temporary(tmp_path)
    gone = before - set(tmp_path.rglob("*")) - {tmp_path / ".lock_holder"}
    assert gone == {
        folder, folder / "bundle.json", begun[0].with_name(f".metrics.json.0123abcd.{dead.pid}"),
        begun[1].with_name(f".c.nii.gz.0123abcd.{dead.pid}.nii.gz"),
        begun[2].with_name(f".state.pt.0123abcd.{dead.pid}"),
    }  # fmt: skip
    with locked(tmp_path) as killed:
        assert not killed


def test_a_folder_that_becomes_read_only_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    def fails() -> None:
        with monkeypatch.context() as patch, locked(tmp_path):
            patch.setattr(Path, "unlink", read_only)
            raise RecordError("what happened")

    with pytest.raises(RecordError, match="what happened"):
        fails()
    monkeypatch.setattr("filelock.FileLock.acquire", read_only)
    with pytest.raises(OSError, match="Read-only"), locked(tmp_path):
        pass
