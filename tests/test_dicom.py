"""DICOM series are read as one volume in the right place, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autounet.datasets import find_inputs, load_case, scan
from autounet.imageio import files_of, is_series, output_suffix, read_header, read_image, read_labels, write_labels
from autounet.schema.bundle import ModelBundle
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions


def voxels(shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(0).integers(-500, 1500, shape).astype(np.int16)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3), compressed=st.booleans())
def test_any_orientation_is_kept(
    tmp_path_factory: pytest.TempPathFactory, seed: int, spacing: tuple[float, float, float], compressed: bool
) -> None:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    direction = Rotation.random(random_state=seed).as_matrix()
    array = voxels((4, 40, 36))  # GDCM crashes on writing JPEG 2000 of very few pixels
    write_series(folder, array, direction, spacing, origin=(-40.5, 12.0, 7.25), compressed=compressed)
    image, geometry = read_image(folder)
    np.testing.assert_array_equal(image[0], array)
    np.testing.assert_allclose(geometry.spacing, spacing, rtol=1e-6)
    np.testing.assert_allclose(geometry.origin, (-40.5, 12.0, 7.25), atol=1e-6)
    np.testing.assert_allclose(np.reshape(geometry.direction, (3, 3)), direction, atol=1e-6)
    assert (geometry.kind, geometry.dimension) == ("dicom", 3)
    assert read_header(folder) == (geometry, 1)


def test_the_same_volume_as_itk_reads(tmp_path: Path) -> None:
    import SimpleITK as sitk

    write_series(tmp_path / "a", voxels(), Rotation.random(random_state=1).as_matrix())
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "a")))
    expected = reader.Execute()
    image, geometry = read_image(tmp_path / "a")
    np.testing.assert_array_equal(image[0], sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(geometry.spacing[::-1], expected.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(geometry.origin, expected.GetOrigin(), atol=1e-6)


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    stored = np.abs(voxels((3, 4, 5)))
    rescale = [(1, -1024), (4, 8), (2, 0)]
    values = np.stack([stored[z] * np.int32(slope) + intercept for z, (slope, intercept) in enumerate(rescale)])
    for z, each in enumerate(rescale):
        write_series(tmp_path / "a", values[z : z + 1], origin=(0, 0, 2 * z), rescale=[each], prefix=f"{z}_")
    np.testing.assert_array_equal(read_image(tmp_path / "a")[0][0], values)
    path = tmp_path / "a" / "2_001.dcm"
    slope = b"\x28\x00\x53\x10\x02\x00\x00\x00"
    assert path.read_bytes().count(slope + b"2 ") == 1
    path.write_bytes(path.read_bytes().replace(slope + b"2 ", slope + b".5"))
    np.testing.assert_array_equal(read_image(tmp_path / "a")[0][0, 2], values[2] / 4)


def test_labels_that_were_scaled_are_the_whole_numbers_nearby(tmp_path: Path) -> None:
    values = np.arange(60).reshape(3, 4, 5) % 3
    write_series(tmp_path / "a", np.array([0, 6, 14], np.int32)[values], rescale=[(2, 0)] * 3)  # stored as 0, 3, 7
    for path in (tmp_path / "a").iterdir():
        slope = b"\x28\x00\x53\x10\x02\x00\x00\x00"
        path.write_bytes(path.read_bytes().replace(slope + b"2 ", slope + b".3"))
    np.testing.assert_array_equal(read_labels(tmp_path / "a")[0], values)


def test_colours_are_channels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3)).astype(np.uint8)
    write_series(tmp_path / "a", array)
    image, _ = read_image(tmp_path / "a")
    np.testing.assert_array_equal(image, np.moveaxis(array, -1, 0))


def test_gaps_duplicates_and_mixtures_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", voxels(), skip=[2, 3])
    with pytest.raises(DataError, match=r"gap is missing 2 slices between 004\.dcm and 001\.dcm, 6\.00 mm apart"):
        read_image(tmp_path / "gap")
    write_series(tmp_path / "twice", voxels())
    shutil.copy(tmp_path / "twice" / "003.dcm", tmp_path / "twice" / "copy.dcm")
    with pytest.raises(DataError, match=r"holds 003\.dcm and copy\.dcm at the same position: a duplicate"):
        read_image(tmp_path / "twice")
    write_series(tmp_path / "mixed", voxels())
    write_series(tmp_path / "mixed", voxels(), uid="1.2.3.5", prefix="b")
    with pytest.raises(DataError, match=r"mixed holds 2 series: series 4 \(5 files.*series 5 \(5 files, .* b001\.dcm"):
        read_image(tmp_path / "mixed")
    write_series(tmp_path / "sizes", voxels())
    write_series(tmp_path / "sizes", voxels((1, 9, 9)), prefix="scout", origin=(0, 0, 50))
    with pytest.raises(DataError, match=r"scout001\.dcm is 9x9, the other slices 6x7"):
        read_image(tmp_path / "sizes")
    write_series(tmp_path / "turned", voxels())
    turned = Rotation.from_euler("x", 20, degrees=True).as_matrix()
    write_series(tmp_path / "turned", voxels((1, 6, 7)), turned, prefix="x", origin=(0, 0, 50))
    with pytest.raises(DataError, match="another spacing or orientation"):
        read_image(tmp_path / "turned")


def test_tilted_and_uneven_stacks_are_refused(tmp_path: Path) -> None:
    for z in range(4):
        write_series(tmp_path / "tilted", voxels((1, 6, 7)), origin=(0, 0.4 * z, 2 * z), prefix=f"{z}_")
        write_series(tmp_path / "uneven", voxels((1, 6, 7)), origin=(0, 0, z * 2 + 0.8 * (z > 1)), prefix=f"{z}_")
    with pytest.raises(DataError, match=r"shifted against each other by up to 1\.20 mm \(a tilted gantry\)"):
        read_image(tmp_path / "tilted")
    with pytest.raises(DataError, match=r"has slices 2\.00 to 2\.80 mm apart"):
        read_image(tmp_path / "uneven")


def test_one_slice_and_other_files(tmp_path: Path) -> None:
    write_series(tmp_path / "one", voxels((1, 6, 7)))
    image, geometry = read_image(tmp_path / "one")
    assert image.shape == (1, 1, 6, 7)
    assert geometry.spacing[1:] == (0.5, 0.7)
    (tmp_path / "one" / "notes.txt").write_text("notes")
    (tmp_path / "one" / "DICOMDIR").write_bytes((tmp_path / "one" / "001.dcm").read_bytes())
    assert [path.name for path in files_of(tmp_path / "one")] == ["001.dcm"]
    (tmp_path / "one" / "001.dcm").rename(tmp_path / "one" / "IM0001")
    assert is_series(tmp_path / "one")
    np.testing.assert_array_equal(read_image(tmp_path / "one")[0], image)
    with pytest.raises(DataError, match="is one DICOM file"):
        read_image(tmp_path / "x.dcm")


def labelled(root: Path, cases: int = 3) -> None:
    """images/<case>/ with a series each, labels/<case>.nii.gz on its grid."""
    for index in range(cases):
        write_series(root / "images" / f"p{index}", voxels(), uid=f"1.2.3.{index}")
        _, geometry = read_image(root / "images" / f"p{index}")
        write_labels(root / "labels" / f"p{index}.nii.gz", (voxels() > 600).astype(np.int32), geometry)


def test_a_data_set_of_series(tmp_path: Path) -> None:
    labelled(tmp_path)
    dataset = scan(tmp_path, DataOptions(classes={"bright": 1}))
    assert (dataset.layout, dataset.file_kind, dataset.suffix) == ("pairs", "dicom", "")
    assert [case.images for case in dataset.cases] == [("images/p0",), ("images/p1",), ("images/p2",)]
    assert output_suffix(dataset.suffix) == ".nii.gz"
    case = load_case(dataset, "p1")
    assert case.image.shape == (1, 5, 6, 7)
    assert case.labels.shape == (5, 6, 7)
    bundle = ModelBundle.model_construct(
        layout="pairs", channels=dataset.channels, suffix="", image_pattern="images/*", channel_patterns={}
    )
    assert [case.identifier for case in find_inputs(tmp_path / "images", bundle)] == ["p0", "p1", "p2"]
    (single,) = find_inputs(tmp_path / "images" / "p2", bundle)
    assert (single.identifier, single.images) == ("p2", (tmp_path / "images" / "p2",))


def test_folders_of_cases_with_series(tmp_path: Path) -> None:
    for index in range(2):
        folder = tmp_path / f"p{index}"
        for channel in ("ADC", "T2"):
            write_series(folder / channel, voxels(), uid=f"1.2.{index}.{len(channel)}")
        write_labels(folder / "seg.nrrd", (voxels() > 600).astype(np.int32), Geometry(shape=(5, 6, 7)))
    dataset = scan(tmp_path, DataOptions())
    assert dataset.layout == "cases"
    assert [channel.name for channel in dataset.channels] == ["ADC", "T2"]
    assert dataset.cases[1].images == ("p1/ADC", "p1/T2")
    assert dataset.cases[1].label == "p1/seg.nrrd"
