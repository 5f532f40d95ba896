"""Every metric against small cases by hand, against MONAI and scikit-image where they agree, and what is undefined."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label

from autounet.cli.app import app
from autounet.evaluation import DEFAULT_METRICS, METRICS, chosen_metrics, evaluate_case, summarise
from autounet.evaluation.overlap_metrics import EMPTY_IN_BOTH, EMPTY_IN_PREDICTION, EMPTY_IN_REFERENCE, objects
from autounet.ops.masks import components, skeleton, values_in
from autounet.ops.surfaces import distances_to_outside, element_sizes, surface, surface_distances, surface_elements
from autounet.report.results_section import class_table
from autounet.schema.errors import OptionError
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.metrics import METRIC_NAMES, CaseMetrics, ClassMetrics, Metrics

LABELS = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="organ", value=1)))
OVERLAPS = ("dice", "iou", "sensitivity", "precision", "nsd", "nsd_subvoxel", "boundary_iou", "lesion_f1",
            "panoptic_quality", "cl_dice")  # fmt: skip
SYMMETRIC = set(METRICS) - {"sensitivity", "precision", "volume", "volume_difference"}
FEW = settings(max_examples=25, deadline=None)
SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (3.0, 1.0, 0.7), (0.5, 2.0, 1.0)])


def pairs(least: int = 1, most: int = 6) -> st.SearchStrategy:
    shapes = st.tuples(*[st.integers(least, most)] * 3)
    return shapes.flatmap(lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape)))


def measured(prediction: np.ndarray, reference: np.ndarray, **options: object) -> ClassMetrics:
    options = {"spacing": (1, 1, 1), "metrics": tuple(METRICS)} | options
    arrays_ = (np.asarray(mask, dtype=np.uint8) for mask in (prediction, reference))
    return evaluate_case(*arrays_, labels=LABELS, **options)["organ"]  # type: ignore[arg-type]


def box(shape: tuple[int, ...], *parts: tuple[slice, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for part in parts:
        mask[part] = True
    return mask


def test_shares_and_volumes() -> None:
    found = measured(box((4, 8, 8), np.s_[:2, :4, :6]), box((4, 8, 8), np.s_[:2, :4, 2:8]), spacing=(5, 2, 1))
    assert found.sensitivity == found.precision == pytest.approx(4 / 6)
    assert found.volume == pytest.approx(48 * 10 / 1000)
    assert found.volume_difference == 0
    larger = measured(box((4, 8, 8), np.s_[:]), box((4, 8, 8), np.s_[:2]), unit="pixels")
    assert (larger.sensitivity, larger.precision, larger.volume, larger.volume_difference) == (1, 0.5, 256, 128)


def test_distances_of_plates() -> None:
    """Two plates 2 voxels of 3 mm apart: every distance is 6 mm, between voxels as between their centres."""
    plates = (box((9, 4, 4), np.s_[start : start + 1]) for start in (2, 4))
    found = measured(*plates, spacing=(3, 1, 1), tolerance=6.0)
    assert found.assd == found.hd95 == pytest.approx(6.0)
    assert found.nsd == 1.0


def test_the_surface_of_a_cube_is_known() -> None:
    """Between voxels: six faces of n^2 less what marching cubes cuts off the edges and corners."""
    size = 10
    _, areas = surface_elements(box((14, 14, 14), np.s_[2:12, 2:12, 2:12]), (1, 1, 1))
    triangle, strip = np.sqrt(3) / 8, np.sqrt(0.5)
    assert areas.sum() == pytest.approx(6 * (size - 1) ** 2 + 12 * (size - 1) * strip + 8 * triangle)
    _, lengths = surface_elements(box((9, 9), np.s_[2:5, 2:7]), (2.0, 1.0))
    assert lengths.sum() == pytest.approx(2 * (2 * 2.0 + 4 * 1.0) + 4 * np.hypot(2, 1) / 2)
    _, ends = surface_elements(box((9,), np.s_[2:5]), (1.0,))
    assert ends.sum() == 2


def test_forms_of_surface_dice_differ() -> None:
    """A tip of one voxel is a large share of voxels and a small one of area."""
    reference = box((1, 20, 20), np.s_[:, 5:15, 5:15])
    prediction = reference | box((1, 20, 20), np.s_[:, 2:5, 10:11])
    found = measured(prediction, reference, tolerance=1.0)
    assert found.nsd == pytest.approx((36 + 36) / (36 + 38))
    assert 0.9 < found.nsd_subvoxel < 1
    assert found.nsd_subvoxel != found.nsd


def test_boundary_iou_by_hand() -> None:
    """Width 2 % of a diagonal of 141 pixels: boundaries 2.83 pixels wide, so 2 pixels of a straight edge."""
    square, shifted = (box((1, 100, 100), np.s_[:, 20:60, start : start + 40]) for start in (20, 21))
    ring = 40 * 40 - 36 * 36
    found = measured(square, shifted).boundary_iou
    common = np.count_nonzero(_ring(square, 2) & _ring(shifted, 2))
    assert found == pytest.approx(common / (2 * ring - common))
    tiny = box((1, 30, 30), np.s_[:, 3:9, 3:9])
    assert measured(tiny, tiny & ~box((1, 30, 30), np.s_[:, 5:7, 5:7])).boundary_iou == pytest.approx(20 / 28)


def _ring(mask: np.ndarray, width: int) -> np.ndarray:
    inner = np.zeros_like(mask)
    ys, xs = np.nonzero(mask[0])
    inner[0, ys.min() + width : ys.max() + 1 - width, xs.min() + width : xs.max() + 1 - width] = True
    return mask & ~inner


def test_lesions_by_hand() -> None:
    """One found well, one found roughly (IoU 1/4), one missed; one invented."""
    shape = (3, 20, 40)
    reference = box(shape, np.s_[1, 2:6, 2:6], np.s_[1, 2:4, 20:24], np.s_[1, 15:17, 2:4])
    prediction = box(shape, np.s_[1, 2:6, 2:5], np.s_[1, 2:4, 20:21], np.s_[1, 15:17, 30:32])
    found = measured(prediction, reference)
    assert found.lesion_f1 == pytest.approx(2 * 2 / (3 + 3))
    assert found.panoptic_quality == pytest.approx(0.75 / 3)


def test_one_prediction_over_two_lesions_finds_one() -> None:
    reference = box((1, 5, 21), np.s_[:, :, :10], np.s_[:, :, 11:])
    assert measured(np.ones((1, 5, 21)), reference).lesion_f1 == pytest.approx(2 / 3)
    assert measured(np.ones((1, 5, 21)), reference).panoptic_quality == 0.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_corners_join_objects(axis: int) -> None:
    diagonal = np.expand_dims(np.eye(3, dtype=bool), axis)
    assert objects(diagonal, diagonal).true == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_objects_on_a_line(axis: int) -> None:
    dots = np.moveaxis(np.array([[[True, False, True, False, True]]]), 2, axis)
    assert objects(dots, dots).true == objects(dots, ~dots).predicted == 3
    assert objects(dots, ~dots).true == 2


def test_centre_lines_of_a_broken_tube() -> None:
    """A tube that is cut loses centre line; one that is thicker does not."""
    tube = box((9, 9, 40), np.s_[3:6, 3:6, 2:38])
    assert measured(tube, box((9, 9, 40), np.s_[2:7, 2:7, 2:38])).cl_dice == pytest.approx(1, abs=0.03)
    broken = tube.copy()
    broken[:, :, 15:25] = False
    assert measured(broken, tube).cl_dice == pytest.approx(2 * 26 / 36 / (1 + 26 / 36), abs=0.06)
    assert measured(tube[4:5], tube[4:5]).cl_dice == 1.0


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 7])
def test_a_centre_line_of_any_width(width: int) -> None:
    """Square tubes: as long as the tube but for its ends, and one of two vessels is half of the centre line."""
    vessels = [box((10, 24, 44), np.s_[1 : 1 + width, at : at + width, 2:42]) for at in (1, 14)]
    line = skeleton(vessels[0])
    assert 40 - width <= np.count_nonzero(line) <= 40
    assert components(line).voxels.size == 1
    assert measured(vessels[0], vessels[0] | vessels[1]).cl_dice == pytest.approx(2 / 3)


@given(pairs(1, 8) | arrays(np.bool_, st.tuples(st.just(1), *[st.integers(1, 12)] * 2)).map(lambda mask: (mask, mask)))
@FEW
def test_centre_lines_keep_objects_and_cavities(masks: tuple[np.ndarray, np.ndarray]) -> None:
    """Also where there is one slice, and where others lie far away; a mask agrees with itself.

    An array of one voxel along an axis is flat: it is thinned within its plane. Beside others it is not, hence the pad.
    """
    for mask in masks:
        flat = mask[0] if len(mask) == 1 else mask
        line = skeleton(flat).reshape(mask.shape)
        assert not (line & ~mask).any()
        numbers = components(mask).numbers
        assert set(numbers[line]) == set(numbers[mask])
        assert components(line).voxels.size == components(mask).voxels.size
        outside, kept = (label(np.pad(~part.reshape(flat.shape), 1, constant_values=True)) for part in (mask, line))
        assert outside[1] == kept[1]
        assert not mask.any() or measured(mask, mask).cl_dice == 1
    beside, (first, second) = np.zeros((*masks[0].shape[:2], 3), bool), masks
    apart = [skeleton(np.pad(part, ((0, 0), (0, 0), (0, 1))))[..., :-1] for part in (first, second)]
    together = skeleton(np.concatenate([first, beside, second], axis=2))
    np.testing.assert_array_equal(together, np.concatenate([apart[0], beside, apart[1]], axis=2))


def test_empty_in_both() -> None:
    nothing = np.zeros((3, 4, 5))
    found = measured(nothing, nothing)
    assert (found.volume, found.volume_difference, found.count_error) == (0, 0, 0)
    always = {"volume", "volume_difference", "count_error"}
    assert found.undefined == dict.fromkeys(set(METRICS) - always, EMPTY_IN_BOTH)


@pytest.mark.parametrize("missed", [True, False])
def test_empty_in_one(missed: bool) -> None:
    something, nothing = box((3, 4, 5), np.s_[1, 1:3, 1:3]), np.zeros((3, 4, 5))
    found = measured(nothing, something) if missed else measured(something, nothing)
    reason = EMPTY_IN_PREDICTION if missed else EMPTY_IN_REFERENCE
    without = {"hd95", "assd", "precision" if missed else "sensitivity"}
    assert found.undefined == dict.fromkeys(without, reason)
    assert {getattr(found, name) for name in OVERLAPS if name not in without} == {0.0}
    assert found.volume_difference == pytest.approx(-0.004 if missed else 0.004)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (1, 6, 5), (4, 1, 6), (5, 6, 7)])
def test_single_voxels(shape: tuple[int, ...]) -> None:
    point = np.zeros(shape, dtype=bool)
    point[tuple(size // 2 for size in shape)] = True
    found = measured(point, point, spacing=(4, 0.5, 1))
    assert {getattr(found, name) for name in OVERLAPS} == {1.0}
    assert (found.hd95, found.assd, found.undefined) == (0, 0, {})


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_masks_that_fill_the_image(dtype: type) -> None:
    whole = np.ones((5, 6, 7), dtype=dtype)
    found = measured(whole, whole)
    assert {getattr(found, name) for name in OVERLAPS} == {1.0}
    part = whole.copy()
    part[:, :, -1] = 0
    shorter = measured(part, whole)
    assert (shorter.hd95, shorter.nsd, shorter.nsd_subvoxel) == (1.0, 1.0, 1.0)


def test_what_was_not_measured_is_not_written() -> None:
    mask = box((3, 4, 5), np.s_[1, 1:3, 1:3])
    found = measured(mask, mask, metrics=("dice", "assd"))
    assert json.loads(found.model_dump_json()) == {"dice": 1.0, "assd": 0.0, "undefined": {}}
    nothing = measured(np.zeros((3, 4, 5)), mask, metrics=("dice", "assd"))
    assert json.loads(nothing.model_dump_json()) == {
        "dice": 0.0, "assd": None, "undefined": {"assd": EMPTY_IN_PREDICTION}
    }  # fmt: skip
    assert ClassMetrics.model_validate_json(nothing.model_dump_json()) == nothing


def test_names_of_metrics() -> None:
    assert chosen_metrics(["default"]) == DEFAULT_METRICS
    assert chosen_metrics(["assd"]) == ("dice", "assd")
    assert chosen_metrics(["all"]) == tuple(METRICS) == METRIC_NAMES == chosen_metrics(["default", *METRICS])
    with pytest.raises(OptionError, match=r"--metrics surface is unknown\. Choose one of dice"):
        chosen_metrics(["surface"])


def test_the_table_of_the_page_has_a_column_for_each_metric_that_was_measured() -> None:
    something = box((3, 4, 5), np.s_[1, 1:3, 1:3])
    cases = [CaseMetrics(case="a", per_class={"organ": measured(something, something)})]
    for names in (("dice", "assd", "cl_dice"), ("dice", "hd95")):
        head = list(class_table(summarise(cases, LABELS, metrics=names), ["organ"]).head)
        assert head[4:-1] == [{"assd": "ASSD (mm)", "hd95": "HD95 (mm)", "cl_dice": "centre-line Dice"}[name]
                              for name in names[1:]]  # fmt: skip


@given(arrays(np.int32, st.tuples(st.integers(0, 3), st.integers(1, 4)), elements=st.integers(-3, 3)))
def test_values_are_found_at_the_starts_of_runs(array: np.ndarray) -> None:
    assert values_in(array) == set(array.ravel().tolist())


@FEW
@given(pair=pairs(), spacing=SPACINGS)
def test_laws(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...]) -> None:
    found, swapped = measured(*pair, spacing=spacing), measured(*reversed(pair), spacing=spacing)
    for name in METRICS:
        value = getattr(found, name)
        assert (value is None) == (name in found.undefined)
        if name in SYMMETRIC and value is not None:
            assert value == pytest.approx(getattr(swapped, name))
        if name in OVERLAPS and value is not None:
            assert 0 <= value <= 1
    assert found.sensitivity == swapped.precision
    assert found.volume_difference == pytest.approx(found.volume - swapped.volume)
    if found.assd is not None:
        assert found.assd >= 0
        assert found.panoptic_quality <= found.lesion_f1 + 1e-12


@FEW
@given(pair=pairs(least=2, most=5), spacing=SPACINGS)
def test_where_the_masks_lie_does_not_matter(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...]) -> None:
    """At the border of the image as inside it; boundary IoU alone knows the image's size."""
    wanted = tuple(name for name in METRICS if name != "boundary_iou")
    inside = measured(*(np.pad(mask, 3) for mask in pair), spacing=spacing, metrics=wanted)
    assert measured(*pair, spacing=spacing, metrics=wanted) == inside


