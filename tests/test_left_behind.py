"""Classes that a training leaves behind are noticed by a rule, shown more often, and named with what helps."""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_sets import GEOMETRY, describe, label_file, volumes
from fake_output import make_output
from hypothesis import given
from hypothesis import strategies as st
from quick_runs import narrow, no_trials, one_probe  # noqa: F401
from test_resume import checkpoint_always, same_after_interruptions
from test_samples import equal, source
from training_cases import configuration, labels, task, write_case
from typer.testing import CliRunner

from autounet.cli.app import app
from autounet.imageio import read_labels, write_labels
from autounet.report import write_report
from autounet.schema.metrics import NEAR_ZERO, ClassMetrics, Metrics
from autounet.schema.options import RunOptions, TrainOptions
from autounet.schema.run import EpochLog, RunRecord, read_log
from autounet.store.run_folder import RunFolder
from autounet.training import Horizon, train_fold
from autounet.training.cases import CaseStore
from autounet.training.loader import BatchLoader
from autounet.training.loop import is_judged
from autounet.training.monitor import (
    BEGIN,
    RECOVERED,
    ClassPatches,
    PatchMonitor,
    left_behind,
    left_behind_sentence,
)
from autounet.training.samples import EMPHASIS
from autounet.workflow.defaults import train_options

# ---- the rule -----------------------------------------------------------------------------------------------------


def line(progress: float, dice: dict[str, float] | None, **changes: object) -> EpochLog:
    given = {"step": round(1000 * progress), "seconds": 1.0, "learning_rate": 0.01, "loss": 0.0, "step_seconds": 1.0}
    return EpochLog(progress=progress, training_dice=dice, data_wait_seconds=0.0, **given, **changes)


def replay(values: list[float], others: float = 0.8) -> list[bool]:
    """Whether a class with these values, evenly over a training, is left behind after each."""
    curve: list[EpochLog] = []
    before: tuple[str, ...] = ()
    found = []
    for number, value in enumerate(values, start=1):
        curve.append(line(number / len(values), {"organ": others, "lesion": value}))
        before = left_behind(curve, before)
        found.append("lesion" in before)
    return found


dice = st.floats(0, 1)
found_values = st.lists(st.floats(NEAR_ZERO, 1), min_size=1, max_size=60)
curves = st.lists(st.one_of(st.floats(0, 0.3), dice), min_size=1, max_size=60)


@given(found_values, dice, st.data())
def test_no_single_value_leaves_a_class_behind(values, odd, data):
    values[data.draw(st.integers(0, len(values) - 1))] = odd
    assert not any(replay(values))


@given(st.integers(7, 60), dice, st.data())
def test_no_single_value_ends_it(count, odd, data):
    values = [0.0] * count
    place = data.draw(st.integers(0, count - 1))
    values[place] = odd
    steady = replay([0.0] * count)
    assert all(found for found, number in zip(replay(values), range(count), strict=True) if steady[max(0, number - 3)])


@given(curves)
def test_never_before_its_share_of_the_training(values):
    found = replay(values)
    assert not any(each for number, each in enumerate(found, start=1) if number / len(values) < BEGIN)


@given(curves, st.data())
def test_higher_values_leave_no_more_behind(values, data):
    higher = [data.draw(st.floats(value, 1)) for value in values]
    assert all(less or not more for less, more in zip(replay(values), replay(higher), strict=True))


@given(curves, dice)
def test_each_class_is_judged_by_itself(values, others):
    assert replay(values, others) == replay(values)


def test_between_the_two_limits_all_stays_as_it_is():
    between = (NEAR_ZERO + RECOVERED) / 2
    assert replay([between] * 20) == [False] * 20
    found = replay([0.0] * 5 + [between] * 10 + [0.5] * 5)
    assert found == [False] * 2 + [True] * 14 + [False] * 4


def test_what_was_not_measured_or_is_not_on_the_patches_is_not_judged():
    curve = [line(0.5 + number / 10, None if number % 2 else {"lesion": 0.0}) for number in range(3)]
    assert left_behind(curve) == ()
    assert left_behind([*curve, line(0.9, None)], ("lesion",)) == ("lesion",)
    assert left_behind([*curve, line(0.9, {"lesion": 0.0})]) == ("lesion",)
    assert left_behind([]) == ()


