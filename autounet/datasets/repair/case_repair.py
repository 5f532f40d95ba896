"""Repair of one case, written into a new folder. The files it comes from are never changed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...imageio import (
    DICOM,
    VOLUME_KINDS,
    file_kind,
    files_of,
    is_container,
    is_outlines,
    output_suffix,
    read_image,
    read_labels,
    stem,
    suffix,
    write_image,
    write_labels,
)
from ...ops.orient import regrid_image, regrid_labels, same_voxels, share_inside
from ...schema.dataset import Case
from ...schema.errors import DataError, FileError
from ...schema.geometry import IDENTITY, TOLERANCE, Geometry, placements
from ...schema.labels import LabelCode, numbers_objects
from ..checks.case_checks import count_values, world_differences
from ..checks.set_checks import WHITE, grey_values
from ..structures import read_case_label, read_case_numbers

LEAST_INSIDE = 0.95
"""share of the labelled voxels that must lie in the image for the header of a label to be trusted"""
LEAST_COVERED = 0.5
"""share of the first channel that another one must cover to be resampled onto it"""
SAME_ASPECT = 0.01
"""relative difference up to which a mask has the proportions of its picture and was only scaled"""


class FilePart(NamedTuple):
    """What one file holds: (C, Z, Y, X) float32, or label values (1, Z, Y, X)."""

    name: str
    array: np.ndarray
    geometry: Geometry
    changed: bool = False


def finite(part: FilePart, done: list[str]) -> FilePart:
    """NaN becomes 0 where 0 lies among the intensities, else the least; infinite values the least and the largest."""
    wrong = ~np.isfinite(part.array)
    number = int(np.count_nonzero(wrong))
    if not number:
        return part
    if number > part.array.size / 2:
        raise DataError(f"{part.name}: most of its voxels are NaN or infinite")
    right = part.array[~wrong]
    low, high = float(right.min()), float(right.max())
    filler = 0.0 if low <= 0 <= high else low
    done.append(
        f"{number} voxels of {part.name} were replaced: NaN by {filler:g}, infinite ones by {low:g} or {high:g}"
    )
    return part._replace(array=np.nan_to_num(part.array, nan=filler, neginf=low, posinf=high), changed=True)


def header_is_lost(geometry: Geometry) -> bool:
    """Spacing 1, origin 0 and axes along the world's: what programs write that know no geometry."""
    axes = tuple(abs(value) for value in geometry.direction)
    return axes == IDENTITY and geometry.spacing == (1, 1, 1) and not any(geometry.origin)


def has_no_place(own: Geometry, grid: Geometry) -> bool:
    """A NIfTI file without any transform says nothing but its spacing."""
    placed = own.nifti is None or own.nifti.qform_code > 0 or own.nifti.sform_code > 0
    return not placed and own.shape == grid.shape and bool(np.allclose(own.spacing, grid.spacing, atol=TOLERANCE))


def fitting_grids(own: Geometry, grid: Geometry) -> tuple[Geometry, Geometry]:
    """Of the transforms of both files those by which they hold the same voxels, if in another order; else their own."""
    pairs = product(placements(own), placements(grid))
    return next((pair for pair in pairs if same_voxels(*pair)), (own, grid))


def common_grid(parts: Sequence[FilePart]) -> Geometry:
    """The case's: the first channel's, or where its header is lost that of another file with the same shape."""
    first = parts[0].geometry
    others = (part.geometry for part in parts if part.geometry.shape == first.shape)
    known = (each for each in others if not header_is_lost(each) and world_differences(each, first))
    return next(known, first) if header_is_lost(first) else first


