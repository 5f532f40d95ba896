"""Files of every format, truncated and with bytes flipped: a clear error or right data, never a crash or silent zeros.

The formats are damaged in another process, so that a crash in a library is a failed test and not the end of all.
"""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_series import write_series
from laboratory_files import hdf5, ngff
from PIL import Image, ImageCms
from zarr.codecs import BloscCodec

from autounet.imageio import SUFFIXES, is_series, read_header, read_image, read_labels, write_image
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry

ROUNDS = 100
SHAPE = (6, 16, 18)
LIMIT = 400
"""seconds in which all formats must be through, which takes some 10: a hang is told, slowness is not"""
CHECKED = (".nii.gz", ".nrrd", ".mha", ".mhd", ".png")
"""formats whose compression or checksums notice nearly all that happens to the voxels; .mhd keeps them elsewhere"""
FORMATS = (
    ".nii", ".nii.gz", ".nrrd", "raw.nrrd", ".seg.nrrd", ".mha", "raw.mha", ".mhd", ".png", "palette.png", "rgba.png",
    "deep.png", ".tif", "stack.tif", "rgb.tif", "cmyk.tif", "bits.tif", ".ome.tif", ".gif", ".jpg", "turned.jpg",
    ".bmp", "dicom", "dicom-jpeg2000", ".h5", ".ome.zarr", "array.ome.zarr", "chunk.ome.zarr", "shard.ome.zarr",
)  # fmt: skip


def voxels(flat: bool) -> np.ndarray:
    shape = (1, 1, *SHAPE[1:]) if flat else (1, *SHAPE)
    return np.random.default_rng(0).integers(1, 250, shape).astype(np.uint8)


def make(folder: Path, form: str) -> tuple[Path, Path]:
    """A sound image of a format: what is read, and the file to damage."""
    if form.startswith("dicom"):
        larger = np.random.default_rng(0).integers(1, 250, (3, 40, 36)).astype(np.int16)
        write_series(folder / "case_7", larger, compressed=form != "dicom")
        return folder / "case_7", folder / "case_7" / "002.dcm"
    if form == "shard.ome.zarr":
        codecs = {"compressors": BloscCodec(cname="zstd"), "shards": (6, 16, 24), "chunks": (6, 8, 8)}
        path = ngff(folder / "case_7.ome.zarr", voxels(False)[0], "zyx", version="0.5", levels=1, **codecs)
        return path, path / "0" / "c" / "0" / "0" / "0"
    if form.endswith(".ome.zarr"):
        path = ngff(folder / "case_7.ome.zarr", voxels(False)[0], "zyx")
        return path, path / {".ome.zarr": ".zattrs", "array.ome.zarr": "0/.zarray"}.get(form, "0/0.0.0")
    path = folder / f"case_7{form if form.startswith('.') else '.' + form.partition('.')[2]}"
    if form == ".seg.nrrd":
        write_segments(path)
    elif form == ".h5":
        hdf5(path, {"data": voxels(False)[0]})
    elif path.suffix in (".png", ".gif", ".jpg", ".bmp"):
        write_flat(path, form)
    elif path.suffix in (".tif",):
        write_stack(path, form)
    elif form in ("raw.nrrd", "raw.mha", ".mhd"):
        import SimpleITK as sitk

        sitk.WriteImage(sitk.GetImageFromArray(voxels(False)[0]), str(path), useCompression=False)
    else:
        write_image(path, voxels(False), Geometry(shape=SHAPE, kind=SUFFIXES[form]))
    return path, path


def write_segments(path: Path) -> None:
    header = "type: uchar\ndimension: 3\nsizes: 18 16 6\nencoding: raw\n"
    names = "".join(f"Segment{index}_Name:=s{index}\nSegment{index}_LabelValue:={index}\n" for index in range(1, 250))
    path.write_bytes(b"NRRD0004\n" + (header + names).encode() + b"\n" + voxels(False).tobytes())


