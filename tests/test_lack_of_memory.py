"""Where memory runs out as a file is read back, the file is not called damaged, and what it holds is not lost."""

from __future__ import annotations

import errno
import logging
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from training_cases import task, write_case

from autounet.cli.app import _known
from autounet.imageio import read_image
from autounet.inference.bundle import load_network
from autounet.schema.errors import AutoUNetError, ModelError, OutOfMemory, RecordError
from autounet.schema.run import RunRecord
from autounet.step import Precision
from autounet.store import open_prepared, read_scores, write_scores
from autounet.store.weights import load_weights, read_pretrained, save_weights
from autounet.system_memory import is_out_of_memory, require_no_lack_of_memory
from autounet.training import Horizon
from autounet.training.state import Checkpoint, new_state


def prepared(folder: Path) -> tuple[Path, Callable[[], object]]:
    write_case(folder, "c", (8, 8, 8))
    return folder / "c.locations.b2nd", lambda: open_prepared(folder, "c")


def scores(folder: Path) -> tuple[Path, Callable[[], object]]:
    write_scores(folder, "c", np.zeros((2, 4, 4, 4), np.float32))
    return folder / "c.scores.b2nd", lambda: read_scores(folder, "c")


def weights(folder: Path) -> tuple[Path, Callable[[], object]]:
    save_weights(folder / "w.safetensors", {"a": torch.zeros(9)})
    return folder / "w.safetensors", lambda: load_weights(folder / "w.safetensors")


def network(folder: Path) -> tuple[Path, Callable[[], object]]:
    file, _ = weights(folder)
    return file, lambda: load_network(task(folder, Horizon(steps=1)).inputs.configuration, file, "cpu")  # type: ignore[arg-type]


def pretrained(folder: Path) -> tuple[Path, Callable[[], object]]:
    torch.save({"a": torch.zeros(9)}, folder / "w.pt")
    return folder / "w.pt", lambda: read_pretrained(folder / "w.pt")


@pytest.mark.parametrize("make", [prepared, scores, weights, network, pretrained])
def test_a_file_that_does_not_open_is_damaged_only_where_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], tuple[Path, Callable[[], object]]]
) -> None:
    """Libraries say the same in both cases, so it is cut short here: what tells is whether memory is to be had."""
    file, read = make(tmp_path)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises((RecordError, ModelError), match=file.name):
        read()

    def full(*_: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", full)
    with pytest.raises(MemoryError, match=file.name) as raised:
        read()
    told = _known(raised.value)
    assert isinstance(told, OutOfMemory)
    assert "what was done is kept" in told.message


def test_the_state_of_a_training_is_kept_where_it_cannot_be_read_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the training would begin again."""
    given = task(tmp_path, Horizon(steps=4))
    state = new_state(given.inputs, None, Precision(), torch.device("cpu"))
    checkpoint = Checkpoint(tmp_path / "state.pt", given.inputs.key)
    checkpoint.save(state)
    said = RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried")

    def fails(*_: object, **__: object) -> None:
        raise said

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(torch, "load", fails)
        with pytest.raises(MemoryError):
            checkpoint.restore(state)
        patch.setattr(torch, "save", fails)
        with pytest.raises(RuntimeError, match="allocate"):  # and no full disk
            checkpoint.save(state)
    assert caplog.text == ""
    assert "continued at step 0" in (checkpoint.restore(state) or "")


def test_records_and_images_are_not_damaged_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "record.json").write_text("{}")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    def short(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails)
        with pytest.raises(MemoryError, match=r"record\.json"):
            RunRecord.load(tmp_path / "record.json")
    monkeypatch.setattr("PIL.Image.open", short)
    with pytest.raises(AutoUNetError, match=r"c\.png does not fit into the memory"):
        read_image(tmp_path / "c.png")


def test_other_errors_say_nothing_of_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("mat1 and mat2"), ValueError("no number")):
        require_no_lack_of_memory(tmp_path / "file", error)
        assert not is_out_of_memory(error)
    require_no_lack_of_memory(tmp_path / "missing", FileNotFoundError())


def test_a_library_that_gives_no_reason_is_believed_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN, whose words are the same for a convolution that it cannot do."""
    error = RuntimeError("could not create a primitive")
    assert not is_out_of_memory(error)
    assert _known(error) is None
    monkeypatch.setattr("autounet.system_memory._is_short", lambda size: True)
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
