"""What does not fit together in COCO files is told, and crowds are no objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_outlines import NONE, SIZE, coco, corners

from autounet.datasets import load_case, read_numbers, scan
from autounet.schema.options import DataOptions
from autounet.workflow.dataset_stage import check_data

Change = Callable[[dict[str, Any]], object]


def changed(root: Path, *changes: Change) -> Path:
    """Annotations of three pictures, as of somebody who made mistakes."""
    coco(root)
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    for change in changes:
        change(content)
    file.write_text(json.dumps(content))
    return root


def outline(image: int, box: tuple[int, int, int, int], **more: object) -> dict[str, Any]:
    flat = [float(value) for point in corners(*box) for value in point]
    return {"id": 90, "image_id": image, "category_id": 3, "segmentation": [flat], **more}


def add(**entries: list[dict[str, Any]]) -> Change:
    return lambda content: [content[key].extend(values) for key, values in entries.items()]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (
            add(annotations=[outline(17, (1, 1, 4, 4)), outline(18, (1, 1, 4, 4))]), "unknown-image",
            "has 2 of 5 annotations for images that it does not list, which are left out; the first has id 90, has "
            "image_id 17",
        ),
        (
            add(annotations=[outline(2, (1, 1, 4, 4), category_id=9)]), "undeclared-category",
            "has 1 of 4 annotations in categories that it does not declare; the first has id 90, has image_id 2, has "
            "category_id 9, and its class is called 'category 9'",
        ),
        (
            add(categories=[{"id": 8, "name": "cell"}]), "same-name",
            "calls 2 categories 'cell' (ids 3, 8), which become one class",
        ),
        (add(categories=[{"id": 3, "name": "other"}]), "same-id", "gives several categories the same id"),
        (add(images=[{"id": 0, "file_name": "b.png"}]), "same-id", "gives several images the same id"),
    ],
    ids=["image", "category", "name", "category id", "image id"],
)  # fmt: skip
def test_what_does_not_fit_together_is_told_once(tmp_path: Path, change: Change, code: str, said: str) -> None:
    told = {each.code: each for each in check_data(changed(tmp_path, change), NONE).findings}
    assert told[code].severity == "warning"
    assert told[code].message.startswith("annotations/instances_train.json ")
    assert said in told[code].message


def test_sound_files_and_crowds_among_classes_are_told_nothing(tmp_path: Path) -> None:
    root = changed(tmp_path, add(annotations=[outline(2, (1, 1, 4, 4), iscrowd=1)]))
    codes = {each.code for each in check_data(root, NONE).findings}
    assert not codes & {"unknown-image", "undeclared-category", "same-name", "same-id", "crowds"}


@pytest.mark.parametrize("ignore", [None, 1, 7])
def test_crowds_are_no_objects(tmp_path: Path, ignore: int | None) -> None:
    crowd = outline(0, (0, 0, 10, 12), iscrowd=1)  # over the first object, and around it
    options = DataOptions(objects="cell", ignore=ignore)
    root = changed(tmp_path, add(annotations=[crowd, outline(1, (20, 10, 28, 18)), outline(1, (5, 10, 12, 18))]))
    (told,) = (each for each in check_data(root, options).findings if each.code == "crowds")
    assert "marks outlines as crowds of objects (iscrowd), 1 in all, the first in a.png" in told.message
    dataset = scan(root, options)
    own = dataset.labels.ignore
    numbers = read_numbers(dataset, dataset.case("a"))[0][0]
    assert len(set(np.unique(numbers)) - {0, own}) == 2
    assert (numbers == own).sum() == 10 * 12 - 6 * 6
    labels = load_case(dataset, "a").labels
    assert labels is not None
    assert ((labels[0] == -1) == (numbers == own)).all()
    others = read_numbers(dataset, dataset.case("b"))[0][0]
    assert len(set(np.unique(others)) - {0}) == 3
    assert own not in others
    assert others.shape == SIZE


def test_crowds_belong_to_the_class_where_objects_are_joined(tmp_path: Path) -> None:
    root = changed(tmp_path, add(annotations=[outline(2, (0, 0, 10, 12), iscrowd=1)]))
    for options in (DataOptions(join="cell"), DataOptions(join="cell", ignore=5)):
        labels = load_case(scan(root, options), "c").labels
        assert labels is not None
        assert (labels[0] == 1).sum() == 10 * 12
