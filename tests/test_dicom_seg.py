"""Predictions of DICOM series as DICOM-SEG objects, read back by highdicom."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_objects import outlines, write_slices, write_structures
from dicom_series import write_series
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_predict_options import configuration, model

from autounet import api
from autounet.imageio import read_geometry, read_image, read_labels, write_labels
from autounet.inference.bundle import load_bundle
from autounet.prediction.dicom_seg import write_dicom_seg
from autounet.prediction.structure_codes import NAMES, structure_codes
from autounet.schema.bundle import ModelBundle
from autounet.schema.errors import DataError, OptionError
from autounet.schema.labels import LabelClass, Labels

highdicom = pytest.importorskip("highdicom")

LABELS = Labels(classes=tuple(LabelClass(name=name, value=value) for name, value in
                              (("background", 0), ("liver", 3), ("spleen", 7), ("never there", 9))))  # fmt: skip


def series(folder: Path, uid: str = "1.2.3.4") -> np.ndarray:
    array = np.random.default_rng(0).integers(-500, 1500, (5, 16, 18)).astype(np.int16)
    write_series(folder, array, Rotation.random(random_state=3).as_matrix(), uid=uid)
    return array


def segments(path: Path, series_: Path) -> np.ndarray:
    """(Z, Y, X) segment numbers, slices in the order of `read_image`; the place in space is checked on the way."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    geometry, affine = read_geometry(series_), volume.affine.copy()
    axes = np.reshape(geometry.direction, (3, 3)) * geometry.spacing[::-1]
    array = volume.array
    if affine[:3, 0] @ axes[:, 2] < 0:  # highdicom stacks slices the other way
        array = array[::-1]
        affine[:3, 3] += affine[:3, 0] * (len(array) - 1)
        affine[:3, 0] *= -1
    np.testing.assert_allclose(affine[:3, :3], axes[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(affine[:3, 3], geometry.origin, atol=1e-5)
    return array


def test_segments_lie_where_the_labels_are(tmp_path: Path) -> None:
    array = series(tmp_path / "scan")
    values = np.random.default_rng(1).choice([0, 3, 7], array.shape)
    values[1] = 0
    write_dicom_seg(tmp_path / "out.dcm", values, tmp_path / "scan", LABELS)
    read = highdicom.seg.segread(tmp_path / "out.dcm")
    names = [read.get_segment_description(index).segment_label for index in (1, 2, 3)]
    assert names == ["liver", "spleen", "never there"]
    found = segments(tmp_path / "out.dcm", tmp_path / "scan")
    np.testing.assert_array_equal(np.array([0, 3, 7, 9])[found], values)


def test_nothing_found_is_written_too(tmp_path: Path) -> None:
    array = series(tmp_path / "scan")
    write_dicom_seg(tmp_path / "out.dcm", np.zeros(array.shape, int), tmp_path / "scan", LABELS)
    assert not highdicom.seg.segread(tmp_path / "out.dcm").pixel_array.any()
    with pytest.raises(DataError, match="has 5 slices, and its segmentation 4"):
        write_dicom_seg(tmp_path / "out.dcm", np.zeros((4, 16, 18), int), tmp_path / "scan", LABELS)


def test_predict_writes_it_where_asked(tmp_path: Path) -> None:
    series(tmp_path / "scans" / "p1")
    predictor = api.load(model(tmp_path, {"3d_fullres": configuration("plain", 3)}, suffix=""), device="cpu")
    assert predictor.predict_files(tmp_path / "scans", tmp_path / "nifti") == []
    values, geometry = read_labels(tmp_path / "nifti" / "p1.nii.gz")
    expected = read_image(tmp_path / "scans" / "p1")[1]
    np.testing.assert_allclose(geometry.direction, expected.direction, atol=1e-5)
    assert predictor.predict_files(tmp_path / "scans" / "p1", tmp_path / "seg", form="dicom-seg") == []
    found = segments(tmp_path / "seg" / "p1.dcm", tmp_path / "scans" / "p1")
    np.testing.assert_array_equal(np.array([0, 3, 9])[found], values)
    with pytest.raises(OptionError, match="is no folder with a DICOM series"):
        predictor.predict_files(tmp_path / "nifti", tmp_path / "seg", form="dicom-seg")
    shutil.copy(tmp_path / "nifti" / "p1.nii.gz", tmp_path / "scans" / "other.nii.gz")
    (problem,) = predictor.predict_files(tmp_path / "scans", tmp_path / "both", form="dicom-seg")
    assert "other.nii.gz is no DICOM series" in problem
    assert (tmp_path / "both" / "p1.dcm").exists()
    with pytest.raises(OptionError, match="--format stl is unknown"):
        predictor.predict_files(tmp_path / "scans", tmp_path / "seg", form="stl")


def test_the_extra_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(OptionError, match=r"pip install 'autounet\[dicom\]'"):
        write_dicom_seg(tmp_path / "out.dcm", np.zeros((1, 1, 1), int), tmp_path, LABELS)


NAMED = Labels(
    classes=tuple(
        LabelClass(name=name, value=value)
        for name, value in (
            ("background", 0), ("left_kidney", 2), ("liver tumour", 5), ("thing", 6), ("Lung_R", 7), ("edema", 9),
            ("T12", 11), ("spleen", 12), ("x" * 80, 13),
        )
    )
)  # fmt: skip


def scored(folder: Path) -> ModelBundle:
    return load_bundle(model(folder, {"3d_fullres": configuration("plain", 3)}, suffix=""))[0]


def test_known_structures_have_standard_codes_all_a_colour_and_the_model(tmp_path: Path) -> None:
    array, bundle = series(tmp_path / "scan"), scored(tmp_path)
    values = np.random.default_rng(1).choice([each.value for each in NAMED.classes], array.shape)
    write_dicom_seg(tmp_path / "out.dcm", values, tmp_path / "scan", NAMED, bundle)
    read = pydicom.dcmread(tmp_path / "out.dcm")
    assert read.SeriesDescription == "AutoUNet demo"
    assert read.ContentDescription == "Segmented automatically by the model demo"
    types = [each.SegmentedPropertyTypeCodeSequence[0] for each in read.SegmentSequence]
    assert [(each.CodeValue, each.CodingSchemeDesignator) for each in types] == [
        ("64033007", "SCT"), ("108369006", "SCT"), ("6", "99AUTOUNET"), ("39607008", "SCT"), ("79654002", "SCT"),
        ("11", "99AUTOUNET"), ("78961009", "SCT"), ("13", "99AUTOUNET"),
    ]  # fmt: skip
    assert types[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert types[3].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    tumour = read.SegmentSequence[1]
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    assert tumour.AnatomicRegionSequence[0].CodeMeaning == "Liver"
    assert len({tuple(each.RecommendedDisplayCIELabValue) for each in read.SegmentSequence}) == 8
    (algorithm,) = tumour.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "demo"
    assert algorithm.AlgorithmVersion.startswith(f"{bundle.checksum}, AutoUNet ")
    assert "3d_fullres" in algorithm.AlgorithmParameters


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kidney_left", ("Kidney", "Left", None)),
        ("LeftKidney", ("Kidney", "Left", None)),
        ("Parotid_R", ("Parotid gland", "Right", None)),
        ("heart_atrium_left", ("Left atrium", None, None)),
        ("RV", ("Right ventricle", None, None)),
        ("lung_upper_lobe_left", ("Upper lobe of lung", "Left", None)),
        ("vertebrae_L5", ("L5 vertebra", None, None)),
        ("Gall bladder", ("Gallbladder", None, None)),
        ("brainstem", ("Brain Stem", None, None)),
        ("inferior_vena_cava", ("Inferior vena cava", None, None)),
        ("kidney_cyst_left", ("Cyst", "Left", "Kidney")),
        ("pancreas tumor", ("Neoplasm", None, "Pancreas")),
        ("optic nerve", ("optic nerve", None, None)),
        ("spinal_canal", ("Spinal canal structure (body structure)", None, None)),
    ],
)
def test_names_in_use_are_understood(name: str, expected: tuple[str, str | None, str | None]) -> None:
    found = structure_codes(name)
    assert found is not None
    meanings = [None if code is None else code.meaning.lower() for code in (found[1], found[2], found[3])]
    assert meanings == [None if each is None else each.lower() for each in expected]


@pytest.mark.parametrize("name", ["background", "cell", "Organ 1", "L1", "left right lung", "whole_tumor", "", "ÄÖ"])
def test_what_is_not_known_is_not_guessed(name: str) -> None:
    assert structure_codes(name) is None


@given(st.permutations(["upper", "lobe", "lung", "left"]), st.sampled_from(["_", " ", "-", ""]), st.booleans())
def test_words_may_come_in_any_order(words: list[str], between: str, capital: bool) -> None:
    joined = between.join(word.capitalize() if capital or not between else word for word in words)
    found = structure_codes(joined)
    assert found is not None
    assert (found.property_type.value, found.side and found.side.value) == ("45653009", "7771000")


def test_every_name_in_the_table_has_a_code_of_its_own() -> None:
    for words in NAMES:
        assert structure_codes(" ".join(sorted(words))) is not None, words


def test_evaluate_reads_what_predict_writes(tmp_path: Path) -> None:
    """Against itself, a segmentation of another program, contours and values; of an object, names are the classes."""
    array = series(tmp_path / "scan")
    geometry = read_geometry(tmp_path / "scan")
    truth = np.zeros(array.shape, int)
    truth[1:4, 3:9, 4:12], truth[2, 10:14, 2:9] = 3, 7
    guess = truth.copy()
    guess[1, 3:9, 4:12], guess[4, 0:3, 0:3] = 0, 3
    for name, values in (("predicted", guess), ("drawn", truth)):
        (tmp_path / name).mkdir()
        write_dicom_seg(tmp_path / name / f"{name}.dcm", values, tmp_path / "scan", LABELS)
        write_labels(tmp_path / name / "nifti" / "case.nii.gz", values, geometry)
    expected = api.evaluate(
        tmp_path / "predicted" / "nifti", tmp_path / "drawn" / "nifti", {"liver": 3, "spleen": 7, "never there": 9}
    )
    metrics = ("dice", "hd95", "nsd")
    found = api.evaluate(tmp_path / "predicted", tmp_path / "drawn")
    (case,) = found.cases
    assert (case.case, set(found.per_class)) == ("predicted", {"liver", "spleen", "never there"})
    for name in ("liver", "spleen"):
        for metric in metrics:
            assert getattr(found.per_class[name], metric) == pytest.approx(getattr(expected.per_class[name], metric))
    given_values = {"liver": 3, "spleen": 7}
    values = api.evaluate(
        tmp_path / "predicted" / "predicted.dcm", tmp_path / "drawn" / "nifti" / "case.nii.gz", given_values
    )
    assert values.per_class["liver"].dice == expected.per_class["liver"].dice
    assert values.per_class["spleen"].dice == 1
    message = r"names its structures, and case\.nii\.gz holds values.*--model MODEL, or --class NAME=VALUE"
    with pytest.raises(DataError, match=message):
        api.evaluate(tmp_path / "predicted" / "predicted.dcm", tmp_path / "drawn" / "nifti" / "case.nii.gz")


def test_evaluate_pairs_objects_by_series(tmp_path: Path) -> None:
    """Whatever they are called, and with the series beside them."""
    for number, patient in enumerate(("p1", "p2")):
        scan = tmp_path / "archive" / patient / "CT"
        array = series(scan, uid=f"1.2.3.{number}")
        values = np.zeros(array.shape, int)
        values[1:4, 3:9, 4:12] = 3
        write_dicom_seg(tmp_path / "predicted" / f"{patient}.dcm", values, scan, LABELS)
        write_dicom_seg(tmp_path / "archive" / patient / "SEG" / "1-1.dcm", values * (1 - number), scan, LABELS)
    found = api.evaluate(tmp_path / "predicted", tmp_path / "archive", {"liver": 3})
    assert {case.case: case.per_class["liver"].dice for case in found.cases} == {"p1": 1, "p2": 0}
    shutil.copy(tmp_path / "archive" / "p1" / "SEG" / "1-1.dcm", tmp_path / "archive" / "second.dcm")
    with pytest.raises(DataError, match=r"2 references were drawn on the series of p1\.dcm"):
        api.evaluate(tmp_path / "predicted", tmp_path / "archive", {"liver": 3})


def test_evaluate_reads_contours_on_the_grid_of_the_other(tmp_path: Path) -> None:
    """A structure set reaches over more slices than the segmentation that it is compared with, and has other names."""
    scan, shape = tmp_path / "CT", (9, 20, 24)
    written = write_slices(scan, np.zeros(shape, int), PatientName="P1")
    masks = {name: np.zeros(shape, bool) for name in ("liver", "couch")}
    masks["liver"][1:8, 4:15, 5:19], masks["couch"][:, 17:19, 2:20] = True, True
    contours = {name: outlines(mask) for name, mask in masks.items()}
    write_structures(tmp_path / "drawn" / "rs.dcm", written, contours)
    values = np.zeros(shape, int)
    values[3:6, 4:15, 5:19] = 3
    write_dicom_seg(tmp_path / "predicted" / "a.dcm", values, scan, LABELS)
    found = api.evaluate(tmp_path / "predicted", tmp_path / "drawn", {"liver": 3})
    assert found.per_class["liver"].dice == pytest.approx(2 * 3 / (3 + 7), abs=0.02)
    with pytest.raises(DataError, match="is on no grid: only segmentations"):
        api.evaluate(tmp_path / "drawn", tmp_path / "drawn", {"liver": 3})


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not there: apt-get install dicom3tools")
@pytest.mark.parametrize("empty", [False, True])
def test_dciodvfy_finds_no_error(tmp_path: Path, empty: bool) -> None:
    array, bundle = series(tmp_path / "scan"), scored(tmp_path)
    values = np.random.default_rng(1).choice([each.value for each in NAMED.classes], array.shape) * (not empty)
    write_dicom_seg(tmp_path / "out.dcm", values, tmp_path / "scan", NAMED, bundle)
    told = subprocess.run(["dciodvfy", str(tmp_path / "out.dcm")], capture_output=True, text=True, check=False)
    assert "Segmentation" in told.stderr + told.stdout
    assert [line for line in (told.stderr + told.stdout).splitlines() if line.startswith("Error")] == []
