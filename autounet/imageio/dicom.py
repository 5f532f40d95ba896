"""A DICOM series: a folder with a file per slice, or with one of many frames (Enhanced CT, MR, PET), as one volume.

Of a series whose files lie among others, the path is that of a folder which holds all of them, at any depth, and the
series' UID as its last part: no such file exists. `dicom_index` says what a folder holds.

Slices are ordered by their positions along their normal, never by name or number. What a folder holds besides one whole
series is refused: several series, slices twice, slices missing, tilted or uneven stacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..schema.errors import FileError
from .dicom_index import dicom_files
from .dicom_slices import Slice, padding_range, read_pixels, read_slices, rescale
from .image_format import ImageFormat, ImageHeader, Remark, make_geometry

UNEVEN = 0.1
"""of the distance between slices: what a position may be off a regular grid (scanners round to 0.01 mm or so)"""


def read_series(folder: Path) -> tuple[np.ndarray, ImageHeader]:
    """Array (C, Z, Y, X) with the rescale slope and intercept of each slice applied, and its header.

    Integers stay integers where slopes are 1. MONOCHROME1 is inverted to what MONOCHROME2 would store.
    Raises DataError.
    """
    slices, header = _ordered(folder)
    array = np.stack([read_pixels(each) for each in slices], axis=1)
    slope = max(abs(rescale(each)[0]) for each in slices)
    return array, header._replace(remarks=_remarks(slices, array), slope=slope)


def _remarks(slices: Sequence[Slice], array: np.ndarray) -> tuple[Remark, ...]:
    """What is to be said of the values of slices that were read into `array`."""
    found: tuple[Remark, ...] = ()
    tables = [each for each in slices if "ModalityLUTSequence" in each.sources[0]]
    if tables:
        text = f"holds {tables[0].name}, whose values viewers change by a Modality LUT; they were read as stored"
        found += (Remark("not-as-shown", text, "Export it with rescale slope and intercept, or convert it to NIfTI"),)
    first = slices[0]
    padding = padding_range(first) if first.samples == 1 else None
    if padding is None:
        return found
    slope, intercept = rescale(first)
    value = padding[1] * slope + intercept
    number = int(np.count_nonzero(array == value))
    if 0 < number < array.size and value >= array.max():
        what = f"{number} voxels with the padding value {value:g}, the largest of all"
        text = f"has {what}, which viewers show black; they were read as stored"
        found += (Remark("not-as-shown", text, "Export it with padding below the values of the image"),)
    return found


def read_series_header(folder: Path) -> ImageHeader:
    """Reads every file: whether a series is whole cannot be told from one. Raises DataError."""
    return _ordered(folder)[1]


def series_files(folder: Path) -> list[Path]:
    """The slices from the first to the last, in the order of the array's axis z.

    Raises DataError, also where a file holds several slices.
    """
    slices = _ordered(folder)[0]
    for each in slices:
        if each.frames > 1:
            raise FileError(each.path, f"has {each.frames} frames in one file", "Give a series with a file per slice")
    return [each.path for each in slices]


def _ordered(folder: Path) -> tuple[list[Slice], ImageHeader]:
    files = dicom_files(folder)
    if not files:
        raise FileError(folder, "holds no DICOM files", "Give the folder of one series")
    slices = [each for path in files for each in read_slices(path)]
    _require_one_series(folder, slices)
    first = slices[0]
    if first.position is None or first.axes is None:
        if len(slices) > 1:
            raise FileError(folder, f"holds {len(slices)} slices that do not say where they lie", "Give one image each")
        spacing = (first.spacing[1], first.spacing[0])
        size = (first.shape[1], first.shape[0])
        return slices, ImageHeader(make_geometry(folder, "dicom", size, spacing, (0, 0), np.eye(2)), first.samples, 1)
    normal = np.cross(*first.axes)
    slices.sort(key=lambda each: float(np.dot(normal, each.position)))  # type: ignore[arg-type]
    step = _step(folder, slices, normal)
    geometry = make_geometry(
        folder,
        "dicom",
        (first.shape[1], first.shape[0], len(slices)),
        (first.spacing[1], first.spacing[0], step),
        slices[0].position.tolist(),  # type: ignore[union-attr]
        np.stack([*first.axes, normal], axis=1),
    )
    return slices, ImageHeader(geometry, first.samples, 1)


def _require_one_series(folder: Path, slices: Sequence[Slice]) -> None:
    """One series, and all its slices of one grid."""
    of_series: dict[str, list[Slice]] = {}
    for each in slices:
        of_series.setdefault(each.series, []).append(each)
    if len(of_series) > 1:
        shown = [
            f"{own[0].text('SeriesDescription') or 'series ' + (own[0].text('SeriesNumber') or series[-12:])} "
            f"({len(own)} file{'s' if len(own) > 1 else ''}, for example {own[0].path.name})"
            for series, own in of_series.items()
        ]
        raise FileError(
            folder,
            f"holds {len(of_series)} series: {'; '.join(shown[:8])}",
            "Put each series into a folder of its own",
        )
    usual = slices[0]
    counts = Counter((each.shape, each.samples) for each in slices)
    shape, _ = counts.most_common(1)[0]
    for each in slices:
        if (each.shape, each.samples) != shape:
            raise FileError(
                each.path,
                f"is {each.shape[0]}x{each.shape[1]}, the other slices {shape[0][0]}x{shape[0][1]}",
                "Keep only slices of one size",
            )
        if (each.position is None) != (usual.position is None):
            raise FileError(
                each.path, "does not say where it lies, unlike other slices", "Take it out, or export it again"
            )
        same = np.allclose(each.spacing, usual.spacing, rtol=1e-3)
        if not same or (each.axes is not None and np.abs(each.axes - usual.axes).max() > 1e-3):
            raise FileError(
                folder,
                f"holds {each.name} with another spacing or orientation than {usual.name}",
                "Keep only parallel slices; a scout image belongs elsewhere",
            )


def _step(folder: Path, slices: Sequence[Slice], normal: np.ndarray) -> float:
    """mm between slices. Raises FileError for slices twice, missing, uneven, or shifted against each other."""
    if len(slices) == 1:
        return slices[0].thickness
    positions = np.array([each.position for each in slices])
    along = positions @ normal
    gaps = np.diff(along)
    _require_each_once(folder, slices, gaps)
    mean = float(along[-1] - along[0]) / (len(slices) - 1)
    off = np.abs(along - along[0] - mean * np.arange(len(slices))).max()
    aside = np.abs(positions - positions[0] - np.outer(along - along[0], normal)).max()
    if off > UNEVEN * mean:
        finding = f"has slices {gaps.min():.2f} to {gaps.max():.2f} mm apart"
        raise FileError(folder, finding, "Resample it to even distances")
    if aside > UNEVEN * min(*slices[0].spacing, mean):
        finding = f"has slices that are shifted against each other by up to {aside:.2f} mm (a tilted gantry)"
        raise FileError(folder, finding, "Resample it to a rectangular grid")
    return mean


def _require_each_once(folder: Path, slices: Sequence[Slice], gaps: np.ndarray) -> None:
    """`gaps`: mm from each slice to the next. Raises FileError for slices twice or missing."""
    apart = np.sort(gaps[gaps > 0.01])
    step = float(apart[(len(apart) - 1) // 2]) if len(apart) else 0.0  # the lower median: gaps are wider
    twice = np.flatnonzero(gaps <= max(0.01, UNEVEN * step))
    if len(twice):
        index = int(twice[0])
        here = slices[index].name, slices[index + 1].name
        repeats = f" ({len(twice)} slices lie where another does)" if len(twice) > 1 else ""
        raise FileError(
            folder,
            f"holds {here[0]} and {here[1]} at the same position{repeats}: a duplicate, or several time points or "
            "echoes",
            "Keep one of each slice, and a folder per time point",
        )
    wide = np.flatnonzero(gaps > (1.5 * step))
    if len(wide):
        index = int(wide[0])
        missing = round(float(gaps[index]) / step) - 1
        raise FileError(
            folder,
            f"is missing {missing} slice{'s' if missing > 1 else ''} between {slices[index].name} "
            f"and {slices[index + 1].name}, {gaps[index]:.2f} mm apart where others are {step:.2f} mm",
            "Add the missing files, or export the series again",
        )


DICOM_SERIES = ImageFormat((), read_series, read_series_header, written_as={"": ".nii.gz"}, has_geometry=True)
