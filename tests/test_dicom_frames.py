"""DICOM files of many frames are read as the series of single slices that they could be, or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autounet.imageio import read_header, read_image, read_image_content, series_files
from autounet.schema.errors import DataError, FileError

pydicom = pytest.importorskip("pydicom")
EXPLICIT, IMPLICIT, DEFLATED, BIG, JPEG = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.70",
)  # fmt: skip
RLE = "1.2.840.10008.1.2.5"
SPACING, ORIGIN = (2.5, 0.5, 0.7), (-40.5, 12.0, 7.25)
DIRECTION = Rotation.random(random_state=3).as_matrix()


def group(**elements: object) -> object:
    found = pydicom.Dataset()
    for name, value in elements.items():
        setattr(found, name, value)
    return found


def write_frames(
    path: Path,
    stored: np.ndarray,
    order: Sequence[int] | None = None,
    rescale: Sequence[tuple[float, float]] = (),
    syntax: str = EXPLICIT,
    lengths: bool = True,
    **changes: object,
) -> None:
    """An Enhanced MR image of (Z, Y, X), frames in this order; `lengths` False: sequences end with delimiters."""
    order = range(len(stored)) if order is None else order
    inward, along = DIRECTION[:, 2], DIRECTION[:, :2]
    shared = group(
        PixelMeasuresSequence=[group(PixelSpacing=[SPACING[1], SPACING[2]], SliceThickness=2)],
        PlaneOrientationSequence=[group(ImageOrientationPatient=[f"{each:.10g}" for each in along.T.ravel()])],
    )
    frames = []
    for z in order:
        place = np.array(ORIGIN) + z * SPACING[0] * inward
        frame = group(PlanePositionSequence=[group(ImagePositionPatient=[f"{each:.10g}" for each in place])])
        if rescale:
            slope, intercept = rescale[z]
            frame.PixelValueTransformationSequence = [group(RescaleSlope=slope, RescaleIntercept=intercept)]
        frames.append(frame)
    image = group(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1", SOPInstanceUID="1.2.3", Modality="MR", SeriesInstanceUID="1.2.3.4",
        Rows=stored.shape[1], Columns=stored.shape[2], BitsAllocated=16, BitsStored=16, HighBit=15, SamplesPerPixel=1,
        PixelRepresentation=1, PhotometricInterpretation="MONOCHROME2", NumberOfFrames=len(frames),
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip
    order_of_bytes = ">i2" if syntax == BIG else "<i2"
    image.add_new(0x7FE00010, "OW", stored[list(order)].astype(order_of_bytes).tobytes())
    for name, value in changes.items():
        setattr(image, name, value)
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if name in image and not lengths:
            image[name].is_undefined_length = True
            for item in image[name].value:
                item.is_undefined_length_sequence_item = True
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = "1.2.840.1", "1.2.3"
    path.parent.mkdir(parents=True, exist_ok=True)
    explicit, little = syntax != IMPLICIT, syntax != BIG
    pydicom.dcmwrite(path, image, implicit_vr=not explicit, little_endian=little, enforce_file_format=True)


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-500, 1500, (5, 6, 7)).astype(np.int16)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG])
@pytest.mark.parametrize("lengths", [True, False])
def test_frames_are_put_in_their_places(tmp_path: Path, syntax: str, lengths: bool) -> None:
    write_frames(tmp_path / "a" / "x.dcm", voxels(), (3, 0, 4, 1, 2), syntax=syntax, lengths=lengths)
    image, geometry = read_image(tmp_path / "a")
    np.testing.assert_array_equal(image[0], voxels())
    np.testing.assert_allclose(geometry.spacing, SPACING, rtol=1e-6)
    np.testing.assert_allclose(geometry.origin, ORIGIN, atol=1e-6)
    np.testing.assert_allclose(np.reshape(geometry.direction, (3, 3)), DIRECTION, atol=1e-6)
    assert read_header(tmp_path / "a") == (geometry, 1)


def test_each_frame_has_its_own_rescale(tmp_path: Path) -> None:
    rescale = [(1, -1024), (4, 8), (0.25, 0), (2, 0), (1, 0)]
    write_frames(tmp_path / "a" / "x.dcm", voxels(), (4, 3, 2, 1, 0), rescale)
    expected = np.stack(
        [plane * slope + intercept for plane, (slope, intercept) in zip(voxels(), rescale, strict=True)]
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a")[0][0], expected)


def test_a_frame_per_file_and_frames_in_two_files(tmp_path: Path) -> None:
    stored = voxels()
    for z in range(5):
        write_frames(tmp_path / "single" / f"{5 - z}.dcm", stored, (z,))
    write_frames(tmp_path / "halves" / "a.dcm", stored, (4, 3))
    write_frames(tmp_path / "halves" / "b.dcm", stored, (2, 0, 1))
    for name in ("single", "halves"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[0][0], stored)
    assert [path.name for path in series_files(tmp_path / "single")] == [f"{5 - z}.dcm" for z in range(5)]
    with pytest.raises(DataError, match=r"b\.dcm has 3 frames in one file. Give a series with a file per slice"):
        series_files(tmp_path / "halves")


def test_what_is_no_whole_volume_is_refused(tmp_path: Path) -> None:
    stored, folder = voxels(), tmp_path / "a"
    write_frames(folder / "x.dcm", stored, (0, 1, 4))
    with pytest.raises(DataError, match=r"is missing 2 slices between frame 2 of x\.dcm and frame 3 of x\.dcm"):
        read_image(folder)
    write_frames(folder / "x.dcm", stored, (0, 1, 2, 1))
    with pytest.raises(DataError, match=r"frame 2 of x\.dcm and frame 4 of x\.dcm at the same position"):
        read_image(folder)
    write_frames(folder / "x.dcm", stored, NumberOfFrames=4)
    with pytest.raises(DataError, match=r"x\.dcm is damaged: it has 4 frames and describes 5"):
        read_image(folder)
    write_frames(folder / "x.dcm", stored, PerFrameFunctionalGroupsSequence=[])
    with pytest.raises(DataError, match="5 frames in one file and does not say where they lie"):
        read_image(folder)
    write_frames(folder / "x.dcm", stored, PixelData=stored[:4].tobytes())
    with pytest.raises(DataError, match=r"x\.dcm is truncated: 336 of 420 bytes of pixels"):
        read_image(folder)
    compressed = pydicom.encaps.encapsulate([b"\xff\xd8" * 5] * 5)
    write_frames(folder / "x.dcm", stored, syntax=JPEG, PixelData=compressed)
    with pytest.raises(DataError, match=r"5 compressed frames in one file. Convert it to NIfTI, or decompress it"):
        read_image(folder)


def test_damaged_files_are_refused_and_never_read_otherwise(tmp_path: Path) -> None:
    """Any byte of the functional groups, and any length of the file."""
    file = tmp_path / "a" / "x.dcm"
    write_frames(file, voxels())
    whole, expected = file.read_bytes(), read_image(file.parent)
    start = whole.index(b"\x00\x52\x29\x92")
    rng = np.random.default_rng(0)
    for place in (*rng.integers(start, len(whole) - 450, 150), *range(start, start + 60)):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        try:
            image, geometry = read_image(file.parent)
        except DataError as error:
            assert "x.dcm" in str(error) or str(file.parent) in str(error)  # noqa: PT017
        else:  # a number was changed, or nothing that is read
            assert image.shape == expected[0].shape
            assert geometry.shape == expected[1].shape
    for length in rng.integers(140, len(whole), 40):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_image(file.parent)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), allocated=st.sampled_from([8, 16, 32]), signed=st.booleans(), inverted=st.booleans())
def test_values_are_read_however_they_are_stored(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, allocated: int, signed: bool, inverted: bool
) -> None:
    """Any bits stored and high bit, with anything in the other bits; MONOCHROME1 as MONOCHROME2 would store it."""
    bits = data.draw(st.integers(2, allocated))
    high = data.draw(st.integers(bits - 1, allocated - 1))
    slope, intercept = data.draw(st.sampled_from([(1, 0), (2, -24), (0.5, 3)]))
    rng = np.random.default_rng(bits)
    low = -(1 << (bits - 1)) if signed else 0
    values = rng.integers(low, low + (1 << bits), (2, 4, 5))
    stored = (2 * low + (1 << bits) - 1 - values) if inverted else values
    junk = rng.integers(0, 1 << allocated, values.shape, np.uint64)
    mask = np.uint64(((1 << bits) - 1) << (high - bits + 1))
    words = ((stored & ((1 << bits) - 1)).astype(np.uint64) << np.uint64(high - bits + 1)) | (junk & ~mask)
    changes = {
        "BitsAllocated": allocated, "BitsStored": bits, "HighBit": high, "PixelRepresentation": int(signed),
        "PhotometricInterpretation": f"MONOCHROME{2 - inverted}",
        "PixelData": words.astype(f"<u{allocated // 8}").tobytes(),
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("values") / "a"
    write_frames(folder / "x.dcm", voxels()[:2, :4, :5], rescale=[(slope, intercept)] * 2, **changes)
    np.testing.assert_array_equal(read_image(folder)[0][0], (values * slope + intercept).astype(np.float32))


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
def test_padding_is_dark_and_never_inverted(tmp_path: Path, syntax: str) -> None:
    values = np.random.default_rng(0).integers(100, 4000, (1, 32, 40)).astype(np.uint16)
    expected = values.copy()
    expected[0, 0] = 0
    for padding in (0, 4095):
        stored = 4095 - values
        stored[0, 0] = padding
        file = tmp_path / f"{syntax}{padding}" / "x.dcm"
        changes = {
            "PixelRepresentation": 0,
            "BitsStored": 12,
            "HighBit": 11,
            "PhotometricInterpretation": "MONOCHROME1",
        }
        write_frames(file, values, **changes, PixelData=stored.tobytes(), PixelPaddingValue=padding)
        if syntax == RLE:
            image = pydicom.dcmread(file)
            del image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence, image.NumberOfFrames
            image.compress(RLE, generate_instance_uid=False)
            image.save_as(file)
        np.testing.assert_array_equal(read_image(file.parent)[0][0], expected)


def test_what_viewers_show_otherwise_is_said(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(np.int16)
    values[0] = 300
    write_frames(
        tmp_path / "a" / "x.dcm", values, PixelPaddingValue=300, ModalityLUTSequence=[group(LUTExplanation="x")]
    )
    _, _, remarks = read_image_content(tmp_path / "a")
    assert [each.code for each in remarks] == ["not-as-shown", "not-as-shown"]
    assert "Modality LUT" in remarks[0].text
    assert "has 42 voxels with the padding value 300" in remarks[1].text
    write_frames(tmp_path / "b" / "x.dcm", values, HighBit=16)
    with pytest.raises(DataError, match="its pixels have 16 bits, the highest of them number 16 of 16"):
        read_image(tmp_path / "b")


def test_a_series_may_mix_how_values_are_stored(tmp_path: Path) -> None:
    stored = voxels() & 0x0FFF
    for z, (kind, high) in enumerate([("1", 11), ("2", 11), ("1", 15), ("2", 15), ("2", 13)]):
        changes = {"PixelRepresentation": 0, "BitsStored": 12, "HighBit": high}
        words = (4095 - stored[z] if kind == "1" else stored[z]).astype(np.uint16) << (high - 11)
        changes |= {"PhotometricInterpretation": f"MONOCHROME{kind}", "PixelData": words.tobytes()}
        write_frames(tmp_path / "a" / f"{z}.dcm", stored, (z,), **changes)
    np.testing.assert_array_equal(read_image(tmp_path / "a")[0][0], stored)


@pytest.mark.parametrize(
    ("behind", "problem"),
    [
        (b"\x71\x88\x0c\x93UN\0\0" + (1 << 31).to_bytes(4, "little") + b"abc", "says that it has 2147483648 bytes"),
        (b"\x71\x88\x0c\x93CM\xff\xff" + bytes(40), "is of the unknown kind 'CM'"),
    ],
)
def test_elements_behind_compressed_pixels_take_no_memory(tmp_path: Path, behind: bytes, problem: str) -> None:
    write_series(tmp_path / "a", np.arange(2 * 40 * 36, dtype=np.int16).reshape(2, 40, 36), compressed=True)
    assert read_image(tmp_path / "a")[0].shape == (1, 2, 40, 36)
    file = sorted((tmp_path / "a").iterdir())[0]
    file.write_bytes(file.read_bytes() + behind)
    with pytest.raises(FileError, match=problem):
        read_image(tmp_path / "a")


def test_elements_before_the_data_set_are_of_known_kinds(tmp_path: Path) -> None:
    """GDCM takes the length of an unknown kind from other bytes."""
    write_series(tmp_path / "a", np.arange(2 * 40 * 36, dtype=np.int16).reshape(2, 40, 36), compressed=True)
    file = sorted((tmp_path / "a").iterdir())[0]
    content = file.read_bytes()
    place = content.index(b"\2\0\3\0UI") + 4
    file.write_bytes(content[:place] + b"U3" + content[place + 2 :])
    with pytest.raises(FileError, match="of the unknown kind 'U3'"):
        read_image(tmp_path / "a")
