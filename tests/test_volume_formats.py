"""NRRD, MetaImage, NIfTI-2 and sidecars: read as ITK reads them, or refused; 4-D and time in files."""

from __future__ import annotations

import bz2
import gzip
import json
import locale
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autounet.imageio import (
    files_of,
    read_frames,
    read_geometry,
    read_header,
    read_image,
    read_image_content,
    read_labels,
    stem,
    tiff_writing,
    write_channels,
    write_image,
    write_labels,
)
from autounet.schema.dataset import Finding, Severity
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry, geometry_differences
from autounet.schema.record import write_text

NUMBERS = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8")


@settings(max_examples=40, deadline=None)
@given(
    ending=st.sampled_from([".nrrd", ".mha", ".mhd"]),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    components=st.integers(1, 3),
    number=st.sampled_from(NUMBERS),
    seed=st.integers(0, 1000),
    compressed=st.booleans(),
)
def test_read_as_itk_reads(
    tmp_path_factory: pytest.TempPathFactory,
    ending: str,
    shape: list[int],
    components: int,
    number: str,
    seed: int,
    compressed: bool,
) -> None:
    import SimpleITK as sitk

    path = tmp_path_factory.mktemp("volume") / f"a{ending}"
    rng, axes = np.random.default_rng(seed), min(3, len(shape))
    vector = components > 1 and len(shape) < 4
    array = rng.integers(0, 100, (*shape, components) if vector else shape).astype(number)
    if len(shape) == 4:
        image = sitk.JoinSeries([sitk.GetImageFromArray(part) for part in array])
    else:
        image = sitk.GetImageFromArray(array, isVector=vector)
    direction = np.eye(len(shape))
    direction[:axes, :axes] = Rotation.random(random_state=seed).as_matrix()[:axes, :axes] if axes == 3 else np.eye(2)
    image.SetSpacing(rng.uniform(0.2, 5, len(shape)).tolist())
    image.SetOrigin(rng.uniform(-99, 99, len(shape)).tolist())
    image.SetDirection(direction.ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)
    expected = np.moveaxis(array, -1, 0) if vector else array
    read, geometry = read_image(path)
    np.testing.assert_array_equal(read, expected.reshape(read.shape).astype(np.float32))
    stored = sitk.ReadImage(str(path))
    np.testing.assert_allclose(geometry.spacing[::-1][:axes], stored.GetSpacing()[:axes])
    np.testing.assert_allclose(geometry.origin[:axes], stored.GetOrigin()[:axes])
    matrix = np.reshape(stored.GetDirection(), (len(shape), len(shape)))[:axes, :axes]
    np.testing.assert_allclose(np.reshape(geometry.direction, (3, 3))[:axes, :axes], matrix, atol=1e-6)
    assert read_header(path) == (geometry, read.shape[0])
    assert read_frames(path) == (shape[0] if len(shape) == 4 else 1)


def nrrd(path: Path, header: str, data: bytes) -> Path:
    path.write_bytes(b"NRRD0004\n" + header.strip().replace("\n    ", "\n").encode() + b"\n\n" + data)
    return path


