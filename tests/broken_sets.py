"""Makers of sound data sets of tiny images, and of ones with a broken file or geometry.

Every maker starts from six sound cases and spoils something. Case `c2` is the one that is spoilt unless said otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from autounet.imageio import read_image, read_labels, write_image, write_labels
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions

SHAPE = (6, 10, 8)
GEOMETRY = Geometry(shape=SHAPE, spacing=(2.0, 1.0, 1.5), origin=(-10.0, 20.0, 5.0))
SPOILT = "c2"
CASES = 6
NONE = DataOptions()


# ---- sound data sets -----------------------------------------------------------------------------------------


def pixels(index: int, shape: tuple[int, ...], low: float = 50, high: float = 150) -> np.ndarray:
    """float32, different in every case, nowhere 0, with a brighter box where the label is."""
    image = np.random.default_rng(index).uniform(low, high, shape).astype(np.float32)
    image[..., 3:8, 2:6] += (high - low) / 2
    return image


def drawn(shape: tuple[int, int, int] = SHAPE, value: int = 1) -> np.ndarray:
    label = np.zeros(shape, np.int32)
    label[..., 3:8, 2:6] = value
    return label


def volumes(
    folder: Path, channels: tuple[str, ...] = ("MRI",), ending: str = ".nii.gz", low: float = 50, high: float = 150
) -> Path:
    """nnU-Net's layout."""
    for index in range(CASES):
        for channel in range(len(channels)):
            image = pixels(10 * index + channel, SHAPE, low, high)
            write_image(folder / f"imagesTr/c{index}_{channel:04d}{ending}", image[None], GEOMETRY)
        write_labels(folder / f"labelsTr/c{index}{ending}", drawn(), GEOMETRY)
    describe(folder, channels, ending)
    return folder


