"""Pictures are read as a viewer shows them, or the reader says what it did otherwise."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from broken_sets import pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from autounet import api
from autounet.datasets import load_input, scan
from autounet.datasets.inputs import InputCase
from autounet.imageio import (
    read_geometry,
    read_header,
    read_image,
    read_image_content,
    read_label_content,
    read_labels,
    write_image,
    write_labels,
)
from autounet.schema.dataset import Channel
from autounet.schema.errors import DataError
from autounet.schema.options import DataOptions
from autounet.workflow import dataset_stage
from autounet.workflow.dataset_stage import check_data, fix_data


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes would take longer than all that they would do here."""
    monkeypatch.setattr(dataset_stage, "available_cores", lambda: 1)


COLOURS = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
GREY = COLOURS[..., 0]
MASK = GREY > 99


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def shown(path: Path) -> np.ndarray:
    """(C, Y, X) of what Pillow shows."""
    image = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    return image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(path: Path, new: bytes, late: bool = False) -> Path:
    content = path.read_bytes()
    place = len(content) - 12 if late else 33
    path.write_bytes(content[:place] + new + content[place:])
    return path


def codes(path: Path) -> list[str]:
    return [remark.code for remark in read_image_content(path).remarks]


@settings(max_examples=24, deadline=None)
@given(
    orientation=st.integers(1, 8),
    ending=st.sampled_from([".png", ".jpg", ".tif", "late.png"]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_turned_photographs_are_upright(
    tmp_path_factory: pytest.TempPathFactory, orientation: int, ending: str, shape: tuple[int, int]
) -> None:
    path = tmp_path_factory.mktemp("turned") / f"a{ending}"
    exif = turned(orientation)
    Image.fromarray(np.resize(COLOURS, (*shape, 3))).save(path, **({} if ending == "late.png" else {"exif": exif}))
    if ending == "late.png":
        with_chunk(path, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), late=True)
    image, geometry = read_image(path)
    np.testing.assert_array_equal(image[:, 0], shown(path))
    assert read_header(path) == (geometry, 3)
    mask = (image[0] > 99).astype(
        np.int32
    )  # what is drawn on it lies on it in a viewer: its file says nothing of turns
    write_labels(path.with_name("mask.png"), mask, geometry)
    np.testing.assert_array_equal(shown(path.with_name("mask.png")), mask)


def test_turned_labels_and_damaged_tags(tmp_path: Path) -> None:
    labels = Image.fromarray(MASK.astype(np.uint8))
    labels.putpalette([0, 0, 0, 255, 0, 0])
    labels.save(tmp_path / "turned.png", exif=turned(6))
    np.testing.assert_array_equal(read_labels(tmp_path / "turned.png")[0], shown(tmp_path / "turned.png"))
    exif = turned(6).tobytes().removeprefix(b"Exif\0\0")
    Image.fromarray(COLOURS).save(tmp_path / "damaged.png")
    assert codes(with_chunk(tmp_path / "damaged.png", chunk(b"eXIf", exif[:11]))) == ["not-as-shown"]
    Image.fromarray(COLOURS).save(tmp_path / "xmp.png")
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="6"/>'
    assert codes(with_chunk(tmp_path / "xmp.png", chunk(b"iTXt", xmp))) == ["not-as-shown"]
    stack = np.stack([COLOURS] * 3)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    assert codes(tmp_path / "stack.tif") == ["not-as-shown"]


def test_photographs_with_previews_are_read(tmp_path: Path) -> None:
    preview = Image.fromarray(COLOURS[:4])
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview], exif=turned(8))
    assert read_image(tmp_path / "a.jpg")[0].shape == (3, 1, 13, 9)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_png_of_16_bits_is_read_whole(tmp_path: Path, samples: int) -> None:
    array = np.random.default_rng(0).integers(0, 1 << 16, (9, 13, samples)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array.squeeze()))
    expected = np.moveaxis(array, -1, 0)[: samples - (samples in (2, 4))]
    image, geometry = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image[:, 0], expected)
    assert read_header(tmp_path / "a.png") == (geometry, len(expected))
    write_image(tmp_path / "b.png", expected[:, None], geometry)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[0], image)


