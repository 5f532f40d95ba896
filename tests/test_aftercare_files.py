"""Postprocessing and calibration of a finished cross-validation, from its files: nothing is trained here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_output import configuration

from autounet.crossval.calibrate import OutOfFoldEntropy
from autounet.crossval.result import postprocess_and_calibrate
from autounet.datasets import load_case
from autounet.evaluation import evaluate_case, summarise
from autounet.imageio import read_labels, write_image, write_labels
from autounet.inference.export import ensemble_scores, export
from autounet.prediction.maps import probability_maps
from autounet.preprocessing import prepare_case
from autounet.schema.dataset import Case, Channel, Dataset
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels, Region, TargetKind, targets_of
from autounet.schema.metrics import CaseMetrics, Metrics
from autounet.schema.plan import Configuration, PreprocessSpec
from autounet.schema.selection import Selection
from autounet.store import read_properties, read_scores, scores_file, write_prepared, write_scores
from autounet.store.run_folder import RunFolder
from autounet.workflow.training_schedule import ensembles

SHAPE = (6, 14, 16)
FOLDS = {f"c{index}": index % 2 for index in range(6)}
CHOSEN = ("a", "b")


def labels_for(targets: TargetKind) -> Labels:
    classes = tuple(LabelClass(name=f"class {value}", value=value) for value in (0, 4, 7))
    regions = (Region(name="whole", values=(4, 7)),) if targets == "regions" else ()
    return Labels(classes=classes, regions=regions, ignore=9)


def plans(targets: TargetKind) -> dict[str, Configuration]:
    """Two grids, neither of them the files'."""
    base = configuration(3)
    found = {}
    for name, step in zip(CHOSEN, (1.0, 1.5), strict=True):
        normalisation = base.preprocess.normalisation
        spec = PreprocessSpec(spacing=(2.0, step, step), normalisation=normalisation)
        found[name] = base.model_copy(update={"preprocess": spec, "prepared": name, "targets": targets})
    return found


@pytest.fixture(params=["classes", "regions"])
def run(request, tmp_path: Path) -> SimpleNamespace:
    """Scores that are surer than right, and stray voxels in each case; one case is partly annotated."""
    targets: TargetKind = request.param
    labels, configurations, out = labels_for(targets), plans(targets), tmp_path / "out"
    dataset = Dataset(
        root=str(tmp_path), name="demo", layout="pairs", channels=(Channel(name="mri"),), labels=labels,
        labels_declared=True, image_pattern="images/*.nii.gz", file_kind="nifti", suffix=".nii.gz",
        cases=tuple(
            Case(identifier=name, images=(f"images/{name}.nii.gz",), label=f"labels/{name}.nii.gz",
                 annotated=(4,) if name == "c5" else None)
            for name in FOLDS
        ),
    )  # fmt: skip
    random = np.random.default_rng(0)
    results = []
    for name, fold in FOLDS.items():
        geometry = Geometry(shape=SHAPE, spacing=(2.0, 1.0, 1.0))
        truth = np.zeros(SHAPE, np.int32)
        truth[1:5, 3:9, 3:9], truth[2:4, 4:7, 4:7], truth[0, 0] = 4, 7, 9
        image = truth + random.normal(10, 1, SHAPE)
        write_image(tmp_path / f"images/{name}.nii.gz", image[None].astype(np.float32), geometry)
        write_labels(tmp_path / f"labels/{name}.nii.gz", truth, geometry)
        guess = truth.copy()
        guess[truth == 9] = 0
        guess[4, 12, 2 : 14 : 2 + fold] = 4
        pairs = []
        for each, plan in configurations.items():
            loaded = load_case(dataset, name)
            own = prepare_case(name, name, loaded.image, guess.astype(np.int16), geometry, plan.preprocess)
            write_prepared(out / "prepared" / each, *own)
            coarse = own.labels
            assert coarse is not None
            members = [[labels.values[index] for index in each.members] for each in targets_of(labels, targets)]
            scores = np.stack([np.where(np.isin(coarse, member), 6.0, -6.0) for member in members])
            scores = scores + random.normal(0, 2.5, scores.shape)
            write_scores(out / "crossval" / each / "scores", name, scores)
            pairs.append((scores.astype(np.float32), own.properties))
        values = export(pairs, labels, targets=targets)
        write_labels(out / "crossval" / "a+b" / f"{name}.nii.gz", values, geometry)
        annotated = (True, True, False) if name == "c5" else None
        scored = evaluate_case(values, truth, geometry.spacing, labels, annotated=annotated)
        results.append(CaseMetrics(case=name, fold=fold, per_class=scored))
    return SimpleNamespace(
        dataset=dataset, configurations=configurations, folder=RunFolder(out), metrics=summarise(results, labels),
        labels=labels, out=out,
    )  # fmt: skip