def test_the_sentence_names_what_changes_and_what_helps():
    behind = line(0.5, {"organ": 0.5, "lesion": 0.0}, left_behind=("lesion",))
    told = left_behind_sentence(behind, (), emphasised=True)
    assert "below 0.1 on patches of training cases: lesion; from here on 4 times as many samples" in told
    assert "weigh 4 times as much" in told
    assert all(each in told for each in ("--time", "fewer classes", "--region"))
    assert "samples show" not in left_behind_sentence(behind, (), emphasised=False)
    assert left_behind_sentence(behind, ("lesion",), emphasised=True) is None
    better = line(0.6, {"organ": 0.5, "lesion": 0.31})
    assert left_behind_sentence(better, ("lesion",), emphasised=True) == "no longer left behind: lesion (Dice 0.31)"


# ---- samples ------------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for number, name in enumerate(NAMES):
        write_case(folder, name, (10, 12 + number, 9), number, rare=name == "b")
    return folder


def shown(drawn, emphasised, steps: int) -> list[tuple[str, int]]:
    """Case and class of samples of one voxel."""
    samples = [drawn.collated([drawn.reading(step, 0, emphasised)]) for step in range(steps)]
    return [(*each.cases, int(each.labels)) for each in samples]


def voxels(folder: Path, **changes):
    drawn = source(folder, (1, 1, 1), "none", batch=1, **changes)
    drawn.foreground_fraction = 1.0
    return drawn


def test_an_emphasised_class_is_shown_so_many_times_as_often(folder):
    drawn = voxels(folder)
    plain = [label for case, label in shown(drawn, (), 900) if case == "a"]
    more = [label for case, label in shown(drawn, (2,), 900) if case == "a"]
    assert plain.count(2) / plain.count(1) == pytest.approx(1, abs=0.25)
    assert more.count(2) / more.count(1) == pytest.approx(EMPHASIS, abs=1)


def test_cases_with_an_emphasised_class_are_shown_more_often(folder):
    """Class 3 is in one case of three: half of the samples of the others show that one instead."""
    drawn = voxels(folder)
    cases = [case for case, _ in shown(drawn, (3,), 900)]
    assert cases.count("b") / 900 == pytest.approx(2 / 3, abs=0.05)
    assert [case for case, _ in shown(drawn, (1,), 30)] == [case for case, _ in shown(drawn, (), 30)]


