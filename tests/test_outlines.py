"""Outlines as labels: COCO, LabelMe and regions of ImageJ, as classes and as objects; damaged, and made to harm."""

from __future__ import annotations

import base64
import json
import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from roifile import ROI_TYPE, ImagejRoi

from autounet.datasets import examine, read_numbers, read_reference, scan
from autounet.imageio import outline_names, read_label_content, read_outlined_objects
from autounet.imageio.outline_files import _run_lengths, _unpacked
from autounet.schema.dataset import Dataset, Finding
from autounet.schema.errors import DataError, FileError
from autounet.schema.options import DataOptions

NONE = DataOptions()
SIZE = (20, 30)
BOXES = {"a": [("cell", (2, 3, 8, 9)), ("nucleus", (12, 5, 15, 11))], "b": [("cell", (0, 0, 30, 4))], "c": []}
"""image -> class and the box (x0, y0, x1, y1) of each object, in corners"""


def drawn(boxes: list[tuple[str, tuple[int, ...]]], name: str | None = None) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    for each, (x0, y0, x1, y1) in boxes:
        mask[y0:y1, x0:x1] |= name in (None, each)
    return mask


def corners(x0: int, y0: int, x1: int, y1: int) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def pictures(folder: Path, size: tuple[int, int] = SIZE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(BOXES):
        pixels = np.random.default_rng(index).integers(0, 255, size).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def runs(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def coco(root: Path, form: str = "polygons", prefix: str = "") -> None:
    pictures(root / "images")
    names = {"cell": 3, "nucleus": 7}
    annotations: list[dict[str, Any]] = []
    for number, boxes in enumerate(BOXES.values()):
        for name, box in boxes:
            flat: Any = [[float(value) for point in corners(*box) for value in point]]
            if form == "runs":
                flat = {"size": list(SIZE), "counts": runs(drawn([(name, box)]))}
            annotations.append({"id": 1, "image_id": number, "category_id": names[name], "segmentation": flat})
    images = [{"id": number, "file_name": f"{prefix}{name}.png", "height": SIZE[0], "width": SIZE[1]}
              for number, name in enumerate(BOXES)]  # fmt: skip
    categories = [{"id": number, "name": name} for name, number in names.items()]
    (root / "annotations").mkdir()
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (root / "annotations" / "instances_train.json").write_text(text)


def labelme(root: Path, form: str = "polygon") -> None:
    pictures(root)
    for name, boxes in BOXES.items():
        shapes: list[dict[str, Any]] = []
        for label, (x0, y0, x1, y1) in boxes:
            points: Any = corners(x0, y0, x1, y1) if form == "polygon" else [[x0, y0], [x1, y1]]
            shape = {"label": label, "points": points, "shape_type": form}
            if form == "mask":
                stream = BytesIO()
                Image.fromarray(np.full((y1 - y0, x1 - x0), 255, np.uint8)).save(stream, "PNG")
                text = base64.b64encode(stream.getvalue()).decode()
                shape |= {"points": [[x0, y0], [x1 - 1, y1 - 1]], "mask": text}
            shapes.append(shape)
        content = {"shapes": shapes, "imagePath": f"{name}.png", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        (root / f"{name}.json").write_text(json.dumps(content))


def imagej(root: Path, form: str = "polygon") -> None:
    pictures(root / "images")
    (root / "rois").mkdir()
    for name, boxes in BOXES.items():
        with zipfile.ZipFile(root / "rois" / f"{name}_RoiSet.zip", "w") as packed:
            for number, (label, box) in enumerate(boxes):
                roi = ImagejRoi.frompoints(np.array(corners(*box)), name=f"{label}-{number}")
                if form == "rectangle":
                    roi = ImagejRoi(roitype=ROI_TYPE.RECT, name=f"{label}-{number}")
                    roi.left, roi.top, roi.right, roi.bottom = box
                packed.writestr(f"{number:04d}.roi", roi.tobytes())
            packed.writestr("readme.txt", b"") if boxes else packed.writestr("0.roi", line())


def line() -> bytes:
    return ImagejRoi(roitype=ROI_TYPE.LINE, name="cell-9").tobytes()


FORMS: dict[str, Callable[[Path], None]] = {
    "COCO polygons": coco,
    "COCO run lengths": lambda root: coco(root, "runs"),
    "COCO with folders": lambda root: coco(root, prefix="images/"),
    "LabelMe polygons": labelme,
    "LabelMe rectangles": lambda root: labelme(root, "rectangle"),
    "LabelMe masks": lambda root: labelme(root, "mask"),
    "ImageJ polygons": imagej,
    "ImageJ rectangles": lambda root: imagej(root, "rectangle"),
}


@pytest.mark.parametrize("form", FORMS)
def test_outlines_become_classes_by_their_names_and_pixels_by_their_centres(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path)
    dataset = scan(tmp_path, NONE)
    assert dataset.layout == "outlines"
    classes = {each.name: each.value for each in dataset.labels.foreground}
    assert set(classes) == {"cell", "nucleus"}
    for case in dataset.cases:
        values, _ = read_reference(dataset, case)
        assert case.annotated is None
        for name, value in classes.items():
            assert ((values[0] == value) == drawn(BOXES[case.identifier], name)).all()


@pytest.mark.parametrize("form", ["COCO polygons", "LabelMe polygons", "ImageJ rectangles"])
def test_outlines_number_objects_and_join_to_one_class(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path)
    dataset = scan(tmp_path, DataOptions(objects="cell"))
    assert dataset.labels.objects is not None
    for case in dataset.cases:
        numbers, _ = read_numbers(dataset, case)
        assert len(np.unique(numbers[numbers > 0])) == len(BOXES[case.identifier])
        assert ((numbers[0] > 0) == drawn(BOXES[case.identifier])).all()
        depths, _ = read_reference(dataset, case)
        assert ((depths > 0) == (numbers > 0)).all()
    joined = scan(tmp_path, DataOptions(join="all"))
    values, _ = read_reference(joined, joined.case("a"))
    assert (values[0] == drawn(BOXES["a"])).all()


def facts(dataset: Dataset) -> list[Finding]:
    return [each for fact in examine(dataset, workers=1) for each in fact.findings]


def test_lines_and_scaled_images_are_told(tmp_path: Path) -> None:
    imagej(tmp_path / "rois")
    assert [(each.case, each.code) for each in facts(scan(tmp_path / "rois", NONE))] == [("c", "no-area")]
    labelme(tmp_path / "scaled")
    pictures(tmp_path / "scaled", (10, 15))
    found = facts(scan(tmp_path / "scaled", NONE))
    assert {each.code for each in found} == {"unreadable-file"}
    assert "20 x 30 pixels" in found[0].message


def test_objects_in_outlines_are_told_once(tmp_path: Path) -> None:
    labelme(tmp_path)
    for path in tmp_path.glob("*.json"):
        content = json.loads(path.read_text())
        content["shapes"] = [{"label": "x", "points": corners(x, x, x + 2, x + 2)} for x in range(0, 12, 3)]
        path.write_text(json.dumps(content))
    findings: list[Finding] = []
    scan(tmp_path, NONE, findings)
    assert [each.code for each in findings] == ["objects"]
    scan(tmp_path, DataOptions(objects="x"), later := [])
    assert later == []


def test_regions_lie_on_the_slices_of_a_stack_and_composite_ones_have_holes(tmp_path: Path) -> None:
    stack = np.zeros((3, 2, *SIZE), np.uint16)
    stack += np.arange(SIZE[1], dtype=np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    second, third = (ImagejRoi.frompoints(np.array(corners(2, 2, 6, 6)), name="x-1") for _ in range(2))
    second.position, third.z_position = 4, 3  # the second channel of the second slice; the third slice
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as packed:
        packed.writestr("1.roi", second.tobytes())
        packed.writestr("2.roi", third.tobytes())
    numbers = read_outlined_objects(tmp_path / "s.zip", tmp_path / "s.tif").values
    assert [len(np.unique(plane)) - 1 for plane in numbers] == [0, 1, 1]
    assert (numbers[1] > 0).sum() == 16


@given(st.lists(st.integers(0, 400), min_size=1, max_size=40))
def test_run_lengths_as_text_are_those_of_the_list(counts: list[int]) -> None:
    def text() -> str:  # as pycocotools' rleToString
        found = ""
        for index, count in enumerate(counts):
            value, more = count - (counts[index - 2] if index > 2 else 0), True
            while more:
                bits, value = value & 31, value >> 5
                more = value != -1 if bits & 16 else value != 0
                found += chr(bits + (32 if more else 0) + 48)
        return found

    assert _unpacked(text()) == counts
    total = sum(counts)
    if total:
        mask = _run_lengths(Path("x"), {"size": [1, total], "counts": counts})
        assert mask.sum() == sum(counts[1::2])


def shapes(*entries: object, **more: object) -> str:
    return json.dumps({"shapes": list(entries), "imagePath": "a.png", **more})


def zipped(name: str, content: bytes) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(name, content)
    return stream.getvalue()


BAD: dict[str, tuple[str, str | bytes]] = {
    "points of words": ("a.json", shapes({"label": "x", "points": [["a", "b"]]})),
    "points nowhere": ("a.json", shapes({"label": "x", "points": [[1e300, 0], [0, 1], [1, 1]]})),
    "no object": ("a.json", shapes(7)),
    "mask without a picture": ("a.json", shapes({"label": "x", "shape_type": "mask", "points": [[0, 0], [1, 1]]})),
    "mask of another size": (
        "a.json",
        shapes({"label": "x", "shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "AAAA"}),
    ),
    "nested": ("a.json", '{"shapes":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "no zip": ("a.zip", b"PK\3\4 nothing"),
    "no regions": ("a.zip", zipped("a.txt", b"")),
    "no region": ("a.zip", zipped("a.roi", b"Iout nothing at all")),
    "bomb": ("a.zip", zipped("a.roi", bytes(1 << 27))),
}


@pytest.mark.parametrize("what", BAD)
def test_damaged_outlines_are_refused(tmp_path: Path, what: str) -> None:
    pictures(tmp_path)
    name, content = BAD[what]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FileError):
        read_outlined_objects(path, tmp_path / "a.png")


@pytest.mark.parametrize("size", [[1 << 40, 1 << 40], [20, 30], [0, 1], "all"])
def test_run_lengths_have_to_fill_their_size(size: object) -> None:
    with pytest.raises(FileError):
        _run_lengths(Path("x"), {"size": size, "counts": [5, 5]})


@pytest.mark.parametrize("counts", [[float("inf"), 5], [None], [[1]], ["x"], "\x00", "o" * 40])
def test_run_lengths_are_whole_numbers(counts: object) -> None:
    with pytest.raises(FileError, match="another number of pixels"):
        _run_lengths(Path("x"), {"size": list(SIZE), "counts": counts})


@pytest.mark.parametrize("wrong", [[1], {"a": 1}, None, 1.5])
@pytest.mark.parametrize("key", ["category_id", "image_id", "id", "categories"])
def test_numbers_of_coco_that_are_none_lead_nowhere(tmp_path: Path, key: str, wrong: object) -> None:
    coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for each in (content, *content["images"], *content["annotations"], *content["categories"]):
        each |= {key: wrong} if key in each else {}
    path.write_text(json.dumps(content))
    drawn = read_outlined_objects(path, tmp_path / "images" / "a.png").values
    assert (drawn.max() > 0) == (key not in ("image_id", "id"))
    without = {
        "category_id": ["unnamed"],
        "categories": ["category 3", "category 7"],
        "id": ["category 3", "category 7"],
    }
    assert outline_names(path) == without.get(key, ["cell", "nucleus"])


def test_numbers_of_coco_may_be_written_as_fractions(tmp_path: Path) -> None:
    coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train.json"
    expected = read_outlined_objects(path, tmp_path / "images" / "a.png").values
    path.write_text(re.sub(r'"((?:image_|category_)?id)": (\d+)', r'"\1": \2.0', path.read_text()))
    assert outline_names(path) == ["cell", "nucleus"]
    assert np.array_equal(read_outlined_objects(path, tmp_path / "images" / "a.png").values, expected)


def test_masks_beside_outlines_are_asked_about(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "masks").mkdir()
    for name, boxes in BOXES.items():
        Image.fromarray(drawn(boxes).astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(DataError, match=r"--label 'annotations/\*\.json' or --label 'masks/\*'"):
        scan(tmp_path, NONE)
    assert scan(tmp_path, DataOptions(label="annotations/*.json")).layout == "outlines"
    masks = scan(tmp_path, DataOptions(label="masks/*.png", channels={"image": "images/*.png"}))
    assert masks.layout == "pairs"
    assert read_label_content(tmp_path / masks.case("a").label).values.max() == 1


def test_other_json_and_zip_files_are_no_outlines(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    pictures(tmp_path / "labels")
    (tmp_path / "images" / "a.json").write_text('{"spacing": [1, 1]}')
    (tmp_path / "download.zip").write_bytes(zipped("a.txt", b""))
    assert scan(tmp_path, NONE, []).layout == "pairs"
