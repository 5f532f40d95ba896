"""One case as arrays: of a data set, or a new image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..imageio import Remark, read_image_content
from ..ops.masks import encode
from ..schema.dataset import Case, Channel, ChannelFacts, Dataset
from ..schema.errors import DataError
from ..schema.geometry import Geometry
from .checks.case_checks import FAR_REMEDY, describe_channels, far_voxels, world_differences
from .grey_pictures import are_colours, in_channels
from .inputs import InputCase
from .structures import read_case_label, read_case_numbers

log = logging.getLogger(__name__)


class LoadedCase(NamedTuple):
    image: np.ndarray
    """(C, Z, Y, X) float32"""
    labels: np.ndarray | None
    """(Z, Y, X) int16 dense, -1 without loss"""
    geometry: Geometry
    """of the first channel's file"""


def read_channels(
    paths: Sequence[Path], channels: int, frame: int | None = None, told: int = logging.DEBUG, colours: bool = False
) -> tuple[np.ndarray, Geometry]:
    """All channel files of a case, joined along C, with the geometry of the first file. `frame` is a time point.

    A picture that is stored in colours and grey gives one channel where one is expected, and a grey one three equal
    ones where these are `colours`.

    What the readers have to say of the files is logged at the level `told`: `check` has found it in training data.

    Raises DataError when shapes or places in space differ, or the number of channels is not the one expected.
    """
    parts = [read_image_content(path, frame) for path in paths]
    require_one_grid(paths, [each.geometry for each in parts], [each.remarks for each in parts], told)
    image = parts[0].array if len(parts) == 1 else np.concatenate([each.array for each in parts])
    if len(parts) == 1:
        image = in_channels(image, parts[0].geometry.kind, channels, colours)
    require_channels(paths, image.shape[0], channels)
    return image, parts[0].geometry


def require_one_grid(
    paths: Sequence[Path], geometries: Sequence[Geometry], remarks: Sequence[Sequence[Remark]], told: int
) -> None:
    """Raises DataError where the files of a case differ in shape or place. Logs what their readers have to say."""
    shape = geometries[0].shape
    for path, geometry, own in zip(paths, geometries, remarks, strict=True):
        for each in own:
            log.log(told, "%s %s", path.name, each.text)
        if geometry.shape != shape:
            raise DataError(
                f"{path.name} has shape {geometry.shape}, but {paths[0].name} of the same case has {shape}",
                "Resample the channels to one grid",
            )
        if found := world_differences(geometry, geometries[0]):
            raise DataError(
                f"{path.name} is not aligned with {paths[0].name} of the same case: {'; '.join(map(str, found))}",
                "Correct the header that is wrong, or resample the channels to one grid",
            )


def require_channels(paths: Sequence[Path], found: int, expected: int) -> None:
    """Raises DataError for another number of channels."""
    if found != expected:
        named = ", ".join(path.name for path in paths)
        raise DataError(f"{named} has {_count(found)}, expected {_count(expected)}", "Give an image like the others")


def read_present(
    paths: Sequence[Path],
    present: Sequence[int] | None,
    channels: int,
    frame: int | None = None,
    told: int = logging.DEBUG,
    colours: bool = False,
) -> tuple[np.ndarray, Geometry]:
    """As `read_channels`, of a case that has the `present` channels only (None: all); the others are 0."""
    if present is None:
        return read_channels(paths, channels, frame, told, colours)
    own, geometry = read_channels(paths, len(present), frame, told)
    image = np.zeros((channels, *own.shape[1:]), np.float32)
    image[list(present)] = own
    return image, geometry


def _count(channels: int) -> str:
    return f"{channels} channel" + ("s" if channels != 1 else "")


def read_reference(dataset: Dataset, case: Case) -> tuple[np.ndarray, Geometry]:
    """The label of a case that has one, also of colours and structures: (Z, Y, X) int32 values. Raises DataError.

    Of numbered objects these are levels of depth; `read_numbers` gives the numbers.
    """
    return read_case_label(Path(dataset.root), case, dataset.labels.codes)[:2]


def read_numbers(dataset: Dataset, case: Case) -> tuple[np.ndarray, Geometry]:
    """The label of a case with a number for each object: (Z, Y, X) int32, with the ignore value. Raises DataError."""
    return read_case_numbers(Path(dataset.root), case, dataset.labels.codes)[:2]


def load_case(dataset: Dataset, identifier: str) -> LoadedCase:
    """Read and encode one case. Raises DataError naming the case."""
    case = dataset.case(identifier)
    root = Path(dataset.root)
    try:
        paths = [root / path for path in case.images]
        colours = are_colours(dataset.channels)
        image, geometry = read_present(paths, case.present, len(dataset.channels), case.frame, colours=colours)
        labels = encode(read_reference(dataset, case)[0], dataset.labels) if case.label else None
    except DataError as error:
        raise DataError(error.message, error.remedy, identifier) from None
    except ValueError as error:  # an undeclared label value
        raise DataError(str(error), "Declare the value, or correct the label file", identifier) from None
    if labels is not None and labels.shape != geometry.shape:
        raise DataError(
            f"the image has shape {geometry.shape} and the label {labels.shape}",
            "Give the label that was drawn on this image",
            case=identifier,
        )
    return LoadedCase(image, labels, geometry)


def load_input(case: InputCase, channels: Sequence[Channel]) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) float32 and geometry. Raises DataError naming the case."""
    if case.error is not None:
        raise case.error
    try:
        count, colours = len(channels), are_colours(channels)
        image, geometry = read_present(case.images, case.present, count, case.frame, logging.WARNING, colours)
    except DataError as error:
        raise DataError(error.message, error.remedy, case.identifier) from None
    require_finite(case.identifier, int(image.size - np.count_nonzero(np.isfinite(image))))
    warn_of_intensities(case.identifier, image, [each.name for each in channels], case.present)
    return image, geometry


def require_finite(case: str, wrong: int) -> None:
    """Raises DataError where so many voxels are NaN or infinite."""
    if wrong:
        raise DataError(f"{wrong} voxels are NaN or infinite", "Replace them, or export the image again", case=case)


def warn_of_intensities(
    case: str, image: np.ndarray, channels: Sequence[str], present: Sequence[int] | None = None
) -> None:
    """Say where channels of a new image (C, Z, Y, X), of those present, hold nothing, or voxels far beyond all others.

    It is predicted all the same.
    """
    facts = describe_channels(image)
    warn_of_constants(case, facts, channels, present)
    own = range(len(image)) if present is None else present
    for index in own:
        if problem := far_voxels(image[index], facts[index]):
            which = "the image" if len(image) == 1 else _named(channels, [index])
            log.warning("case %s: %s has %s. %s", case, which, problem, FAR_REMEDY)


def warn_of_constants(
    case: str, every: Sequence[ChannelFacts], channels: Sequence[str], present: Sequence[int] | None = None
) -> None:
    """Say which channels, of those present, have one value in all voxels."""
    own = range(len(every)) if present is None else present
    facts = {index: each for index, each in enumerate(every) if index in own}
    constant = [index for index, each in facts.items() if each.minimum == each.maximum]
    if constant:
        which = "the image" if len(constant) == len(own) else _named(channels, constant)
        value = f"{facts[constant[0]].minimum:g}"
        log.warning("case %s: %s has the value %s in every voxel. Check that the file is complete", case, which, value)


def _named(channels: Sequence[str], indices: Sequence[int]) -> str:
    return f"channel {', '.join(channels[each] for each in indices)}"
