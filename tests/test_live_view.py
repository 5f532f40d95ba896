"""What is seen of a run while it goes on: progress.png, `autounet status`, and the time left."""

from __future__ import annotations

import json
import os
import socket
import time
from itertools import pairwise

import numpy as np
import pytest
from fake_output import FOLDS, configuration
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from autounet.cli.app import app
from autounet.schema.dataset import Splits
from autounet.schema.errors import OptionError
from autounet.schema.metrics import ClassMetrics, Metrics
from autounet.schema.options import PlannerOptions, RunOptions
from autounet.schema.plan import Plan
from autounet.schema.run import EpochLog, read_log
from autounet.store.folder_lock import locked, owner
from autounet.store.run_folder import RunFolder
from autounet.time_budget.deadline import Clock
from autounet.training import journal as journal_module
from autounet.training.journal import MOST_CLASSES, Journal, draw_progress, smoothed
from autounet.workflow.cache import mark_done
from autounet.workflow.read_status import FoldTime, RunStatus, read_status, seconds_left
from autounet.workflow.status import watch

NAME = "3d_fullres"


def line(step: int, steps: int = 100, classes: int = 2, **changes: object) -> EpochLog:
    dice = {f"organ {place}": 1 - 1 / (step + place) for place in range(classes)}
    found = EpochLog(step=step, progress=step / steps, seconds=2.0 * step, learning_rate=0.01, loss=1 / step,
                     validation_dice=dice or None, step_seconds=2.0, data_wait_seconds=0.1)  # fmt: skip
    return found.model_copy(update=changes)


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [line(1, classes=0)],
        [line(1), line(2, validation_dice={"organ 1": 0.5}, step_seconds=0.0, data_wait_seconds=0.0)],
        [line(step, classes=MOST_CLASSES + 1) for step in range(1, 120)],
    ],
    ids=["nothing", "one line", "a class that is not always there", "many lines and classes"],
)
def test_any_curve_is_drawn(curve, tmp_path):
    draw_progress(curve, tmp_path / "progress.png", NAME)
    with Image.open(tmp_path / "progress.png") as image:
        assert image.size == (900, 640)
        assert len(set(image.convert("L").tobytes())) > 10


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(0, 5))
def test_smoothing_stays_within_what_it_smooths(values, half):
    found = smoothed(np.array(values), half)
    for place, value in enumerate(found):
        near = values[max(0, place - half) : place + half + 1]
        assert min(near) - 1e-9 <= value <= max(near) + 1e-9


def test_smoothing_leaves_out_what_was_not_measured():
    found = smoothed(np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan]), 1)
    assert np.array_equal(found, [1.0, 2.0, 3.0, 3.0, np.nan, np.nan], equal_nan=True)


def test_drawing_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    """Half a second a drawing: one in 30 s would be more than one per cent, one in 50 s is not."""
    now, drawn = [0.0], []

    def draw(*_: object) -> None:
        drawn.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("autounet.training.journal.draw_progress", draw)
    journal = Journal(tmp_path, 0)
    for step in range(1, 200):
        now[0] += 1
        journal.add(line(step))
    assert len(drawn) == 4
    assert all(later - earlier >= 50 for earlier, later in pairwise(drawn))


@pytest.fixture
def out(tmp_path):
    """A planned run of two folds; nothing is trained yet."""
    Plan(
        configurations={NAME: configuration(3).model_copy(update={"predicted_step_seconds": 2.0})},
        options=PlannerOptions(),
        reasons=(),
        fingerprint="0123456789abcdef",
    ).save(tmp_path / "plan.json")
    Splits(source="automatic", folds=tuple((f"case_{fold}",) for fold in range(FOLDS))).save(tmp_path / "splits.json")
    RunOptions(iterations=100).save(tmp_path / "options.json")
    return tmp_path


