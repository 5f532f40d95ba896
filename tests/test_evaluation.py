"""Metrics on shapes with known answers, their laws, and the rule of the mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from orientations import ALL_48
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from autounet import api
from autounet.evaluation import METRICS, distance_unit, evaluate_case, on_grid_of, summarise
from autounet.imageio import write_labels
from autounet.ops.orient import orient, oriented_geometry
from autounet.ops.surfaces import surface, surface_distances
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels, Region
from autounet.schema.metrics import CaseMetrics, ClassMetrics

ONE = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="organ", value=255)))
TWO = Labels(
    classes=(
        LabelClass(name="background", value=0),
        LabelClass(name="left", value=1),
        LabelClass(name="right", value=7),
    )
)
mask_pairs = st.tuples(*[st.integers(1, 6)] * 3).flatmap(lambda s: st.tuples(arrays(np.bool_, s), arrays(np.bool_, s)))


def volume(shape: tuple[int, ...], *boxes: tuple[int, tuple[slice, ...]]) -> np.ndarray:
    array = np.zeros(shape, dtype=np.int32)
    for value, box in boxes:
        array[box] = value
    return array


def organ(prediction: np.ndarray, reference: np.ndarray, **options: object) -> ClassMetrics:
    options = {"spacing": (1, 1, 1), "labels": ONE} | options
    return evaluate_case(prediction, reference, **options)["organ"]  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.5, 0.7)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parallel_plates(spacing: tuple[float, ...], axis: int) -> None:
    """Two one-voxel plates, 3 voxels apart: every surface distance is 3 spacings of that axis."""
    first, second = [slice(None)] * 3, [slice(None)] * 3
    first[axis], second[axis] = slice(2, 3), slice(5, 6)
    plates = [volume((9, 8, 7), (255, tuple(box))) for box in (first, second)]
    distance = 3 * spacing[axis]
    found = organ(*plates, spacing=spacing, tolerance=distance)
    assert found.hd95 == pytest.approx(distance)
    assert found.nsd == 1.0
    assert organ(*plates, spacing=spacing, tolerance=0.99 * distance).nsd == 0.0
    assert (found.dice, found.iou, found.volume_difference) == (0, 0, 0)


def test_cubes_of_known_overlap() -> None:
    prediction = volume((10, 10, 10), (255, np.s_[2:6, 2:6, 2:8]))
    reference = volume((10, 10, 10), (255, np.s_[2:6, 2:6, 2:6]))
    found = organ(prediction, reference, spacing=(2, 1, 1))
    assert found.dice == pytest.approx(2 * 64 / (64 + 96))
    assert found.iou == pytest.approx(64 / 96)
    assert found.volume_difference == pytest.approx(32 * 2 / 1000)
    assert found.hd95 == 2.0


def test_balls_of_two_radii() -> None:
    """Concentric balls: all distances lie within a voxel's diagonal of the difference of radii."""
    radius = np.sqrt(((np.indices((41, 41, 41)) - 20) ** 2).sum(0))
    found = organ(255 * (radius <= 18), 255 * (radius <= 13))
    assert found.hd95 == pytest.approx(5, abs=np.sqrt(3) / 2)
    assert organ(255 * (radius <= 18), 255 * (radius <= 13), tolerance=6.0).nsd == 1.0


def test_float32_spacing_is_within_the_tolerance() -> None:
    prediction, reference = (volume((1, 8, 8), (255, np.s_[:, 2:6, 2 + shift : 6 + shift])) for shift in (0, 1))
    step = float(np.nextafter(np.float32(1), np.float32(2)))
    assert organ(prediction, reference, spacing=(1, step, step)).nsd == 1.0


def test_a_single_slice_is_measured_in_two_dimensions() -> None:
    square = volume((1, 20, 20), (255, np.s_[:, 2:18, 2:18]))
    hole = square.copy()
    hole[0, 9:11, 9:11] = 0
    assert organ(hole, square).hd95 == 6.0
    assert organ(hole, square).nsd == pytest.approx((2 * 60) / (60 + 60 + 8))
    thin = volume((3, 20, 20), (255, np.s_[1:2, 2:18, 2:18]))
    assert organ(thin, thin).nsd == 1.0