def test_nrrd_spaces_encodings_and_axes(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = """type: short
    dimension: 3
    space: right-anterior-superior
    sizes: 4 3 2
    space directions: (0,2,0) (3,0,0) (0,0,4)
    space origin: (1,2,3)
    kinds: domain domain domain
    endian: big
    encoding: {}"""
    raw = nrrd(tmp_path / "raw.nrrd", header.format("raw"), voxels.tobytes())
    image, geometry = read_image(raw)
    np.testing.assert_array_equal(image[0], voxels)
    assert geometry.spacing == (4, 3, 2)
    assert geometry.origin == (-1, -2, 3)
    assert geometry.direction == (0, -1, 0, -1, 0, 0, 0, 0, 1)
    zipped = nrrd(tmp_path / "bz.nrrd", header.format("bzip2"), bz2.compress(voxels.tobytes()))
    text = nrrd(tmp_path / "text.nrrd", header.format("ascii"), " ".join(map(str, range(24))).encode())
    for path in (zipped, text):
        np.testing.assert_array_equal(read_image(path)[0], image)
        assert read_image(path)[1] == geometry
    last = header.format("raw").replace("sizes: 4 3 2", "sizes: 4 3 1 2").replace("dimension: 3", "dimension: 4")
    last = last.replace("(0,0,4)", "(0,0,4) none").replace("domain domain domain", "domain domain domain list")
    image, geometry = read_image(nrrd(tmp_path / "list.nrrd", last, voxels.tobytes()))
    np.testing.assert_array_equal(image[:, 0], voxels)
    assert (geometry.shape, read_frames(tmp_path / "list.nrrd")) == ((1, 3, 4), 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(0,2,0) (3,0,0) (0,0,4)", "( 0, 2 ,0)  (3, 0, 0) (0,0,4 )"),
        ("(0,2,0) (3,0,0) (0,0,4)", "(0,2,0)(3,0,0)(0,0,4)"),
        ("space directions", "Space Directions"),
        ("encoding: raw", "Encoding: RAW"),
        ("type: short", 'type: signed short int\nspace units: "mm" "mm" "mm"\n# a comment\nSegment:=a: b'),
        ("endian: little\n", ""),
    ],
)
def test_nrrd_headers_are_read_as_freely_as_the_format_is(tmp_path: Path, old: str, new: str) -> None:
    header = (
        "type: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n"
        "space directions: (0,2,0) (3,0,0) (0,0,4)\nspace origin: (1,2,3)\nendian: little\nencoding: raw"
    )
    plain = nrrd(tmp_path / "plain.nrrd", header, np.arange(24, dtype="<i2").tobytes())
    other = nrrd(tmp_path / "other.nrrd", header.replace(old, new), np.arange(24, dtype="<i2").tobytes())
    np.testing.assert_array_equal(read_image(other)[0], read_image(plain)[0])
    assert read_header(other) == read_header(plain)


def test_nrrd_skips_lines_and_bytes(tmp_path: Path) -> None:
    header = "type: uchar\ndimension: 2\nsizes: 4 3\nencoding: {}\nline skip: {}\nbyte skip: {}"
    data = bytes(range(12))
    cases = {("raw", 2, 3): b"a\nb\nxyz" + data, ("raw", 0, -1): b"xyz" + data, ("raw", 0, 0): data,
             ("gzip", 1, 3): b"a\n" + gzip.compress(b"xyz" + data)}  # fmt: skip
    for (encoding, lines, skipped), content in cases.items():
        path = nrrd(tmp_path / "a.nrrd", header.format(encoding, lines, skipped), content)
        np.testing.assert_array_equal(read_image(path)[0].ravel(), np.arange(12))
    for wrong in ("999999999999", "-2", "1.5"):
        with pytest.raises(DataError, match=r"a\.nrrd is (truncated|damaged)"):
            read_image(nrrd(tmp_path / "a.nrrd", header.format("raw", wrong, 0), data))
        with pytest.raises(DataError, match=r"a\.nrrd is (truncated|damaged)"):
            read_image(nrrd(tmp_path / "a.nrrd", header.format("raw", 0, wrong), data))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sizes: 4 3 2", "sizes: 4 3 9", "truncated"),
        ("sizes: 4 3 2", "sizes: 4 3 1", "says 24 bytes of voxels, and more are there"),
        ("sizes: 4 3 2", "sizes: 4 3", "its sizes are 4 3, its dimension 3"),
        ("type: short", "type: block", "voxels of type 'block'"),
        ("encoding: raw", "encoding: zip", "encoding 'zip'"),
        ("encoding: raw", "data file: a.raw\nencoding: raw", "Save it as one file"),
        ("(0,0,4)", "(0,4,4)", "not at right angles"),
        ("(0,0,4)", "(0,0,0)", "its spacing is"),
        ("(0,0,4)", "(0,0,x)", "its header cannot be parsed"),
        ("(1,2,3)", "(1,2,nan)", "its origin is"),
        ("dimension: 3", "dimansion: 3", "its header has no dimension"),
    ],
)
def test_damaged_nrrd_headers_are_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    header = (
        "type: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n"
        "space directions: (0,2,0) (3,0,0) (0,0,4)\nspace origin: (1,2,3)\nendian: little\nencoding: raw"
    )
    path = nrrd(tmp_path / "case_7.nrrd", header.replace(old, new), np.ones(24, "<i2").tobytes())
    with pytest.raises(DataError, match="case_7") as caught:
        read_image(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 0), (0, 0), (2, 4)])
