"""Changing one image does that case again and what depends on it, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from broken_sets import image_file, label_file, volumes

from autounet.crossval import validate as validation
from autounet.imageio import read_image, read_labels, write_image, write_labels
from autounet.preprocessing import prepare as preparation
from autounet.schema.metrics import Metrics
from autounet.schema.options import DataOptions, RunOptions
from autounet.store import file_hashes
from autounet.workflow import cluster
from autounet.workflow.pipeline import run_pipeline

FOLDS = (("c0", "c1"), ("c2", "c3", "c4", "c5"))
MODEL = "3d_fullres"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, the folds and the output of a whole run of three steps a fold."""
    folder = tmp_path_factory.mktemp("trained")
    volumes(folder / "data")
    (folder / "folds.json").write_text(json.dumps({"folds": FOLDS}))
    run(folder)
    return folder


def run(folder: Path) -> None:
    options = RunOptions(
        data=DataOptions(splits=str(folder / "folds.json")),
        configurations=(MODEL,), device="cpu", workers=0, memory_bytes=420 * 2**20, iterations=3,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "try_configurations", lambda *_: None)  # starts a process for a trial
        run_pipeline(folder / "data", folder / "out", options, until="select")


class Done:
    """What a run does, by its functions' arguments; they still do it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import autounet.training

        self.hashed: list[str] = []
        self.examined: list[str] = []
        self.prepared: list[str] = []
        self.trained: list[int | None] = []
        self.predicted: list[str] = []
        examining = sys.modules["autounet.datasets.checks.examine"]  # the package has a function of that name
        stamp, examine = file_hashes.FileHashes._stamp, examining.examine_case
        prepare, train = preparation._prepare_one, autounet.training.train_fold
        evaluate = validation._write_and_evaluate

        def count(list_: list, name: Callable, function: Callable) -> Callable:
            def counting(*given, **named):
                list_.append(name(*given))
                return function(*given, **named)

            return counting

        monkeypatch.setattr(file_hashes, "SETTLED_NS", 0)

        def stamping(hashes, path, status):  # of the data; files of the output folder are compared whenever they moved
            self.hashed += [path.name] if "out" not in path.parts else []
            return stamp(hashes, path, status)

        monkeypatch.setattr(file_hashes.FileHashes, "_stamp", stamping)
        monkeypatch.setattr(examining, "examine_case", count(self.examined, lambda task: task.case.identifier, examine))
        prepared = count(self.prepared, lambda task: task.dataset.cases[0].identifier, prepare)
        monkeypatch.setattr(preparation, "_prepare_one", prepared)
        monkeypatch.setattr(autounet.training, "train_fold", count(self.trained, lambda inputs, *_: inputs.fold, train))
        evaluated = count(self.predicted, lambda dataset, properties, *_: properties.identifier, evaluate)
        monkeypatch.setattr(validation, "_write_and_evaluate", evaluated)


def test_nothing_changed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(trained)
    done = Done(monkeypatch)
    run(trained)
    assert not done.hashed + done.examined + done.prepared + done.trained + done.predicted


def test_one_changed_image(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Metrics.load(trained / "out" / "metrics.json")
    weights = {fold: (trained / f"out/models/{MODEL}/fold_{fold}/weights.safetensors").read_bytes() for fold in (0, 1)}
    file = image_file(trained / "data", "c1")
    image, geometry = read_image(file)
    write_image(file, image[..., ::-1], geometry)
    done = Done(monkeypatch)
    run(trained)
    assert "c1_0000.nii.gz" in done.hashed
    assert done.examined == ["c1"]
    assert done.prepared == ["c1"]
    assert done.trained == [1]  # fold 0 does not train on it
    assert done.predicted == ["c1", "c2", "c3", "c4", "c5"]
    assert (trained / f"out/models/{MODEL}/fold_0/weights.safetensors").read_bytes() == weights[0]
    assert (trained / f"out/models/{MODEL}/fold_1.old_1/weights.safetensors").read_bytes() == weights[1]
    after = Metrics.load(trained / "out" / "metrics.json")
    assert after.cases[0].per_class == before.cases[0].per_class  # its uncertainty is calibrated on all cases
    assert [case.case for case in after.cases] == [case.case for case in before.cases]


def test_one_changed_label(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = label_file(trained / "data", "c2")
    values, geometry = read_labels(file)
    values[0] = 0
    write_labels(file, values, geometry)
    done = Done(monkeypatch)
    run(trained)
    assert (done.examined, done.prepared, done.trained) == (["c2"], ["c2"], [0])
    assert done.predicted == ["c0", "c1", "c2"]


def test_a_file_that_was_only_touched(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_file(trained / "data", "c3").touch()
    done = Done(monkeypatch)
    run(trained)
    assert done.hashed == ["c3_0000.nii.gz"]
    assert not done.examined + done.prepared + done.trained + done.predicted


def test_a_segmentation_that_is_gone_comes_back_alone(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = trained / "out" / "crossval" / MODEL / "c0.nii.gz"
    file.unlink()
    done = Done(monkeypatch)
    run(trained)
    assert (done.trained, done.predicted) == ([], ["c0"])
    assert file.exists()