def monai_masks(*masks: np.ndarray):
    import torch

    return [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in masks]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.7)])
@pytest.mark.parametrize("seed", range(3))
def test_monai_agrees(spacing: tuple[float, ...], seed: int) -> None:
    """On blobs that touch the border of the image in some seeds; MONAI's code runs, no value is stored."""
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
        compute_surface_dice,
        get_confusion_matrix,
    )

    random = np.random.default_rng(seed)
    noise = [_smooth(random.normal(size=(12, 20, 18))) for _ in range(2)]
    reference = noise[0] > 0.15
    prediction = noise[0] + 0.4 * noise[1] > 0.2
    found = measured(prediction, reference, spacing=spacing, tolerance=1.2)
    theirs = monai_masks(prediction, reference)
    assert found.dice == pytest.approx(float(compute_dice(*theirs)))
    assert found.iou == pytest.approx(float(compute_iou(*theirs)))
    right, added, _, missed = (float(each) for each in get_confusion_matrix(*theirs).ravel())
    assert found.sensitivity == pytest.approx(right / (right + missed))
    assert found.precision == pytest.approx(right / (right + added))
    distance = compute_hausdorff_distance(*theirs, include_background=True, percentile=95, spacing=spacing)
    assert found.hd95 == pytest.approx(float(distance), rel=1e-5)
    average = compute_average_surface_distance(*theirs, include_background=True, symmetric=True, spacing=spacing)
    assert found.assd == pytest.approx(float(average), rel=1e-5)
    for name, subvoxels in (("nsd", False), ("nsd_subvoxel", True)):
        dice = compute_surface_dice(
            *theirs, class_thresholds=[1.2], include_background=True, spacing=spacing, use_subvoxels=subvoxels
        )
        assert getattr(found, name) == pytest.approx(float(dice), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_monai_agrees_in_two_dimensions() -> None:
    from monai.metrics import compute_panoptic_quality, compute_surface_dice

    random = np.random.default_rng(5)
    base = _smooth(random.normal(size=(40, 50)))
    reference, prediction = base > 0.25, base + 0.3 * _smooth(random.normal(size=base.shape)) > 0.27
    found = measured(prediction[None], reference[None], spacing=(1, 2, 1), tolerance=1.0)
    for name, subvoxels in (("nsd", False), ("nsd_subvoxel", True)):
        dice = compute_surface_dice(
            *monai_masks(prediction, reference),
            class_thresholds=[1.0],
            include_background=True,
            spacing=(2.0, 1.0),
            use_subvoxels=subvoxels,
        )
        assert getattr(found, name) == pytest.approx(float(dice), rel=1e-5)
    import torch
    from skimage.measure import label

    instances = (torch.from_numpy(label(mask, connectivity=2)) for mask in (prediction, reference))
    quality = compute_panoptic_quality(*instances)
    assert 0 < found.panoptic_quality == pytest.approx(float(quality), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.7), (0.5, 4.0, 4.0)])
