"""Files are hashed again when they may have changed, and only then."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import pytest

from autounet.store import file_hashes
from autounet.store.file_hashes import SETTLED_NS, FileHashes

SECOND = 1_000_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image.nii"
    path.write_bytes(b"first")
    return path


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> int:
    """The clock stands at a time when files written now are old; the time of an inode's change cannot be set back."""
    now = time.time_ns() + 2 * SETTLED_NS
    monkeypatch.setattr(file_hashes.time, "time_ns", lambda: now)
    return now


def again(hashes: FileHashes, folder: Path) -> FileHashes:
    """As the next command finds them."""
    hashes.save(folder / "hashes.json")
    return FileHashes.load(folder / "hashes.json")


def test_an_old_file_is_hashed_once(tmp_path: Path, file: Path, later: int) -> None:
    first = FileHashes()
    found = first.of(file)
    second = again(first, tmp_path)
    assert second.of(file) == found
    assert (first.made, second.made) == (1, 0)
    assert pickle.loads(pickle.dumps(second)).of(file) == found


def test_a_young_file_is_never_trusted(tmp_path: Path, file: Path) -> None:
    """It may be written again within one tick of the file system's clock: the same size, the same times."""
    first = FileHashes()
    found = first.of(file)
    second = again(first, tmp_path)
    status = file.stat()
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert second.of(file) != found
    assert second.made == 1


def change_size(file: Path) -> None:
    status = file.stat()
    file.write_bytes(b"longer than before")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_time(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns - 5 * SECOND))


def put_the_time_back(file: Path) -> None:
    status = file.stat()
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_with_its_times(file: Path) -> None:
    status, new = file.stat(), file.with_name("new")
    new.write_bytes(b"other")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(new, file)


@pytest.mark.parametrize("change", [change_size, change_time, put_the_time_back, replace_with_its_times])
def test_a_touched_file_is_hashed_again(tmp_path: Path, file: Path, later: int, change) -> None:
    first = FileHashes()
    first.of(file)
    second = again(first, tmp_path)
    change(file)
    assert second.of(file) == FileHashes().of(file)
    assert second.made == 1


def test_a_file_that_is_gone_has_no_hash_and_is_forgotten(tmp_path: Path, file: Path, later: int) -> None:
    first = FileHashes()
    first.of(file)
    second = again(first, tmp_path)
    file.unlink()
    assert second.of(file) is None
    file.write_bytes(b"first")
    assert again(second, tmp_path).of(file) is not None


def test_a_damaged_record_costs_time_only(tmp_path: Path, file: Path, later: int) -> None:
    (tmp_path / "hashes.json").write_text('{"files": 3')
    hashes = FileHashes.load(tmp_path / "hashes.json")
    assert hashes.of(file) == FileHashes().of(file)
    assert hashes.made == 1


def test_what_other_processes_hashed_is_taken_over(tmp_path: Path, file: Path, later: int) -> None:
    first = FileHashes()
    part = first.part([file])
    part.of(file)
    first.update(part)
    assert again(first, tmp_path).of(file) == part.of(file)
    assert first.made == 1
