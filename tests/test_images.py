"""Image files: what is written is read back, and damage is told, never passed on."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autounet.imageio import (
    SUFFIXES,
    file_kind,
    output_suffix,
    read_geometry,
    read_header,
    read_image,
    read_image_content,
    read_labels,
    stem,
    suffix,
    write_image,
    write_labels,
)
from autounet.imageio.image_format import millimetres
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
PICTURES = (".png", ".bmp")
OBLIQUE = (0.0, -0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, 0.6)


def geometry_of(shape: tuple[int, int, int], kind: str = "nifti") -> Geometry:
    return Geometry(shape=shape, spacing=(2.5, 0.75, 0.5), origin=(-10.25, 3.5, 100.0), direction=OBLIQUE, kind=kind)


def test_names() -> None:
    assert suffix("a.b.nii.gz") == ".nii.gz"
    assert suffix("A.NII.GZ") == ".NII.GZ"
    assert suffix(".nii.gz") == ""
    assert suffix("readme.txt") == ""
    assert stem("dir/case_1.nii.gz") == "case_1"
    assert file_kind("x.TIFF") == "tiff"
    assert {output_suffix(ending) for ending in (".gif", ".jpg", ".jpeg")} == {".png"}
    assert output_suffix(".nii.gz") == ".nii.gz"
    with pytest.raises(DataError, match=r"x\.doc has an ending that is not supported"):
        file_kind("x.doc")


@pytest.mark.parametrize("ending", VOLUMES)
def test_volume_keeps_geometry(tmp_path: Path, ending: str) -> None:
    geometry = geometry_of((3, 4, 5), SUFFIXES[ending])
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    write_image(tmp_path / f"a{ending}", image, geometry)
    read, first = read_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(read, image)
    assert first.kind == geometry.kind
    np.testing.assert_allclose(first.spacing, geometry.spacing, rtol=1e-6)
    np.testing.assert_allclose(first.origin, geometry.origin, rtol=1e-6)
    np.testing.assert_allclose(first.direction, geometry.direction, atol=1e-6)
    labels = (image[0] > 0).astype(np.int32) * 7
    write_labels(tmp_path / f"b{ending}", labels, first)
    values, second = read_labels(tmp_path / f"b{ending}")
    np.testing.assert_array_equal(values, labels)
    assert second == first
    assert read_geometry(tmp_path / f"b{ending}") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{ending}", f"b{ending}"]


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6, unique=True),
    ending=st.sampled_from([*VOLUMES, ".tif"]),
)
def test_any_label_values_come_back(tmp_path_factory: pytest.TempPathFactory, values: list[int], ending: str) -> None:
    path = tmp_path_factory.mktemp("labels") / f"a{ending}"
    array = np.resize(np.array(values, np.int32), (2, 3, 4))
    write_labels(path, array, geometry_of((2, 3, 4)))
    read, _ = read_labels(path)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("ending", [*PICTURES, ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures(tmp_path: Path, ending: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 1, 6, 7)).astype(np.uint8)
    geometry = Geometry(shape=(1, 6, 7), kind=SUFFIXES[ending], dimension=2)
    write_image(tmp_path / f"a{ending}", image, geometry)
    read, found = read_image(tmp_path / f"a{ending}")
    assert found == geometry
    np.testing.assert_array_equal(read, image)
    assert read_header(tmp_path / f"a{ending}") == (geometry, channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("number", ["u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8"])
def test_tiff_stack_keeps_spacing(tmp_path: Path, number: str, channels: int) -> None:
    stack = np.random.default_rng(0).integers(0, 100, (channels, 3, 4, 5)).astype(number)
    geometry = Geometry(shape=(3, 4, 5), spacing=(2.0, 0.0005, 0.00025), kind="tiff")
    write_image(tmp_path / "a.tif", stack, geometry)
    read, found, remarks = read_image_content(tmp_path / "a.tif")
    np.testing.assert_array_equal(read, stack)
    np.testing.assert_allclose(found.spacing, geometry.spacing, rtol=1e-5)
    assert (found.dimension, remarks, read_header(tmp_path / "a.tif")) == (3, (), (found, channels))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:  # other programs find it in one of two places
        assert file.is_imagej or "PhysicalSizeZ=" in (file.ome_metadata or "")
        other = file.series[0].asarray()
    np.testing.assert_array_equal(
        np.moveaxis(other, -1, 0) if file.series[0].axes == "ZYXS" else other, stack.squeeze()
    )
    first = (tmp_path / "a.tif").read_bytes()
    write_image(tmp_path / "a.tif", stack, geometry)
    assert (tmp_path / "a.tif").read_bytes() == first


UNITS = {
    1e-9: ("pm", "picometre"), 1e-6: ("nm", "NM", "nanometer"), 1e-7: ("\u00c5", "\u212b", "\\u00C5", "Angstrom"),
    1e-3: ("\u00b5m", "\u03bcm", "um", "UM", "\u039cM", "\\u00B5m", "\\\\u00b5m", "micron", "MICRONS", "micrometer",
           "Micrometre", "\u00c2\u00b5m", "&#181;m", " um\0"),
    1.0: ("mm", "MM", "millimetre"), 10.0: ("cm", "centimeters"), 1000.0: ("m", "metre"), 25.4: ("inch", "in"),
    None: ("pixel", "furlong", "", "?m"),
}  # fmt: skip


def test_units_of_length() -> None:
    for size, names in UNITS.items():
        assert {name: millimetres(name) for name in names} == dict.fromkeys(names, size)


@pytest.mark.parametrize(
    "unit", [name for names in UNITS.values() for name in names if name.isascii() and "\0" not in name]
)
def test_stacks_of_imagej_have_any_unit(tmp_path: Path, unit: str) -> None:
    metadata = {"axes": "ZYX", "spacing": 0.5, "unit": unit}
    stack = np.ones((3, 4, 5), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, resolution=(5, 4), metadata=metadata)
    _, geometry, remarks = read_image_content(tmp_path / "a.tif")
    scale = millimetres(unit)
    np.testing.assert_allclose(geometry.spacing, np.multiply((0.5, 0.25, 0.2), scale or 1))
    assert [each.code for each in remarks] == (["unknown-unit"] if scale is None and unit else [])
    (tmp_path / "a.json").write_text('{"spacing": [3, 2, 1]}')
    _, geometry, remarks = read_image_content(tmp_path / "a.tif")
    assert (geometry.spacing, remarks) == ((3, 2, 1), ())


def test_stacks_of_ome_have_a_unit_for_each_axis(tmp_path: Path) -> None:
    sizes = {"PhysicalSizeX": 200.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.2, "PhysicalSizeYUnit": "\u00b5m"}
    stack = np.ones((3, 4, 5), np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZYX", "PhysicalSizeZ": 0.5, **sizes})
    assert np.allclose(read_geometry(tmp_path / "a.ome.tif").spacing, (0.0005, 0.0002, 0.0002))
    tifffile.imwrite(tmp_path / "b.ome.tif", stack, metadata={"axes": "ZYX", **sizes})
    _, geometry, remarks = read_image_content(tmp_path / "b.ome.tif")
    assert np.allclose(geometry.spacing, 0.0002)
    assert [each.code for each in remarks] == ["unknown-spacing"]


def test_gif_and_palettes(tmp_path: Path) -> None:
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3] = 255
    Image.fromarray(mask).save(tmp_path / "grey.gif")
    assert set(np.unique(read_labels(tmp_path / "grey.gif")[0])) == {0, 255}
    coloured = Image.fromarray((mask > 0).astype(np.uint8), mode=None).convert("P")
    coloured.putpalette([0, 0, 0, 128, 0, 0])
    coloured.save(tmp_path / "voc.png")
    assert set(np.unique(read_labels(tmp_path / "voc.png")[0])) == {0, 1}
    image, _ = read_image(tmp_path / "voc.png")
    assert image.shape == (3, 1, 5, 6)
    assert image[:, 0, 1, 0].tolist() == [128, 0, 0]
    Image.fromarray(mask > 0).save(tmp_path / "bit.png")
    assert read_labels(tmp_path / "bit.png")[0].max() == 1
    Image.fromarray(np.stack([mask] * 4, -1)).save(tmp_path / "rgba.png")
    assert set(np.unique(read_labels(tmp_path / "rgba.png")[0])) == {0, 255}
    assert read_image(tmp_path / "rgba.png")[0].shape[0] == 3


def test_four_dimensional_nifti_has_channels(tmp_path: Path) -> None:
    import SimpleITK as sitk

    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    image = sitk.JoinSeries([sitk.GetImageFromArray(channel) for channel in array])
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    read, geometry = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read, array)
    assert geometry.shape == (3, 4, 5)
    assert read_header(tmp_path / "a.nii.gz")[1] == 2


@pytest.mark.parametrize("ending", [*VOLUMES, ".png", ".tif", ".bmp"])
def test_truncated_and_garbled_files_are_told(tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"case_7{ending}"
    flat = ending in PICTURES or ending == ".tif"
    shape = (1, 40, 41) if flat else (8, 20, 21)
    image = np.random.default_rng(0).integers(0, 255, (1, *shape)).astype(np.uint8)
    write_image(path, image, Geometry(shape=shape, kind=SUFFIXES[ending], dimension=2 if flat else 3))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-200], b"this is no image" * 40, b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="case_7") as caught:
            read_image(path)
        assert "again" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_flipped_bits_in_compressed_nifti_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_image(path, np.random.default_rng(0).normal(size=(1, 8, 9, 10)).astype(np.float32), geometry_of((8, 9, 10)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz is (damaged|truncated)"):
        read_image(path)


def test_gzip_members_and_padding_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_labels(path, np.ones((2, 3, 4), np.int32), geometry_of((2, 3, 4)))
    content = path.read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]) + b"\0" * 10)
    assert read_labels(tmp_path / "b.nii.gz")[0].sum() == 24


@pytest.mark.parametrize("number", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_voxels_are_those_of_itk(tmp_path: Path, number: str, ending: str) -> None:
    import SimpleITK as sitk

    array = np.random.default_rng(0).integers(0, 120, (3, 4, 5)).astype(number)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"a{ending}"))
    read, _ = read_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(read[0], sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"a{ending}"))))


def test_nifti_slope_and_byte_order(tmp_path: Path) -> None:
    import SimpleITK as sitk

    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)), str(path))
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<2f", 0.5, -3.0)
    path.write_bytes(content)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(read_image(path)[0][0], expected)
    assert expected[0, 0, 1] == -2.5


@pytest.mark.parametrize("ending", [*VOLUMES, ".tif"])
def test_nan_and_infinite_voxels_are_not_hidden(tmp_path: Path, ending: str) -> None:
    image = np.zeros((1, 2, 3, 4), np.float32)
    image[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    write_image(tmp_path / f"a{ending}", image, geometry_of((2, 3, 4)))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{ending}")[0], image)


def test_labels_must_be_integers_without_colours(tmp_path: Path) -> None:
    geometry = geometry_of((2, 3, 4))
    write_image(tmp_path / "half.nii.gz", np.full((1, 2, 3, 4), 0.5, np.float32), geometry)
    with pytest.raises(DataError, match="24 label values that are not integers"):
        read_labels(tmp_path / "half.nii.gz")
    write_image(tmp_path / "float.nii.gz", np.full((1, 2, 3, 4), 3.0, np.float32), geometry)
    assert read_labels(tmp_path / "float.nii.gz")[0].max() == 3
    colours = np.random.default_rng(0).integers(0, 255, (3, 1, 4, 4)).astype(np.uint8)
    write_image(tmp_path / "rgb.png", colours, Geometry(shape=(1, 4, 4), kind="png", dimension=2))
    with pytest.raises(DataError, match="3 channels with different values"):
        read_labels(tmp_path / "rgb.png")


def test_missing_file_and_impossible_writes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "a.nii.gz")
    flat = Geometry(shape=(1, 2, 2), kind="png", dimension=2)
    with pytest.raises(DataError, match="cannot hold the label values -1 to 0"):
        write_labels(tmp_path / "a.png", np.array([[[0, -1], [0, 0]]]), flat)
    with pytest.raises(DataError, match="cannot hold 2 slices"):
        write_labels(tmp_path / "a.png", np.zeros((2, 2, 2), int), Geometry(shape=(2, 2, 2)))
    with pytest.raises(DataError, match="needs an array of shape"):
        write_labels(tmp_path / "a.png", np.zeros((1, 2, 3), int), flat)
    assert list(tmp_path.iterdir()) == []
