"""Zarr folders whose names do not end in .zarr are images by what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from laboratory_files import ngff
from test_containers import NONE, VOLUME, bundle_of

from autounet.datasets import find_inputs, load_input, scan
from autounet.imageio import (
    file_kind,
    files_of,
    is_container,
    is_series,
    is_zarr,
    read_geometry,
    read_image,
    read_labels,
    segmentation_suffix,
)
from autounet.schema.errors import DataError
from autounet.schema.options import DataOptions
from autounet.workflow.dataset_stage import check_data

DRAWN = (VOLUME[0] > 30_000).astype(np.uint8)


def stores(folder: Path, count: int = 3, version: str = "0.4", labels: bool = True) -> Path:
    for index in range(count):
        own = {"cells": DRAWN} if labels else None
        ngff(folder / f"s{index}", VOLUME + index, "czyx", version, {"z": 2.0}, names=["A", "B"], labels=own)
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_images_with_labels_are_found_and_predicted(tmp_path: Path, version: str) -> None:
    stores(tmp_path, version=version)
    dataset = scan(tmp_path, NONE)
    assert (dataset.layout, dataset.file_kind) == ("containers", "zarr")
    assert [(case.identifier, case.images, case.label) for case in dataset.cases] == [
        (f"s{index}", (f"s{index}",), f"s{index}/labels/cells") for index in range(3)
    ]
    assert [channel.name for channel in dataset.channels] == ["A", "B"]
    found = check_data(tmp_path, NONE)
    assert not [each for each in found.findings if each.severity == "fatal"]
    for given in (tmp_path, tmp_path / "s1"):
        cases = find_inputs(given, bundle_of(dataset))
        assert [case.identifier for case in cases] == (["s1"] if given.name == "s1" else ["s0", "s1", "s2"])
    image, geometry = load_input(cases[0], dataset.channels)
    np.testing.assert_array_equal(image, VOLUME + 1)
    assert geometry.spacing[0] == 2e-3


def test_images_beside_a_folder_of_labels(tmp_path: Path) -> None:
    stores(tmp_path / "images", labels=False)
    for index in range(3):
        ngff(tmp_path / "labels" / f"s{index}", DRAWN, "zyx")
    dataset = scan(tmp_path, NONE)
    assert dataset.layout == "pairs"
    assert [(case.images, case.label) for case in dataset.cases] == [
        ((f"images/s{index}",), f"labels/s{index}") for index in range(3)
    ]
    by_option = scan(tmp_path, DataOptions(channels={"image": "images/*"}, label="labels/*"))
    assert [case.images for case in by_option.cases] == [case.images for case in dataset.cases]


def test_a_table_may_name_them(tmp_path: Path) -> None:
    stores(tmp_path)
    rows = [f"s{index},s{index},s{index}/labels/cells" for index in range(3)]
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,label", *rows]))
    dataset = scan(tmp_path / "cases.csv", NONE)
    assert [case.images for case in dataset.cases] == [("s0",), ("s1",), ("s2",)]


def test_what_such_a_folder_is(tmp_path: Path) -> None:
    path = stores(tmp_path, 1) / "s0"
    assert is_zarr(path)
    assert is_container(path)
    assert not is_series(path)
    assert file_kind(path) == "zarr"
    assert segmentation_suffix(path) == ".tif"
    assert path / ".zattrs" in files_of(path)
    assert not any("labels" in file.parts for file in files_of(path))
    np.testing.assert_array_equal(read_labels(path / "labels/cells")[0], DRAWN)
    assert read_geometry(path / "1").shape == (3, 8, 6)
    zarr.create_array(str(tmp_path / "plain"), data=DRAWN, zarr_format=3)
    np.testing.assert_array_equal(read_image(tmp_path / "plain")[0][0], DRAWN)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"attributes": 3}', '{"node_type": "group"}', '"multiscales"'])
@pytest.mark.parametrize("name", [".zattrs", "zarr.json"])
def test_other_folders_are_none(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / name).write_text(content)
    assert not is_zarr(tmp_path)


def test_a_level_needs_a_name(tmp_path: Path) -> None:
    for index in range(2):
        ngff(tmp_path / f"s{index}", VOLUME, "czyx", labels={"cells": DRAWN[:, ::2, ::2]})
    with pytest.raises(DataError, match=r"level 1 of the images, and s0 is not called \.zarr.*Rename"):
        scan(tmp_path, NONE)


def test_groups_of_other_things_are_walked(tmp_path: Path) -> None:
    """A group without multiscales is a folder like any other, as of a study."""
    stores(tmp_path / "study")
    (tmp_path / "study" / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    assert [case.identifier for case in scan(tmp_path / "study", NONE).cases] == ["s0", "s1", "s2"]
