"""Files of outlines, drawn around objects on pictures and stacks: COCO, LabelMe, and regions of interest of ImageJ.

Coordinates count pixels from the upper left corner of the first one, so that its centre lies at (0.5, 0.5). Sources:
cocodataset.org (format-data; run lengths as in pycocotools), LabelMe 5, and roifile for ImageJ.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..schema.errors import FileError
from .image_format import Remark, damaged, require_memory
from .imagej_rois import ROI_ENDINGS, Outline, clean_name, corners, read_rois

LARGEST_JSON = 1 << 29
"""bytes of a COCO or LabelMe file; parsed it takes many times as much"""
_PARSED = 12
"""times its size that JSON takes in memory"""
CIRCLE = 64
"""corners of a circle"""
NO_CLASS = ("background", "_background_")
NOTHING_INSIDE = "lines and points have no inside, and were left out"


class OutlinedImage(NamedTuple):
    """A picture that a file has outlines of."""

    name: str
    """of its file, perhaps with folders"""
    shape: tuple[int, int]
    """rows and columns; 0 where the file does not say"""


def is_outlines(path: Path) -> bool:
    """By the name: JSON, and regions of ImageJ. What a JSON file holds shows when it is read."""
    return path.suffix.lower() in (".json", *ROI_ENDINGS)


def outlined_images(path: Path) -> list[OutlinedImage] | None:
    """The pictures that a COCO or LabelMe file outlines; None for any other JSON. Raises FileError where too large."""
    content = _json(path)
    if _is_coco(content):
        entries = [each for each in content["images"] if isinstance(each, dict) and each.get("file_name")]
        return [OutlinedImage(_posix(each["file_name"]), _shape(each, "height", "width")) for each in entries]
    if _is_labelme(content):
        return [OutlinedImage(_posix(content.get("imagePath") or ""), _shape(content, "imageHeight", "imageWidth"))]
    return None


def outlined_shape(path: Path, image: Path) -> tuple[int, int]:
    """Rows and columns of the image as the file tells them, 0 where it does not. Raises FileError."""
    if path.suffix.lower() in ROI_ENDINGS:
        return 0, 0
    content: Any = _json(path)
    if _is_coco(content):
        return _shape(_coco_entry(path, content, image), "height", "width")
    return _shape(content, "imageHeight", "imageWidth") if _is_labelme(content) else (0, 0)


def _posix(name: object) -> str:
    return str(name).replace("\\", "/")


def _shape(entry: Mapping[str, Any], *keys: str) -> tuple[int, int]:
    rows, columns = (entry.get(key) for key in keys)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else (0, 0)


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _json(path: Path) -> Any:
    status = path.stat()
    return _parsed(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _parsed(path: Path, size: int, modified: int) -> Any:
    """None for what is no JSON. Of COCO also the annotations `by_image`, and `names` of the classes that they use."""
    if size > LARGEST_JSON:
        raise FileError(path, f"has {size} bytes, more than outlines are read from", "Split it by its images")
    require_memory(path, size * _PARSED // 4, 4)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if _is_coco(content):
        by_image: dict[object, list[Any]] = {}
        annotations = [each for each in content["annotations"] if isinstance(each, dict)]
        for each in annotations:
            if (image := _key(each, "image_id")) is not None:
                by_image.setdefault(image, []).append(each)
        used = {_key(each, "category_id") for each in annotations}
        listed = content.get("categories")
        categories = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        names = {_key(each, "id"): clean_name(each.get("name")) for each in categories}
        numbered = {
            each: names.get(each, f"category {each}") for each in sorted(each for each in used if isinstance(each, int))
        }
        unnamed = {each: "unnamed" for each in used if not isinstance(each, int)}
        content |= {"by_image": by_image, "names": numbered | unnamed}
    return content


def _key(entry: Mapping[str, Any], name: str) -> int | str | None:
    value = entry.get(name)
    if isinstance(value, float) and value.is_integer():  # as some programs write all numbers
        return int(value)
    return value if isinstance(value, int | str) else None


# ---- what a file holds ------------------------------------------------------------------------------------------


def outline_names(path: Path) -> list[str]:
    """The classes that a file has outlines of, in its order, those of COCO by their numbers. Raises FileError."""
    if path.suffix.lower() in ROI_ENDINGS:
        found = [each.name for each in read_rois(path)]
    else:
        content = _json(path)
        if _is_coco(content):
            found = [*content["names"].values()]
        elif _is_labelme(content):
            found = [clean_name(each.get("label")) for each in content["shapes"] if isinstance(each, dict)]
        else:
            raise _no_outlines(path)
    return [name for name in dict.fromkeys(found) if name.lower() not in NO_CLASS]


def read_outlines(path: Path, image: Path) -> tuple[list[Outline], tuple[Remark, ...]]:
    """The outlines of an image, and what was left out. Raises FileError."""
    if path.suffix.lower() in ROI_ENDINGS:
        found, every = [each for each in read_rois(path)], len(read_rois(path))
    else:
        content = _json(path)
        if _is_coco(content):
            entries = content["by_image"].get(_key(_coco_entry(path, content, image), "id"), [])
            found = [each for entry in entries for each in _of_coco(path, entry, content["names"])]
        elif _is_labelme(content):
            entries = content["shapes"]
            found = [each for entry in entries for each in _of_labelme(path, entry)]
        else:
            raise _no_outlines(path)
        every = len(entries)
    remarks: tuple[Remark, ...] = ()
    drawn = [each for each in found if each.parts or each.mask is not None]
    if len(drawn) < every:
        text = f"has {every - len(drawn)} of {every} entries without an area for {image.name}: {NOTHING_INSIDE}"
        remarks = (Remark("no-area", text, "Draw polygons around what is to be found"),)
    return [each for each in drawn if each.name.lower() not in NO_CLASS], remarks


def _no_outlines(path: Path) -> FileError:
    return FileError(path, "holds no outlines: it is neither COCO nor LabelMe", "Export it in one of these formats")


# ---- COCO -------------------------------------------------------------------------------------------------------


def _coco_entry(path: Path, content: Mapping[str, Any], image: Path) -> Mapping[str, Any]:
    """Of the image whose name, or as much of its path as the entry gives, is the same; else of the same stem."""
    entries = [each for each in content["images"] if isinstance(each, dict) and each.get("file_name")]
    place = PurePosixPath(image.as_posix())
    same = [each for each in entries if place.match(_posix(each["file_name"]).lstrip("/"))]
    same = same or [each for each in entries if PurePosixPath(_posix(each["file_name"])).name == image.name]
    same = same or [each for each in entries if PurePosixPath(_posix(each["file_name"])).stem == image.stem]
    if len(same) != 1:
        finding = f"has {len(same) or 'no'} entries for the image {image.name}"
        raise FileError(path, finding, "Correct file_name of its images")
    return same[0]


def _of_coco(path: Path, entry: Mapping[str, Any], names: Mapping[object, str]) -> Iterator[Outline]:
    """One outline; without parts where the entry has a box or key points alone."""
    name, drawn = names[_key(entry, "category_id")], entry.get("segmentation")
    if isinstance(drawn, dict):
        yield Outline(name, mask=_run_lengths(path, drawn), crowd=_is_crowd(entry))
        return
    parts = [corners(path, each) for each in drawn or ()] if isinstance(drawn, list) else []
    yield Outline(name, tuple(each for each in parts if len(each) > 2), crowd=_is_crowd(entry))


def _is_crowd(entry: Mapping[str, Any]) -> bool:
    return entry.get("iscrowd") in (1, True, "1")


def crowds_in(path: Path) -> list[str]:
    """The images that a file marks crowds in, one for each of these: of COCO alone. Raises FileError."""
    content: Any = None if path.suffix.lower() in ROI_ENDINGS else _json(path)
    if not _is_coco(content):
        return []
    names = {_key(each, "id"): _posix(each.get("file_name")) for each in content["images"] if isinstance(each, dict)}
    return [
        names[image] for image, own in content["by_image"].items() if image in names for each in own if _is_crowd(each)
    ]


def annotation_remarks(path: Path) -> tuple[Remark, ...]:
    """What does not fit together in a COCO file, each with its number and the first of it. Raises FileError."""
    content: Any = None if path.suffix.lower() in ROI_ENDINGS else _json(path)
    return tuple(_coco_remarks(content)) if _is_coco(content) else ()


def _coco_remarks(content: Mapping[str, Any]) -> Iterator[Remark]:
    annotations = [each for each in content["annotations"] if isinstance(each, dict)]
    images, categories = (
        [each for each in content.get(key) or () if isinstance(each, dict)] for key in ("images", "categories")
    )
    of = f"of {len(annotations)} annotations"
    listed = {_key(each, "id") for each in images}
    if lost := [each for each in annotations if _key(each, "image_id") not in listed]:
        text = f"has {len(lost)} {of} for images that it does not list, which are left out; the first {_named(lost[0])}"
        yield Remark("unknown-image", text, "Correct their image_id, or list the images")
    declared = {_key(each, "id") for each in categories}
    if strange := [each for each in annotations if _key(each, "category_id") not in declared]:
        called = content["names"][_key(strange[0], "category_id")]
        text = (
            f"has {len(strange)} {of} in categories that it does not declare; the first {_named(strange[0])}, "
            f"and its class is called {called!r}"
        )
        yield Remark("undeclared-category", text, "Correct their category_id, or declare the categories with a name")
    ids: dict[str, list[str]] = {}
    for each in categories:
        ids.setdefault(clean_name(each.get("name")), []).append(str(_key(each, "id")))
    alike = {name: own for name, own in ids.items() if len(own) > 1 and name.lower() not in NO_CLASS}
    for name, own in list(alike.items())[:1]:
        more = f", and {len(alike) - 1} more names likewise" if len(alike) > 1 else ""
        text = f"calls {len(own)} categories {name!r} (ids {', '.join(own[:5])}), which become one class{more}"
        yield Remark("same-name", text, "Give them different names, if they are different classes")
    for what, entries in (("images", images), ("categories", categories)):
        counts = Counter(_key(each, "id") for each in entries)
        if twice := [key for key, count in counts.items() if count > 1]:
            effect = "share their annotations" if what == "images" else "go by the last one's name"
            text = f"gives several {what} the same id, which {effect}: {len(twice)} in all, the first is {twice[0]}"
            yield Remark("same-id", text, "Give each an id of its own")


def _named(annotation: Mapping[str, Any]) -> str:
    """Of an annotation, its own id and those that it refers to."""
    return ", ".join(f"has {key} {annotation.get(key)!r}"[:60] for key in ("id", "image_id", "category_id"))


def _run_lengths(path: Path, stored: Mapping[str, Any]) -> np.ndarray:
    """(Y, X) bool of COCO's run lengths, down the columns; as a list, or as text. Raises FileError."""
    size, counts = stored.get("size"), stored.get("counts")
    numbers = isinstance(size, list) and len(size) == 2 and all(isinstance(each, int) and each > 0 for each in size)
    if not isinstance(size, list) or not numbers or not isinstance(counts, list | str):
        raise damaged(path, "a mask of run lengths has no size, or no counts")
    require_memory(path, math.prod(size), 1)
    try:
        runs = _unpacked(counts) if isinstance(counts, str) else [int(each) for each in counts]
    except (IndexError, OverflowError, TypeError, ValueError):
        runs = [-1]
    if min(runs, default=0) < 0 or sum(runs) != math.prod(size):
        raise damaged(path, "a mask of run lengths has another number of pixels than its size")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[1], size[0]).T


