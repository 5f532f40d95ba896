"""Whole short runs on sets as laboratories store them: from the check to segmentations that a viewer opens.

One for each kind that differs on the way, made here.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from laboratory_files import hdf5, ngff
from PIL import Image
from quick_runs import narrow, no_trials, one_probe  # noqa: F401 - used by every test here
from roifile import ROI_TYPE, ImagejRoi

from autounet import api
from autounet.datasets import scan
from autounet.imageio import read_labels
from autounet.prediction.folder import OutputOptions, predict_folder
from autounet.schema.options import DataOptions

CASES, SIZE = 5, (48, 56)
Boxes = list[tuple[int, int, int, int]]
"""x0, y0, x1, y1"""


def boxes(case: int) -> Boxes:
    rng = np.random.default_rng(case)
    lefts = (rng.integers(0, 8, 3) + (0, 20, 36)).tolist()  # noqa: RUF005
    return [(x, y, x + 12, y + 10) for x, y in zip(lefts, rng.integers(0, 36, 3).tolist(), strict=True)]


def mask(case: int) -> np.ndarray:
    found = np.zeros(SIZE, np.uint8)
    for x0, y0, x1, y1 in boxes(case):
        found[y0:y1, x0:x1] = 1
    return found


def pixels(case: int, channels: int = 1) -> np.ndarray:
    """(C, Y, X) uint16"""
    noise = np.random.default_rng(100 + case).normal(200, 20, (channels, *SIZE))
    return (noise + 200 * mask(case)).astype(np.uint16)


def as_ome_zarr(root: Path) -> None:
    for case in range(CASES):
        ngff(
            root / f"c{case}.ome.zarr",
            pixels(case, 2),
            "cyx",
            "0.5",
            names=["DAPI", "GFP"],
            labels={"cells": mask(case)},
        )


def as_hdf5(root: Path) -> None:
    for case in range(CASES):
        volume = np.repeat(pixels(case), 6, axis=0)
        hdf5(root / f"c{case}.h5", {"raw": volume, "label": np.repeat(mask(case)[None], 6, axis=0)}, "zyx")


def as_composites(root: Path) -> None:
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for case in range(CASES):
        metadata = {"axes": "CYX", "mode": "composite", "Labels": ["DAPI", "GFP", "Actin"]}
        tifffile.imwrite(root / "images" / f"c{case}.tif", pixels(case, 3), imagej=True, metadata=metadata)
        tifffile.imwrite(root / "labels" / f"c{case}.tif", mask(case) * 255)


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in range(CASES):
        Image.fromarray((pixels(case)[0] // 4).astype(np.uint8)).save(folder / f"c{case}.png")


def polygon(x0: int, y0: int, x1: int, y1: int) -> list[int]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def as_coco(root: Path) -> None:
    pictures(root / "images")
    images = [{"id": case, "file_name": f"c{case}.png", "height": SIZE[0], "width": SIZE[1]} for case in range(CASES)]
    annotations = [{"image_id": case, "category_id": 1, "segmentation": [polygon(*box)]}
                   for case in range(CASES) for box in boxes(case)]  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (root / "annotations.json").write_text(json.dumps(content))


def as_labelme(root: Path) -> None:
    pictures(root)
    for case in range(CASES):
        shapes = [{"label": "cell", "points": np.reshape(polygon(*box), (-1, 2)).tolist()} for box in boxes(case)]
        (root / f"c{case}.json").write_text(json.dumps({"shapes": shapes, "imagePath": f"c{case}.png"}))


def as_rois(root: Path) -> None:
    pictures(root / "images")
    (root / "rois").mkdir()
    for case in range(CASES):
        with zipfile.ZipFile(root / "rois" / f"c{case}_RoiSet.zip", "w") as packed:
            for number, box in enumerate(boxes(case)):
                roi = ImagejRoi(roitype=ROI_TYPE.RECT)
                roi.left, roi.top, roi.right, roi.bottom = box
                packed.writestr(f"{number:04d}.roi", roi.tobytes())


KINDS: dict[str, tuple[Callable[[Path], None], dict[str, Any], str, list[str]]] = {
    "OME-Zarr": (as_ome_zarr, {}, ".tif", ["DAPI", "GFP"]),
    "HDF5": (as_hdf5, {}, ".h5", ["image"]),
    "ImageJ composites": (as_composites, {}, ".tif", ["DAPI", "GFP", "Actin"]),
    "COCO": (as_coco, {}, ".png", ["image"]),
    "LabelMe objects": (as_labelme, {"objects": "cell"}, ".png", ["image"]),
    "ImageJ regions": (as_rois, {"objects": "cell"}, ".png", ["image"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_laboratory_set_goes_from_check_to_segmentations(tmp_path: Path, kind: str) -> None:
    make, options, ending, channels = KINDS[kind]
    data, out = tmp_path / "data", tmp_path / "predicted"
    data.mkdir()
    make(data)
    assert [channel.name for channel in scan(data, DataOptions(**options)).channels] == channels
    result = api.run(data, tmp_path / "out", iterations=8, folds=0, device="cpu", workers=0, memory="440MB", **options)
    assert result.metrics is not None
    model = api.load(tmp_path / "out" / "model", device="cpu")
    images = data / "images" if (data / "images").is_dir() else data
    assert predict_folder(model, images, out, OutputOptions()).failures == []
    written = sorted(path.name for path in out.iterdir() if path.name.startswith("c") and path.suffix == ending)
    assert written == [f"c{case}{ending}" for case in range(CASES)]
    values, geometry = read_labels(out / written[0])
    assert values.shape[1:] == SIZE
    assert geometry.shape[0] == (6 if kind == "HDF5" else 1)
