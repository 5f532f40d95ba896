"""Makers of data sets with broken intensities, labels or folders; see `broken_sets`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from broken_sets import (
    CASES,
    GEOMETRY,
    SHAPE,
    change_image,
    change_label,
    describe,
    drawn,
    image_file,
    label_file,
    pictures,
    pixels,
    volumes,
)
from PIL import Image

from autounet.imageio import read_image, write_image, write_labels
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions

# ---- intensities ---------------------------------------------------------------------------------------------


def fill(path: Path, value: float, *where: slice | int) -> None:
    def change(image: np.ndarray) -> None:
        image[(0, *where)] = value

    change_image(path, change)


def constant_image(folder: Path) -> None:
    fill(image_file(volumes(folder)), 7)


def constant_channel(folder: Path) -> None:
    fill(image_file(volumes(folder, ("T1", "T2")), channel=1), 7)


def one_enormous_voxel(folder: Path) -> None:
    fill(image_file(volumes(folder)), 1e20, 1, 1, 3)


def swapped_bytes(folder: Path) -> None:
    fill(image_file(volumes(folder)), -3e38, 1, 1, slice(3))


def nan_voxels(folder: Path) -> None:
    fill(image_file(volumes(folder)), np.nan, 1, 1, slice(3))


def infinite_voxels(folder: Path) -> None:
    fill(image_file(volumes(folder)), -np.inf, 1, 1, slice(2))


def nothing_but_nan(folder: Path) -> None:
    fill(image_file(volumes(folder)), np.nan)


def another_scale(folder: Path) -> None:
    def scale(image: np.ndarray) -> None:
        image *= 1000

    change_image(image_file(volumes(folder)), scale)


def no_ct_anywhere(folder: Path) -> None:
    volumes(folder, ("CT",), low=0.1, high=0.9)


def one_windowed_ct(folder: Path) -> None:
    change_image(image_file(volumes(folder, ("CT",), low=-900, high=600)), lambda image: np.clip(image, 0, 255, image))


def one_ct_with_offset(folder: Path) -> None:
    def shift(image: np.ndarray) -> None:
        image += 1024

    change_image(image_file(volumes(folder, ("CT",), low=-900, high=300)), shift)


def one_dark_photograph(folder: Path) -> None:
    path = pictures(folder, colour=True) / "images/c2.png"
    with Image.open(path) as image:
        Image.fromarray(np.asarray(image) // 50).save(path)


def grey_among_colours(folder: Path) -> None:
    Image.fromarray(pixels(2, (24, 20)).astype(np.uint8)).save(pictures(folder, colour=True) / "images/c2.png")


def same_image_twice(folder: Path) -> None:
    image_file(volumes(folder)).write_bytes(image_file(folder, "c1").read_bytes())


def same_image_stored_otherwise(folder: Path) -> None:
    pictures(folder, ending=".tif")
    image, geometry = read_image(folder / "images/c1.tif")
    (folder / "images/c2.tif").unlink()
    write_image(folder / "images/c2.tif", image, geometry)  # as 32-bit numbers
    change_label(folder / "masks/c2.png", lambda values: values.__setitem__((0, 3), 0))


# ---- labels --------------------------------------------------------------------------------------------------


def undeclared_value(folder: Path) -> None:
    change_label(label_file(volumes(folder)), lambda values: values.__setitem__((0, 0, 0), 9))


def absent_class(folder: Path) -> None:
    describe(volumes(folder), spleen=2)


def no_foreground(folder: Path) -> None:
    volumes(folder)
    for index in range(CASES):
        write_labels(label_file(folder, f"c{index}"), np.zeros(SHAPE, int), GEOMETRY)


def one_empty_label(folder: Path) -> None:
    change_label(label_file(volumes(folder)), lambda values: values.fill(0))


def label_beyond_the_image(folder: Path) -> None:
    fill(image_file(volumes(folder)), 0, slice(None), slice(7, None))


def label_on_nothing(folder: Path) -> None:
    fill(image_file(volumes(folder)), 0, slice(None), slice(3, 8), slice(2, 6))


def stray_voxel(folder: Path) -> None:
    volumes(folder)
    for index in range(CASES):
        label = np.zeros(SHAPE, int)
        label[:5, 3:9] = 1
        label[5, 0, 0] = index == 2
        write_labels(label_file(folder, f"c{index}"), label, GEOMETRY)


def smoothed_mask(folder: Path) -> None:
    path = pictures(folder) / "masks/c2.png"
    mask = drawn((1, 24, 20), 255)[0].astype(np.uint8)
    mask[3, 2:6], mask[7, 2:5] = (30, 90, 160, 200), (70, 140, 220)
    Image.fromarray(mask).save(path)


def jpeg_mask(folder: Path) -> None:
    path = pictures(folder) / "masks/c2.png"
    with Image.open(path) as image:
        image.convert("L").save(path.with_suffix(".jpg"), quality=75)
    path.unlink()


def fractional_label(folder: Path) -> None:
    label = drawn().astype(np.float32)
    label[:, 3] *= 0.25
    write_image(label_file(volumes(folder)), label[None], GEOMETRY)


def photographs_for_labels(folder: Path) -> None:
    pictures(folder)
    for index in range(CASES):
        Image.fromarray(pixels(index, (24, 20), 3, 120).astype(np.uint8)).save(folder / f"masks/c{index}.png")


def value_that_pictures_cannot_hold(folder: Path) -> None:
    pictures(folder)
    for index in range(CASES):
        (folder / f"masks/c{index}.png").unlink()
        write_labels(folder / f"masks/c{index}.tif", drawn((1, 24, 20), 70_000), Geometry(shape=(1, 24, 20)))


# ---- the set as a whole --------------------------------------------------------------------------------------


def wrong_number_of_names(folder: Path) -> None:
    describe(volumes(folder), ("T1", "T2"))


def broken_description(folder: Path) -> None:
    (volumes(folder) / "dataset.json").write_text('{"labels": ')


def wrong_ending(folder: Path) -> None:
    describe(volumes(folder), ending=".nrrd")


def ambiguous_labels(folder: Path) -> None:
    pictures(folder)
    (folder / "mask2").mkdir()
    for path in (folder / "masks").iterdir():
        (folder / "mask2" / path.name).write_bytes(path.read_bytes())


def no_labels_at_all(folder: Path) -> None:
    for path in (pictures(folder) / "masks").iterdir():
        path.unlink()
    (folder / "masks").rmdir()


def nothing_there(folder: Path) -> None:
    folder.mkdir()


def one_case(folder: Path) -> None:
    for path in [*(pictures(folder) / "images").iterdir(), *(folder / "masks").iterdir()]:
        if path.stem != "c0":
            path.unlink()


def three_cases(folder: Path) -> None:
    for path in [*(pictures(folder) / "images").iterdir(), *(folder / "masks").iterdir()]:
        if path.stem > "c2":
            path.unlink()


def folds_that_lack_a_case(folder: Path) -> DataOptions:
    file = volumes(folder).parent / "folds.json"
    file.write_text(json.dumps({"folds": [["c0", "c1"], ["c3", "c4", "c5"]]}))
    return DataOptions(splits=str(file))


def folds_that_split_a_group(folder: Path) -> DataOptions:
    file = volumes(folder).parent / "folds.json"
    file.write_text(json.dumps({"folds": [["c0", "c1", "c2"], ["c3", "c4", "c5"]]}))
    return DataOptions(splits=str(file), group="(c)")


def data_one_folder_deeper(folder: Path) -> None:
    """As in DRIVE: training/ and test/, each with images, labels and masks of the field of view."""
    for part in ("training", "test"):
        ambiguous_labels(folder / part)


def annotated_for_no_class(folder: Path) -> None:
    file = volumes(folder) / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotated": {"c2": [1, "bone"]}}))


def annotated_for_no_value(folder: Path) -> None:
    (volumes(folder) / "cases.csv").write_text("case,annotated\nc2,1;3\n")


def annotated_case_that_is_not_there(folder: Path) -> None:
    file = volumes(folder) / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotated": {"c02": [1]}}))


def row_of_no_case(folder: Path) -> None:
    (volumes(folder) / "cases.csv").write_text("case,group\nc02,a\n")
