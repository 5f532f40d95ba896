"""Objects that touch: numbered masks become levels of depth, and come back as numbered masks that are measured."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_runs import narrow, no_trials, one_probe  # noqa: F401 - used by the run below
from scipy import ndimage
from typer.testing import CliRunner

from autounet import api
from autounet.cli.app import app
from autounet.crossval.objects import HEIGHTS, SHARES
from autounet.datasets import load_case, read_numbers, scan
from autounet.datasets.checks.examine import examine
from autounet.datasets.labels import complete_labels, label_findings
from autounet.evaluation import evaluate_objects
from autounet.evaluation.overlap_metrics import objects
from autounet.imageio import read_image, read_labels, write_image, write_labels
from autounet.inference.export import ensemble_scores
from autounet.inference.objects import ObjectMaps, numbered_objects, object_maps
from autounet.ops.objects import apart, measure_objects, object_depths, separate, without_small
from autounet.preprocessing import prepare_case
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import counted_targets, labels_of_objects, overlapping_targets
from autounet.schema.metrics import OBJECT_METRICS, Metrics
from autounet.schema.options import DataOptions, RunOptions
from autounet.schema.plan import ChannelNormalisation, PreprocessSpec
from autounet.schema.selection import ObjectTrial, Selection
from autounet.workflow.dataset_stage import check_data, fix_data
from autounet.workflow.pipeline import run_pipeline

CELLS = labels_of_objects("cell")


# ---- numbers to depths, and back --------------------------------------------------------------------------


@st.composite
def numbered(draw):
    """Numbers (Z, Y, X) of boxes that may touch and cover each other, and a spacing."""
    shape = (draw(st.sampled_from([1, 6])), 18, 20)
    numbers = np.zeros(shape, np.int32)
    values = draw(st.lists(st.integers(1, 70_000), min_size=0, max_size=6, unique=True))
    for value in values:
        box = [sorted(draw(st.tuples(*[st.integers(0, size)] * 2))) for size in shape]
        if shape[0] == 1:
            box[0] = [0, 1]
        numbers[tuple(slice(*side) for side in box)] = value
    return numbers, draw(st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.5, 0.5), (1.0, 2.0, 1.0)]))


def neighbours_of_others(numbers):
    """Voxels of objects that another object lies beside, also diagonally, the slow way."""
    found = np.zeros(numbers.shape, bool)
    for value in np.unique(numbers[numbers > 0]):
        others = (numbers > 0) & (numbers != value)
        found |= (numbers == value) & ndimage.binary_dilation(others, np.ones((3, 3, 3)))
    return found


@given(numbered(), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_depths_part_objects_that_touch_and_leave_each_a_middle(case, levels):
    numbers, spacing = case
    depths = object_depths(numbers, spacing, levels)
    np.testing.assert_array_equal(depths > 0, numbers > 0)
    assert depths.max(initial=0) <= levels
    touching = neighbours_of_others(numbers)
    for value in np.unique(numbers[numbers > 0]):
        own = numbers == value
        assert (depths[own] == levels).any()
        if (own & ~touching).any():
            assert (depths[own & touching] == 1).all()


def test_depths_follow_the_spacing():
    """A level is as many mm wide along a coarse axis as along a fine one; the image's edge is not around an object."""
    block = np.zeros((9, 40, 40), np.int32)
    block[1:8, 5:35, 5:35] = 1
    depths = object_depths(block, (4.0, 1.0, 1.0), 4)
    across = [4, 8, 12, 15, 12, 8, 4]  # mm, of 15 at most
    assert depths[1:8, 20, 20].tolist() == [min(4, 1 + 4 * each // 15) for each in across]
    inside = [min(1 + row, 30 - row) for row in range(30)]
    assert depths[4, 20, 5:35].tolist() == [min(4, 1 + 4 * each // 15) for each in inside]
    assert (object_depths(np.ones((1, 9, 9), np.int32), (1, 1, 1), 4) == 4).all()
    stacked = np.repeat([1, 1, 2, 2], 400).reshape(4, 20, 20).astype(np.int32)
    assert (object_depths(stacked, (5.0, 1.0, 1.0), 4)[[1, 2]] == 1).all()  # they touch across the coarse axis


@given(numbered(), st.sampled_from([0.02, 0.1, 0.5]))
@settings(max_examples=60, deadline=None)
def test_separated_objects_share_out_the_foreground(case, height):
    numbers, spacing = case
    rng = np.random.default_rng(len(np.unique(numbers)))
    foreground = np.where(numbers > 0, rng.integers(128, 256, numbers.shape), rng.integers(0, 127, numbers.shape))
    depth = (255 / 4 * object_depths(numbers, spacing, 4) * rng.uniform(0.5, 1, numbers.shape)).astype(np.uint8)
    found = separate(depth, foreground.astype(np.uint8), height, spacing)
    np.testing.assert_array_equal(found > 0, numbers > 0)
    present = np.unique(found[found > 0])
    np.testing.assert_array_equal(present, np.arange(1, len(present) + 1))
    parts = cc3d.connected_components(numbers > 0, connectivity=6)
    assert len(present) >= parts.max()
    for value in present:
        assert cc3d.connected_components(found == value, connectivity=6).max() == 1
    higher = separate(depth, foreground.astype(np.uint8), min(1.0, 2 * height), spacing)
    assert higher.max() <= found.max()
    sizes = np.bincount(found.ravel())[1:]
    kept = without_small(found, 10.0, 0.5)
    assert sorted(np.bincount(kept.ravel())[1:]) == sorted(size for size in sizes if size * 0.5 >= 10)


@given(st.integers(4, 9), st.integers(1, 255), st.sampled_from([0.004, 0.02, 0.1]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_hill_whose_top_is_level_is_one_object(radius, top, height, square):
    """Equal values that only lower ones join, as rounding makes them, are one summit."""
    y, x = np.mgrid[-12:13, -12:13]
    distance = np.maximum(abs(y), abs(x)) if square else np.hypot(y, x)
    hill = np.clip(top * (1 - distance / radius), 0, None)[None]
    rng = np.random.default_rng(radius)
    ripples = np.where(hill > 0.5 * top, rng.integers(0, 2, hill.shape), 0)
    depth = (hill + ripples).round().clip(0, 255).astype(np.uint8)
    foreground = np.uint8(255) * (distance < radius)[None]
    assert separate(depth, foreground, max(height, 3 / 255), (1, 1, 1)).max() == 1


def touching_discs(rng, pairs=3):
    """Numbers (Y, X) of pairs of discs that touch."""
    numbers = np.zeros((48, 64), np.int32)
    y, x = np.mgrid[:48, :64]
    for pair in range(pairs):
        row, column = 8 + 15 * pair + rng.integers(0, 3), rng.integers(10, 40)
        for half in range(2):
            disc = (y - row) ** 2 + (x - column - 12 * half) ** 2 <= 6.5**2
            numbers[disc & (numbers == 0)] = 2 * pair + half + 1
    return numbers


def test_discs_come_back_from_certain_maps():
    numbers = touching_discs(np.random.default_rng(1))[None]
    depth = 255 / 4 * object_depths(numbers, (1, 1, 1), 4)
    maps = ObjectMaps(depth.astype(np.uint8), np.uint8(255) * (numbers > 0))
    assert cc3d.connected_components(numbers > 0).max() == 3
    found = numbered_objects(maps, ObjectTrial(height=0.1, smallest=0), (1, 1, 1))
    (result,) = evaluate_objects(found, numbers, (1, 1, 1), CELLS).values()
    assert (result.ap80, result.count_error, result.dice) == (1, 0, 1)
    assert numbered_objects(maps, ObjectTrial(height=0.1, smallest=1000), (1, 1, 1)).max() == 0
    assert cc3d.connected_components(apart(numbers), connectivity=6).max() == 6


def test_objects_are_measured():
    numbers = np.zeros((1, 4, 5), np.int32)
    numbers[0, 1, 1:4], numbers[0, 3, 4] = 7, 2
    image = np.stack([np.arange(20.0).reshape(1, 4, 5), np.full((1, 4, 5), 3.0)])
    assert measure_objects(numbers, image) == [
        (2, 1, (0.0, 3.0, 4.0), (19.0, 3.0)),
        (7, 3, (0.0, 1.0, 2.0), (7.0, 3.0)),
    ]
    assert measure_objects(np.zeros_like(numbers), image) == []


# ---- metrics -------------------------------------------------------------------------------------------------------


@given(numbered(), numbered(), st.sampled_from([None, 5]))
@settings(max_examples=40, deadline=None)
def test_metrics_of_objects_are_those_counted_one_by_one(first, second, ignore):
    if first[0].shape != second[0].shape:
        return
    prediction, reference = first[0], second[0]
    labels = labels_of_objects("cell", ignore)
    (found,) = evaluate_objects(prediction, reference, (1, 1, 1), labels).values()
    counted = reference != ignore
    masks = [
        [(array == value) & counted for value in np.unique(array[counted & (array > 0)])]
        for array in (prediction, reference)
    ]
    counts = [len(own) for own in masks]
    assert found.count_error == abs(counts[0] - counts[1])
    ious = [(a & b).sum() / (a | b).sum() for a in masks[0] for b in masks[1]]
    if not sum(counts):
        assert found.ap50 is None
        return
    for percent in (50, 60, 70, 80, 90):
        matched = sum(iou > percent / 100 for iou in ious)
        assert getattr(found, f"ap{percent}") == pytest.approx(matched / (sum(counts) - matched))
    quality = 2 * sum(iou for iou in ious if iou > 0.5) / sum(counts)
    assert found.panoptic_quality == pytest.approx(quality)
    swapped = objects(reference > 0, prediction > 0, (reference, prediction))
    assert (swapped.predicted, swapped.true) == (
        len(set(np.unique(reference)) - {0}),
        len(set(np.unique(prediction)) - {0}),
    )


# ---- data ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nuclei:
    folder: object
    numbers: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    """Six pictures; the numbers go on from file to file."""
    folder, rng, drawn = tmp_path_factory.mktemp("nuclei"), np.random.default_rng(0), {}
    geometry = Geometry(shape=(1, 48, 64), kind="png", dimension=2)
    for case in range(6):
        numbers = touching_discs(rng)[None]
        edge = object_depths(numbers, (1, 1, 1), 4) == 1
        image = 40 + 150 * (numbers > 0) - 90 * edge + rng.normal(0, 4, numbers.shape)
        write_image(folder / f"images/{case}.png", image.clip(0, 255).astype(np.uint8)[None], geometry)
        drawn[str(case)] = np.where(numbers > 0, numbers + 300 + 6 * case, 0)
        write_labels(folder / f"masks/{case}.png", drawn[str(case)], geometry)
    return Nuclei(folder, drawn)


def test_numbers_are_told_and_become_levels_of_depth(nuclei):
    (found,) = (each for each in check_data(nuclei.folder, DataOptions()).findings if each.code == "objects")
    assert "--objects NAME" in found.remedy
    assert check_data(nuclei.folder, DataOptions(objects="cell")).findings == ()
    dataset = scan(nuclei.folder, DataOptions(objects="cell"))
    facts = examine(dataset, workers=1)
    labels = complete_labels(dataset, facts).labels
    assert [each.name for each in labels.classes] == ["background", *(f"cell level {level}" for level in (1, 2, 3, 4))]
    assert labels.objects == "cell"
    assert labels.reported == ()
    targets = [each.name for each in overlapping_targets(labels)]
    assert targets == ["cell", "cell from level 2 on", "cell from level 3 on", "cell level 4"]
    assert [each.name for each in counted_targets(labels)] == ["cell"]
    assert facts[0].components == {}
    assert set(facts[0].value_counts) == {0, 1, 2, 3, 4}
    case = load_case(dataset, "3")
    np.testing.assert_array_equal(case.labels, object_depths(nuclei.numbers["3"], (1, 1, 1), 4))
    np.testing.assert_array_equal(read_numbers(dataset, dataset.case("3"))[0], nuclei.numbers["3"])


@pytest.mark.parametrize("ignore", [1, 2, 305, 65_535])
def test_ignored_voxels_are_no_object(tmp_path, nuclei, ignore):
    geometry = Geometry(shape=(1, 48, 64), kind="png", dimension=2)
    values = nuclei.numbers["0"].copy()
    values[0, :5] = ignore
    for case in "ab":
        write_image(tmp_path / f"images/{case}.png", np.full((1, 1, 48, 64), 9, np.uint8), geometry)
        write_labels(tmp_path / f"masks/{case}.png", values, geometry)
    dataset = scan(tmp_path, DataOptions(objects="cell", ignore=ignore))
    dense = load_case(dataset, "a").labels
    np.testing.assert_array_equal(dense == -1, values == ignore)
    np.testing.assert_array_equal(dense > 0, (values > 0) & (values != ignore))
    assert not label_findings(dataset, examine(dataset, workers=1))


def test_other_options_that_name_classes_are_refused(nuclei, tmp_path):
    for more in ({"classes": {"b": 2}}, {"regions": {"b": (1,)}}):
        with pytest.raises(OptionError, match="--objects makes one class of all values"):
            scan(nuclei.folder, DataOptions(objects="cell", **more))
    with pytest.raises(OptionError, match="--objects names the one class"):
        api.evaluate(nuclei.folder / "masks", nuclei.folder / "masks", {"cell": 1}, objects="cell")


def test_repaired_data_keep_the_numbers(nuclei, tmp_path):
    fix_data(nuclei.folder, DataOptions(objects="cell"), tmp_path / "fixed")
    described = json.loads((tmp_path / "fixed/dataset.json").read_text())
    assert described["objects"] == "cell"
    assert described["labels"] == {"background": 0}
    dataset = scan(tmp_path / "fixed", DataOptions())
    assert dataset.labels.objects == "cell"
    np.testing.assert_array_equal(read_numbers(dataset, dataset.case("2"))[0], nuclei.numbers["2"])


# ---- from labels to predictions ------------------------------------------------------------------------------------


def test_numbered_masks_are_learnt_and_come_back(nuclei, tmp_path):
    data = DataOptions(objects="cell")
    options = RunOptions(device="cpu", workers=0, memory_bytes=440 * 2**20, iterations=40, folds="0,1", data=data)
    run_pipeline(nuclei.folder, tmp_path, options)
    metrics, selection = Metrics.load(tmp_path / "metrics.json"), Selection.load(tmp_path / "selection.json")
    assert set(metrics.per_class) == {"cell"}
    found = metrics.per_class["cell"]
    assert found.dice == metrics.mean_dice > 0.8
    assert all(getattr(found, name) is not None for name in OBJECT_METRICS)
    assert found.ap50 > 0.4  # discs that are one would give 0
    assert selection.objects is not None
    assert len(selection.objects.compared) == len(HEIGHTS) * len(SHARES)
    assert set(selection.objects.by_group) == {0, 1}
    assert not selection.postprocessing
    for case in metrics.cases:
        numbers, _ = read_labels(tmp_path / f"crossval/2d/objects/{case.case}.png")
        measured = evaluate_objects(numbers, nuclei.numbers[case.case], (1, 1, 1), CELLS, unit="pixels")
        assert measured == case.per_class
    report = (tmp_path / "report.html").read_text()
    assert "AP above IoU 0.5" in report
    assert "of all objects in either, the share that matches" in report
    card = (tmp_path / "model/model_card.md").read_text()
    assert "panoptic_quality" in card
    assert "cell level" not in card
    assert "pixels are removed" in card
    assert "error of the count" in report
    check_prediction(nuclei, tmp_path)


def check_prediction(nuclei, out):
    model = api.load(out / "model", device="cpu")
    assert model.predict_files(nuclei.folder / "images", out / "new") == []
    with (out / "new/objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    for case in nuclei.numbers:
        numbers, _ = read_labels(out / f"new/{case}.png")
        own = [row for row in rows if row["case"] == case]
        assert [int(row["object"]) for row in own] == list(range(1, numbers.max() + 1))
        assert [float(row["size"]) for row in own] == np.bincount(numbers.ravel())[1:].tolist()
        assert {row["unit"] for row in own} <= {"pixels"}
        assert {row["class"] for row in own} <= {"cell"}
        image, _ = read_image(nuclei.folder / f"images/{case}.png")
        for row in own:
            assert float(row["mean_image"]) == pytest.approx(image[0][numbers == int(row["object"])].mean(), rel=1e-4)
    by_model = api.evaluate(out / "new", nuclei.folder / "masks", model=out / "model")
    by_name = api.evaluate(out / "new", nuclei.folder / "masks", objects="cell")
    assert by_model == by_name
    assert by_name.mean_dice > 0.8
    assert by_name.per_class["cell"].ap50 is not None
    told = CliRunner().invoke(app, ["evaluate", str(out / "new"), str(nuclei.folder / "masks"), "--objects", "cell"])
    assert told.exit_code == 0
    assert f"ap50 {by_name.per_class['cell'].ap50:.3f}"[:8] in told.output
    with pytest.raises(OptionError, match="numbers objects"):
        model.predict_files(nuclei.folder / "images", out / "dicom", form="dicom-seg")
    (out / "other").mkdir()
    (out / "other/objects.csv").write_text("mine\n")
    with pytest.raises(OptionError, match="AutoUNet did not write it"):
        model.predict_files(nuclei.folder / "images", out / "other")


def test_probabilities_of_objects_are_not_averaged_by_files(tmp_path):
    from autounet.prediction.ensemble import _read_folder
    from autounet.schema.selection import ProbabilityChannels

    names = ("cell", "cell from level 2 on", "cell from level 3 on", "cell level 4")
    ProbabilityChannels(channels=names, targets="regions", temperature=1, labels=CELLS).save(tmp_path / "classes.json")
    with pytest.raises(DataError, match="told apart"):
        _read_folder(tmp_path)


# ---- whole images on other grids, in 3-D ---------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["classes", "regions"])
def test_volumes_come_back_from_another_grid(targets):
    """Balls that touch along a coarse axis and in the plane, predicted for certain on a finer grid."""
    geometry = Geometry(shape=(12, 40, 40), spacing=(2.0, 1.0, 1.0), kind="nifti", dimension=3)
    numbers = np.zeros(geometry.shape, np.int32)
    z, y, x = np.mgrid[:12, :40, :40]
    for number, (middle_z, middle_y, middle_x) in enumerate([(3, 10, 10), (3, 22, 10), (8, 16, 28), (3, 16, 28)], 1):
        distance = ((z - middle_z) * 2) ** 2 + (y - middle_y) ** 2 + (x - middle_x) ** 2
        numbers[(distance <= 6**2) & (numbers == 0)] = number
    assert cc3d.connected_components(numbers > 0).max() == 2
    dense = object_depths(numbers, geometry.spacing, 4).astype(np.int16)
    spec = PreprocessSpec(spacing=(1.0, 1.0, 1.0), normalisation=(ChannelNormalisation(scheme="none"),))
    prepared = prepare_case("a", "", np.ones((1, *geometry.shape), np.float32), dense, geometry, spec)
    found_levels = prepared.labels
    on = [found_levels == level for level in range(5)]
    on = on if targets == "classes" else [found_levels >= level for level in range(1, 5)]
    logits = np.where(np.stack(on), 6, -6).astype(np.float32)
    scores = ensemble_scores([(logits, prepared.properties)], CELLS, None, targets)
    found = numbered_objects(object_maps(scores, CELLS), ObjectTrial(height=0.1, smallest=0), geometry.spacing)
    (result,) = evaluate_objects(found, numbers, geometry.spacing, CELLS).values()
    assert result.count_error == 0
    assert result.ap70 == 1