def channel_on(part: FilePart, grid: Geometry, done: list[str]) -> FilePart:
    """A channel file on the case's voxels."""
    own = part.geometry
    if own.shape == grid.shape and not world_differences(own, grid):
        return part
    if own.shape == grid.shape and (header_is_lost(own) or has_no_place(own, grid)):
        done.append(f"{part.name} had no geometry of its own and got that of the case")
        return part._replace(geometry=grid, changed=True)
    if own.kind not in VOLUME_KINDS or grid.kind not in VOLUME_KINDS:
        raise DataError(f"{part.name} has shape {own.shape}, the case {grid.shape}, and no geometry to go by")
    own, target = fitting_grids(own, grid)
    covered = share_inside(_spread(target), target, own)
    if covered < LEAST_COVERED:
        raise DataError(f"{part.name} covers {covered:.0%} of the case's first channel")
    done.append(f"{part.name} was resampled onto the case's first channel")
    return FilePart(part.name, regrid_image(part.array, own, target), grid, changed=True)


def _spread(grid: Geometry) -> np.ndarray:
    """(N, 3) voxels (z, y, x) spread evenly over a grid, its corners among them."""
    along = [np.linspace(0, size - 1, min(size, 9)) for size in grid.shape]
    return np.stack(np.meshgrid(*along), axis=-1).reshape(-1, 3)


def with_channels(parts: list[FilePart], wanted: int, done: list[str]) -> list[FilePart]:
    """A grey picture among colour ones becomes three equal channels; one of equal colours among grey ones grey."""
    if sum(len(part.array) for part in parts) == wanted:
        return parts
    (part, *rest) = parts
    channels = len(part.array)
    equal = channels == 3 and bool((part.array == part.array[:1]).all())
    if rest or part.geometry.kind in VOLUME_KINDS or not ((channels == 1 and wanted == 3) or (equal and wanted == 1)):
        found = sum(len(part.array) for part in parts)
        raise DataError(f"{', '.join(part.name for part in parts)}: {found} channels where the others have {wanted}")
    done.append(f"{part.name} has {wanted} channel{'s' if wanted > 1 else ''} now, as the others")
    array = np.repeat(part.array, 3, axis=0) if wanted == 3 else part.array[:1]
    return [part._replace(array=array, changed=True)]


def label_on(part: FilePart, grid: Geometry, done: list[str]) -> FilePart:
    """A label on the case's voxels: resampled where its header can be trusted, else copied voxel by voxel."""
    own = part.geometry
    if own.shape == grid.shape and not world_differences(own, grid):
        return part
    if own.kind not in VOLUME_KINDS or grid.kind not in VOLUME_KINDS:
        return _scaled(part, grid, done)
    if own.shape == grid.shape and (header_is_lost(own) or has_no_place(own, grid)):
        done.append(f"{part.name} had no geometry of its own and got that of its image")
        return part._replace(geometry=grid, changed=True)
    source, target = fitting_grids(own, grid)
    inside = share_inside(np.argwhere(part.array[0] != 0), source, target)
    if inside >= LEAST_INSIDE:
        reason = "; ".join(map(str, world_differences(own, grid))) or "another shape"
        done.append(f"{part.name} was resampled onto its image: {reason}")
        return FilePart(part.name, regrid_labels(part.array[0], source, target)[None], grid, changed=True)
    if own.shape == grid.shape:
        done.append(f"{part.name}: its header puts it outside its image, so the image's header replaced it")
        return part._replace(geometry=grid, changed=True)
    raise DataError(f"{part.name} has another shape than its image, and lies outside it by {1 - inside:.0%}")


def _scaled(part: FilePart, grid: Geometry, done: list[str]) -> FilePart:
    """A mask of another size than its picture, by the nearest pixel."""
    ratios = [new / old for new, old in zip(grid.shape, part.geometry.shape, strict=True)]
    if part.geometry.shape[0] != grid.shape[0] or abs(ratios[1] / ratios[2] - 1) > SAME_ASPECT:
        raise DataError(f"{part.name} has shape {part.geometry.shape}, its image {grid.shape}, other proportions")
    own = Geometry(
        shape=part.geometry.shape, origin=(ratios[2] / 2, ratios[1] / 2, 0), spacing=(1, ratios[1], ratios[2])
    )
    target = Geometry(shape=grid.shape, origin=(0.5, 0.5, 0))
    done.append(f"{part.name} was scaled from {part.geometry.shape} to the size of its picture")
    return FilePart(part.name, regrid_labels(part.array[0], own, target)[None], grid, changed=True)


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