def train(out, fold: int, step: int, done: bool = False, dice: float | None = None) -> None:
    folder, crossval = out / "models" / NAME / f"fold_{fold}", out / "crossval" / NAME
    folder.mkdir(parents=True)
    mark_done(folder / "started.json", "key")
    lines = [line(each, peak_memory_bytes=2**30) for each in range(10, step + 1, 10)]
    (folder / "log.jsonl").write_text("".join(each.model_dump_json() + "\n" for each in lines) + '{"cut off')
    if done:
        mark_done(folder / "done.json", "key")
    if dice is not None:
        crossval.mkdir(parents=True, exist_ok=True)
        metrics = Metrics(mean_dice=dice, per_class={"organ 0": ClassMetrics(dice=dice)}, cases=())
        metrics.save(crossval / f"fold_{fold}.json")
        mark_done(crossval / f"fold_{fold}.done.json", "key")


def test_an_empty_folder_and_others(tmp_path):
    empty = read_status(tmp_path)
    assert (empty.state, empty.now, any(empty.stages.values())) == ("empty", "fingerprint", False)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OptionError, match="not an output folder"):
        read_status(tmp_path)
    with pytest.raises(OptionError, match="is not a folder"):
        read_status(tmp_path / "absent")


def test_a_planned_run(out):
    found = read_status(out)
    assert (found.state, found.now) == ("stopped", "fingerprint")
    assert [fold.state for fold in found.folds] == ["waiting"] * FOLDS
    assert found.seconds_left == FOLDS * 100 * 2.0


@pytest.mark.parametrize("place", ["metrics.json", f"crossval/{NAME}/fold_0.json", "options.json", "findings.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00"])
def test_damaged_records_end_no_status(out, place, content):
    """They are made again by the next command, or that tells of them; whoever only looks sees the rest."""
    train(out, 0, 100, done=True, dice=0.75)
    Metrics(mean_dice=0.75, per_class={"organ 0": ClassMetrics(dice=0.75)}, cases=()).save(out / "metrics.json")
    (out / place).write_bytes(content)
    found = read_status(out)
    assert len(found.folds) == FOLDS or place == "options.json"
    assert found.mean_dice == (None if place == "metrics.json" else 0.75)


def test_a_run_that_goes_on(out):
    train(out, 0, 100, done=True, dice=0.75)
    train(out, 1, 50)
    with locked(out):
        found = read_status(out)
        assert owner(out) == ("working", os.getpid())
    assert (found.state, found.now) == ("running", f"train {NAME} fold_1")
    first, second, *_ = found.folds
    assert (first.state, first.dice, first.validated, second.state, second.progress) == (
        "done", 0.75, True, "running", 0.5,
    )  # fmt: skip
    assert second.patch_dice == pytest.approx(np.mean([1 - 1 / 50, 1 - 1 / 51]))
    assert second.peak_memory_bytes == 2**30
    assert found.memory_bytes is None or found.memory_bytes > 2**20
    told = "\n".join(found.lines)
    assert f"running: train {NAME} fold_1" in told
    assert f"{NAME} fold 0: done, 100%, mean Dice 0.7500, 3 min" in told
    assert "Dice on patches 0.980" in told
    assert "1.0 GB (planned: 1.8 GB)" in told


def test_why_a_training_ends_early_is_told(out):
    train(out, 0, 50)
    file = RunFolder(out).fold(NAME, 0).log
    lines = read_log(file)
    lines[-2] = lines[-2].model_copy(update={"event": "converged: no gain", "converged": True})
    file.write_text("".join(each.model_dump_json() + "\n" for each in lines))
    found = read_status(out)
    assert [fold.converged for fold in found.folds[:2]] == ["converged: no gain", None]
    assert any(told.startswith(f"{NAME} fold 0: ") and told.endswith("; converged: no gain") for told in found.lines)


def test_the_time_left_is_that_of_the_folds(out, monkeypatch):
    """200 s for each fold: half of one is left, and all of the others; less what passed since the last line."""
    train(out, 0, 100, done=True, dice=0.75)
    train(out, 1, 50)
    expected = 100 + 200 * (FOLDS - 2)
    assert read_status(out).seconds_left == pytest.approx(expected, abs=2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30)
    with locked(out):
        assert read_status(out).seconds_left == pytest.approx(expected - 30, abs=2)
        Clock(promised_seconds=600, spent_seconds=500).save(out / "clock.json")
        os.utime(out / "clock.json", (now, now))
        assert read_status(out).seconds_left == pytest.approx(min(70, expected - 30), abs=2)


