"""NRRD, MetaImage and sidecars: read as ITK reads them, or refused; 4-D and time in files."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autounet.imageio import files_of, read_frames, read_header, read_image, read_labels, stem, write_image
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry

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
    ("old", "new", "message"),
    [
        ("sizes: 4 3 2", "sizes: 4 3 9", "truncated"),
        ("sizes: 4 3 2", "sizes: 4 3 1", "tells of 24 bytes of voxels, and 48 are there"),
        ("sizes: 4 3 2", "sizes: 4 3", "its sizes are 4 3, its dimension 3"),
        ("type: short", "type: block", "voxels of type 'block'"),
        ("encoding: raw", "encoding: zip", "encoding 'zip'"),
        ("encoding: raw", "data file: a.raw\nencoding: raw", "Save it as one file"),
        ("(0,0,4)", "(0,4,4)", "not at right angles"),
        ("(0,0,4)", "(0,0,0)", "its spacing is"),
        ("(0,0,4)", "(0,0,x)", "its space directions is"),
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
        with pytest.raises(DataError, match=r"slide\.json: spacing is .* Write the mm of z, y and x"):
            read_image(tmp_path / "slide.png")
    (tmp_path / "slide.json").write_text('{"stain": "blue"}')
    assert read_image(tmp_path / "slide.png")[1] == flat


def test_ome_spacing_channels_and_time(tmp_path: Path) -> None:
    import tifffile

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


def test_a_stack_that_lost_its_end_is_told(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(1, 255, (1, 6, 10, 11)).astype(np.uint8)
    write_image(tmp_path / "a.tif", stack, Geometry(shape=(6, 10, 11), kind="tiff"))
    whole = (tmp_path / "a.tif").read_bytes()
    for length in range(10, len(whole) - 180, 97):  # the last bytes are no pixels, and need not be there
        (tmp_path / "a.tif").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tif (is truncated|is damaged|cannot be read)"):
            read_image(tmp_path / "a.tif")
