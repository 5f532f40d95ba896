"""What numbered masks hold: numbers of any size, and masks that number nothing."""

from __future__ import annotations

from pathlib import Path

import h5py
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from autounet import api
from autounet.datasets import load_case, read_numbers, scan
from autounet.imageio import read_labels
from autounet.imageio.stored_values import whole_numbers
from autounet.schema.errors import DataError
from autounet.schema.options import DataOptions
from autounet.workflow.dataset_stage import check_data, fix_data

LARGE = 2**31
"""the first number that int32 does not hold"""


def write(path: Path, numbers: np.ndarray) -> Path:
    """(Y, X) in the type that it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, numbers)
    elif path.suffix == ".nrrd":
        nrrd.write(str(path), numbers.T[..., None])
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["numbers"] = numbers
    else:
        sitk.WriteImage(sitk.GetImageFromArray(numbers[None]), str(path))
    return path


def discs(count: int, seed: int = 0) -> np.ndarray:
    """(Y, X) int64 of `count` discs apart from each other, numbered from 1."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros((40, 12 * count), np.int64)
    y, x = np.indices(numbers.shape)
    for index in range(count):
        centre = rng.integers(8, 32), 12 * index + 6
        numbers[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 16] = index + 1
    return numbers


# ---- numbers beyond 32 bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".tif", ".nrrd", ".h5", ".nii.gz", ".mha"])
def test_numbers_of_objects_may_be_of_any_size(tmp_path: Path, ending: str) -> None:
    numbers = discs(3).astype(np.uint32)
    numbers[numbers == 2] = LARGE
    numbers[numbers == 3] = np.iinfo(np.uint32).max
    for name in "ab":
        rng = np.random.default_rng(ord(name))
        tifffile.imwrite(write(tmp_path / f"images/{name}.tif", numbers), rng.integers(0, 99, numbers.shape, np.uint8))
        label = write(tmp_path / f"masks/{name}{ending}", numbers)
    with pytest.raises(DataError, match=r"beyond 32 bits.*--objects NAME"):
        read_labels(label)
    dataset = scan(tmp_path, DataOptions(objects="cell"))
    read, _ = read_numbers(dataset, dataset.cases[0])
    assert len(np.unique(read)) == 4
    assert all(len(np.unique(read[0][numbers == value])) == 1 for value in np.unique(numbers))
    assert (read[0][numbers == 1] == 1).all()
    labels = load_case(dataset, "a").labels
    assert labels is not None
    assert ((labels[0] > 0) == (numbers > 0)).all()
    joined = load_case(scan(tmp_path, DataOptions(join="cell")), "a").labels
    assert joined is not None
    assert ((joined[0] == 1) == (numbers > 0)).all()


def test_such_numbers_are_evaluated(tmp_path: Path) -> None:
    own = discs(3)
    write(tmp_path / "predicted/a.tif", own.astype(np.uint16))
    write(tmp_path / "drawn/a.tif", np.where(own > 0, own + LARGE, 0).astype(np.uint32))
    found = api.evaluate(tmp_path / "predicted", tmp_path / "drawn", objects="cell")
    assert found.per_class["cell"].ap50 == 1.0


