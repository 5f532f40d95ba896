"""Repairing one case and writing it into a new folder. The files it comes from are never changed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autounet.datasets.checks.contents import count_values
from autounet.datasets.checks.set_checks import WHITE, grey_values
from autounet.datasets.fixes.mending import FilePart, channel_on, common_grid, finite, label_on, with_channels
from autounet.images import (
    DICOM,
    VOLUME_KINDS,
    file_kind,
    files_of,
    output_suffix,
    read_image,
    read_labels,
    stem,
    suffix,
    write_image,
    write_labels,
)
from autounet.schema.dataset import Case
from autounet.schema.errors import DataError
from autounet.schema.labels import LabelCode

MAIN_SHARE = 0.9
"""share of a lossy mask's voxels that its two most frequent values have, at least"""
IMAGES, LABELS = "imagesTr", "labelsTr"


class RepairTask(NamedTuple):
    root: str
    case: Case
    channels: int
    """of the data set"""
    declared: tuple[int, ...]
    """values of classes and the ignore value"""
    codes: tuple[LabelCode, ...]
    folder: Path
    """the new one"""


class Repaired(NamedTuple):
    case: Case
    """with the paths in the new folder"""
    done: tuple[str, ...] = ()
    problem: str | None = None
    """why the case could not be repaired and was left out"""
    values: tuple[int, ...] = ()
    """of its label"""


def repair_case(task: RepairTask) -> Repaired:
    """Write what is repaired, copy what is sound. A case that cannot be repaired is told, and nothing of it written."""
    case, done = task.case, list[str]()
    try:
        parts = [FilePart(name, *read_image(Path(task.root) / name, case.frame)) for name in case.images]
        label = _read_label(task, done) if case.label else None
        parts = [finite(part, done) for part in parts]
        grid = common_grid([*parts, *([label] if label else [])])
        parts = [channel_on(part, grid, done) for part in parts]
        parts = with_channels(parts, task.channels if case.present is None else len(case.present), done)
        label = label_on(label, grid, done) if label else None
        if all((part.array == part.array.flat[0]).all() for part in parts):
            raise DataError("the image has one value everywhere")
        return _write(task, parts, label, done)
    except DataError as error:
        message, _, remedy = str(error).replace(f"{task.root}/", "").rpartition(". ")
        return Repaired(case, problem=message or remedy)


def _read_label(task: RepairTask, done: list[str]) -> FilePart:
    """Values (1, Z, Y, X), those of a spoilt mask rounded to the nearer of its two."""
    case = task.case
    assert case.label is not None
    path = Path(task.root) / case.label
    try:
        values, geometry = read_labels(path, task.codes, case.frame)
    except DataError:
        return _whole(case.label, path, case.frame, done)
    counts = count_values(values)
    low, high = 0, max(counts)
    greys = grey_values(counts, set(task.declared))
    if geometry.kind == "jpeg" and len(counts) > 2:
        low, high = _main_values(case.label, counts)
        greys = [value for value in counts if value not in (low, high)]
    if greys:
        done.append(f"{case.label}: {len(greys)} values between {low} and {high} were rounded to the nearer")
        values = np.where(values - low < high - values, low, high).astype(np.int32)
    return FilePart(case.label, values[None], geometry, bool(greys) or geometry.kind == "jpeg")


def _whole(name: str, path: Path, frame: int | None, done: list[str]) -> FilePart:
    """A mask of two values that interpolation has spoilt, of 0 and 1 or 0 and 255. Raises DataError for others."""
    array, geometry = read_image(path, frame)
    high = float(array.max()) if np.isfinite(array).all() else -1.0
    if len(array) != 1 or array.min() < 0 or high not in (1.0, *WHITE):
        read_labels(path)  # raises with what is wrong
    number = int(np.count_nonzero((array != 0) & (array != high)))
    done.append(f"{name}: {number} voxels with values between 0 and {high:g} were rounded to the nearer")
    return FilePart(name, np.where(array < high / 2, 0, int(high)).astype(np.int32), geometry, True)


def _main_values(name: str, counts: dict[int, int]) -> tuple[int, int]:
    """The two values of a mask; what compression made of black and white counts as these."""
    low, high = sorted(sorted(counts, key=lambda value: counts[value])[-2:])
    if counts[low] + counts[high] < MAIN_SHARE * sum(counts.values()):
        raise DataError(f"{name} holds {len(counts)} values, of which its compression leaves none certain")
    return low, high


def _write(task: RepairTask, parts: Sequence[FilePart], label: FilePart | None, done: list[str]) -> Repaired:
    case = task.case
    plain = case.frame is None
    numbers = range(len(parts)) if case.present is None else case.present
    images = [
        _place(task, part, f"{IMAGES}/{case.identifier}_{number:04d}", plain, False)
        for number, part in zip(numbers, parts, strict=True)
    ]
    drawn, values = None, ()
    if label is not None:
        drawn = _place(task, label, f"{LABELS}/{case.identifier}", plain and not task.codes, True)
        values = tuple(np.unique(label.array).tolist())
    moved = case.model_copy(update={"images": tuple(images), "label": drawn, "frame": None})
    return Repaired(moved, tuple(done), values=values)


def _place(task: RepairTask, part: FilePart, name: str, plain: bool, is_label: bool) -> str:
    """Copy a file that is sound and whole by itself, write another one. Returns its path in the new folder."""
    source = Path(task.root) / part.name
    copied = plain and not part.changed and file_kind(source) != DICOM and output_suffix(suffix(source)) != ".mha"
    ending = suffix(source) if copied or suffix(source).lower() == ".mha" else output_suffix(suffix(source))
    target = task.folder / f"{name}{ending}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if copied:
        shutil.copyfile(source, target)
    elif is_label:
        write_labels(target, part.array[0], part.geometry)
    else:
        write_image(target, _narrowed(part, target), part.geometry)
    for sidecar in files_of(source)[1:] if part.geometry.kind not in VOLUME_KINDS else ():
        shutil.copyfile(sidecar, target.with_name(f"{stem(target)}.json"))
    return f"{name}{ending}"


def _narrowed(part: FilePart, target: Path) -> np.ndarray:
    """Pictures hold whole numbers of 8 or 16 bits."""
    if file_kind(target) in VOLUME_KINDS:
        return part.array
    whole = bool((part.array == np.rint(part.array)).all()) and part.array.min() >= 0
    for number in (np.uint8, np.uint16):
        if whole and part.array.max() <= np.iinfo(number).max:
            return part.array.astype(number)
    return part.array
