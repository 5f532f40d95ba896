"""Files that were made to harm: each is a finding of its case, and neither a traceback, a hang, nor a full memory."""

from __future__ import annotations

import bz2
import gzip
import json
import resource
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pydicom
import pytest
import torch
from broken_sets import NONE, image_file, label_file, volumes
from dicom_series import write_series
from PIL import Image

from autounet.datasets import scan
from autounet.datasets.splits import with_groups
from autounet.datasets.synthetic import make_demo_dataset
from autounet.imageio import image_format, read_header, read_image, read_labels, write_image
from autounet.prediction.ensemble import _stored_map
from autounet.schema.errors import DataError, FileError, ModelError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions
from autounet.store.weights import read_pretrained
from autounet.workflow import dataset_stage
from autounet.workflow.dataset_stage import check_data

MOST_GROWTH = 200 << 20
"""bytes of address space that reading a bad file may add"""


def nifti(datatype: int = 2, bits: int = 8, offset: float = 352.0, dim: tuple[int, ...] = (3, 4, 4, 4)) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into(f"<{len(dim)}h", header, 40, *dim)
    struct.pack_into("<2h", header, 70, datatype, bits)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, offset)
    header[344:348] = b"n+1\0"
    return bytes(header)


def nrrd(*lines: str, encoding: str = "raw") -> bytes:
    head = ["NRRD0004", "type: uchar", "dimension: 3", "sizes: 4 4 4", f"encoding: {encoding}", *lines]
    return ("\n".join(head) + "\n\n").encode()


def meta(**fields: object) -> bytes:
    known = {"NDims": 3, "DimSize": "4 4 4", "ElementType": "MET_UCHAR", **fields, "ElementDataFile": "LOCAL"}
    return "".join(f"{key} = {value}\n" for key, value in known.items()).encode()


ZEROS = bytes(64 << 20)
BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "offset that is no number": (".nii", lambda: nifti(offset=float("nan")) + bytes(64)),
    "offset beyond everything": (".nii", lambda: nifti(offset=3e38) + bytes(64)),
    "complex numbers": (".nii", lambda: nifti(32, 64) + bytes(512)),
    "long complex numbers": (".nii", lambda: nifti(1792, 128) + bytes(1024)),
    "an axis of less than nothing": (".nii", lambda: nifti(dim=(3, 4, -4, 4)) + bytes(64)),
    "terabytes by the header": (".nii.gz", lambda: gzip.compress(nifti(dim=(3, 32767, 32767, 32767)) + bytes(64))),
    "a bomb before the voxels": (".nii.gz", lambda: gzip.compress(nifti(offset=float(60 << 23)) + ZEROS)),
    "a bomb behind the voxels": (".nii.gz", lambda: gzip.compress(nifti() + ZEROS)),
    "a bomb of many members": (
        ".nii.gz",
        lambda: gzip.compress(nifti() + bytes(64)) + 60 * gzip.compress(ZEROS[: 1 << 20]),
    ),
    "a bomb in bzip2": (".nrrd", lambda: nrrd("byte skip: 800000000", encoding="bzip2") + bz2.compress(ZEROS)),
    "lines without end": (".nrrd", lambda: nrrd("line skip: 9999999999") + bytes(64)),
    "sizes beyond everything": (".nrrd", lambda: nrrd().replace(b"4 4 4", b"99999 99999 99999") + bytes(64)),
    "a bomb in zlib": (".mha", lambda: meta(CompressedData="True") + zlib.compress(ZEROS)),
    "terabytes of components": (".mha", lambda: meta(ElementNumberOfChannels=2_000_000_000) + bytes(64)),
    "text": (".png", lambda: b"hello"),
    "nothing but a magic number": (".tif", lambda: b"II*\0\xff\xff\xff\xff"),
}


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_stage, "available_cores", lambda: 1)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    ending, make = BAD[kind]
    path = tmp_path / f"case{ending}"
    path.write_bytes(make())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for read in (read_image, read_labels):
        with pytest.raises(FileError, match="case") as raised:
            read(path)
        assert raised.value.remedy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used < MOST_GROWTH


def small_files(folder: Path) -> list[Path]:
    """One of each format whose pixels libraries decode."""
    geometry = Geometry(shape=(1, 40, 50), kind="png", dimension=2)
    values = np.arange(2000, dtype=np.uint8).reshape(1, 40, 50)
    for ending, kind in ((".png", "png"), (".tif", "tiff")):
        write_image(folder / f"case{ending}", values[None], geometry.model_copy(update={"kind": kind}))
    Image.fromarray(values[0]).save(folder / "case.jpg")
    Image.fromarray(values[0]).save(folder / "case.bmp")
    write_series(folder / "series", values.astype(np.int16))
    return [*(folder / f"case{ending}" for ending in (".png", ".tif", ".jpg", ".bmp")), folder / "series"]