def test_nifti_2_is_read_as_nifti_1(tmp_path: Path, ending: str, codes: tuple[int, int]) -> None:
    import nibabel as nib

    rng = np.random.default_rng(0)
    array = rng.integers(-99, 99, (5, 4, 3, 2)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=1).as_matrix() * (0.5, 0.75, 2.5)
    affine[:3, 3] = 10.5, -20.25, 30
    for kind, name in ((nib.Nifti1Image, "one"), (nib.Nifti2Image, "two")):
        image = kind(array, affine)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        image.header.set_slope_inter(0.5, -3)
        nib.save(image, tmp_path / f"{name}{ending}")
    one, two = read_image(tmp_path / f"one{ending}"), read_image(tmp_path / f"two{ending}")
    np.testing.assert_array_equal(two[0], one[0])
    np.testing.assert_array_equal(two[0], array.T * 0.5 - 3)
    assert two[1] == one[1]
    assert read_header(tmp_path / f"two{ending}") == (one[1], 2)
    assert read_frames(tmp_path / f"two{ending}") == 2


def test_nifti_without_its_letters_is_refused(tmp_path: Path) -> None:
    """ITK would take it for another format, whose files have no orientation."""
    write_labels(tmp_path / "a.nii", np.ones((2, 3, 4), np.int32), Geometry(shape=(2, 3, 4)))
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(content[:344] + b"ni1\0" + content[348:])
    for read in (read_image, read_header):
        with pytest.raises(DataError, match=r"a\.nii is damaged: its header has the letters b'ni1"):
            read(tmp_path / "a.nii")


