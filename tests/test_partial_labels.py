"""Labels that do not tell everything: an ignore value (scribbles), and cases in which not every class was annotated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_runs import narrow, no_trials, one_probe  # noqa: F401 - used by every test here
from training_cases import configuration, labels, task

from autounet.datasets.checks.set_checks import check_dataset
from autounet.evaluation import evaluate_case
from autounet.fingerprint import build_fingerprint
from autounet.imageio import read_labels, write_image, write_labels
from autounet.losses import Batch
from autounet.preprocessing import class_locations
from autounet.schema.dataset import (
    NOT_ANNOTATED,
    Case,
    CaseFacts,
    Channel,
    Dataset,
    IntensitySample,
    annotated_classes,
    is_certain,
    partly_annotated,
)
from autounet.schema.errors import DataError
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels, Region
from autounet.schema.metrics import Metrics
from autounet.schema.options import DataOptions, RunOptions, TrainOptions
from autounet.step import Precision, configuration_loss
from autounet.store import open_prepared, write_prepared
from autounet.training import Horizon, train_fold
from autounet.training.monitor import PatchMonitor
from autounet.training.sources import train_source, validation_source
from autounet.workflow import dataset_stage as reading
from autounet.workflow.pipeline import run_pipeline

ORGANS = Labels(
    classes=tuple(
        LabelClass(name=name, value=value) for name, value in (("background", 0), ("a", 5), ("b", 7), ("c", 9))
    )
)


def options(**changes) -> RunOptions:
    common = {"device": "cpu", "workers": 0, "memory_bytes": 700 * 2**20, "seed": 1}
    return RunOptions(**{**common, **changes})


# ---- an ignore value ------------------------------------------------------------------------------------------


def scribble(folder: Path, identifier: str, seed: int) -> None:
    """Makes a prepared case sparse: three labelled voxels, two of the background and one of class 1, or none."""
    case = open_prepared(folder, identifier)
    assert case.labels is not None
    dense = np.full(case.labels.shape, -1, np.int8)
    if seed:
        places = np.random.default_rng(seed).choice(dense.size, 3, replace=False)
        dense.ravel()[places] = (0, 0, 1)
    write_prepared(folder, case.properties, case.image[:], dense, class_locations(dense, identifier))


def sparse_task(root: Path, seeds: tuple[int, ...], **changes):
    given = task(root, Horizon(steps=4), labels=labels(ignore=9), **changes)
    names = (*(case.identifier for case in given.inputs.cases), *given.place.validation_cases)
    for name, seed in zip(names, seeds, strict=True):
        scribble(given.place.prepared, name, seed)
    return given


@pytest.mark.parametrize("patch", [(4, 4, 4), (4, 4)])
def test_samples_of_scribbles_show_a_labelled_voxel(tmp_path, patch):
    """Also those that need no foreground: a patch holds one voxel in thirty, and ten tries would miss all three."""
    chosen = configuration(patch).model_copy(update={"mirror_axes": ()})
    given = sparse_task(tmp_path, (1, 2, 3, 4), configuration=chosen, options=TrainOptions(augmentation="none"))
    source = train_source(given.inputs, given.place)
    found = [source.batch(step).labels for step in range(40)]
    assert all((each >= 0).any() for batch in found for each in batch)
    assert any((each == 0).any() for batch in found for each in batch)
    assert any((each == 1).any() for batch in found for each in batch)


def test_places_of_the_background_are_kept_where_labels_are_missing():
    dense = np.array([[[0, 1, 0, 2]]])
    assert sorted(class_locations(dense, "a")) == [1, 2]
    dense[0, 0, 2] = -1
    places = class_locations(dense, "a")
    assert {label: each.tolist() for label, each in places.items()} == {0: [[0, 0, 0]], 1: [[0, 0, 1]], 2: [[0, 0, 3]]}


def test_a_training_on_next_to_nothing_stays_finite(tmp_path):
    """Two cases without any labelled voxel, whose patches have no loss and no gradient."""
    given = sparse_task(tmp_path, (0, 0, 5, 0))
    record = train_fold(*given)
    assert all(math.isfinite(line.loss) for line in record.curve)
    unseen = Batch(torch.zeros(2, 1, 8, 12, 8), torch.full((2, 8, 12, 8), -1, dtype=torch.int16))
    outputs = [torch.randn(2, 3, *(n >> level for n in (8, 12, 8)), requires_grad=True) for level in range(2)]
    loss = configuration_loss(given.configuration, given.labels, given.options)(outputs, unseen)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(output.grad is None or not output.grad.any() for output in outputs)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    """Two discs, the left one of class 1 and the right one of class 2; `full` labels, `scribbles` and `half` ones.

    A scribble is a line through each disc and one below them. In `half` odd cases lack class 1, even ones class 2.
    """
    folder = tmp_path_factory.mktemp("drawings")
    rng = np.random.default_rng(0)
    geometry = Geometry(shape=(1, 33, 48), kind="png", dimension=2)
    y, x = np.mgrid[:33, :48]
    for case in range(6):
        row = rng.uniform(11, 17)
        left, right = ((y - row) ** 2 + (x - middle) ** 2 < rng.uniform(7, 9) ** 2 for middle in (12, 35))
        full = np.select([left, right], [1, 2]).astype(np.uint8)
        image = (np.array([60, 120, 180])[full] + rng.normal(0, 10, full.shape)).clip(0, 255).astype(np.uint8)
        sparse = np.full_like(full, 4)
        sparse[[int(row), 31]] = full[[int(row), 31]]
        half = np.where(full == 1 + (case + 1) % 2, 0, full)
        write_image(folder / "images" / f"{case}.png", image[None, None], geometry)
        for name, array in (("full", full), ("scribbles", sparse), ("half", half)):
            write_labels(folder / name / f"{case}.png", array[None], geometry)
    return folder


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_scribbles_train_and_validate_on_what_they_say(drawings, tmp_path):
    data = DataOptions(label="scribbles/*", ignore=4)
    run_pipeline(drawings, tmp_path, options(iterations=60, folds="0", data=data), until="select")
    fingerprint = Fingerprint.load(tmp_path / "fingerprint.json")
    assert all(0 < sum(case.voxels) < 0.1 * 33 * 48 for case in fingerprint.cases)
    metrics = Metrics.load(tmp_path / "metrics.json")
    for case in metrics.cases:
        found, _ = read_labels(tmp_path / "crossval" / "2d" / f"{case.case}.png")
        said, _ = read_labels(drawings / "scribbles" / f"{case.case}.png")
        assert 4 not in found
        for label in (1, 2):
            counted = dice((found == label) & (said != 4), said == label)
            assert case.per_class[f"label_{label}"].dice == pytest.approx(counted)
        whole, _ = read_labels(drawings / "full" / f"{case.case}.png")
        assert dice(found > 0, whole > 0) > 0.7  # what nobody drew was learned, too


def test_an_ignore_value_and_regions_together(drawings, tmp_path):
    data = DataOptions(label="scribbles/*", ignore=4, regions={"both": (1, 2)})
    run_pipeline(drawings, tmp_path, options(iterations=3, folds="0", data=data), until="select")
    metrics = Metrics.load(tmp_path / "metrics.json")
    assert list(metrics.per_class) == ["label_1", "label_2", "both"]


# ---- partially annotated cases --------------------------------------------------------------------------------


def a_case(*annotated: int) -> Case:
    return Case(identifier="x", images=("x.nii.gz",), annotated=annotated)


def test_annotated_values_become_classes():
    assert annotated_classes(a_case().model_copy(update={"annotated": None}), ORGANS) is None
    assert annotated_classes(a_case(9, 5, 7), ORGANS) is None
    assert annotated_classes(a_case(0, 7), ORGANS) == (True, False, True, False)
    assert annotated_classes(a_case(), ORGANS) == (True, False, False, False)
    with pytest.raises(DataError, match="case x: its annotated classes contain the value 8, which no class has"):
        annotated_classes(a_case(5, 8), ORGANS)


def test_what_a_partial_label_tells():
    known = (True, True, False, True)
    assert is_certain((1,), known)
    assert is_certain((1, 3), known)
    assert not is_certain((1, 2), known)
    assert not is_certain((0,), known)  # 0 may be class 2
    assert is_certain((0, 2), known)


def test_metrics_of_what_was_not_annotated_are_undefined():
    of = ORGANS.model_copy(
        update={
            "regions": (Region(name="ab", values=(5, 7)), Region(name="ac", values=(5, 9))),
            "background_named": True,
        }
    )
    reference = np.array([[[0, 5, 5, 9]]])
    prediction = np.array([[[7, 5, 7, 9]]])
    found = evaluate_case(prediction, reference, (1, 1, 1), of, annotated=(True, True, False, True))
    assert list(found) == ["background", "a", "b", "c", "ab", "ac"]
    for name in ("background", "b", "ab"):
        assert found[name].dice is None
        assert set(found[name].undefined.values()) == {NOT_ANNOTATED}
    assert found["a"].dice == pytest.approx(2 / 3)
    assert found["c"].dice == 1.0
    assert found["ac"].dice == pytest.approx(4 / 5)


def test_statistics_of_a_class_leave_out_cases_without_it():
    cases = (a_case(5, 9), a_case().model_copy(update={"identifier": "y", "annotated": None}))
    facts = [
        CaseFacts(
            identifier=case.identifier,
            content_hash="",
            geometry=Geometry(shape=(2, 3, 4)),
            nonzero_box=((0, 2), (0, 3), (0, 4)),
            value_counts={0: 10, 5: 6, 7: 8},
            samples=(IntensitySample.of(b"", None, None),),
        )
        for case in cases
    ]
    dataset = Dataset(
        root="/", name="d", layout="table", channels=(Channel(name="MRI"),), labels=ORGANS, labels_declared=True,
        cases=cases, image_pattern="*", file_kind="nifti", suffix=".nii.gz",
    )  # fmt: skip
    assert partly_annotated(dataset) == {"x": (True, True, False, True)}
    fingerprint = build_fingerprint(dataset, facts, "ras")
    assert [case.voxels for case in fingerprint.cases] == [(10, 6, 0, 0), (10, 6, 8, 0)]
    (warning,) = [each for each in check_dataset(dataset, facts) if each.code == "unlisted-class"]
    assert (warning.case, warning.severity) == ("x", "warning")
    assert "8 voxels of b (value 7)" in warning.message


def test_samples_say_what_was_annotated_and_show_only_that(tmp_path):
    """Class 1 lies in the lower corner of every case, class 2 in the upper."""
    given = task(
        tmp_path, Horizon(steps=1), annotated={"case0": (True, False, True), "case1": (True, True, False)},
        configuration=configuration((4, 4, 4)).model_copy(update={"mirror_axes": ()}),
        options=TrainOptions(foreground_fraction=1.0, augmentation="none"),
    )  # fmt: skip
    source = train_source(given.inputs, given.place)
    for step in range(12):
        batch = source.batch(step)
        for row, case in enumerate(batch.cases):
            known = given.place.annotated.get(case, (True, True, True))
            if batch.annotated is not None:
                assert batch.annotated[row].tolist() == list(known)
            else:
                assert all(known)
            middle = int(batch.labels[row][2, 2, 2])
            if case in given.place.annotated:
                assert middle == (2 if case == "case0" else 1)
    others = task(tmp_path, Horizon(steps=1), configuration=given.configuration, options=given.options)
    assert given.inputs.key != others.inputs.key


def test_the_monitor_leaves_out_what_was_not_annotated(tmp_path):
    given = task(tmp_path, Horizon(steps=1), annotated={"case3": (True, True, False)})
    source = validation_source(given.inputs, given.place)
    assert source is not None

    class Second(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.zeros_like(image[:, 0])] * 2 + [torch.ones_like(image[:, 0])], 1)

    dice = PatchMonitor(source, labels(), Precision(), torch.device("cpu")).measure(Second())
    assert dice == {"organ1": 0.0}


def test_cases_with_one_class_each_teach_both(drawings, tmp_path, monkeypatch):
    """Trained as if everything had been annotated, the network would have to unlearn half of what it is shown."""
    whole = reading.scan

    def scan(*given):
        found = whole(*given)
        cases = tuple(
            case.model_copy(update={"annotated": (1 if int(case.identifier) % 2 == 0 else 2,)}) for case in found.cases
        )
        return found.model_copy(update={"cases": cases})

    monkeypatch.setattr(reading, "scan", scan)
    data = DataOptions(label="half/*")
    run_pipeline(drawings, tmp_path, options(iterations=60, folds="0,1", data=data), until="select")
    metrics = Metrics.load(tmp_path / "metrics.json")
    assert len(metrics.cases) >= 2
    for case in metrics.cases:
        known, other = (1, 2) if int(case.case) % 2 == 0 else (2, 1)
        assert case.per_class[f"label_{known}"].dice is not None
        assert case.per_class[f"label_{other}"].undefined["dice"] == NOT_ANNOTATED
        found, _ = read_labels(tmp_path / "crossval" / "2d" / f"{case.case}.png")
        true, _ = read_labels(drawings / "full" / f"{case.case}.png")
        assert dice(found == other, true == other) > 0.7  # although this case is not labelled for it
    assert metrics.mean_dice is not None
    assert metrics.mean_dice > 0.7
