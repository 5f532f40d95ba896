"""Images and data sets as sound files to change, and what reads them: a part of `fuzzing_parsers.py`.

The sound files are made by the tests' own makers, so that a new format there is attacked here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from fuzzing_mutations import flipped, gzipped, json_changed, png_changed, worded, zip_changed

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

Change = Callable[[Random, bytes], bytes]


@dataclass(frozen=True)
class Seed:
    """A sound file, how it is changed, and what reads it, raising AutoUNetError or nothing."""

    file: Path
    changes: tuple[Change, ...]
    read: Callable[[], object]


@dataclass(frozen=True)
class Parser:
    make: Callable[[Path], list[Seed]]
    """writes into an empty folder"""
    share: float = 1.0
    """of the inputs that a quick parser gets"""


# ---- images -----------------------------------------------------------------------------------------------------

HEADS: dict[str, tuple[Change, ...]] = {
    ".nii.gz": (flipped, gzipped(flipped)),
    ".png": (flipped, png_changed),
    **dict.fromkeys((".nrrd", ".mha", ".mhd"), (flipped, worded, worded)),
    **dict.fromkeys((".zattrs", ".zarray"), (json_changed, json_changed, worded)),
}


def images(*forms: str, share: float = 1.0) -> Parser:
    def make(folder: Path) -> list[Seed]:
        from test_damaged_files import make as make_image

        from autounet.imageio import read_header, read_image, read_labels, read_segments, segment_sets

        seeds = []
        for form in forms:
            place = folder / form.strip(".")
            place.mkdir()
            source, target = make_image(place, form)
            ending = next((each for each in HEADS if target.name.endswith(each)), "")
            readers = [read_header, read_image, read_image, read_labels]
            readers += [read_segments, segment_sets] if form == ".seg.nrrd" else []
            seeds += [Seed(target, HEADS.get(ending, (flipped,)), partial(read, source)) for read in readers]
        return seeds

    return Parser(make, share)


def dicom_objects(folder: Path) -> list[Seed]:
    """A series with segments and one with contours, as data sets that are checked."""
    from dicom_objects import outlines, write_segmentation, write_slices, write_structures

    from autounet.schema.options import DataOptions
    from autounet.workflow import dataset_stage

    dataset_stage.available_cores = lambda: 1  # in this process, which is watched
    mask = np.zeros((4, 16, 14), bool)
    mask[1:3, 4:11, 3:9] = True
    seeds = []
    for kind in ("seg", "rt"):
        place = folder / kind
        place.mkdir()
        series = write_slices(place / "ct", np.zeros(mask.shape, np.int16))
        file = place / "object" / "object.dcm"
        file.parent.mkdir()
        if kind == "seg":
            write_segmentation(file, series, {"organ": mask})
        else:
            write_structures(file, series, {"organ": outlines(mask)})

        seeds.append(Seed(file, (flipped,), partial(dataset_stage.check_data, place, DataOptions())))
    return seeds


def outlines_of_objects(folder: Path) -> list[Seed]:
    """COCO as polygons and run lengths, LabelMe as polygons and masks, regions of ImageJ in a zip."""
    from test_outlines import coco, imagej, labelme

    from autounet.imageio import outline_names, read_outlined_objects

    coco(folder / "coco")
    coco(folder / "runs", "runs")
    labelme(folder / "labelme")
    labelme(folder / "mask", "mask")
    imagej(folder / "imagej")
    seeds = []
    for kind, file, image in (
        ("coco", "annotations/instances_train.json", "images/a.png"),
        ("runs", "annotations/instances_train.json", "images/a.png"),
        ("labelme", "a.json", "a.png"),
        ("mask", "a.json", "a.png"),
        ("imagej", "rois/a_RoiSet.zip", "images/a.png"),
    ):
        path = folder / kind / file
        changes = (zip_changed, flipped) if path.suffix == ".zip" else (json_changed, worded, flipped)
        for read in (partial(outline_names, path), partial(read_outlined_objects, path, folder / kind / image)):
            seeds.append(Seed(path, changes, read))
    return seeds


# ---- data sets --------------------------------------------------------------------------------------------------


def sidecars(folder: Path) -> list[Seed]:
    from test_damaged_files import make as make_image

    from autounet.imageio import read_header

    path, _ = make_image(folder, ".png")
    side = folder / "case_7.json"
    side.write_text('{"spacing": [2.5, 0.7, 0.7], "other": {"a": 1}}')
    return [Seed(side, (json_changed, worded), partial(read_header, path))]


def tables(folder: Path) -> list[Seed]:
    """Tables and lists of cases of every layout that is described by a file."""
    from broken_sets import volumes

    from autounet.datasets import scan
    from autounet.datasets.synthetic import make_demo_dataset
    from autounet.schema.options import DataOptions

    seeds, rows = [], [("case", "CT", "label", "group", "fold")]
    rows += [
        (f"k{number}", f"imagesTr/c{number}_0000.nii.gz", f"labelsTr/c{number}.nii.gz", f"p{number // 2}", "0")
        for number in range(2)
    ]
    for ending, mark in ((".csv", ","), (".tsv", "\t"), (".json", "")):
        place = volumes(folder / ending[1:])
        file = place / f"cases{ending}"
        objects = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
        file.write_text("\n".join(mark.join(row) for row in rows) if mark else json.dumps(objects))
        changes = (worded,) if mark else (json_changed, worded)
        seeds.append(Seed(file, changes, partial(scan, file, DataOptions(), [])))
    for layout in ("nnunet", "msd"):
        place = make_demo_dataset(folder / layout, cases=2, layout=layout)
        seeds.append(Seed(place / "dataset.json", (json_changed, worded), partial(scan, place, DataOptions(), [])))
    return seeds


def splits(folder: Path) -> list[Seed]:
    from autounet.datasets.splits import read_folds

    ours, theirs = folder / "ours.json", folder / "theirs.json"
    ours.write_text('{"folds": [["a", "b"], ["c"]]}')
    theirs.write_text('[{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]')
    return [Seed(file, (json_changed, worded), partial(read_folds, file)) for file in (ours, theirs)]
