"""One identity: a stage's key changes with every field of its inputs, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_output import configuration

from autounet.losses import BORDER_WEIGHTED
from autounet.schema import stage_inputs
from autounet.schema.dataset import Case, Channel, Dataset, Splits
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.labels import LabelClass, Labels, Region
from autounet.schema.options import DataOptions, TrainOptions
from autounet.schema.plan import Configuration, InferenceSpec, TrainedConfiguration
from autounet.schema.plugins import PluginUse
from autounet.schema.stage_inputs import InitialWeights, StageInputs, TrainingCase
from autounet.store.run_folder import RunFolder
from autounet.workflow import cache, jobs
from autounet.workflow.jobs import CLASS_BALANCED, InitialFold, JobGraph
from autounet.workflow.training_schedule import TrainingSchedule

TRAINED = configuration(3).trained
OTHER_TRAINED = TRAINED.model_copy(update={"batch_size": 5})
LABELS = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="liver", value=1)))
OTHER_LABELS = LABELS.model_copy(update={"ignore": 9})
CASE = TrainingCase(identifier="a", prepared="1")
SPEC = TRAINED.preprocess
OTHER_SPEC = SPEC.model_copy(update={"transpose": (0, 2, 1)})
PLUGIN = PluginUse(kind="losses", name="mine", package="other", version="1")

VALUES: dict[str, tuple[Any, Any]] = {
    "preprocess": (SPEC, OTHER_SPEC),
    "content": ("1", "2"),
    "values": ((0, 1), (0, 2)),
    "ignore": (None, 9),
    "present": (None, (True, False)),
    "configuration": (TRAINED, OTHER_TRAINED),
    "options": (TrainOptions(), TrainOptions(learning_rate=0.5)),
    "fold": (0, 1),
    "labels": (LABELS, OTHER_LABELS),
    "class_voxels": ((), (5, 1)),
    "channel_combinations": ((), ((True, False),)),
    "steps": (10, None),
    "promised_seconds": (None, 60.0),
    "monitored": ((), (CASE,)),
    "initial": (None, InitialWeights()),
    "training": ("1", "2"),
    "inference": (InferenceSpec(), InferenceSpec(overlap=0.25)),
    "weights": ("1", "2"),
    "prepared": ("1", "2"),
    "annotated": (None, (True, False)),
    "previous": (None, "1"),
    "members": (("1",), ("1", None)),
    "validation": ("1", "2"),
    "following": ("1", "2"),
    "scores": ("1", "2"),
    "targets": ("classes", "regions"),
    "device": ("cpu", "cuda:0"),
    "configurations": ({"2d": TRAINED}, {"2d": OTHER_TRAINED}),
    "folds": ((0, 1), (0,)),
    "metrics": (("dice",), ("dice", "assd")),
    "jobs": ({"a": "1"}, {"a": "2"}),
    "plugins": ((PLUGIN,), (PLUGIN.model_copy(update={"version": "2"}),)),
}
"""field -> two values, of which the first makes the record"""
SPECIAL: dict[tuple[str, str], tuple[Any, Any]] = {
    ("PreparationInputs", "cases"): ({"a": "1"}, {"a": "2"}),
    ("TrainingInputs", "cases"): ((CASE,), (CASE.model_copy(update={"previous": "1"}),)),
    ("ValidationInputs", "cases"): ((CASE,), (CASE.model_copy(update={"prepared": "2"}),)),
    ("CascadeInputs", "following"): (SPEC, OTHER_SPEC),
    ("CascadeCaseInputs", "members"): ((), ((1, 2),)),
    ("SelectionInputs", "inference"): ({"2d": InferenceSpec()}, {"2d": InferenceSpec(overlap=0.25)}),
}
"""the same where records differ"""
STAGES = [kind for kind in vars(stage_inputs).values() if isinstance(kind, type) and issubclass(kind, StageInputs)][1:]


def values(kind: type[StageInputs], name: str) -> tuple[Any, Any]:
    return SPECIAL.get((kind.__name__, name)) or VALUES[name]


@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
def test_every_field_of_a_stages_inputs_changes_its_key(kind: type[StageInputs]) -> None:
    record = kind(**{name: values(kind, name)[0] for name in kind.model_fields})
    keys = {record.key} | {record.model_copy(update={name: values(kind, name)[1]}).key for name in kind.model_fields}
    assert len(keys) == 1 + len(kind.model_fields)


def test_stages_of_equal_fields_have_different_keys() -> None:
    assert len({kind.model_construct().key for kind in STAGES}) == len(STAGES)


def test_weights_depend_on_every_field_of_what_is_trained_and_on_no_estimate() -> None:
    whole = configuration(3)
    estimates = {
        "prepared": "other", "inference": InferenceSpec(overlap=0.0), "median_shape": (1, 1, 1),
        "predicted_memory_bytes": 1, "predicted_step_seconds": 1.0,
        "predicted_steps": 1, "predicted_validation_seconds": 1.0,
    }  # fmt: skip
    own = set(Configuration.model_fields) - set(TrainedConfiguration.model_fields)
    assert own == {*estimates, "limited_by"}
    assert all(whole.model_copy(update={name: value}).key == whole.key for name, value in estimates.items())
    changes = {
        "preprocess": OTHER_SPEC, "patch_size": (16, 32, 40), "batch_size": 5, "targets": "regions",
        "network": whole.network.model_copy(update={"features": (16, 64, 128)}), "precision": "bf16",
        "channels_last": True, "mirror_axes": (1,), "swap_axis": 1, "batch_dice": True, "previous_stage": "3d_lowres",
    }  # fmt: skip
    assert set(changes) == set(TrainedConfiguration.model_fields)
    keys = {whole.key} | {whole.model_copy(update={name: value}).key for name, value in changes.items()}
    assert len(keys) == 1 + len(changes)


# ---- the jobs of a run --------------------------------------------------------------------------------------------

CASES = ("a", "b", "c", "d")


def labels(*names: str) -> Labels:
    classes = (LabelClass(name=name, value=value) for value, name in enumerate(names))
    return Labels(classes=tuple(classes), regions=(Region(name=f"all of {names[1]}", values=(1, 2)),))


def graph(out: Path, loss: str = "dice_ce", **changes: Any) -> JobGraph:
    given = labels("background", "kidney", "tumour") if "labels" not in changes else changes.pop("labels")
    dataset = Dataset(
        root=str(changes.pop("root", "/data")), name="demo", layout="pairs", channels=(Channel(name="mri"),),
        labels=given, labels_declared=True, image_pattern="images/*", file_kind="nifti", suffix=".nii.gz",
        cases=tuple(Case(identifier=name, images=(f"{name}.nii.gz",), label=f"{name}.nii.gz") for name in CASES),
    )  # fmt: skip
    coarse = configuration(3).model_copy(update={"prepared": "coarse"})
    fine = coarse.model_copy(update={"prepared": "fine", "previous_stage": "3d_lowres"})
    configurations = {"3d_lowres": coarse, "3d_cascade_fullres": fine}
    update = changes.pop("configuration", {})
    configurations = {name: each.model_copy(update=update) for name, each in configurations.items()}
    splits = Splits(source="file", folds=(("a", "b"), ("c", "d")))
    schedule = TrainingSchedule(
        configurations=configurations, left_out=(), folds=(0, 1), splits=splits,
        cases=CASES, steps=10, promised_seconds=None, to_convergence=changes.pop("to_convergence", False),
        train_options=dict.fromkeys(configurations, TrainOptions(loss=loss)),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "content": dict.fromkeys(CASES, "1"), "class_voxels": (9, 3, 1), "device": "cpu", "workers": 1,
        "loader_workers": 0, "compile": "off", "initial": lambda name, fold: None, "events": {},
    }  # fmt: skip
    return JobGraph(folder=RunFolder(out), dataset=dataset, schedule=schedule, **{**fields, **changes})


def keys(built: JobGraph) -> dict[str, str]:
    graph_jobs = built.preparation() + built.training()
    fingerprint = Fingerprint.model_construct()
    graph_jobs.append(built.selection(graph_jobs, DataOptions(), fingerprint, ("dice",)))
    return {job.name: job.key for job in graph_jobs}


def changed(before: JobGraph, after: JobGraph) -> set[str]:
    """The first words of the jobs whose keys differ, with their folds."""
    old, new = keys(before), keys(after)
    assert set(old) == set(new)
    return {name for name in old if old[name] != new[name]}


def test_names_paths_devices_and_workers_change_no_weights(tmp_path: Path) -> None:
    plain = graph(tmp_path)
    elsewhere = graph(
        tmp_path / "other", root="/moved", device="cuda:0", workers=7, loader_workers=3, compile="on",
        events={"3d_lowres": ("x",)},
    )  # fmt: skip
    assert not changed(plain, elsewhere)
    renamed = changed(plain, graph(tmp_path, labels=labels("background", "left kidney", "mass")))
    assert renamed == {name for name in keys(plain) if name.startswith(("validate", "select"))}


def test_estimates_change_nothing_and_inference_only_what_is_predicted(tmp_path: Path) -> None:
    plain = graph(tmp_path)
    assert not changed(plain, graph(tmp_path, configuration={"predicted_memory_bytes": 1, "predicted_steps": 5}))
    found = changed(plain, graph(tmp_path, configuration={"inference": InferenceSpec(overlap=0.25)}))
    assert not any(name.startswith(("prepare", "train 3d_lowres")) for name in found)
    assert "validate 3d_lowres fold_0" in found
    assert "train 3d_cascade_fullres fold_0" in found, "its labels come from these predictions"


@pytest.mark.parametrize("loss", ["dice_ce", "weighted_ce"])
def test_a_changed_validation_case_reaches_the_weights_only_through_a_balanced_loss(tmp_path: Path, loss: str) -> None:
    """Case a validates fold 0 and trains fold 1."""
    content = {**dict.fromkeys(CASES, "1"), "a": "2"}
    found = changed(graph(tmp_path, loss), graph(tmp_path, loss, content=content, class_voxels=(9, 4, 1)))
    assert {"prepare coarse", "validate 3d_lowres fold_0", "train 3d_lowres fold_1", "select"} <= found
    assert ("train 3d_lowres fold_0" in found) == (loss == "weighted_ce")


def test_a_validation_case_reaches_the_weights_of_a_training_that_ends_when_it_has_converged(tmp_path: Path) -> None:
    content = {**dict.fromkeys(CASES, "1"), "a": "2"}
    open_end = graph(tmp_path, to_convergence=True)
    found = changed(open_end, graph(tmp_path, to_convergence=True, content=content))
    assert {"train 3d_lowres fold_0", "train 3d_lowres fold_1"} <= found
    assert {"train 3d_lowres fold_0", "train 3d_lowres fold_1"} <= changed(graph(tmp_path), open_end)


def test_losses_that_balance_classes_are_those_of_losses() -> None:
    assert set(BORDER_WEIGHTED) == CLASS_BALANCED


def test_other_weights_to_start_from_train_again_and_their_path_does_not(tmp_path: Path) -> None:
    def start(path: str, **fields: Any) -> Any:
        return lambda name, fold: InitialFold(Path(path), InitialWeights(**fields), ("starts",))

    before = graph(tmp_path, initial=start("/a"))
    assert not changed(before, graph(tmp_path, initial=start("/b")))
    assert "train 3d_lowres fold_0" in changed(before, graph(tmp_path, initial=start("/a", new=("head",))))
    assert "train 3d_lowres fold_0" in changed(before, graph(tmp_path))


# ---- done files ---------------------------------------------------------------------------------------------------


def test_done_means_the_key_and_all_files(tmp_path: Path) -> None:
    done, written = tmp_path / "done.json", tmp_path / "result"
    assert not cache.is_done(done, "1")
    cache.mark_done(done, "1")
    assert cache.is_done(done, "1")
    assert not cache.is_done(done, "2")
    assert not cache.is_done(done, "1", [written])
    written.write_text("")
    assert cache.is_done(done, "1", [written])
    done.write_text("{")
    assert not cache.is_done(done, "1")
    cache.forget(done)
    cache.forget(done)
    assert cache.stored_key(done) is None


# ---- preparation in parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2, 3, 4, 50])
def test_shards_hold_each_case_once_and_change_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    monkeypatch.setattr(jobs, "LEAST_OF_A_SHARD", 1)
    whole, built = graph(tmp_path).preparation(), graph(tmp_path, shards=shards).preparation()
    by_name = {job.name: job for job in built}
    assert len(by_name) == len(built) == len(whole) * (1 + min(shards, len(CASES)))
    for job in whole:
        same = by_name[job.name]
        parts = [by_name[name] for name in same.needs]
        assert [case for part in parts for case in part.args["keys"]] == list(CASES)
        assert [file for part in parts for file in part.writes] == list(job.writes)
        assert (same.key, same.done, same.args) == (job.key, job.done, job.args)
        assert len({part.done for part in parts} | {job.done}) == len(parts) + 1
        assert all(built.index(part) < built.index(same) for part in parts)


def test_few_cases_are_one_job_and_so_is_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [job.needs for job in graph(tmp_path, shards=4).preparation()] == [(), ()]
    monkeypatch.setattr(jobs, "LEAST_OF_A_SHARD", 1)
    first = graph(tmp_path).preparation()[0]
    for file in first.writes:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    first.mark_done()
    assert [bool(job.needs) for job in graph(tmp_path, shards=2).preparation()] == [False, False, False, True]
