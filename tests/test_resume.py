"""An interrupted training continues where it was; another one's state is not used."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from training_cases import Training, task

from autounet.schema.options import TrainOptions
from autounet.schema.run import EpochLog, RunRecord
from autounet.step import Precision
from autounet.store.weights import load_weights
from autounet.training import Horizon, train_fold
from autounet.training.state import Checkpoint, new_state


class Interrupted(Exception):
    pass


def stop_at(step: int):
    def on_log(line: EpochLog) -> None:
        if line.step >= step:
            raise Interrupted

    return on_log


@contextmanager
def checkpoint_always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With every line of the log, and on one thread, so that equal trainings have equal weights."""
    monkeypatch.setattr("autounet.training.state.LEAST_SECONDS", 0.0)
    monkeypatch.setattr("autounet.training.state.TIME_SHARE", 1e9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _checkpoint_always(monkeypatch):
    with checkpoint_always(monkeypatch):
        yield


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "weights.safetensors")


def same_after_interruptions(straight: Training, broken: Training, steps: Sequence[int]) -> RunRecord:
    """Train `broken`, interrupted at `steps`: its course and weights are those of `straight`, which is trained."""
    for step in steps:
        with pytest.raises(Interrupted):
            train_fold(*broken, stop_at(step))
        assert (broken.folder / "state.pt").exists()
    record, expected = train_fold(*broken), RunRecord.load(straight.folder / "record.json")
    assert not (broken.folder / "state.pt").exists()
    assert record.steps == expected.steps
    for field in ("step", "loss", "learning_rate", "training_dice"):
        assert [getattr(line, field) for line in record.curve] == [getattr(line, field) for line in expected.curve]
    found = weights(broken.folder)
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights(straight.folder).items())
    return record


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_interruptions_change_nothing(tmp_path, optimiser):
    options = TrainOptions(optimiser=optimiser, learning_rate=3e-3, ema_decay=0.9)
    straight = task(tmp_path, Horizon(steps=12), options=options, folder=tmp_path / "straight")
    train_fold(*straight)
    broken = task(tmp_path, Horizon(steps=12), options=options, folder=tmp_path / "broken")
    record = same_after_interruptions(straight, broken, (3, 8))
    assert record.events == ("continued at step 8 after an interruption",)


def test_elapsed_time_is_remembered(tmp_path):
    given = task(tmp_path, Horizon(steps=10_000, seconds=1.5))
    with pytest.raises(Interrupted):
        train_fold(*given, lambda line: stop_at(0)(line) if line.seconds > 0.8 else None)
    record = train_fold(*given)
    seconds = [line.seconds for line in record.curve]
    assert seconds == sorted(seconds)  # the second training counts on from the first
    assert seconds[0] < 0.8 < 1.5 <= seconds[-1]


@pytest.mark.parametrize("broken", ["optimiser", "average", "generator"])
def test_a_state_restored_in_part_is_not_used_at_all(tmp_path, broken):
    given = task(tmp_path, Horizon(steps=4), options=TrainOptions(ema_decay=0.9))
    with pytest.raises(Interrupted):
        train_fold(*given, stop_at(2))
    path = given.folder / "state.pt"
    content = torch.load(path, weights_only=True)
    content[broken] = {"unknown": 1} if broken != "generator" else None
    torch.save(content, path)
    state = new_state(given.inputs, None, Precision(), torch.device("cpu"))
    before = copy.deepcopy(state.content())
    assert "not used" in (Checkpoint(path, given.inputs.key).restore(state) or "")
    after = state.content()
    for name in ("model", "average"):
        assert all(torch.equal(tensor, after[name][key]) for key, tensor in before[name].items())
    assert torch.equal(before["generator"], after["generator"])
    assert (state.step, state.elapsed, after["optimiser"]["state"]) == (0, 0.0, {})


@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_a_state_that_does_not_fit_is_not_used(tmp_path, damage):
    given = task(tmp_path, Horizon(steps=4))
    with pytest.raises(Interrupted):
        train_fold(*given, stop_at(2))
    state = given.folder / "state.pt"
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:1000])
        again = given
    else:
        again = task(tmp_path, Horizon(steps=4), options=TrainOptions(seed=1))
    record = train_fold(*again)
    assert [line.step for line in record.curve] == [1, 2, 3, 4]
    assert len(record.events) == 1
    assert "not used" in record.events[0]
