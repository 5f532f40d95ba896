"""Trees of DICOM files, whose labels are segmentations and structure sets that refer to series."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from dicom_objects import Series, outlines, save, write_segmentation, write_slices, write_structures
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid
from quick_runs import narrow, no_trials, one_probe  # noqa: F401 - used by every test here
from scipy.spatial.transform import Rotation
from test_layouts import bundle_of
from test_structures import from_check_to_prediction
from typer.testing import CliRunner

from autounet.cli.app import app
from autounet.datasets import find_inputs, load_case, scan
from autounet.datasets.checks.examine import examine
from autounet.imageio import read_image, read_label_parts, read_structures
from autounet.schema.dataset import Dataset, Finding
from autounet.schema.errors import DataError
from autounet.schema.labels import LabelCode
from autounet.schema.options import DataOptions

SHAPE = (6, 18, 22)
OBLIQUE = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix().T[:2]


def voxels(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 900, shape)


def box(*corners: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*each) for each in corners)] = True
    return mask


LIVER, CORD = box((1, 5), (3, 14), (2, 10)), box((0, 6), (6, 11), (14, 18))
TUMOUR = box((2, 4), (5, 9), (4, 8))
ORGANS = {"Liver": LIVER, "Cord": CORD}


def masks_of(path: Path, series: Path) -> dict[str, np.ndarray]:
    found = read_structures([(None, path)], series)
    names = dict.fromkeys(name for each in found.sets for name in each)
    return {name: np.array([name in each for each in found.sets])[found.indices] for name in names}


def archive(root: Path, patients: int = 5, masks: Mapping[str, np.ndarray] = ORGANS, as_contours: bool = True) -> Path:
    """HEAD/Pn/study/series/files, as the Cancer Imaging Archive lays them out."""
    for number in range(patients):
        study = root / "HEAD" / f"P{number}" / f"01-01-2020-NA-CT-{number}"
        array = voxels(number) + 300 * sum(masks.values())
        series = write_slices(study / f"2.0-Axial-{number}", array, patient=f"id{number}", name="1-{z:02d}.dcm")
        label = study / f"1.0-label-{number}" / "1-1.dcm"
        if as_contours:
            write_structures(label, series, {name: outlines(mask) for name, mask in masks.items()})
        else:
            write_segmentation(label, series, masks)
    return root


def scanned(root: Path, **options: object) -> tuple[Dataset, list[Finding]]:
    findings: list[Finding] = []
    return scan(root, DataOptions(**options), findings), findings


@pytest.mark.parametrize("axes", [np.eye(3)[:2], OBLIQUE, np.array([[-1.0, 0, 0], [0, 0, 1]])], ids=["a", "o", "c"])
@pytest.mark.parametrize("how", ["segments", "backwards", "fractional", "contours"])
def test_masks_come_back(tmp_path: Path, axes: np.ndarray, how: str) -> None:
    series = write_slices(tmp_path / "ct", voxels(), axes=axes)
    masks = {"Liver": LIVER, "Tumour": TUMOUR, "Cord": CORD}
    if how == "contours":
        write_structures(tmp_path / "label", series, {name: outlines(mask) for name, mask in masks.items()})
    else:
        options = {"backwards": {"backwards": True}, "fractional": {"fractional": True}}.get(how, {})
        write_segmentation(tmp_path / "label", series, masks, **options)
    found = masks_of(tmp_path / "label", tmp_path / "ct")
    assert set(found) == set(masks)
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name], mask)


@given(st.lists(st.booleans(), min_size=99, max_size=99))
@settings(max_examples=25)
def test_contours_of_any_mask_give_it_back(tmp_path_factory: pytest.TempPathFactory, drawn: list[bool]) -> None:
    """Holes, islands in them and parts that touch at corners included."""
    folder = tmp_path_factory.mktemp("contours")
    mask = np.reshape(drawn, (1, 9, 11))
    series = write_slices(folder / "ct", np.zeros(mask.shape, int))
    write_structures(folder / "label", series, {"any": outlines(mask)})
    np.testing.assert_array_equal(masks_of(folder / "label", folder / "ct").get("any", np.zeros_like(mask)), mask)


def square(low: float, high: float) -> list[tuple[float, float]]:
    return [(low, low), (high, low), (high, high), (low, high)]


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_the_rule_for_holes_and_islands(tmp_path: Path, kind: str) -> None:
    series = write_slices(tmp_path / "ct", voxels())
    nested = [(2, square(7.5, 10.5)), (2, square(1.5, 16.5)), (2, square(4.5, 13.5))]  # island, outer, hole
    write_structures(tmp_path / "label", series, {"organ": nested}, kind)
    found = masks_of(tmp_path / "label", tmp_path / "ct")["organ"]
    expected = np.zeros(SHAPE, bool)
    expected[2, 2:17, 2:17] = True
    expected[2, 5:14, 5:14] = False
    expected[2, 8:11, 8:11] = True
    np.testing.assert_array_equal(found, expected)


def test_contours_through_centres_crossing_and_repeated(tmp_path: Path) -> None:
    series = write_slices(tmp_path / "ct", voxels())
    contours = {
        "through centres": [(1, square(2, 8)), (1, square(4, 6))],  # as programs draw them that trace voxels
        "crossing": [(1, square(1.5, 6.5)), (1, square(4.5, 9.5))],
        "repeated": [(1, square(1.5, 6.5)), (1, square(1.5, 6.5))],
        "between slices": [(3.3, square(1.5, 6.5))],
        "outside": [(9, square(1.5, 6.5)), (0, square(-5.5, 1.5))],
    }
    write_structures(tmp_path / "label", series, contours)
    found = masks_of(tmp_path / "label", tmp_path / "ct")
    ring = np.zeros(SHAPE[1:], bool)
    ring[2:9, 2:9] = True
    ring[5, 5] = False  # centres on the inner contour belong to the structure
    np.testing.assert_array_equal(found["through centres"][1], ring)
    assert found["crossing"][1].sum() == 25 + 25 - 4
    assert found["repeated"].sum() == 25
    assert found["between slices"][3].sum() == 25
    assert (found["outside"].sum(), found["outside"][0, :2, :2].all()) == (4, True)


def test_points_and_tilted_contours(tmp_path: Path) -> None:
    series = write_slices(tmp_path / "ct", voxels())
    write_structures(tmp_path / "points", series, {"marker": [(1, square(2, 5))]}, kind="POINT")
    assert masks_of(tmp_path / "points", tmp_path / "ct") == {}
    other = write_slices(tmp_path / "tilted", voxels(), axes=OBLIQUE)
    moved = series._replace(axes=OBLIQUE)
    write_structures(tmp_path / "label", moved, {"liver": outlines(LIVER)})
    with pytest.raises(DataError, match="not parallel to the slices"):
        masks_of(tmp_path / "label", tmp_path / "ct")
    write_segmentation(tmp_path / "seg", other, {"liver": LIVER})
    with pytest.raises(DataError, match="does not lie on the voxels of its series"):
        masks_of(tmp_path / "seg", tmp_path / "ct")
    codes = [LabelCode(value=1, segments=("spleen",))]
    with pytest.raises(DataError, match="has the segment liver, which the data set does not know"):
        read_label_parts([(None, tmp_path / "seg")], tmp_path / "tilted", codes)


@pytest.mark.parametrize("as_contours", [True, False])
def test_an_archive_is_understood(tmp_path: Path, as_contours: bool) -> None:
    dataset, findings = scanned(archive(tmp_path, as_contours=as_contours))
    assert (dataset.layout, dataset.channels[0].name, dataset.channels[0].kind) == ("dicom", "CT", "ct")
    assert [case.identifier for case in dataset.cases] == [f"P{number}" for number in range(5)]
    assert [case.group for case in dataset.cases] == [f"id{number}" for number in range(5)]
    assert {each.name: each.value for each in dataset.labels.classes} == {"background": 0, "Liver": 1, "Cord": 2}
    assert not findings
    loaded = load_case(dataset, "P3")
    np.testing.assert_array_equal(loaded.labels, LIVER + 2 * CORD)
    np.testing.assert_array_equal(loaded.image[0], voxels(3) + 300 * (LIVER + 0) + 300 * CORD)
    assert not any(fact.findings or fact.shared for fact in examine(dataset, workers=1))


def test_structures_that_overlap_are_regions(tmp_path: Path) -> None:
    touching = LIVER.copy()
    touching[1:3, 6:8, 14:15] = True  # 4 voxels of the cord
    archive(tmp_path, masks={"Liver": touching, "Tumour": TUMOUR, "Cord": CORD}, as_contours=False)
    dataset, findings = scanned(tmp_path)
    values = {each.name: each.value for each in dataset.labels.classes}
    assert set(values) == {"background", "Liver alone", "Cord", "Liver + Tumour"}
    assert {each.name for each in dataset.labels.regions} == {"Liver", "Tumour"}
    assert [each.code for each in findings] == ["overlapping-structures"]
    dense = load_case(dataset, "P0").labels
    order = dataset.labels.values
    np.testing.assert_array_equal(dense == order.index(values["Liver + Tumour"]), TUMOUR)
    np.testing.assert_array_equal(dense == order.index(values["Cord"]), CORD)  # what both drew is the smaller one's
    assert {fact.shared[0].voxels for fact in examine(dataset, workers=1)} == {4}
    plain, _ = scanned(tmp_path, overlaps="smaller")
    assert not plain.labels.regions


def mixed(folder: Path, number: int) -> Series:
    """All of a patient in one folder, without endings: CT, PET, a localizer, a report, and the contours on the CT."""
    ct = write_slices(folder, voxels(number), patient=f"p{number}", name="I{z}")
    same = {"patient": ct.patient, "study": ct.study, "frame": ct.frame}
    write_slices(folder, voxels(9)[:4], modality="PT", name="J{z}", SeriesDescription="PET", **same)
    write_slices(folder, voxels(9)[:1], name="K{z}", kind=("ORIGINAL", "PRIMARY", "LOCALIZER"), **same)
    common = {"PatientID": ct.patient, "StudyInstanceUID": ct.study, "SeriesInstanceUID": generate_uid()}
    save(folder / "L0", "SR", **common)
    write_structures(folder / "M0", ct, {name: outlines(mask) for name, mask in ORGANS.items()})
    return ct


def test_series_are_found_by_uid_among_others(tmp_path: Path) -> None:
    series = [mixed(tmp_path / f"patient {number}", number) for number in range(4)]
    dataset, findings = scanned(tmp_path)
    assert [case.images[0] for case in dataset.cases] == [f"patient {n}/{each.uid}" for n, each in enumerate(series)]
    assert [each.code for each in findings] == ["left-aside"]
    assert "4 series of CT (localizers), 4 series of PT, 4 series of SR" in findings[0].message
    np.testing.assert_array_equal(load_case(dataset, "patient 2").image[0], voxels(2))
    np.testing.assert_array_equal(load_case(dataset, "patient 2").labels, LIVER + 2 * CORD)
    assert not any(fact.findings for fact in examine(dataset, workers=1))
    inputs = find_inputs(tmp_path, bundle_of(dataset))
    assert [case.identifier for case in inputs] == [f"patient {number}" for number in range(4)]
    np.testing.assert_array_equal(read_image(inputs[1].images[0])[0][0], voxels(1))
    flat = find_inputs(tmp_path / "patient 1", bundle_of(dataset))
    assert [case.images for case in flat] == [inputs[1].images]


def test_new_images_in_a_tree_for_a_model_of_files(tmp_path: Path) -> None:
    dataset, _ = scanned(archive(tmp_path / "a", patients=2))
    write_slices(tmp_path / "new" / "P9" / "1.2.3.4" / "1.2.3.4.5", voxels(), patient="another")
    (case,) = find_inputs(tmp_path / "new", bundle_of(dataset))
    assert case.identifier == "P9"
    of_files = bundle_of(dataset.model_copy(update={"layout": "pairs", "suffix": ".nii.gz"}))
    assert find_inputs(tmp_path / "new", of_files) == [case]
    for number in (1, 2):  # two studies of one patient
        write_slices(tmp_path / "two" / "P1" / f"study{number}" / "s", voxels(number))
    assert [each.identifier for each in find_inputs(tmp_path / "two", of_files)] == ["study1", "study2"]


def test_labels_without_series_and_patients_without_labels_are_told_once(tmp_path: Path) -> None:
    archive(tmp_path, patients=4)
    for number in (7, 8):
        write_slices(tmp_path / "HEAD" / f"P{number}" / "s" / "t", voxels(number), patient=f"id{number}")
    gone = write_slices(tmp_path / "gone", voxels(), patient="id9")
    write_structures(tmp_path / "HEAD" / "P9" / "s" / "t" / "x.dcm", gone, {"Liver": outlines(LIVER)})
    for file in (tmp_path / "gone").iterdir():
        file.unlink()
    dataset, findings = scanned(tmp_path)
    assert len(dataset.cases) == 4
    assert {each.code: str(each.severity) for each in findings} == {
        "left-aside": "warning", "missing-label": "warning", "missing-image": "warning",
    }  # fmt: skip
    assert "2 of 6 patients have no label" in next(each for each in findings if each.code == "missing-label").message


def test_a_structure_set_without_a_series_goes_by_its_coordinates(tmp_path: Path) -> None:
    series = write_slices(tmp_path / "p" / "ct", voxels())
    write_structures(tmp_path / "p" / "rt" / "a", series, {"Liver": outlines(LIVER)}, refers=False)
    assert scanned(tmp_path)[0].cases[0].images == ("p/ct",)
    write_slices(tmp_path / "p" / "pet", voxels(), modality="PT", study=series.study, frame=series.frame)
    with pytest.raises(DataError, match="none of the series that they refer to is there"):
        scan(tmp_path, DataOptions())
    write_structures(tmp_path / "p" / "rt" / "a", series, {"Liver": outlines(LIVER)}, refers=False, images=True)
    assert scanned(tmp_path)[0].cases[0].images == ("p/ct",)


def test_several_labels_of_a_series(tmp_path: Path) -> None:
    """One for each structure are joined; two of the same structure are asked about."""
    for number in range(3):
        series = write_slices(tmp_path / f"P{number}" / "ct", voxels(number), patient=f"P{number}")
        write_segmentation(tmp_path / f"P{number}" / "seg" / "liver.dcm", series, {"Liver": LIVER})
        write_segmentation(tmp_path / f"P{number}" / "seg" / "cord.dcm", series, {"Cord": CORD})
    dataset, findings = scanned(tmp_path)
    assert not findings
    values = {each.name: each.value for each in dataset.labels.classes}
    np.testing.assert_array_equal(load_case(dataset, "P1").labels, values["Liver"] * LIVER + values["Cord"] * CORD)
    write_segmentation(tmp_path / "P2" / "second" / "liver.dcm", series, {"Liver": LIVER})
    with pytest.raises(DataError, match="both hold the structure Liver"):
        scan(tmp_path, DataOptions())
    only, _ = scanned(tmp_path, label="*/seg/*.dcm")
    assert len(only.cases[2].label_parts) == 2
    named, _ = scanned(tmp_path, label="cord*")
    assert {each.name for each in named.labels.classes} == {"background", "Cord"}


def test_images_without_labels_are_called_so(tmp_path: Path) -> None:
    for number in range(3):
        write_slices(tmp_path / f"P{number}" / "study" / "series", voxels(number), patient=f"P{number}", name="I{z}")
    with pytest.raises(DataError, match="holds 3 DICOM series of 3 patients, and no labels"):
        scan(tmp_path, DataOptions())


def test_masks_may_be_series_themselves(tmp_path: Path) -> None:
    for number in range(3):
        write_slices(tmp_path / f"P{number}" / "PATIENT_DICOM", voxels(number), name="image_{z}")
        for name, mask in ORGANS.items():
            write_slices(tmp_path / f"P{number}" / "MASKS_DICOM" / name, mask * 255, name="image_{z}")
    dataset, findings = scanned(tmp_path)
    assert (dataset.layout, findings) == ("cases", [])
    values = {each.name: each.value for each in dataset.labels.classes}
    np.testing.assert_array_equal(load_case(dataset, "P1").labels, values["Liver"] * LIVER + values["Cord"] * CORD)


def test_classes_select_structures(tmp_path: Path) -> None:
    dataset, findings = scanned(archive(tmp_path), classes={"Cord": 5})
    assert {each.name: each.value for each in dataset.labels.classes} == {"background": 0, "Cord": 5}
    assert [each.code for each in findings] == ["left-aside"]
    np.testing.assert_array_equal(load_case(dataset, "P0").labels, CORD)
    with pytest.raises(DataError, match="no label has the structures Spleen; there are Liver, Cord"):
        scan(tmp_path, DataOptions(classes={"Spleen": 1}))


def test_check_needs_a_few_lines_for_many_patients(tmp_path: Path) -> None:
    small = {name: mask[:3] for name, mask in ORGANS.items()}
    for number in range(14):
        folder = tmp_path / f"P{number:02d}"
        series = write_slices(folder / "ct", voxels(number)[:3], patient=f"P{number}")
        masks = small if number % 2 else {"Liver": small["Liver"]}
        write_structures(folder / "rt" / "1", series, {name: outlines(mask) for name, mask in masks.items()})
        save(folder / "report", "SR", PatientID=f"P{number}", SeriesInstanceUID=generate_uid())
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) <= 8
    assert "left aside, as no label refers to them: 14 series of SR" in done.stdout
    assert "missing: Cord (in 7 cases, such as P00)" in done.stdout


@pytest.mark.parametrize("as_contours", [True, False])
def test_from_an_archive_to_predictions(tmp_path: Path, as_contours: bool) -> None:
    archive(tmp_path / "data", as_contours=as_contours)
    write_slices(tmp_path / "new" / "P9" / "1.2.3.4" / "1.2.3.4.5", voxels(8), patient="another")
    found = from_check_to_prediction(tmp_path / "data", tmp_path / "new", tmp_path / "out")
    assert [path.name for path in found] == ["P9.nii.gz"]
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())["per_class"]) == set(ORGANS)
