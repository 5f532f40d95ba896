"""A disk that is full, read-only or broken: the command line names the path, what was done with it, and what helps."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from autounet.cli import app
from autounet.schema.disk import REMEDIES, WriteError, disk_problem, writing
from autounet.schema.record import new_folder, replacing, write_text


def of_system(code: int, *names: object) -> OSError:
    return OSError(code, os.strerror(code), *names)


@pytest.mark.parametrize("code", sorted(REMEDIES))
def test_a_write_that_fails_without_a_name_gets_that_of_its_file(tmp_path: Path, code: int) -> None:
    target = tmp_path / "plan.json"
    with pytest.raises(WriteError) as raised, replacing(target):
        raise of_system(code)
    assert (raised.value.errno, raised.value.filename) == (code, str(target))
    assert list(tmp_path.iterdir()) == []
    told = disk_problem(pickle.loads(pickle.dumps(raised.value)))  # as from another process
    assert told.message == f"{target} cannot be written: {os.strerror(code)}"
    assert told.remedy == REMEDIES[code]


def test_a_temporary_name_is_told_as_the_known_one(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as raised, replacing(tmp_path / "plan.json") as temporary:
        raise of_system(errno.EROFS, str(temporary))
    assert disk_problem(raised.value).message.startswith(f"{tmp_path / 'plan.json'} cannot be written")
    inner = new_folder(tmp_path / "model") / "bundle.json"
    told = disk_problem(of_system(errno.ENOSPC, str(inner)))
    assert told.message.startswith(f"{tmp_path / 'model' / 'bundle.json'} cannot be written")


def test_the_file_that_is_read_meanwhile_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as raised, replacing(tmp_path / "copy"):
        shutil.copyfile(tmp_path / "missing", tmp_path / "copy")
    assert not isinstance(raised.value, WriteError)
    assert disk_problem(raised.value).message.startswith(f"{tmp_path / 'missing'} cannot be opened")


def test_a_full_disk_while_copying_names_the_copy(tmp_path: Path) -> None:
    error = of_system(errno.ENOSPC, str(tmp_path / "source"), None, str(tmp_path / "copy"))
    assert disk_problem(error).message.startswith(f"{tmp_path / 'copy'} cannot be written")


def test_a_library_without_a_reason_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(WriteError) as raised, writing(tmp_path / "state.pt"):
        raise OSError("unexpected pos 64 vs 0")
    assert raised.value.errno == errno.ENOSPC
    assert "Free space there" in disk_problem(raised.value).remedy


def test_without_any_name_both_disks_are_told() -> None:
    told = disk_problem(of_system(errno.ENOSPC))
    assert told.message == "No space left on device"
    assert "--out" in told.remedy


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the rights bind no administrator")
def test_rights_say_whether_reading_or_writing_failed(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(OSError, match="denied") as raised:
        write_text(folder / "deep" / "plan.json", "{}")
    assert f"{folder / 'deep'} cannot be written" in str(disk_problem(raised.value)).replace("/plan.json", "")
    secret = tmp_path / "secret"
    secret.touch(mode=0)
    with pytest.raises(OSError, match="denied") as raised:
        secret.read_bytes()
    assert f"{secret} cannot be read" in str(disk_problem(raised.value))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WriteError(errno.ENOSPC, "No space left on device", "out/state.pt"), "out/state.pt cannot be written"),
        (
            of_system(errno.EIO, "data/a.nii"),
            "data/a.nii cannot be read or written: Input/output error. Check the disk",
        ),
    ],
)
def test_the_command_line_ends_with_one_line(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(sys, "argv", ["autounet"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    shown = capsys.readouterr().err
    assert ended.value.code == 1
    assert said in shown
    assert len(shown.splitlines()) == 1