def describe(folder: Path, channels: tuple[str, ...] = ("MRI",), ending: str = ".nii.gz", **labels: int) -> None:
    description = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {"background": 0, "organ": 1, **labels},
        "numTraining": CASES,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def pictures(folder: Path, ending: str = ".png", value: int = 255, colour: bool = False) -> Path:
    """Loose pairs of pictures."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for index in range(CASES):
        image = pixels(index, (3, 24, 20) if colour else (24, 20)).astype(np.uint8)
        Image.fromarray(np.moveaxis(image, 0, -1) if colour else image).save(folder / f"images/c{index}{ending}")
        Image.fromarray(drawn((1, 24, 20), value)[0].astype(np.uint8)).save(folder / f"masks/c{index}.png")
    return folder


def image_file(folder: Path, case: str = SPOILT, channel: int = 0) -> Path:
    return folder / f"imagesTr/{case}_{channel:04d}.nii.gz"


def label_file(folder: Path, case: str = SPOILT) -> Path:
    return folder / f"labelsTr/{case}.nii.gz"


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def change_image(path: Path, change: Callable[[np.ndarray], object], **geometry: object) -> None:
    image, own = read_image(path)
    change(image)
    write_image(path, image, own.model_copy(update=geometry))


def change_label(path: Path, change: Callable[[np.ndarray], object] = lambda values: None, **geometry: object) -> None:
    values, own = read_labels(path)
    change(values)
    write_labels(path, values, own.model_copy(update=geometry))


# ---- files ---------------------------------------------------------------------------------------------------


def truncated_image(folder: Path) -> None:
    halve(image_file(volumes(folder)))


def truncated_label(folder: Path) -> None:
    halve(label_file(volumes(folder)))


def truncated_plain_nifti(folder: Path) -> None:
    halve(volumes(folder, ending=".nii") / "imagesTr/c2_0000.nii")


def truncated_mha(folder: Path) -> None:
    halve(volumes(folder, ending=".mha") / "imagesTr/c2_0000.mha")


def truncated_nrrd(folder: Path) -> None:
    halve(volumes(folder, ending=".nrrd") / "imagesTr/c2_0000.nrrd")


def truncated_png(folder: Path) -> None:
    halve(pictures(folder) / "images/c2.png")


def truncated_tiff(folder: Path) -> None:
    halve(pictures(folder, ending=".tif") / "images/c2.tif")


def truncated_jpeg(folder: Path) -> None:
    halve(pictures(folder, ending=".jpg") / "images/c2.jpg")


def truncated_bmp(folder: Path) -> None:
    halve(pictures(folder, ending=".bmp") / "images/c2.bmp")


def empty_image_file(folder: Path) -> None:
    image_file(volumes(folder)).write_bytes(b"")


def empty_label_file(folder: Path) -> None:
    label_file(volumes(folder)).write_bytes(b"")


def text_for_an_image(folder: Path) -> None:
    image_file(volumes(folder)).write_bytes(b"<html>404</html>" * 40)


def flipped_byte(folder: Path) -> None:
    path = image_file(volumes(folder))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def missing_label(folder: Path) -> None:
    label_file(volumes(folder)).unlink()


def missing_image(folder: Path) -> None:
    image_file(volumes(folder)).unlink()


def missing_channel(folder: Path) -> None:
    image_file(volumes(folder, ("T1", "T2")), channel=1).unlink()


def misnumbered_channel(folder: Path) -> None:
    path = image_file(volumes(folder, ("T1", "T2")), channel=1)
    path.rename(path.with_name("c2_0007.nii.gz"))


# ---- geometry ------------------------------------------------------------------------------------------------


def label_of_another_shape(folder: Path) -> None:
    label = drawn((7, 10, 8))
    label[6] = 0
    write_labels(label_file(volumes(folder)), label, GEOMETRY.model_copy(update={"shape": label.shape}))


def channel_of_another_shape(folder: Path) -> None:
    geometry = Geometry(shape=(3, 10, 8), spacing=(4.0, 1.0, 1.5), origin=GEOMETRY.origin)
    write_image(image_file(volumes(folder, ("T1", "T2")), channel=1), pixels(1, (1, 3, 10, 8)), geometry)


def mask_of_another_size(folder: Path) -> None:
    path = pictures(folder) / "masks/c2.png"
    with Image.open(path) as image:
        image.resize((40, 48), Image.Resampling.NEAREST).save(path)


def mask_of_other_proportions(folder: Path) -> None:
    Image.fromarray(drawn((1, 24, 33), 255)[0].astype(np.uint8)).save(pictures(folder) / "masks/c2.png")


def label_of_another_spacing(folder: Path) -> None:
    change_label(label_file(volumes(folder)), spacing=(2.0, 1.0, 1.4))


def label_of_another_origin(folder: Path) -> None:
    change_label(label_file(volumes(folder)), origin=(-10.0, 21.0, 5.0))


def label_of_another_direction(folder: Path) -> None:
    def flip(values: np.ndarray) -> None:
        values[:] = values[:, ::-1].copy()

    direction = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    change_label(label_file(volumes(folder)), flip, direction=direction, origin=(-10.0, 29.0, 5.0))


def label_far_away(folder: Path) -> None:
    change_label(label_file(volumes(folder)), origin=(500.0, 20.0, 5.0))


def label_without_header(folder: Path) -> None:
    write_labels(label_file(volumes(folder)), drawn(), Geometry(shape=SHAPE))


def image_without_header(folder: Path) -> None:
    write_image(image_file(volumes(folder)), pixels(20, (1, *SHAPE)), Geometry(shape=SHAPE))


def channel_of_another_origin(folder: Path) -> None:
    change_image(image_file(volumes(folder, ("T1", "T2")), channel=1), lambda image: None, origin=(-10.0, 20.0, 6.0))


def channel_without_header(folder: Path) -> None:
    path = image_file(volumes(folder, ("T1", "T2")), channel=1)
    write_image(path, pixels(21, (1, *SHAPE)), Geometry(shape=SHAPE))


def flat_and_deep(folder: Path) -> None:
    pictures(folder, ending=".tif")
    write_image(folder / "images/c2.tif", pixels(2, (1, 4, 24, 20)).astype(np.uint8), Geometry(shape=(4, 24, 20)))
    (folder / "masks/c2.png").unlink()
    write_labels(folder / "masks/c2.tif", drawn((4, 24, 20), 255), Geometry(shape=(4, 24, 20)))


def one_case_in_micrometres(folder: Path) -> None:
    volumes(folder)
    spacing = tuple(1000 * value for value in GEOMETRY.spacing)
    change_image(image_file(folder), lambda image: None, spacing=spacing)
    change_label(label_file(folder), spacing=spacing)


def all_cases_in_metres(folder: Path) -> None:
    volumes(folder)
    spacing = tuple(value / 1000 for value in GEOMETRY.spacing)
    for index in range(CASES):
        change_image(image_file(folder, f"c{index}"), lambda image: None, spacing=spacing)
        change_label(label_file(folder, f"c{index}"), spacing=spacing)


def odd_spacing(folder: Path) -> None:
    volumes(folder)
    change_image(image_file(folder), lambda image: None, spacing=(20.0, 1.0, 1.5))
    change_label(label_file(folder), spacing=(20.0, 1.0, 1.5))