class RepairedCase(NamedTuple):
    case: Case
    """with the paths in the new folder"""
    done: tuple[str, ...] = ()
    problem: str | None = None
    """why the case could not be repaired and was left out"""
    values: tuple[int, ...] = ()
    """of its label"""


def repair_case(task: RepairTask) -> RepairedCase:
    """Copy the sound files of a case and write the repaired ones; nothing where the case cannot be repaired."""
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
        return RepairedCase(case, problem=error.within(task.root) if isinstance(error, FileError) else error.message)


def _read_label(task: RepairTask, done: list[str]) -> FilePart:
    """Values (1, Z, Y, X); those of an interpolated mask are rounded to the nearer of its two."""
    case = task.case
    assert case.label is not None
    root = Path(task.root)
    path, numbered = root / case.label, numbers_objects(task.codes)
    try:
        read = read_case_numbers(root, case, task.codes) if numbered else read_case_label(root, case, task.codes)
        values, geometry = read.values, read.geometry
    except DataError:
        if case.label_parts:
            raise
        return _rounded_mask(case.label, path, case.frame, done)
    if numbered:
        if any(code.pieces for code in task.codes):
            done.append(f"{case.label}: its connected pieces were numbered")
        return FilePart(case.label_files[0], values[None], geometry)
    counts = count_values(values)
    low, high = 0, max(counts)
    greys = grey_values(counts, set(task.declared))
    if geometry.kind == "jpeg" and len(counts) > 2:
        low, high = _main_values(case.label, counts)
        greys = [value for value in counts if value not in (low, high)]
    if greys:
        done.append(f"{case.label}: {len(greys)} values between {low} and {high} were rounded to the nearer")
        values = np.where(values - low < high - values, low, high).astype(np.int32)
    return FilePart(case.label_files[0], values[None], geometry, bool(greys) or geometry.kind == "jpeg")


def _rounded_mask(name: str, path: Path, frame: int | None, done: list[str]) -> FilePart:
    """A mask of 0 and 1 or 0 and 255 that was interpolated, rounded. Raises DataError for others."""
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
        raise DataError(f"{name} holds {len(counts)} values, and its compression leaves no two of them certain")
    return low, high


def _write(task: RepairTask, parts: Sequence[FilePart], label: FilePart | None, done: list[str]) -> RepairedCase:
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
    moved = case.model_copy(update={"images": tuple(images), "label": drawn, "label_parts": (), "frame": None})
    return RepairedCase(moved, tuple(done), values=values)


def _place(task: RepairTask, part: FilePart, name: str, plain: bool, is_label: bool) -> str:
    """Copy a file that is sound and whole by itself, write another one. Returns its path in the new folder."""
    source = Path(task.root) / part.name
    if is_label and is_outlines(source):  # drawn on the image, and written in its format
        source = Path(task.root) / task.case.images[0]
        plain = False
    whole_file = not is_container(source) and file_kind(source) != DICOM and output_suffix(suffix(source)) != ".mha"
    copied = plain and not part.changed and whole_file
    ending = suffix(source) if copied or suffix(source).lower() == ".mha" else output_suffix(suffix(source))
    target = task.folder / f"{name}{ending}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if copied:
        shutil.copyfile(source, target)
    elif is_label:
        write_labels(target, part.array[0], part.geometry)
    else:
        write_image(target, _narrowed(part, target), part.geometry)
    for sidecar in files_of(source)[1:] if part.geometry.kind not in VOLUME_KINDS and not is_container(source) else ():
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