def test_what_a_header_promises_has_to_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = small_files(tmp_path)
    for path in files:
        read_image(path)
    with monkeypatch.context() as patch:
        patch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
        for path in files:
            with pytest.raises(FileError, match=r"would take .* of memory by its header"):
                read_image(path)
    monkeypatch.setattr("autounet.system_memory.group_available", lambda group: 1000)  # of a container, or a job
    with pytest.raises(FileError, match=r"would take .* of memory by its header"):
        read_image(files[0])


def test_a_strip_of_a_tiff_holds_no_more_than_its_page(tmp_path: Path) -> None:
    content = zlib.compress(ZEROS)
    tags = [(256, 4), (257, 4), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, 4), (279, len(content))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path = tmp_path / "case.tif"
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    with pytest.raises(FileError, match="cannot be read"):
        read_image(path)


def test_compressed_elements_of_dicom_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "series", np.zeros((1, 8, 8), np.int16))
    (path,) = (tmp_path / "series").iterdir()
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    assert read_image(tmp_path / "series")[0].shape == (1, 1, 8, 8)
    dataset.add_new((0x0009, 0x1001), "OB", ZEROS)
    dataset.save_as(path, enforce_file_format=True)
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(image_format, "MOST_INFLATED", 2**24)
    with pytest.raises(FileError, match="hold more than 16 MB"):
        read_image(tmp_path / "series")


@pytest.mark.parametrize("kind", ["complex numbers", "offset that is no number", "text"])
@pytest.mark.parametrize("place", [image_file, label_file])
def test_one_bad_file_is_one_finding_of_the_check(tmp_path: Path, kind: str, place: Callable[[Path], Path]) -> None:
    folder = volumes(tmp_path / "data")
    place(folder).write_bytes(gzip.compress(BAD[kind][1]()))
    found = [finding for finding in check_data(folder, NONE).findings if finding.severity == "fatal"]
    assert {finding.case for finding in found} == {"c2"}
    assert {finding.code for finding in found} == {"unreadable-file"}


def test_whatever_a_library_raises_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autounet import imageio

    path = image_file(volumes(tmp_path / "data"))
    for error in (
        KeyError("x"),
        RecursionError(),
        MemoryError(),
        PermissionError(13, "denied"),
        np.exceptions.AxisError("axis"),
    ):

        def fails(_: Path, error: Exception = error) -> None:
            raise error

        monkeypatch.setitem(imageio.FORMATS, "nifti", imageio.FORMATS["nifti"].__class__((".nii.gz",), fails, fails))
        for read in (read_image, read_labels, read_header):
            with pytest.raises(FileError, match="c2_0000"):
                read(path)


@pytest.mark.parametrize("name", ["dataset.json", "cases.json", "palette.json", "list.json", "c2_0000.json"])
def test_json_nested_without_end_ends_no_check_with_a_traceback(tmp_path: Path, name: str) -> None:
    folder = volumes(tmp_path / "data")
    (folder / name).write_text('{"training":' + "[" * 10**5 + '"case" "spacing"')
    with suppress(DataError):  # of a file that is ours by its name
        assert check_data(folder, NONE).findings is not None


def test_paths_that_no_system_holds_are_missing_files(tmp_path: Path) -> None:
    long, table = "x" * 300, volumes(tmp_path / "table")
    (table / "cases.csv").write_text(
        f"case,image,label\nk,imagesTr/{long},{long}/a.nii.gz\nm,imagesTr/c0_0000.nii.gz,a"
    )
    decathlon = make_demo_dataset(tmp_path / "decathlon", cases=2, layout="msd")
    content = json.loads((decathlon / "dataset.json").read_text())
    content["training"][0]["image"] = f"./{long}/a.nii.gz"
    (decathlon / "dataset.json").write_text(json.dumps(content))
    for folder in (table, decathlon):
        found = check_data(folder, NONE).findings
        assert any(long in each.message for each in found if each.code in ("missing-image", "missing-label")), found


def test_a_list_of_folds_nested_without_end_is_told(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "data")
    (tmp_path / "folds.json").write_text("[" * 10**5)
    found = check_data(folder, DataOptions(splits=str(tmp_path / "folds.json"))).findings
    assert any("folds.json is not readable JSON" in finding.message for finding in found)


@pytest.mark.parametrize("pattern", [r"((\w|\d)*)*!", r"(.*.*)*_never"])
def test_an_expression_that_backtracks_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    folder = volumes(tmp_path / "data")
    for number in range(1, 9):
        for file in folder.rglob(f"c{number}*"):
            file.rename(file.with_name(file.name.replace(f"c{number}", f"c{number}" + "a" * 60)))
    monkeypatch.setitem(with_groups.__globals__, "GROUP_SECONDS", 1.0)
    with pytest.raises(OptionError, match="takes longer than 1 s"):
        check_data(folder, DataOptions(group=pattern))