@pytest.mark.parametrize("kind", ["full", "light", "none"])
def test_all_else_stays_equal(folder, kind):
    """Samples without promised foreground, and those whose case has none of the emphasised classes."""
    drawn = source(folder, kind=kind)
    plain, more, unknown = (drawn.batch(5, given) for given in ((), (1,), (7,)))
    assert equal(plain, unknown)
    assert more.cases == plain.cases
    assert torch.equal(plain.image[:2], more.image[:2])
    assert equal(more, source(folder, kind=kind).batch(5, (1,)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_workers_change_nothing_when_the_emphasis_changes(folder):
    found = []
    for workers in (0, 2):
        loader = BatchLoader(source(folder), 4, workers)
        drawn = list(islice(loader, 2))
        loader.emphasise((2,))
        drawn += islice(loader, 1)
        loader.emphasise(())
        loader.emphasise((3,))
        drawn += islice(loader, 2)
        loader.close()
        found.append(drawn)
    expected = [source(folder).batch(4 + number, each) for number, each in enumerate([(), (), (2,), (3,), (3,)])]
    assert all(equal(a, b) and equal(a, c) for a, b, c in zip(*found, expected, strict=True))


def test_the_patches_that_judge_show_the_rarest_classes(folder):
    drawn = source(folder, (1, 1, 1), "none", batch=4)
    patches = ClassPatches.of(drawn)
    assert patches.classes[0] == 3
    first, second = patches.batch(0), patches.batch(1)
    assert first.labels.flatten().tolist() == [*patches.classes, 3]
    assert first.cases[0] == first.cases[3] == "b"
    assert second.labels.flatten().tolist() == [*patches.classes[1:], 3, patches.classes[1]]
    assert {case for batch in (first, second) for case in batch.cases} == set(NAMES)
    assert equal(first, ClassPatches.of(drawn).batch(0))


def test_without_any_class_nothing_is_judged(folder, tmp_path):
    write_case(tmp_path, "empty", (8, 8, 8), empty=True)
    drawn = source(folder)
    drawn.cases = CaseStore(tmp_path, ("empty",), 0)
    assert ClassPatches.of(drawn) is None


# ---- trainings ----------------------------------------------------------------------------------------------------

UNMOVED = TrainOptions(learning_rate=1e-12, emphasis=True)
"""weights stay random"""


def rare_task(tmp_path: Path, folder: str, options: TrainOptions):
    """One voxel of one case is of class organ3, which a network cannot find by chance."""
    write_case(tmp_path / "prepared", "case1", (12, 12, 12), 1, rare=True)
    given = {"labels": labels(4), "configuration": configuration(classes=4), "folder": tmp_path / folder}
    return task(tmp_path, Horizon(steps=24), options=options, **given)


@pytest.fixture
def _often(monkeypatch):
    """A measurement every other step, and a checkpoint with each."""
    monkeypatch.setattr("autounet.training.journal.LOG_STEPS", 1)
    monkeypatch.setattr("autounet.training.monitor.STEPS_A_BATCH", 1)
    monkeypatch.setattr("autounet.training.monitor.JUDGING_PATCHES", 4)
    with checkpoint_always(monkeypatch):
        yield


@pytest.mark.usefixtures("_often")
def test_a_training_names_what_it_leaves_behind_and_resumes_the_same(tmp_path):
    straight = rare_task(tmp_path, "straight", UNMOVED)
    record = train_fold(*straight)
    event = next(each for each in record.curve if each.event)
    assert event.progress >= BEGIN
    assert "organ3" in record.left_behind
    assert event.left_behind == record.left_behind
    assert record.events == (event.event,)
    assert f"cases: {', '.join(record.left_behind)}; from here on" in event.event
    assert record.curve[-1] == read_log(straight.folder / "log.jsonl")[-1]
    assert record == RunRecord.load(straight.folder / "record.json")

    broken = rare_task(tmp_path, "broken", UNMOVED)
    again = same_after_interruptions(straight, broken, (event.step, event.step + 3))
    assert again.events[-1] == event.event


@pytest.mark.usefixtures("_often")
def test_without_emphasis_it_names_them_and_changes_no_sample(tmp_path):
    """Until the class is left behind, both trainings are the same; then only the one with emphasis is another."""
    plain, more = (
        train_fold(*rare_task(tmp_path, str(options.emphasis), options))
        for options in (UNMOVED.model_copy(update={"emphasis": False}), UNMOVED)
    )
    assert plain.left_behind == more.left_behind
    assert "samples show" not in plain.events[0]
    begin = next(number for number, each in enumerate(more.curve) if each.event) + 1
    losses = [[each.loss for each in record.curve] for record in (plain, more)]
    assert losses[0][:begin] == losses[1][:begin]
    assert losses[0][begin:] != losses[1][begin:]


@pytest.mark.usefixtures("_often")
def test_a_class_that_is_learnt_is_not_left_behind(tmp_path):
    options = TrainOptions(optimiser="adamw", learning_rate=1e-2, augmentation="none", emphasis=True)
    record = train_fold(*task(tmp_path, Horizon(steps=60), options=options))
    assert record.left_behind == ()
    assert record.curve[-1].training_dice.keys() == {"organ1", "organ2"}


@pytest.mark.parametrize(("deterministic", "horizon"), [(True, Horizon(9, 1e6)), (False, Horizon(9))])
def test_time_decides_nothing_where_steps_are_given(tmp_path, deterministic, horizon):
    given_task = task(tmp_path, Horizon(steps=9), options=TrainOptions(deterministic=deterministic))
    monitor = PatchMonitor(source_of_nothing(), labels(), None, torch.device("cpu"), batches=2)  # type: ignore[arg-type]

    class Empty:
        curve = ()

    for seconds in (0.0, 1e9):
        monitor._last = monitor._seconds = 1.0
        told = [
            is_judged(line(step / 1000, None, ).model_copy(update={"seconds": seconds}), given_task.inputs, monitor,
                      Empty(), horizon)  # type: ignore[arg-type]
            for step in (1, 29, 30, 100)
        ]  # fmt: skip
        assert told == [False, False, True, True]


def source_of_nothing():
    class Nothing:
        def batch(self, step: int):
            raise AssertionError

    return Nothing()


def test_presets_stay_nnunets():
    assert train_options(RunOptions(), 1000, 3).emphasis
    assert train_options(RunOptions(), 10**6, 3).emphasis
    assert not train_options(RunOptions(preset="nnunet"), 1000, 3).emphasis
    assert not TrainOptions().emphasis
    assert configuration().key  # options are no part of a configuration


# ---- what people see ----------------------------------------------------------------------------------------------


def test_the_report_names_them_with_what_helps(tmp_path):
    out = make_output(tmp_path / "out")
    assert "What helps" not in write_report(out).read_text()
    metrics = Metrics.load(out / "metrics.json")
    worse = {**metrics.per_class, "left kidney": ClassMetrics(dice=0.04)}
    metrics.model_copy(update={"per_class": worse}).save(out / "metrics.json")
    for fold in (1, 3):
        file = RunFolder(out).fold("3d_fullres", fold).record
        RunRecord.load(file).model_copy(update={"left_behind": ("tumour <rare>",)}).save(file)
    text = " ".join(write_report(out).read_text().split())
    assert "The model hardly finds left kidney (Dice 0.040)." in text
    assert "training of 3d_fullres fold_1 and 3d_fullres fold_3 ended" in text
    assert "on patches of training cases: tumour &lt;rare&gt;." in text
    assert "What helps: more time" in text


@pytest.fixture(scope="module")
def unseen(tmp_path_factory) -> Path:
    """A data set whose class tumour is in two cases alone, and folds that train on neither first, then on both."""
    folder = tmp_path_factory.mktemp("unseen")
    volumes(folder / "data")
    describe(folder / "data", tumour=2)
    for case in ("c0", "c1"):
        file = label_file(folder / "data", case)
        values, _ = read_labels(file)
        values[np.nonzero(values)[0][0]] = np.where(values[np.nonzero(values)[0][0]] > 0, 2, 0)
        write_labels(file, values, GEOMETRY)
    (folder / "folds.json").write_text(json.dumps({"folds": [["c0", "c1"], ["c2", "c3", "c4", "c5"]]}))
    return folder


def test_a_class_in_no_training_case_is_told_once_before_the_training(unseen, caplog):
    out = unseen / "out"
    options = ["--splits", str(unseen / "folds.json"), "--configurations", "3d_fullres", "--device", "cpu",
               "--workers", "0", "--memory", "420MB", "--iterations", "3"]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        run = CliRunner().invoke(app, ["run", str(unseen / "data"), "--out", str(out), *options])
    assert run.exit_code == 0, run.output
    told = [each.getMessage() for each in caplog.records if "cannot learn" in each.getMessage()]
    sentence = "none of the 4 training cases shows tumour: this fold cannot learn it"
    assert len(told) == 1
    assert told[0].startswith(f"3d_fullres fold_0: {sentence}. What helps: more cases with it")
    events = [RunRecord.load(RunFolder(out).fold("3d_fullres", fold).record).events for fold in (0, 1)]
    assert sentence in events[0][0]
    assert not any("cannot learn" in event for event in events[1])
    status = json.loads(CliRunner().invoke(app, ["status", str(out), "--json"]).output)
    assert "tumour" in status["folds"][0]["left_behind"]
    assert "3d_fullres fold 0: left behind, with a Dice below 0.1: " in "\n".join(status["lines"])
    assert any(each.startswith("what helps: more time") for each in status["lines"])
    report = " ".join((out / "report.html").read_text().split())
    assert "The model hardly finds" in report
    assert sentence in report