def test_the_border_of_the_image_is_surface() -> None:
    mask = np.ones((3, 4, 5), dtype=bool)
    assert surface(mask).sum() == 3 * 4 * 5 - 1 * 2 * 3
    assert surface(mask[:1], axes=(1, 2)).sum() == 4 * 5 - 2 * 3


def test_empty_masks_are_undefined_with_a_reason_and_never_crash() -> None:
    nothing, point = volume((3, 4, 5)), volume((3, 4, 5), (255, np.s_[1:2, 1:2, 1:2]))
    both = organ(nothing, nothing)
    assert (both.dice, both.iou, both.hd95, both.nsd, both.volume_difference) == (None, None, None, None, 0.0)
    assert both.undefined == dict.fromkeys(("dice", "iou", "sensitivity", "precision", "hd95", "nsd"), "empty in both")
    missed = organ(nothing, point)
    assert (missed.dice, missed.iou, missed.hd95, missed.nsd) == (0.0, 0.0, None, 0.0)
    assert missed.sensitivity == 0.0
    assert missed.undefined == dict.fromkeys(("precision", "hd95"), "empty in the prediction")
    added = organ(point, nothing)
    assert added.precision == 0.0
    assert added.undefined == dict.fromkeys(("sensitivity", "hd95"), "empty in the reference")
    assert organ(point, point) == ClassMetrics(
        dice=1, iou=1, sensitivity=1, precision=1, hd95=0, nsd=1, volume=0.001, volume_difference=0
    )


def test_ignored_voxels_count_in_neither() -> None:
    labels = ONE.model_copy(update={"ignore": 9})
    reference = volume((2, 4, 4), (255, np.s_[:, :2]), (9, np.s_[:, 2:]))
    prediction = volume((2, 4, 4), (255, np.s_[:]))
    assert organ(prediction, reference, labels=labels).dice == 1.0


def test_regions_and_a_named_background_are_reported() -> None:
    labels = Labels(
        classes=(LabelClass(name="membrane", value=0), *TWO.foreground),
        background_named=True,
        regions=(Region(name="both", values=(1, 7)),),
    )
    reference = volume((1, 4, 6), (1, np.s_[:, :, :2]), (7, np.s_[:, :, 2:4]))
    prediction = volume((1, 4, 6), (7, np.s_[:, :, :4]))
    found = evaluate_case(prediction, reference, (1, 1, 1), labels)
    assert list(found) == ["membrane", "left", "right", "both"]
    assert found["membrane"].dice == found["both"].dice == 1.0
    assert found["right"].dice == pytest.approx(2 * 8 / 24)
    summary = summarise([CaseMetrics(case="a", per_class=found)], labels)
    # "left" is what is left of "both" without "right": the region and the other class are trained on and counted
    assert summary.mean_dice == pytest.approx((1 + 2 * 8 / 24) / 2)


def test_unusual_values() -> None:
    labels = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name="organ", value=-3)))
    reference = volume((2, 3, 4), (-3, np.s_[:, 1:]), (70000, np.s_[:, :1]))
    assert organ(reference, reference, labels=labels).dice == 1.0


def test_shapes_must_agree() -> None:
    with pytest.raises(DataError, match=r"shape \(1, 2, 3\), the reference \(1, 3, 2\)"):
        evaluate_case(volume((1, 2, 3)), volume((1, 3, 2)), (1, 1, 1), ONE)


@given(pair=mask_pairs, tolerance=st.floats(0, 3))
@settings(max_examples=60, deadline=None)
def test_laws(pair: tuple[np.ndarray, np.ndarray], tolerance: float) -> None:
    """Symmetric but for the sign of volume, bounded, tied to each other, and independent of position."""
    one, two = (255 * mask.astype(np.int32) for mask in pair)
    found, swapped = organ(one, two, tolerance=tolerance), organ(two, one, tolerance=tolerance)
    for name in ("dice", "iou", "hd95", "nsd"):
        assert getattr(found, name) == getattr(swapped, name)
        assert (getattr(found, name) is None) == (name in found.undefined)
    assert found.volume_difference == -swapped.volume_difference
    if found.dice is not None:
        assert 0 <= found.iou <= found.dice <= 1
        assert found.dice == pytest.approx(2 * found.iou / (1 + found.iou))
        assert 0 <= found.nsd <= 1
    if min(one.shape) > 1:
        assert organ(np.pad(one, 2), np.pad(two, 2), tolerance=tolerance) == found


