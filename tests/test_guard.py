"""The guard of the memory budget: trial steps, planning again, and what happens to what was trained."""

from __future__ import annotations

import shutil

import pytest
import torch
from quick_runs import narrow, one_probe  # noqa: F401 - used by every test here
from training_cases import configuration, labels

from autounet.datasets.synthetic import make_demo_dataset
from autounet.schema.errors import BudgetExceeded, OutOfMemory, PlanError
from autounet.schema.options import GIB, RunOptions, TrainOptions
from autounet.schema.plan import Plan
from autounet.schema.run import DeviceProfile, RunRecord
from autounet.workflow import stages
from autounet.workflow.pipeline import run_pipeline
from autounet.workflow.trial_steps import corrected, trial_peak

MIB = 2**20
BUDGET = 560 * MIB


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("volumes") / "data", cases=4)


def run(volumes, out, until, **changes):
    fixed = {"device": "cpu", "workers": 0, "iterations": 1, "folds": "0,1", "configurations": ("3d_fullres",)}
    return run_pipeline(volumes, out, RunOptions(**{**fixed, "memory_bytes": BUDGET, **changes}), until)


@pytest.fixture(scope="module")
def planned(volumes, tmp_path_factory):
    """An output folder with everything up to the plan; `folds` play no part in it."""
    out = tmp_path_factory.mktemp("planned")
    run(volumes, out, "plan")
    return out


@pytest.fixture
def out(planned, tmp_path):
    """A copy of `planned`, which may be changed."""
    return shutil.copytree(planned, tmp_path / "out")


def answers(monkeypatch, *peaks):
    """Trial steps that give these peaks, one after the other; an exception is raised. Returns what was tried."""
    tried, left = [], list(peaks)

    def peak(configuration, *_):
        tried.append(configuration)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("autounet.workflow.trial_steps.trial_peak", peak)
    return tried


def test_the_peak_is_that_of_a_process_of_its_own(volumes, out):
    profile, given = DeviceProfile.load(out / "device.json"), (labels(), TrainOptions(), False)
    ballast = torch.ones(600 * MIB // 4)
    small = trial_peak(configuration(), *given, profile)
    assert 50 * MIB < small < ballast.nbytes
    assert trial_peak(configuration(patch=(40, 64, 64)), *given, profile) > small + 20 * MIB


def test_a_configuration_that_exceeds_its_budget_is_planned_smaller_and_the_run_goes_on(volumes, out, monkeypatch):
    tried = answers(monkeypatch, BUDGET + 1, BUDGET)
    run(volumes, out, "train")
    before, after = tried
    assert after.predicted_memory_bytes <= BUDGET
    assert after.key != before.key
    plan = Plan.load(out / "plan.json")
    assert plan.configurations["3d_fullres"].key == after.key
    assert any("planned again" in reason.text for reason in plan.reasons)
    (patch,) = (reason for reason in plan.reasons if (reason.configuration, reason.topic) == ("3d_fullres", "patch"))
    assert " x ".join(map(str, after.patch_size)) in patch.text  # no reason of the former plan is left
    correction = DeviceProfile.load(out / "device.json").memory_correction
    assert correction > BUDGET / before.predicted_memory_bytes
    record = RunRecord.load(out / "models" / "3d_fullres" / "fold_1" / "record.json")
    assert record.events == plan.events["3d_fullres"]
    assert "planned again" in record.events[0]
    files = [out / "plan.json", *sorted(out.glob("models/*/*/record.json"))]
    written = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    run(volumes, out, "train")  # keeps what was trained
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == written


def test_memory_that_ends_in_the_trial_is_not_asked_for_again(volumes, out, monkeypatch):
    tried = answers(monkeypatch, OutOfMemory("full"), BUDGET)
    run(volumes, out, "train", folds="0")
    before, after = tried
    assert after.predicted_memory_bytes / DeviceProfile.load(out / "device.json").memory_correction < (
        before.predicted_memory_bytes
    )


def test_memory_that_ends_in_a_training_moves_finished_folds_aside(volumes, out, monkeypatch):
    answers(monkeypatch, BUDGET, BUDGET)
    train, failed = stages.train, []

    def fails_once(inputs, **others):
        if inputs.fold == 1 and not failed:
            failed.append(inputs.fold)
            raise BudgetExceeded("memory ran out", "3d_fullres", None)
        return train(inputs, **others)

    monkeypatch.setitem(stages.FUNCTIONS, "train", fails_once)
    run(volumes, out, "train")
    models = out / "models" / "3d_fullres"
    assert (models / "fold_0.old_1" / "record.json").exists()
    assert all((models / f"fold_{fold}" / "record.json").exists() for fold in (0, 1))


def test_a_passed_trial_is_not_repeated(volumes, out, monkeypatch):
    tried = answers(monkeypatch, BUDGET)
    run(volumes, out, "train", folds="0")
    run(volumes, out, "train", folds="0,1")
    assert len(tried) == 1


def test_an_edited_plan_is_tried_by_what_it_needs_and_not_by_what_it_says(volumes, out, monkeypatch):
    tried = answers(monkeypatch, BUDGET)
    plan = Plan.load(out / "plan.json")
    edited = plan.configurations["3d_fullres"].model_copy(update={"predicted_memory_bytes": 1})
    plan.model_copy(update={"configurations": {"3d_fullres": edited}}).save(out / "plan.json")
    run(volumes, out, "train", folds="0")
    assert [each.predicted_memory_bytes > 1 for each in tried] == [True]


def test_a_plan_of_a_person_and_a_preset_stay_as_they_are(volumes, out, monkeypatch):
    plan = Plan.load(out / "plan.json")
    edited = plan.configurations["3d_fullres"].model_copy(update={"mirror_axes": (1,)})
    plan.model_copy(update={"configurations": {"3d_fullres": edited}}).save(out / "plan.json")
    answers(monkeypatch, 2 * BUDGET)
    with pytest.raises(BudgetExceeded, match="training steps need"):
        run(volumes, out, "train")
    assert Plan.load(out / "plan.json").configurations["3d_fullres"].mirror_axes == (1,)


def test_what_cannot_become_smaller_is_an_error(volumes, out, monkeypatch):
    answers(monkeypatch, *[1000 * BUDGET] * 9)
    with pytest.raises(PlanError, match="--memory"):
        run(volumes, out, "train")


def test_a_correction_only_grows():
    profile = DeviceProfile(device="cpu", name="", cores=1, memory_bytes=GIB, precision="fp32", channels_last=False)
    planned = configuration().model_copy(update={"predicted_memory_bytes": 100})
    once = corrected(profile, planned, BudgetExceeded("", "3d_fullres", 120))
    assert once.memory_correction == pytest.approx(1.2, rel=0.03)
    again = corrected(once, planned, BudgetExceeded("", "3d_fullres", None))
    assert again.memory_correction > 1.2 * once.memory_correction
    assert corrected(once, planned, BudgetExceeded("", "3d_fullres", 50)).memory_correction > once.memory_correction