def packed_tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    text = "".join(format(int(value), f"0{bits}b") for value in values.ravel())
    data = int(text, 2).to_bytes(len(text) // 8, "big")
    height, width = values.shape
    tags = ((256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 146), (277, 1), (278, height),
            (279, len(data)), (284, 1), (339, 1))  # fmt: skip
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    return b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + b"\0" * 4 + data


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16])
def test_tiff_of_any_depth_is_read_whole(tmp_path: Path, bits: int, photometric: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (8, 16))
    (tmp_path / "a.tif").write_bytes(packed_tiff(values, bits, photometric))
    as_shown = values if photometric else (1 << bits) - 1 - values
    scale = 255 // ((1 << bits) - 1) if bits < 8 else 1
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0][0, 0], as_shown * scale)
    labels = read_label_content(tmp_path / "a.tif")
    np.testing.assert_array_equal(labels.values[0], as_shown if bits == 1 else values)
    assert bool(labels.remarks) == (photometric == 0 and bits > 1)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_colours_of_printers_and_cameras(tmp_path: Path, mode: str) -> None:
    for name, options in (("a.tif", {}), ("a.jpg", {}), ("b.tif", {"compression": "jpeg"})):
        if (mode, name) != ("CMYK", "b.tif"):
            Image.fromarray(COLOURS).convert(mode).save(tmp_path / name, **options)
            expected = np.moveaxis(np.asarray(Image.open(tmp_path / name).convert("RGB")), -1, 0)
            np.testing.assert_array_equal(read_image(tmp_path / name)[0][:, 0], expected)
            assert codes(tmp_path / name) == (["not-as-shown"] if mode == "CMYK" else [])
    Image.fromarray(COLOURS).convert("LAB").save(tmp_path / "lab.tif")
    with pytest.raises(DataError, match="stores its pixels as CIELAB"):
        read_image(tmp_path / "lab.tif")


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_transparency_is_left_out_and_said(tmp_path: Path, ending: str) -> None:
    for name, alpha, code in (
        ("opaque", 255, "opaque-alpha"),
        ("same", 7, "transparency"),
        ("real", GREY, "transparency"),
    ):
        for colours in (COLOURS, GREY):
            image = Image.fromarray(colours)
            image.putalpha(alpha if isinstance(alpha, int) else Image.fromarray(alpha))
            image.save(tmp_path / f"{name}{ending}")
            expected = colours[None] if colours.ndim == 2 else np.moveaxis(colours, -1, 0)
            np.testing.assert_array_equal(read_image(tmp_path / f"{name}{ending}")[0][:, 0], expected)
            assert codes(tmp_path / f"{name}{ending}") == [code]
    key = tmp_path / "key.png"
    Image.fromarray(COLOURS).save(key, transparency=tuple(COLOURS[0, 0].tolist()))
    assert codes(key) == ["transparency"]


def test_samples_that_are_no_transparency_stay(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 13, 4)).astype(np.uint8)
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [0, 0, 0]}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0][:, 0], np.moveaxis(array, -1, 0))


def test_colour_profiles_that_change_colours_are_said(tmp_path: Path) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    Image.fromarray(COLOURS).save(tmp_path / "same.png", icc_profile=bytes(profile))
    Image.fromarray(COLOURS).save(tmp_path / "junk.png", icc_profile=b"junk" * 40)
    assert codes(tmp_path / "same.png") == codes(tmp_path / "junk.png") == []
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    Image.fromarray(COLOURS).save(tmp_path / "other.jpg", icc_profile=bytes(profile))
    tifffile.imwrite(tmp_path / "other.tif", COLOURS, photometric="rgb", iccprofile=bytes(profile))
    assert codes(tmp_path / "other.jpg") == codes(tmp_path / "other.tif") == ["colour-profile"]


PALETTE = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 128]], np.uint8)


