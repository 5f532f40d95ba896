"""Predictions of DICOM series as DICOM-SEG objects, read back by highdicom."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from scipy.spatial.transform import Rotation
from test_predict_options import configuration, model

from autounet import api
from autounet.imageio import read_geometry, read_image, read_labels
from autounet.prediction.dicom_seg import write_dicom_seg
from autounet.schema.errors import DataError, OptionError
from autounet.schema.labels import LabelClass, Labels

highdicom = pytest.importorskip("highdicom")

LABELS = Labels(classes=tuple(LabelClass(name=name, value=value) for name, value in
                              (("background", 0), ("liver", 3), ("spleen", 7), ("never there", 9))))  # fmt: skip


def series(folder: Path) -> np.ndarray:
    array = np.random.default_rng(0).integers(-500, 1500, (5, 16, 18)).astype(np.int16)
    write_series(folder, array, Rotation.random(random_state=3).as_matrix())
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