@given(pair=mask_pairs, spacing=st.tuples(*[st.floats(0.2, 5)] * 3))
@settings(max_examples=60, deadline=None)
def test_distances_equal_a_distance_transform(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]
) -> None:
    one, two = pair
    cross = generate_binary_structure(3, 1)
    edges = [mask & ~binary_erosion(mask, cross) for mask in pair]
    np.testing.assert_array_equal(surface(one), edges[0])
    if one.any() and two.any():
        forth, back = surface_distances(one, two, spacing)
        np.testing.assert_allclose(forth, distance_transform_edt(~edges[1], spacing)[edges[0]])
        np.testing.assert_allclose(back, distance_transform_edt(~edges[0], spacing)[edges[1]])


def test_means_leave_out_undefined_cases_and_classes() -> None:
    def case(name: str, left: float | None, right: float | None) -> CaseMetrics:
        return CaseMetrics(case=name, per_class={"left": ClassMetrics(dice=left), "right": ClassMetrics(dice=right)})

    metrics = summarise([case("a", 0.5, None), case("b", 0.7, 0.8), case("c", None, 0.4)], TWO, tolerance=2.0)
    assert metrics.per_class["left"].dice == pytest.approx(0.6)
    assert metrics.mean_dice == pytest.approx(0.6)
    assert metrics.tolerance == 2.0
    assert metrics.per_class["left"].undefined["hd95"] == "undefined in all 3 cases"
    half = summarise([case("a", 0.5, None)], TWO)
    assert (half.mean_dice, half.per_class["right"].dice) == (0.5, None)
    assert summarise([case("a", None, None)], TWO).mean_dice is None
    assert summarise([], TWO).mean_dice is None


def test_every_metric_has_a_field_and_a_definition() -> None:
    assert set(METRICS) == set(ClassMetrics.model_fields) - {"plugins", "undefined"}
    assert all(metric.__doc__ for metric in METRICS.values())


def test_units() -> None:
    photo = Geometry(shape=(1, 5, 5), kind="png", dimension=2)
    assert distance_unit(photo) == "pixels"
    assert distance_unit(photo.model_copy(update={"spacing": (1.0, 0.5, 0.5)})) == "mm"
    assert distance_unit(Geometry(shape=(5, 5, 5))) == "mm"
    square = volume((1, 5, 5), (255, np.s_[:, 1:3, 1:3]))
    assert organ(square, volume((1, 5, 5)), unit="pixels").volume_difference == 4.0


# ---- places in space ------------------------------------------------------------------------------------------

OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
PLACE = Geometry(shape=(3, 4, 5), spacing=(2.5, 1.0, 0.7), origin=(10, -20, 30), direction=OBLIQUE)


def flipped(turn) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    axes, signs = turn
    return axes, tuple(sign < 0 for sign in signs)


@given(st.sampled_from(ALL_48), st.sampled_from(ALL_48), st.integers(0, 99))
def test_the_same_voxels_stored_the_other_way_round_are_the_same(first, second, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 3, PLACE.shape, np.int32)
    stored = [orient(values, *flipped(turn)) for turn in (first, second)]
    geometries = [oriented_geometry(PLACE, *flipped(turn)) for turn in (first, second)]
    found, differences = on_grid_of(stored[0], *geometries)
    assert differences == ()
    np.testing.assert_array_equal(found, stored[1])