def _unpacked(text: str) -> list[int]:
    """Runs from pycocotools' text: numbers in groups of 5 bits, from the fourth on differences to the last but one."""
    runs: list[int] = []
    value = place = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or place > 12:
            raise ValueError
        value |= (bits & 31) << 5 * place
        place += 1
        if not bits & 32:
            value -= (1 << 5 * place) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = place = 0
    return runs


# ---- LabelMe ----------------------------------------------------------------------------------------------------


def _of_labelme(path: Path, shape: Any) -> Iterator[Outline]:
    """One outline; without parts for lines and points."""
    if not isinstance(shape, dict):
        raise damaged(path, "a shape is no object")
    name, kind = clean_name(shape.get("label")), str(shape.get("shape_type") or "polygon")
    points = corners(path, shape.get("points") or [])
    if kind == "mask" and len(points) == 2:
        left, top = (int(each) for each in points[0])
        yield Outline(name, box=(top, left), mask=_labelme_mask(path, shape.get("mask"), points))
    elif kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        yield Outline(name, (np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]),))
    elif kind == "circle" and len(points) == 2:
        angles = np.arange(CIRCLE) * (2 * np.pi / CIRCLE)
        radius = float(np.hypot(*(points[1] - points[0])))
        yield Outline(name, (points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1),))
    elif kind in ("polygon", "rectangle", "oriented_rectangle") and len(points) > 2:
        yield Outline(name, (points,))
    else:
        yield Outline(name)


def _labelme_mask(path: Path, text: object, points: np.ndarray) -> np.ndarray:
    """(Y, X) bool of a PNG in base64, which fills the box between two pixels."""
    from PIL import Image

    try:
        picture = Image.open(BytesIO(base64.b64decode(str(text), validate=True)), formats=["PNG"])
        columns, rows = (int(each) + 1 for each in points[1] - points[0])
        if picture.size != (columns, rows):
            raise ValueError
        return np.asarray(picture.convert("L")) > 0
    except (binascii.Error, OSError, ValueError, Image.DecompressionBombError, SyntaxError):
        raise damaged(path, "the mask of a shape is no PNG that fits its box") from None