def test_a_dead_run_is_interrupted(out):
    with locked(out):
        train(out, 0, 50)
    found = read_status(out)
    assert (found.state, found.folds[0].state, found.memory_bytes) == ("interrupted", "interrupted", None)
    assert found.lines[0] == "interrupted before fingerprint was done: give the same command again to continue"


def test_a_run_on_another_machine_is_seen_by_what_it_writes(out, monkeypatch):
    with locked(out):
        train(out, 0, 50)
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        assert read_status(out).state == "running"
        later = time.time() + 1000
        monkeypatch.setattr(time, "time", lambda: later)
        assert read_status(out).state == "interrupted"


def test_a_finished_run(out):
    for fold in range(FOLDS):
        train(out, fold, 100, done=True, dice=0.8)
    for name in ("fingerprint.json", "selection.json", "report.html", "prepared/a.done.json"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{}")
    Metrics(mean_dice=0.8, per_class={}, cases=()).save(out / "metrics.json")
    found = read_status(out)
    assert (found.state, found.now, found.seconds_left, found.mean_dice) == ("finished", None, 0.0, 0.8)
    told = CliRunner().invoke(app, ["status", str(out)])
    assert told.stdout.startswith("finished\n")
    record = json.loads(CliRunner().invoke(app, ["status", str(out), "--json"]).stdout)
    assert {"stages", "folds", "mean_dice", "seconds_left", "findings", "lines"} <= set(record)
    assert {"configuration", "fold", "state", "progress", "dice"} <= set(record["folds"][0])


def test_watching_ends_with_the_run(tmp_path):
    states = iter(["running", "running", "finished", "running"])
    seen = list(watch(lambda _: RunStatus(state=next(states), stages={}), [tmp_path], seconds=0))
    assert [[each.state for each in found] for found in seen] == [["running"], ["running"], ["finished"]]


def test_of_several_runs_each_has_its_line_and_a_folder_of_something_else_keeps_back_none(out, tmp_path_factory):
    train(out, 0, 100, done=True, dice=0.75)
    train(out, 1, 50)
    empty, other = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("other")
    (other / "letter.txt").write_text("dear")
    with locked(out):
        told = CliRunner().invoke(app, ["status", str(out), str(empty), str(other)])
        record = json.loads(CliRunner().invoke(app, ["status", str(out), str(other), "--json"]).stdout)
        one = read_status(out)
    assert told.exit_code == 1
    first, second, third = told.stdout.strip().splitlines()
    assert first.startswith(f"{out}: running: train {NAME} fold_1, 1 of {FOLDS} folds done, 50% of fold 1, about ")
    assert second == f"{empty}: nothing has been run yet"
    assert third.startswith(f"{other} is not an output folder of AutoUNet. Give the folder of a run")
    assert [each["out"] for each in record] == [str(out), str(other)]
    assert (record[0]["state"], "error" in record[1]) == ("running", True)
    assert one.folds[1].seconds_left == pytest.approx(100, abs=2)
    assert [" left" in line for line in one.lines if line.startswith(NAME)] == [False, True, *[False] * (FOLDS - 2)]
    assert any(line.startswith("time left for the whole run: about ") for line in one.lines)


def test_time_left_by_hand():
    def fold(**known: object) -> FoldTime:
        return FoldTime(**{"configuration": "a", "trained": False, "validated": False} | known)  # type: ignore[arg-type]

    done = fold(trained=True, validated=True, spent=100.0, validation=10.0)
    assert seconds_left([]) == seconds_left([done]) == 0
    assert seconds_left([done, fold()]) == 110
    assert seconds_left([done, fold(trained=True)]) == 10
    assert seconds_left([fold(progress=0.25, spent=50.0), fold()]) == 150 + 200
    assert seconds_left([fold(planned_training=40.0, planned_validation=4.0)]) == 44
    assert seconds_left([done, fold(configuration="b")]) is None