@pytest.mark.parametrize("ending", [".png", ".tif", ".gif", ".bmp"])
def test_palettes_are_colours_of_images_and_values_of_labels(tmp_path: Path, ending: str) -> None:
    """Values do not depend on which of them occur: 3 alone would be the grey 128."""
    for indices in (GREY % 4, GREY % 4 // 3 * 3):
        image = Image.fromarray(indices)
        image.putpalette([*PALETTE.ravel().tolist(), *[0] * (768 - PALETTE.size)])
        image.save(tmp_path / f"a{ending}", **({"optimize": False} if ending == ".gif" else {}))
        labels = read_label_content(tmp_path / f"a{ending}")
        np.testing.assert_array_equal(labels.values[0], indices)
        assert dict(labels.colours) == {value: tuple(PALETTE[value].tolist()) for value in np.unique(indices)}
        read = read_image(tmp_path / f"a{ending}")[0]
        np.testing.assert_array_equal(
            np.broadcast_to(read[:, 0], (3, *GREY.shape)), np.moveaxis(PALETTE[indices], -1, 0)
        )
        assert read_header(tmp_path / f"a{ending}")[1] == len(read)


def test_look_up_tables_of_imagej_only_display(tmp_path: Path) -> None:
    table = np.zeros((3, 256), np.uint16)
    table[1] = np.arange(256) * 257
    description = "ImageJ=1.53t\nimages=1\n"
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=table, description=description)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0][0, 0], GREY)
    assert codes(tmp_path / "a.tif") == ["not-as-shown"]
    assert read_label_content(tmp_path / "a.tif").colours == ()


def with_palettes(folder: Path, colours_of: dict[int, list[int]]) -> Path:
    """Masks of 0 and 1 whose palette is black and red; those of these cases have another."""
    pictures(folder, value=1)
    for index, path in enumerate(sorted((folder / "masks").iterdir())):
        mask = Image.open(path)
        mask.putpalette(colours_of.get(index, [0, 0, 0, 255, 0, 0]))
        mask.save(path)
    return folder


@pytest.mark.parametrize("other", [[255, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 255], [0, 0, 0, 255, 255, 255]])
def test_palettes_that_differ_are_fatal(tmp_path: Path, other: list[int]) -> None:
    data = with_palettes(tmp_path / "data", {1: other, 4: other})
    (found,) = (each for each in check_data(data, DataOptions()).findings if each.severity == "fatal")
    assert found.code == "palettes-differ"
    assert "masks/c1.png, masks/c4.png" in found.message
    assert "--palette" in found.remedy


def test_joined_objects_have_one_background(tmp_path: Path) -> None:
    data = with_palettes(tmp_path / "data", {1: [255, 0, 0, 0, 0, 0]})
    (found,) = (each for each in check_data(data, DataOptions(join="cell")).findings if each.severity == "fatal")
    assert found.code == "palettes-differ"
    other = with_palettes(tmp_path / "other", {1: [0, 0, 0, 0, 0, 255]})
    assert check_data(other, DataOptions(join="cell")).findings == ()


def test_evaluate_refuses_palettes_with_another_background(tmp_path: Path) -> None:
    data, plain = with_palettes(tmp_path / "data", {1: [255, 0, 0, 0, 0, 0]}), with_palettes(tmp_path / "plain", {})
    for pair in ((data, plain), (plain, data), (data, data)):
        with pytest.raises(DataError, match=r"is the background in .*, and the value 1 in .*Store all"):
            api.evaluate(*(folder / "masks" for folder in pair))
    other = with_palettes(tmp_path / "other", {1: [0, 0, 0, 0, 0, 255]})
    assert api.evaluate(other / "masks", plain / "masks").mean_dice == 1


def test_with_a_palette_file_the_colours_decide(tmp_path: Path) -> None:
    data = with_palettes(tmp_path / "data", {1: [255, 0, 0, 0, 0, 0]})
    (data / "palette.json").write_text('{"background": [0, 0, 0], "organ": [255, 0, 0]}')
    assert check_data(data, DataOptions()).findings == ()


def test_unused_entries_and_equal_colours_of_palettes_do_not_differ(tmp_path: Path) -> None:
    longer = [0, 0, 0, 255, 0, 0, 9, 9, 9, 0, 0, 0]
    assert check_data(with_palettes(tmp_path / "data", {1: longer}), DataOptions()).findings == ()