def test_no_two_numbers_become_one() -> None:
    rng = np.random.default_rng(0)
    kept = np.array([0, 1, 255, LARGE - 1, LARGE - 2, LARGE - 4])
    values = rng.choice([*kept, *(LARGE + rng.integers(0, LARGE, 20))], (1, 50, 50)).astype(np.int64)
    found = whole_numbers(Path("a.tif"), values, numbers=True)
    pairs = {(int(a), int(b)) for a, b in zip(values.flat, found.flat, strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert all(a == b for a, b in pairs if a < LARGE)
    with pytest.raises(DataError, match="beyond 32 bits"):
        whole_numbers(Path("a.tif"), np.array([[[-LARGE - 1, LARGE]]]), numbers=True)


# ---- masks that number nothing ---------------------------------------------------------------------------------------


def data_set(folder: Path, masks: list[np.ndarray]) -> Path:
    """Pictures with these masks (Y, X)."""
    for index, mask in enumerate(masks):
        rng = np.random.default_rng(index)
        write(folder / f"images/c{index}.tif", (99 * (mask > 0) + rng.integers(0, 99, mask.shape)).astype(np.uint8))
        write(folder / f"masks/c{index}.tif", mask)
    return folder


def same_objects(own: np.ndarray, other: np.ndarray) -> bool:
    """Whether two numbered masks differ in the numbers alone, which begin with 1 in both."""
    pairs = {(int(a), int(b)) for a, b in zip(own.flat, other.flat, strict=True)}
    count = len(pairs)
    return (0, 0) in pairs and all({each[side] for each in pairs} == set(range(count)) for side in (0, 1))


def unnumbered(folder: Path, objects: str | None = "cell") -> list[str]:
    """Messages about masks that number nothing."""
    found = check_data(folder, DataOptions(objects=objects)).findings
    return [each.message for each in found if each.code == "unnumbered-objects"]


@pytest.mark.parametrize("value", [1, 255])
def test_pieces_of_a_plain_mask_are_objects(tmp_path: Path, value: int) -> None:
    drawn = [discs(3, seed) for seed in range(6)]
    plain = data_set(tmp_path / "plain", [np.uint8(value) * (each > 0).astype(np.uint8) for each in drawn])
    (told,) = unnumbered(plain)
    assert f"one value besides 0 ({value}), in 3 connected pieces" in told
    assert unnumbered(plain, None) == []
    dataset = scan(plain, DataOptions(objects="cell"))
    numbered = data_set(tmp_path / "numbered", [each.astype(np.uint8) for each in drawn])
    assert unnumbered(numbered) == []
    by_numbers = scan(numbered, DataOptions(objects="cell"))
    for case, own in zip(dataset.cases, drawn, strict=True):
        assert same_objects(read_numbers(dataset, case)[0][0], own)
        labels = [load_case(each, case.identifier).labels for each in (dataset, by_numbers)]
        np.testing.assert_array_equal(*labels)


def test_few_pieces_are_objects_as_well(tmp_path: Path) -> None:
    drawn = [discs(count, seed) for seed, count in enumerate((1, 1, 1, 1, 1, 2))]
    plain = data_set(tmp_path / "plain", [np.uint8(255) * (each > 0).astype(np.uint8) for each in drawn])
    (told,) = unnumbered(plain)
    assert "in 1 to 2 connected pieces" in told
    dataset = scan(plain, DataOptions(objects="cell"))
    assert read_numbers(dataset, dataset.cases[5])[0].max() == 2


def test_masks_that_number_nothing_among_others_are_named(tmp_path: Path) -> None:
    drawn = [discs(4, seed) for seed in range(6)]
    masks = [each.astype(np.uint8) if index != 2 else np.uint8(255) * (each > 0) for index, each in enumerate(drawn)]
    (told,) = unnumbered(data_set(tmp_path / "mixed", masks))
    assert "1 of 6 label files that were compared number no objects" in told
    assert "c2.tif" in told


def test_numbers_beyond_32_bits_are_told_by_what_helps(tmp_path: Path) -> None:
    drawn = [
        np.where(discs(3, seed) > 0, np.uint32(2**31 + 5) + discs(3, seed), 0).astype(np.uint32) for seed in (0, 1)
    ]
    found = check_data(data_set(tmp_path / "large", drawn), DataOptions()).findings
    assert any("beyond 32 bits" in each.message and "--objects NAME" in each.remedy for each in found)


def test_check_writes_the_pieces_as_numbers(tmp_path: Path) -> None:
    drawn = [discs(4, seed) for seed in range(6)]
    plain = data_set(tmp_path / "plain", [np.where(each > 0, 255, 0).astype(np.uint8) for each in drawn])
    repaired = fix_data(plain, DataOptions(objects="cell"), tmp_path / "new")
    assert {str(each) for each in repaired.repairs} == {
        f"case c{index}: masks/c{index}.tif: its connected pieces were numbered" for index in range(6)
    }
    assert [each.code for each in repaired.result.findings] == []
    assert same_objects(read_labels(tmp_path / "new/labelsTr/c0.tif")[0][0], drawn[0])


def test_the_ignore_value_is_no_number(tmp_path: Path) -> None:
    mask = np.where(discs(5) > 0, 255, 0).astype(np.uint8)
    mask[:3] = 2
    data = data_set(tmp_path, [mask] * 3)
    dataset = scan(data, DataOptions(objects="cell", ignore=2))
    numbers = read_numbers(dataset, dataset.cases[0])[0][0]
    assert (numbers[:3] == 2).all()
    assert len(set(np.unique(numbers)) - {0, 2}) == 5
    labels = load_case(dataset, "c0").labels
    assert labels is not None
    assert (labels[0, :3] == -1).all()
    np.testing.assert_array_equal(labels[0] > 0, mask == 255)


def test_one_object_in_each_picture_is_one(tmp_path: Path) -> None:
    """Also where a brush has left specks, and where programs go on counting from file to file."""
    masks = [discs(1, seed).astype(np.uint8) for seed in range(6)]
    for mask in masks:
        mask[0, 0] = 1
    assert unnumbered(data_set(tmp_path / "specks", masks)) == []
    counted = [np.uint8(index + 1) * (discs(1, index) > 0).astype(np.uint8) for index in range(4)]
    assert unnumbered(data_set(tmp_path / "counted", counted)) == []


def test_a_single_numbered_file_shows_that_values_are_numbers(tmp_path: Path) -> None:
    drawn = [discs(5), discs(1, 1)]
    assert unnumbered(data_set(tmp_path, [each.astype(np.uint8) for each in drawn])) == []


def test_classes_in_place_of_numbers_are_told_and_left(tmp_path: Path) -> None:
    masks = [np.where(discs(12, seed) > 6, 2, discs(12, seed) > 0).astype(np.uint8) for seed in range(5)]
    (told,) = unnumbered(data_set(tmp_path, masks))
    assert "seem to hold classes" in told
    assert "in 12 connected pieces" in told
    dataset = scan(tmp_path, DataOptions(objects="cell"))
    np.testing.assert_array_equal(read_numbers(dataset, dataset.cases[0])[0][0], masks[0])


def test_pieces_of_plain_masks_are_evaluated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(2):
        write(tmp_path / f"predicted/c{index}.tif", discs(3, index).astype(np.uint8))
        write(tmp_path / f"drawn/c{index}.tif", np.where(discs(3, index) > 0, 255, 0).astype(np.uint8))
    found = api.evaluate(tmp_path / "predicted", tmp_path / "drawn", objects="cell")
    assert found.per_class["cell"].ap50 == 1.0
    assert [each.getMessage().split(":")[0] for each in caplog.records] == ["references"]