def test_directions_of_three_decimals_do_not_move_a_long_image() -> None:
    """The first voxel of the flipped file was written before, or after, its direction was rounded."""
    half = 0.7071068
    long = PLACE.model_copy(update={"shape": (3, 4, 500), "direction": (half, -half, 0, half, half, 0, 0, 0, 1)})
    rounded = long.model_copy(update={"direction": tuple(round(each, 3) for each in long.direction)})
    turn = flipped(((0, 1, 2), (1, 1, -1)))
    exact = oriented_geometry(long, *turn)
    for own in (
        oriented_geometry(rounded, *turn),
        exact.model_copy(update={"direction": oriented_geometry(rounded, *turn).direction}),
    ):
        assert on_grid_of(np.zeros(long.shape), own, long)[1] == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"origin": (10, -20, 32)}, "origin"),
        ({"spacing": (2.5, 1.0, 0.75)}, "spacing"),
        ({"direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}, "direction"),
        ({"shape": (3, 4, 6)}, "shape"),
    ],
)
def test_another_place_spacing_or_size_is_an_error_with_every_case(tmp_path: Path, changes, named: str) -> None:
    for case in ("a", "b", "c"):
        write_labels(tmp_path / "references" / f"{case}.nii.gz", np.ones(PLACE.shape, np.int32), PLACE)
        own = PLACE if case == "b" else PLACE.model_copy(update=changes)
        write_labels(tmp_path / "predictions" / f"{case}.nrrd", np.ones(own.shape, np.int32), own)
    with pytest.raises(DataError) as caught:
        api.evaluate(tmp_path / "predictions", tmp_path / "references")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"case a: the prediction a.nrrd differs from its reference in {named} (")
    assert second.startswith(f"case c: the prediction c.nrrd differs from its reference in {named} (")


@pytest.mark.parametrize(("values", "told"), [((255, 255), True), ((255, 1), False), ((0, 0), False)])
def test_masks_without_a_value_in_common_are_told(tmp_path: Path, caplog, values: tuple[int, int], told: bool) -> None:
    for case, value in zip("ab", values, strict=True):
        write_labels(tmp_path / "predictions" / f"{case}.nii.gz", np.full(PLACE.shape, value, np.int32), PLACE)
        write_labels(tmp_path / "references" / f"{case}.nii.gz", np.ones(PLACE.shape, np.int32), PLACE)
    api.evaluate(tmp_path / "predictions", tmp_path / "references")
    assert ("the predictions hold 255 and the references 1" in caplog.text) == told


@pytest.mark.parametrize(
    ("values", "options", "told"),
    [
        ((1, 1), {"classes": {"liver": 7}}, "in no prediction and in no reference: class liver (value 7). Check"),
        ((1, 2), {"regions": {"whole": (5, 9)}}, "region whole (values 5, 9). Check"),
        ((1, 2), {"regions": {"whole": (1, 9)}}, "in no reference: class label_9 (value 9). Check"),
        ((0, 0), {}, "the predictions and the references hold no value besides 0"),
        ((1, 0), {}, "the references hold no value besides 0"),
        ((0, 3), {}, "the predictions hold no value besides 0"),
        ((2, 2), {"classes": {"liver": 2}}, ""),
    ],
)
def test_what_is_in_no_file_is_told(tmp_path: Path, caplog, values: tuple[int, int], options, told: str) -> None:
    for folder, value in zip(("predictions", "references"), values, strict=True):
        write_labels(tmp_path / folder / "a.nii.gz", np.full(PLACE.shape, value, np.int32), PLACE)
    api.evaluate(tmp_path / "predictions", tmp_path / "references", **options)
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)


def test_pictures_are_compared_as_they_are_stored() -> None:
    picture = Geometry(shape=(1, 4, 4), kind="png", dimension=2)
    tiff = picture.model_copy(update={"kind": "tiff", "spacing": (1.0, 0.5, 0.5)})
    values = np.arange(16).reshape(1, 4, 4)
    for own, reference in ((picture, picture), (picture, tiff), (tiff, picture), (PLACE, PLACE)):
        found, differences = on_grid_of(values, own, reference)
        assert found is values
        assert differences == ()
    (difference,) = on_grid_of(values, tiff, tiff.model_copy(update={"spacing": (1.0, 0.25, 0.25)}))[1]
    assert difference.field == "spacing"
    (difference,) = on_grid_of(values, picture, picture.model_copy(update={"shape": (1, 5, 4)}))[1]
    assert difference.field == "shape"
