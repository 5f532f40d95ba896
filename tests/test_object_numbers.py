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