def test_monai_has_the_same_areas(spacing: tuple[float, ...]) -> None:
    """Of all 256 patterns of a cell, and of the 16 in 2-D."""
    from monai.metrics.utils import get_code_to_measure_table

    np.testing.assert_allclose(element_sizes(spacing), get_code_to_measure_table(spacing)[0], rtol=1e-6)
    np.testing.assert_allclose(element_sizes(spacing[1:]), get_code_to_measure_table(spacing[1:])[0], rtol=1e-6)


@FEW
@given(pair=pairs(least=2))
def test_scikit_image_has_the_same_hausdorff_distance(pair: tuple[np.ndarray, np.ndarray]) -> None:
    from skimage.metrics import hausdorff_distance

    if pair[0].any() and pair[1].any():
        found = max(distances.max() for distances in surface_distances(*pair, (1, 1, 1)))
        assert found == pytest.approx(hausdorff_distance(*map(surface, pair)))


@FEW
@given(mask=arrays(np.bool_, (4, 5, 6)), spacing=SPACINGS)
def test_distances_to_outside_are_those_of_scipy(mask: np.ndarray, spacing: tuple[float, ...]) -> None:
    from scipy.ndimage import distance_transform_edt

    expected = distance_transform_edt(np.pad(mask, 1), spacing)[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(distances_to_outside(mask, spacing), expected, rtol=1e-5)


def _smooth(noise: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(noise, 2) * 6


def test_means_have_intervals() -> None:
    random = np.random.default_rng(0)
    masks = [(_smooth(random.normal(size=(8, 9, 10))) > 0.1, np.ones((8, 9, 10)) * (index > 0)) for index in range(4)]
    cases = [CaseMetrics(case=str(index), per_class={"organ": measured(*each)}) for index, each in enumerate(masks)]
    found = summarise(cases, LABELS, tolerance=2.0, metrics=tuple(METRICS))
    assert found == summarise(cases, LABELS, tolerance=2.0, metrics=tuple(METRICS))
    assert Metrics.model_validate_json(found.model_dump_json()) == found
    assert set(found.intervals["organ"]) == set(METRICS)
    assert found.mean_dice_interval == pytest.approx(found.intervals["organ"]["dice"])
    for name, (low, high) in found.intervals["organ"].items():
        assert low <= getattr(found.per_class["organ"], name) <= high
    one = summarise(cases[:1], LABELS)
    assert (one.mean_dice_interval, one.intervals) == (None, {"organ": {}})
    only = summarise(cases, LABELS, metrics=("dice",)).per_class["organ"]
    assert set(json.loads(only.model_dump_json())) == {"dice", "undefined"}


def test_the_command_measures_what_was_asked_for(tmp_path) -> None:
    from typer.testing import CliRunner

    from autounet.imageio import write_labels
    from autounet.schema.geometry import Geometry

    geometry = Geometry(shape=(6, 8, 8), spacing=(2.0, 1.0, 1.0))
    for name, shift in (("a", 0), ("b", 1)):
        write_labels(tmp_path / f"p/{name}.nii.gz", box((6, 8, 8), np.s_[1:4, 2:6, 2:6]).astype(np.int32), geometry)
        write_labels(
            tmp_path / f"r/{name}.nii.gz",
            box((6, 8, 8), np.s_[1:4, 2:6, 2 + shift : 6 + shift]).astype(np.int32),
            geometry,
        )
    words = ["evaluate", str(tmp_path / "p"), str(tmp_path / "r"), "--out", str(tmp_path / "m.json")]
    told = CliRunner().invoke(app, [*words, "--metrics", "assd,lesion_f1"])
    assert told.exit_code == 0
    assert "label_1: dice 0.8750, assd 0.1" in told.stdout
    assert "mean Dice: 0.8750 (95 % interval 0.7500 to 1.0000)" in told.stdout
    found = Metrics.load(tmp_path / "m.json")
    assert set(found.intervals["label_1"]) == {"dice", "assd", "lesion_f1"}
    assert (found.tolerance, found.unit) == (1.0, "mm")
    assert isinstance(CliRunner().invoke(app, [*words, "--metrics", "f1"]).exception, OptionError)
    CliRunner().invoke(app, [*words, "--class", "organ=1", "--region", "both=1,2"])
    assert list(Metrics.load(tmp_path / "m.json").per_class) == ["organ", "label_2", "both"]