def refined(run: SimpleNamespace, selection: Selection, metrics: Metrics) -> tuple[Selection, Metrics]:
    return postprocess_and_calibrate(selection, metrics, run.dataset, run.configurations, run.folder, workers=0)


def test_the_selected_result_is_mended_and_calibrated(run) -> None:
    folder = run.out / "crossval" / "a+b"
    before = {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}
    plain = Selection(chosen=CHOSEN, compared=(), reason="the test's")
    selection, metrics = refined(run, plain, run.metrics)
    assert {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")} == before, "the plain ones stay"
    assert selection.postprocessing
    assert metrics.mean_dice > run.metrics.mean_dice
    assert [case.case for case in metrics.cases] == list(FOLDS)
    for case in metrics.cases:
        values, geometry = read_labels(folder / "postprocessed" / f"{case.case}.nii.gz")
        truth, _ = read_labels(Path(run.dataset.root) / "labels" / f"{case.case}.nii.gz")
        annotated = (True, True, False) if case.case == "c5" else None
        assert case.per_class == evaluate_case(values, truth, geometry.spacing, run.labels, annotated=annotated)
    found = selection.calibration
    assert found is not None
    assert metrics.calibration == found
    assert found.cases == 5, "of a case that was not looked through for all classes the truth is not known"
    assert 0 <= found.ece_before <= 1
    assert Selection.model_validate_json(selection.model_dump_json()) == selection
    assert Metrics.model_validate_json(metrics.model_dump_json()) == metrics


def test_uncertainty_is_that_of_the_pooled_scores(run) -> None:
    """Of each case in metrics.json, and of any voxels for the report."""
    selection, metrics = refined(run, Selection(chosen=CHOSEN, compared=(), reason="the test's"), run.metrics)
    told = {case.case: case.uncertainty for case in metrics.cases}
    assert told.pop("c5") is None, "no voxel of it was looked at"
    assert all(value is not None and 0 < value < 1 for value in told.values())
    dataset, configurations = run.dataset, run.configurations
    entropy = OutOfFoldEntropy(run.folder, dataset, configurations, selection)
    targets = configurations["a"].targets
    pairs = [
        (read_scores(run.out / "crossval" / name / "scores", "c1"), read_properties(run.out / "prepared" / name, "c1"))
        for name in CHOSEN
    ]
    assert selection.calibration is not None
    _, whole = probability_maps(
        ensemble_scores(pairs, run.labels, targets=targets), selection.calibration.temperature, False, True
    )
    assert whole is not None
    outputs = len(targets_of(run.labels, targets))
    greatest = np.log(outputs) if targets == "classes" else outputs * np.log(2)
    indices = np.array([5, 0, 3]), np.arange(SHAPE[1])[::-1], np.array([1, 8])
    found = entropy("c1", *indices)
    np.testing.assert_allclose(found, whole[np.ix_(*indices)] / greatest, atol=1e-5)
    scores_file(run.out / "crossval" / "b" / "scores", "c1").unlink()
    assert entropy("c1", *indices) is None


def test_it_comes_out_the_same_again_and_leaves_nothing_behind(run) -> None:
    plain = Selection(chosen=CHOSEN, compared=(), reason="the test's")
    first = refined(run, plain, run.metrics)
    stale = run.out / "crossval" / "a+b" / "postprocessed" / "gone.nii.gz"
    stale.write_bytes(b"")
    assert refined(run, plain, run.metrics) == first
    assert not stale.exists()
    alone = summarise(run.metrics.cases[:1], run.labels)
    selection, metrics = refined(run, plain, alone)
    assert (selection.postprocessing, selection.calibration) == ((), None)
    (case,) = metrics.cases
    assert metrics.model_copy(update={"cases": (case.model_copy(update={"uncertainty": None}),)}) == alone
    assert not stale.parent.exists()


def test_every_pair_and_the_whole_are_compared() -> None:
    assert ensembles(("a",)) == []
    assert ensembles(("a", "b")) == [("a", "b")]
    assert ensembles(("a", "b", "c")) == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