def write_flat(path: Path, form: str) -> None:
    pixels = voxels(True)[0, 0]
    if form == "rgba.png":
        pixels = np.stack([pixels, 255 - pixels, pixels // 2, np.full_like(pixels, 255)], -1)
    image, options = Image.fromarray(pixels), {}
    if form == "palette.png":
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 128)])
    if form == "turned.jpg":
        exif = Image.Exif()
        exif[274] = 6
        options = {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    if form == "deep.png":
        path.write_bytes(imagecodecs.png_encode(np.stack([pixels * np.uint16(257)] * 3, -1)))
    else:
        image.save(path, **options)


def write_stack(path: Path, form: str) -> None:
    import tifffile

    if form == ".ome.tif":
        tifffile.imwrite(path, voxels(False)[0], metadata={"axes": "ZYX", "PhysicalSizeZ": 2.0})
    elif form == "rgb.tif":
        tifffile.imwrite(path, np.stack([voxels(True)[0, 0]] * 3, -1), photometric="rgb", compression="lzw")
    elif form == "cmyk.tif":
        Image.fromarray(np.stack([voxels(True)[0, 0]] * 4, -1), "CMYK").save(path)
    elif form == "bits.tif":
        tifffile.imwrite(path, voxels(True)[0, 0] > 99, photometric="miniswhite")
    elif form == "stack.tif":
        write_image(path, voxels(False), Geometry(shape=SHAPE, kind="tiff"))
    else:
        write_image(path, voxels(True), Geometry(shape=(1, *SHAPE[1:]), kind="tiff", dimension=2))


def damage(whole: bytes, rng: np.random.Generator) -> tuple[bytes, bool]:
    """One of four: cut off; bytes changed anywhere, in the first bytes, or in text; and whether it was cut."""
    kind = int(rng.integers(4))
    if kind == 0:
        return whole[: int(rng.integers(len(whole)))], True
    changed = bytearray(whole)
    limit = len(whole) if kind == 1 else min(len(whole), (0, 0, 400, 64)[kind])
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(limit))
        changed[place] = int(rng.integers(256)) if rng.random() < 0.5 else changed[place] ^ (1 << int(rng.integers(8)))
    return bytes(changed), False


def attack(folder: Path, form: str, seed: int) -> None:
    """Damages the file many times, and reads it each time as an image, as labels and for its header."""
    folder.mkdir()
    source, target = make(folder, form)
    reader = read_labels if form == ".seg.nrrd" else read_image
    sound, _ = reader(source)
    whole = target.read_bytes()
    rng = np.random.default_rng((seed, FORMATS.index(form)))
    told = 0
    for _ in range(ROUNDS):
        content, cut = damage(whole, rng)
        target.write_bytes(content)
        for read in (read_header, read_labels, reader):
            found, message = None, "case_7"
            try:
                found = read(source)
            except DataError as error:
                message = str(error)
            assert "case_7" in message, message
            assert "\n" not in message, message
        told += found is None
        if found is not None:
            require_right(found[0], sound, form, cut)
    assert told > ROUNDS // 10, "hardly any damage was noticed"


def require_right(array: np.ndarray, sound: np.ndarray, form: str, cut: bool) -> None:
    """What is read of a damaged file is no silent nothing; cut off, it is all there but what is no voxel."""
    assert array.size
    assert array.any(), "a damaged file was read as zeros"
    assert np.isfinite(array).all() or array.dtype == np.float32
    if cut and not form.endswith((".gif", ".jpg")):
        np.testing.assert_array_equal(array, sound)
    if form in CHECKED and array.shape == sound.shape:
        np.testing.assert_array_equal(array, sound)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", __file__, str(tmp_path_factory.mktemp("damaged")), "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_told(outcome: subprocess.CompletedProcess[str], form: str) -> None:
    lines = dict(line.split(": ", 1) for line in outcome.stdout.splitlines() if ": " in line)
    assert lines.get(form) == "right", f"{lines.get(form)} (exit {outcome.returncode}): {outcome.stderr[-3000:]}"


def test_every_format_is_damaged() -> None:
    endings = {form if form.startswith(".") else "." + form.partition(".")[2] for form in FORMATS if "." in form}
    same = {".tiff": ".tif", ".jpeg": ".jpg", ".ome.tiff": ".ome.tif", ".hdf5": ".h5", ".zarr": ".ome.zarr"}
    assert {same.get(ending, ending) for ending in SUFFIXES} == endings


def test_folders_that_are_no_series(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.dcm").write_bytes(b"no DICOM at all")
    assert is_series(tmp_path / "a")
    with pytest.raises(DataError, match=r"x\.dcm is not a DICOM file"):
        read_image(tmp_path / "a")


def main(folder: Path, seed: int, forms: Sequence[str] = FORMATS) -> None:
    """One line for each format: begun, then right, or what went wrong; a crash leaves `begun`."""
    for form in forms:
        sys.stdout.write(f"{form}: begun\n")
        sys.stdout.flush()
        try:
            attack(folder / form, form, seed)
            sys.stdout.write(f"{form}: right\n")
        except Exception as error:
            traceback.print_exc()
            sys.stdout.write(f"{form}: {type(error).__name__}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or FORMATS)