def test_masks_of_one_bit_beside_white_ones_are_told(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    mask = Image.open(data / "masks/c3.png")
    mask.convert("1").save(data / "masks/c3.png")
    found = [each for each in check_data(data, DataOptions()).findings if each.code == "palettes-differ"]
    assert "masks/c3.png" in found[0].message
    (data / "palette.json").write_text('{"background": [0, 0, 0], "organ": [255, 255, 255]}')
    assert check_data(data, DataOptions()).findings == ()


@pytest.mark.parametrize(("share", "named", "told"), [(0.9, False, True), (0.5, False, False), (0.9, True, False)])
def test_inverted_masks_are_told(tmp_path: Path, share: float, named: bool, told: bool) -> None:
    data = pictures(tmp_path / "data")
    for path in (data / "masks").iterdir():
        mask = np.zeros(np.asarray(Image.open(path)).shape, np.uint8)
        mask.flat[: int(share * mask.size)] = 255
        Image.fromarray(mask).save(path)
    found = check_data(data, DataOptions(classes={"cell": 255} if named else {})).findings
    assert ("filling-value" in [each.code for each in found]) is told


def test_opaque_pictures_are_told_once(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", colour=True)
    for path in (data / "images").iterdir():
        Image.open(path).convert("RGBA").save(path)
    (found,) = check_data(data, DataOptions()).findings
    assert (found.code, found.case, found.severity) == ("opaque-alpha", None, "warning")
    assert found.message.startswith("6 of 6 cases")


@pytest.mark.parametrize("odd", [0, 5])
def test_a_grey_picture_among_coloured_ones_is_read_in_colours(tmp_path: Path, odd: int) -> None:
    data = pictures(tmp_path / "data", colour=True)
    Image.open(data / f"images/c{odd}.png").convert("L").save(data / f"images/c{odd}.png")
    assert len(scan(data, DataOptions()).channels) == 3
    (found,) = check_data(data, DataOptions()).findings
    assert (found.code, found.case, found.severity) == ("grey-and-coloured", None, "warning")
    assert f"images/c{odd}.png" in found.message
    repaired = fix_data(data, DataOptions(), tmp_path / "fixed")
    assert [each.case for each in repaired.repairs] == [f"c{odd}"]
    assert repaired.result.findings == ()


def test_the_shape_of_a_turned_photograph_is_the_shown_one(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=turned(6))
    assert read_geometry(tmp_path / "a.jpg").shape == (1, 13, 9)


def test_pictures_of_8_and_16_bits_in_one_set_are_told(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", colour=True)
    for index in range(3):
        image, geometry = read_image(data / f"images/c{index}.png")
        write_image(data / f"images/c{index}.png", image.astype(np.uint16) * 257, geometry)
    found = [each for each in check_data(data, DataOptions()).findings if each.code == "mixed-depth"]
    assert [each.message.split(";")[0].split()[1] for each in found] == ["red", "green", "blue"]
    assert "in 3 cases, as in pictures of 8 bits" in found[0].message


def test_predict_warns_of_what_is_read_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(COLOURS).convert("CMYK").save(tmp_path / "a.jpg")
    channels = [Channel(name=name) for name in ("red", "green", "blue")]
    load_input(InputCase("a", (tmp_path / "a.jpg",)), channels)
    assert "a.jpg stores its colours as CMYK" in caplog.text


@pytest.mark.parametrize(("values", "told"), [((1, 1, 255), True), ((1, 65535, 1), True), ((1, 2, 1), False)])
def test_masks_of_other_values_among_masks_are_told(tmp_path: Path, values: tuple[int, ...], told: bool) -> None:
    data = tmp_path / "data"
    for case, value in enumerate(values):
        mask = np.zeros((20, 20), np.uint16)
        mask[5 : 9 + case, 6:12] = value
        for folder, array in (("images", np.full((20, 20), 7, np.uint8) + mask.astype(bool)), ("labels", mask)):
            (data / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(data / folder / f"{case}.png")
    codes = [each.code for each in check_data(data, DataOptions()).findings]
    assert ("mixed-masks" in codes) is told
    assert "mixed-masks" not in [each.code for each in check_data(data, DataOptions(join="cell")).findings]