@pytest.mark.parametrize("ending", [".NII.GZ", ".NII", ".Nii.Gz", ".NRRD", ".MHA", ".TIF", ".OME.TIF"])
def test_endings_in_any_letters_are_written_and_read(tmp_path: Path, ending: str) -> None:
    values = np.random.default_rng(0).integers(0, 5, (3, 4, 5))
    write_labels(tmp_path / f"a{ending}", values, Geometry(shape=(3, 4, 5), spacing=(2.5, 0.5, 0.5)))
    read, geometry = read_labels(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(read, values)
    assert geometry.spacing == (2.5, 0.5, 0.5)
    assert read_header(tmp_path / f"a{ending}") == (geometry, 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]


@pytest.fixture
def decimal_comma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The locale of a German program, in which this process runs until the end of the test."""
    if not shutil.which("localedef"):
        pytest.skip("needs localedef to make a locale")
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], check=False)
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    except locale.Error:
        pytest.skip("needs the sources of the German locale")
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
@pytest.mark.usefixtures("decimal_comma")
def test_numbers_have_a_decimal_point_in_every_locale(tmp_path: Path, ending: str) -> None:
    geometry = Geometry(shape=(2, 3, 4), spacing=(2.5, 0.75, 0.625), origin=(1.5, -2.25, 3.125), kind="nrrd")
    write_labels(tmp_path / f"a{ending}", np.ones((2, 3, 4), np.int32), geometry)
    read = read_geometry(tmp_path / f"a{ending}")
    assert (read.spacing, read.origin) == (geometry.spacing, geometry.origin)
    assert locale.localeconv()["decimal_point"] == ","


def test_meta_images_of_two_files(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementSpacing = 1 2 3\n"
        "ElementByteOrderMSB = False\nElementDataFile = a.raw\n"
    )
    with pytest.raises(DataError, match=r"keeps its voxels in a\.raw, which is not there"):
        read_image(tmp_path / "a.mhd")
    (tmp_path / "a.raw").write_bytes(np.arange(24, dtype="<i2").tobytes())
    image, geometry = read_image(tmp_path / "a.mhd")
    assert image[0, 1, 2, 3] == 23
    assert geometry.spacing == (3, 2, 1)
    assert [path.name for path in files_of(tmp_path / "a.mhd")] == ["a.mhd", "a.raw"]


def test_sidecars_give_spacing_where_a_format_has_none(tmp_path: Path) -> None:
    stack = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    write_image(tmp_path / "cell_0000.tif", stack, Geometry(shape=(2, 3, 4), kind="tiff"))
    (tmp_path / "cell.json").write_text(json.dumps({"spacing": [7.6, 1.15, 1.25]}))
    assert read_image(tmp_path / "cell_0000.tif")[1].spacing == (7.6, 1.15, 1.25)
    assert [path.name for path in files_of(tmp_path / "cell_0000.tif")] == ["cell_0000.tif", "cell.json"]
    flat = Geometry(shape=(1, 3, 4), kind="png", dimension=2)
    write_image(tmp_path / "slide.png", stack[:, :1], flat)
    (tmp_path / "slide.json").write_text('{"spacing": [0.25, 0.5]}')
    assert read_header(tmp_path / "slide.png")[0].spacing == (1, 0.25, 0.5)
    for wrong in ("[0, 1]", "[1]", '"1 mm"', "[1, 1, 1, 1]", "[true, 1]", "[1, NaN]"):
        (tmp_path / "slide.json").write_text('{"spacing": ' + wrong + "}")
        with pytest.raises(DataError, match=r"slide\.json gives the spacing .* Write the mm of z, y and x"):
            read_image(tmp_path / "slide.png")
    (tmp_path / "slide.json").write_text('{"stain": "blue"}')
    assert read_image(tmp_path / "slide.png")[1] == flat


def test_ome_spacing_channels_and_time(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 6)).astype(np.uint8)
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, metadata={"axes": "CZYX", **sizes}, photometric="minisblack")
    image, geometry = read_image(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(image, data)
    np.testing.assert_allclose(geometry.spacing, (0.002, 0.00025, 0.0005))
    assert (stem("a.ome.tif"), read_frames(tmp_path / "a.ome.tif")) == ("a", 1)
    tifffile.imwrite(tmp_path / "t.ome.tif", data, metadata={"axes": "TZYX"}, photometric="minisblack")
    assert read_frames(tmp_path / "t.ome.tif") == 3
    np.testing.assert_array_equal(read_image(tmp_path / "t.ome.tif", frame=2)[0], data[2:])
    np.testing.assert_array_equal(read_labels(tmp_path / "t.ome.tif", frame=1)[0], data[1])
    with pytest.raises(DataError, match="3 channels with different values"):
        read_labels(tmp_path / "a.ome.tif")


def test_stacks_too_large_for_imagej_are_written_as_ome_bigtiff(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tiff_writing, "LARGEST_IMAGEJ", 100)
    geometry = Geometry(shape=(6, 10, 11), spacing=(2.0, 0.5, 0.25), kind="tiff")
    values = np.arange(660).reshape(6, 10, 11) % 250
    write_labels(tmp_path / "a.tif", values, geometry)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert (file.is_bigtiff, file.is_ome) == (True, True)
    found, read = read_labels(tmp_path / "a.tif")
    assert (found == values).all()
    np.testing.assert_allclose(read.spacing, geometry.spacing)


def test_a_stack_that_lost_its_end_is_told(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(1, 255, (1, 6, 10, 11)).astype(np.uint8)
    write_image(tmp_path / "a.tif", stack, Geometry(shape=(6, 10, 11), kind="tiff"))
    whole = (tmp_path / "a.tif").read_bytes()
    for length in range(10, len(whole) - 180, 97):  # the last bytes are no pixels, and need not be there
        (tmp_path / "a.tif").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tif (is truncated|is damaged|cannot be read)"):
            read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("unit", "scale"), [("um", 1e-3), ("\\\\u00B5m", 1e-3), ("mm", 1.0), ("none", 1.0), ("parsec", None)]
)
def test_nrrd_says_in_which_unit_its_space_is(tmp_path: Path, unit: str, scale: float | None) -> None:
    space = "space: left-posterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (5,6,7)\n"
    units = " ".join([f'"{unit}"'] * 3)
    for name, lines in (("a", f"{space}space units: {units}\n"), ("b", f"spacings: 2 3 4\nunits: {units}\n")):
        header = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n{lines}\n"
        (tmp_path / f"{name}.nrrd").write_bytes(header.encode() + bytes(range(8)))
        _, geometry, remarks = read_image_content(tmp_path / f"{name}.nrrd")
        np.testing.assert_allclose(geometry.spacing, np.multiply((4, 3, 2), scale or 1))
        np.testing.assert_allclose(geometry.origin, np.multiply((5, 6, 7) if name == "a" else 0, scale or 1))
        assert [each.code for each in remarks] == ([] if scale else ["unknown-unit"])


# ---- the two transforms of a NIfTI file ------------------------------------------------------------------------------

PLACED = ("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
          "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")  # fmt: skip


def nifti_header(
    path: Path, codes: tuple[int, int], *, shape: tuple[int, ...] = (5, 4, 3), order: str = "<", unit: str = "mm",
    shear: float = 0.0, mirrored: bool = False, version: int = 1,
) -> Path:  # fmt: skip
    """A file whose sform is moved against its qform, as by a registration, and perhaps sheared."""
    import nibabel as nib

    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=order)
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=2).as_matrix() * (-0.5 if mirrored else 0.5, 0.75, 2.5)
    affine[:3, 3] = 10.5, -20.25, 30
    header.set_qform(affine, code=1)
    affine[:3, 3] += 7
    affine[:3, 2] += shear * affine[:3, 1] * 2.5 / 0.75
    header.set_sform(affine, code=1)
    header["qform_code"], header["sform_code"] = codes
    header.set_xyzt_units(unit, "sec")
    header["pixdim"][4:] = 0 if mirrored else 2, 0, 1, 0
    header.set_data_offset(352 if version == 1 else 544)
    voxels = np.arange(np.prod(shape)).astype(header.get_data_dtype())
    content = header.binaryblock + bytes(4) + voxels.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"codes": (0, 0)}, {"codes": (1, 0)}, {"codes": (0, 1)}, {"codes": (2, 1)}, {"codes": (4, 2)},
        {"codes": (1, 2), "shear": 0.27}, {"codes": (0, 2), "shear": 0.005}, {"codes": (1, 1), "mirrored": True},
        {"codes": (1, 2), "order": ">"}, {"codes": (2, 2), "unit": "micron"}, {"codes": (2, 1), "unit": "meter"},
        {"codes": (1, 1), "unit": "unknown"}, {"codes": (1, 2), "shape": (5, 4)}, {"codes": (0, 2), "shape": (5, 4)},
        {"codes": (1, 2), "shape": (5, 4, 3, 2)},
        {"codes": (2, 4), "version": 2},
    ],
    ids=str,
)  # fmt: skip
def test_what_lies_beside_an_image_has_both_of_its_transforms(tmp_path: Path, options: dict) -> None:
    import nibabel as nib

    source = nifti_header(tmp_path / "image.nii", **options)
    geometry = Geometry.model_validate_json(read_geometry(source).model_dump_json())
    assert geometry == read_geometry(source)
    write_labels(tmp_path / "labels.nii.gz", np.ones(geometry.shape, np.int32), geometry)
    write_image(tmp_path / "map.nii", np.ones((1, *geometry.shape), np.float32), geometry)
    written = ["labels.nii.gz", "map.nii"]
    if geometry.dimension == 3:
        write_channels(tmp_path / "channels.nii.gz", np.ones((2, *geometry.shape), np.float32), geometry)
        written.append("channels.nii.gz")
    wanted, axes = nib.load(source).header, len(options.get("shape", (5, 4, 3))[:3])
    for name in written:
        image = nib.load(tmp_path / name)
        for field in PLACED[1:]:
            np.testing.assert_array_equal(image.header[field], wanted[field].astype(image.header[field].dtype), field)
        np.testing.assert_array_equal(image.shape[:axes], wanted.get_data_shape()[:axes])
        assert (np.asarray(image.dataobj) == 1).all()
        assert read_geometry(tmp_path / name) == geometry
    write_labels(tmp_path / "labels.nrrd", np.ones(geometry.shape, np.int32), geometry)
    for found, expected in zip(read_geometry(tmp_path / "labels.nrrd"), geometry, strict=True):
        if found[0] in ("shape", "spacing", "origin", "direction"):
            np.testing.assert_allclose(found[1], expected[1], atol=1e-12)


@pytest.mark.parametrize(
    ("codes", "pixdim", "read"),
    [
        ((0, 1), (3, 3, 3), "sform"), ((0, 2), (1, 1, 1), "sform"), ((0, 1), (-0.5, -0.75, -2.5), "sform"),
        ((1, 1), (0.5, -0.75, 2.5), "sform"), ((0, 0), (3, 3, 3), "pixdim"), ((1, 0), (0.5, 0.75, 3), "pixdim"),
    ],
)  # fmt: skip
def test_a_lone_sform_gives_the_spacing(tmp_path: Path, codes, pixdim, read: str) -> None:
    """NIfTI's third method: pixdim places nothing. What lies beside the image has its very header."""
    import nibabel as nib

    path = nifti_header(tmp_path / "a.nii", codes)
    content = bytearray(path.read_bytes())
    struct.pack_into("<3f", content, 80, *pixdim)
    path.write_bytes(bytes(content))
    image, geometry = read_image(path)
    assert geometry.spacing == pytest.approx((2.5, 0.75, 0.5) if read == "sform" else pixdim[::-1], rel=1e-6)
    remarks = [each.code for each in read_image_content(path).remarks]
    assert ("pixdim" in remarks) == (read == "sform")
    write_image(tmp_path / "b.nii", image, geometry)
    first, second = nib.load(path).header, nib.load(tmp_path / "b.nii").header
    assert all(np.array_equal(first[field], second[field]) for field in PLACED if field != "dim")


def test_a_grid_that_is_moved_loses_the_transforms_of_its_file(tmp_path: Path) -> None:
    geometry = read_geometry(nifti_header(tmp_path / "a.nii", (1, 1)))
    assert geometry.model_copy(update={"shape": (1, 1, 1)}).nifti == geometry.nifti
    moved = geometry.model_copy(update={"origin": (1.0, 2.0, 3.0)})
    assert moved.nifti is None
    write_labels(tmp_path / "moved.nii", np.ones((3, 4, 5), np.int32), moved)
    assert geometry_differences(read_geometry(tmp_path / "moved.nii"), moved) == ()


@pytest.mark.parametrize("codes", [(1, 2), (2, 2), (1, 0), (0, 2), (0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_a_label_lies_on_its_image_by_either_transform(tmp_path: Path, codes: tuple[int, int], unit: str) -> None:
    """As nibabel writes labels with the affine that it finds, and as SimpleITK does with what it reads."""
    import nibabel as nib
    import SimpleITK as sitk

    path = nifti_header(tmp_path / "image.nii", codes, unit=unit)
    image, values = read_geometry(path), np.ones((5, 4, 3), np.uint8)
    source = nib.load(path)
    nib.save(nib.Nifti1Image(values, source.affine), tmp_path / "affine.nii")
    nib.save(nib.Nifti1Image(values, source.affine, source.header), tmp_path / "header.nii")
    if codes[0]:
        nib.save(nib.Nifti1Image(values, source.get_qform()), tmp_path / "qform.nii")
    label = sitk.GetImageFromArray(values.T)
    label.CopyInformation(sitk.ReadImage(path))
    sitk.WriteImage(label, tmp_path / "itk.nii")
    for other in [*sorted(tmp_path.glob("[!i]*.nii")), tmp_path / "itk.nii"]:
        assert geometry_differences(read_geometry(other), image) == (), other
        assert geometry_differences(image, read_geometry(other)) == (), other
    affine = source.affine.copy()
    affine[:3, 3] += 1.5
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "moved.nii")
    found = geometry_differences(read_geometry(tmp_path / "moved.nii"), image)
    assert "origin" in [each.field for each in found]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(("skew", "told"), [(1e-6, False), (1e-3, True), (0.0099, True), (0.011, None)])
def test_axes_a_little_off_right_angles_are_read_and_told(
    tmp_path: Path, ending: str, skew: float, told: bool | None
) -> None:
    third = (0.0, skew, (1 - skew**2) ** 0.5)
    direction = (1.0, 0.0, third[0], 0.0, 1.0, third[1], 0.0, 0.0, third[2])
    geometry = Geometry(shape=(2, 3, 4), spacing=(2.5, 0.5, 0.5), direction=direction)
    write_labels(tmp_path / f"a{ending}", np.ones((2, 3, 4), np.int32), geometry)
    if told is None:
        with pytest.raises(DataError, match="axes are not at right angles"):
            read_image(tmp_path / f"a{ending}")
        return
    content = read_image_content(tmp_path / f"a{ending}")
    assert [each.code for each in content.remarks] == ["skewed-axes"] * told
    np.testing.assert_allclose(content.geometry.direction, direction, atol=1e-6)


@pytest.mark.parametrize(
    ("slope", "intercept", "right"),
    [(8 / 65535, 0.0, True), (2 / 255, 0.0, True), (-0.03, 1.0, True), (0.5, 0.0, False), (1.0, 0.3, False),
     (3.9, 0.0, False), (2.0, 1.0, True), (1.0000001, 0.0, True)],
)  # fmt: skip
def test_scaled_labels_are_the_whole_numbers_nearby(
    tmp_path: Path, slope: float, intercept: float, right: bool
) -> None:
    """The stored numbers nearest to 0, 1, 2 and 3, or where steps are coarse 0 to 3 themselves."""
    header = bytearray(nifti_header(tmp_path / "a.nii", (1, 1)).read_bytes())
    values = np.arange(60) % 4
    stored = np.rint((values - intercept) / slope).astype("<i2") if abs(slope) < 0.4 else values.astype("<i2")
    struct.pack_into("<2f", header, 112, slope, intercept)
    (tmp_path / "a.nii").write_bytes(header[:352] + stored.tobytes())
    if right:
        expected = values if abs(slope) < 0.4 else np.rint(stored * slope + intercept)
        np.testing.assert_array_equal(read_labels(tmp_path / "a.nii")[0].ravel(), expected)
    else:
        with pytest.raises(DataError, match="label values that are not integers"):
            read_labels(tmp_path / "a.nii")


@pytest.mark.parametrize(("name", "packed"), [("a.nii", True), ("a.nii.gz", False), ("b.NII", True)])
def test_nifti_is_recognised_by_its_content(tmp_path: Path, name: str, packed: bool) -> None:
    plain = nifti_header(tmp_path / "plain.nii", (1, 2)).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(plain) if packed else plain)
    array, geometry = read_image(tmp_path / name)
    np.testing.assert_array_equal(array, read_image(tmp_path / "plain.nii")[0])
    assert geometry == read_header(tmp_path / name)[0] == read_geometry(tmp_path / "plain.nii")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".tif", ".ome.tif", ".png", ".bmp"])
def test_names_that_are_no_text(tmp_path: Path, ending: str) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xd6\xd0" + ending.encode())
    picture = ending in (".png", ".bmp")
    values = np.arange(12, dtype=np.int32).reshape(1, 3, 4)
    write_labels(path, values, Geometry(shape=(1, 3, 4), dimension=2 if picture else 3))
    assert os.listdir(os.fsencode(path.parent)) == [b"\xd6\xd0" + ending.encode()]
    np.testing.assert_array_equal(read_labels(path)[0], values)
    assert read_header(path)[0].shape == (1, 3, 4)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    with pytest.raises(DataError) as caught:
        read_image(path)
    message = Finding(case=stem(path), code="x", severity=Severity.fatal, message=str(caught.value), remedy="")
    write_text(tmp_path / "message.json", json.dumps(message.model_dump(mode="json"), ensure_ascii=False))
    assert Finding.model_validate(json.loads((tmp_path / "message.json").read_text(encoding="utf-8"))) == message