def test_groups_are_captured(tmp_path: Path) -> None:
    found = scan(volumes(tmp_path / "data"), DataOptions(group=r"c(\d)"))
    assert [case.group for case in found.cases] == [case.identifier[1:2] for case in found.cases]


def test_a_mhd_file_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(64))
    (tmp_path / "data").mkdir()
    for name in ("../secret.raw", "a/../../secret.raw", str(tmp_path / "secret.raw"), "..\\secret.raw", "C:secret.raw"):
        path = tmp_path / "data" / "case.mhd"
        path.write_bytes(meta().replace(b"LOCAL", name.encode()))
        with pytest.raises(FileError, match="keeps its voxels in"):
            read_image(path)
    (tmp_path / "data" / "own.raw").write_bytes(bytes(range(64)))
    path.write_bytes(meta().replace(b"LOCAL", b"own.raw"))
    assert read_image(path)[0].max() == 63


def test_a_sidecar_that_is_no_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [1, 1, 1]}))
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(FileError):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (b"\xff\x51", b"\xff\x51\x00\x29\x00\x00\x7f\xff\xff\xff"),  # a width of two thousand million
        (b"\x00\x01\x8f\x01\x01", b"\x00\x01\x8f\xff\xff"),  # samples 255 pixels apart: OpenJPEG never ends
        (b"\xff\x52", b"\xff\x7f"),  # a marker that nobody knows
    ],
)
def test_compressed_pixels_that_contradict_their_file_are_not_decoded(
    tmp_path: Path, place: bytes, value: bytes
) -> None:
    write_series(tmp_path / "case", np.arange(1440, dtype=np.int16).reshape(1, 40, 36), compressed=True)
    (path,) = (tmp_path / "case").iterdir()
    content = path.read_bytes()
    assert content.count(place) == 1
    where = content.index(place)
    path.write_bytes(content[:where] + value + content[where + len(value) :])
    with pytest.raises(FileError, match="compressed pixels"):
        read_image(tmp_path / "case")


def test_paths_that_no_system_can_hold_are_missing_files(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "data")
    rows = [f"c{number},imagesTr/c{number}_0000.nii.gz,labelsTr/c{number}.nii.gz" for number in range(3)]
    (folder / "cases.csv").write_text("case,CT,label\n" + "\n".join(rows) + f"\nlong,{'x' * 5000}.nii.gz,{'y' * 5000}")
    found = check_data(folder / "cases.csv", NONE).findings
    assert {finding.code for finding in found if finding.case == "long"} == {"missing-image", "missing-label"}


MAPS: dict[str, Callable[[Path], object]] = {
    "compressed terabytes": lambda path: promise(path, 1 << 45),
    "another array": lambda path: np.savez(path, labels=np.zeros(3)),
    "whole numbers": lambda path: np.savez(path, probabilities=np.zeros((4, 5, 2), np.int8)),
    "objects": lambda path: np.savez(path, probabilities=np.array([{}], object)),
    "no zip": lambda path: path.write_bytes(b"hello"),
    "a huge shape": lambda path: member(
        path, "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 9)}"
    ),
    "a shape of nothing": lambda path: member(path, "{'descr': '<f4', 'fortran_order': False, 'shape': (4, -5, 2)}"),
    "a method that nobody knows": lambda path: member(path, "{}", method=99),
}


def member(path: Path, shape: tuple[int, ...], method: int = 0) -> None:
    """A zip with one array, of this shape by its header and hardly a value."""
    text = str({"descr": "<f4", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    with ZipFile(path, "w") as archive:
        archive.writestr("probabilities.npy", b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(8))
    if method:
        content = bytearray(path.read_bytes())
        directory = content.index(b"PK\1\2")
        content[8:10] = content[directory + 10 : directory + 12] = method.to_bytes(2, "little")
        path.write_bytes(content)


def promise(path: Path, size: int) -> None:
    """A zip whose member is said to be so large."""
    with ZipFile(path, "w") as archive:
        archive.writestr("probabilities.npy", b"x")
        archive.infolist()[0].file_size = size


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_of_probabilities_that_is_none_is_told(tmp_path: Path, kind: str) -> None:
    MAPS[kind](path := tmp_path / "case.probabilities.npz")
    with pytest.raises(FileError, match=r"probabilities\.npz"):
        _stored_map(path)


def test_a_compressed_file_in_place_of_weights_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """`torch.save` compresses nothing."""
    torch.save({"conv.weight": torch.zeros(1 << 16)}, tmp_path / "plain.pth")
    assert read_pretrained(tmp_path / "plain.pth")["conv.weight"].shape == (1 << 16,)
    with ZipFile(tmp_path / "plain.pth") as plain, ZipFile(tmp_path / "bomb.pth", "w", ZIP_DEFLATED) as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    with pytest.raises(ModelError, match="compressed"):
        read_pretrained(tmp_path / "bomb.pth")
