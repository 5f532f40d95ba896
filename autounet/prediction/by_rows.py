"""A case of Zarr or HDF5 that is larger than the memory: read, prepared, predicted and written some rows at a time.

Nothing of the size of the image is held: one pass over its files finds what preprocessing has to know of the whole
(`preprocessing.by_rows`), then rows go from there through the networks into a file of labels beside the segmentation,
which is postprocessed and rewritten in the segmentation's format.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..datasets import InputCase
from ..datasets.chunked_input import DECODED_BYTES, PIECE_BYTES, ChunkedInput, can_be_chunked, opened_input
from ..datasets.reading import require_finite, warn_of_constants
from ..imageio import LabelRows, write_label_rows
from ..ops.masks import kept_components
from ..ops.orient import Axes, Flips, network_axes
from ..ops.resample import REACH, prepared_shape
from ..ops.rows import RowComponents
from ..preprocessing import measure_image
from ..schema.errors import DataError
from ..schema.geometry import Geometry
from ..schema.plan import Configuration
from ..schema.quantities import format_size
from ..schema.record import scratch_file
from ..schema.selection import PostprocessStep
from ..system_memory import available_memory
from .mismatch import fact_mismatches, require_fit
from .predictor import Predictor

log = logging.getLogger(__name__)

HELD_AT_ONCE = 3
"""copies of a row of tiles that are made while it is computed"""
WORKING_BYTES = 2**28
"""that networks and decoders need beside the arrays that are counted"""


class ByRows(NamedTuple):
    """How a case is predicted that cannot be predicted as a whole."""

    axis: int
    """along which it goes row by row: 0 z, 1 y"""
    reason: str
    """continues a sentence"""


class Sizes(NamedTuple):
    """Bytes of memory, about."""

    reading: int
    """of a case as a whole"""
    whole: int
    """the same with preparing, predicting and exporting"""
    by_rows: dict[int, int]
    """row by row, by the axis; of axes with more than one row"""


def case_sizes(predictor: Predictor, image: ChunkedInput) -> Sizes:
    """By the shapes that the plan gives an image without a crop."""
    geometry, configurations = image.geometry, list(predictor.configurations.values())
    voxels, channels = math.prod(geometry.shape), image.channels
    prepared = [math.prod(_network_shape(each, geometry)) for each in configurations]
    outputs = [each.network.out_channels for each in configurations]
    inputs = 4 * channels * sum(prepared)
    scores = 4 * sum(count * size for count, size in zip(outputs, prepared, strict=True))
    reading = voxels * channels * (4 + max(part.dtype.itemsize for part in image.parts))
    steps = (
        reading,
        8 * channels * voxels + inputs,
        inputs + scores + 4 * max((count + 1) * size for count, size in zip(outputs, prepared, strict=True)),
        scores + 10 * voxels,  # classes in 16 bits, values in 32, and as they are written
    )
    axes = [axis for axis in (0, 1) if geometry.shape[axis] > 1]
    return Sizes(reading, max(steps), {axis: _bytes_by_rows(image, configurations, axis) for axis in axes})


def _network_shape(configuration: Configuration, geometry: Geometry) -> tuple[int, int, int]:
    """Of an image without a crop on the grid of a configuration, network axis order."""
    axes, _ = _axes(configuration, geometry)
    spec = configuration.preprocess.model_copy(update={"transpose": axes})
    return prepared_shape(spec, geometry.shape, geometry.spacing)


def _axes(configuration: Configuration, geometry: Geometry) -> tuple[Axes, Flips]:
    spec = configuration.preprocess
    return network_axes(geometry.direction, geometry.dimension, spec.orientation, spec.transpose)


def _bytes_by_rows(image: ChunkedInput, configurations: Sequence[Configuration], axis: int) -> int:
    """Along z, y or x."""
    geometry = image.geometry
    plane = image.plane(axis)
    stored = plane * sum(part.shape[0] * part.dtype.itemsize for part in image.parts)
    depth = max(part.chunks[axis] for part in image.parts)
    needed = WORKING_BYTES + min(depth * stored, DECODED_BYTES) + max(4 * PIECE_BYTES, 16 * image.channels * plane)
    for each in configurations:
        own, shape = _axes(each, geometry)[0].index(axis), _network_shape(each, geometry)
        along = own - (3 - len(each.patch_size))
        tile = 1 if along < 0 else min(each.patch_size[along], shape[own])
        own_plane = math.prod(shape) // shape[own]
        needed += 4 * HELD_AT_ONCE * (image.channels + each.network.out_channels + 1) * tile * own_plane
        margin = 2 * REACH if each.preprocess.resampling.image_order > 1 else 1
        read = min(geometry.shape[axis], margin + max(REACH, math.ceil(geometry.shape[axis] / shape[own])))
        made = math.ceil(REACH * shape[own] / geometry.shape[axis])
        needed += 4 * HELD_AT_ONCE * image.channels * (plane * read + own_plane * made)
    return needed


def rows_problem(predictor: Predictor, maps: bool, form: str | None) -> tuple[str, str] | None:
    """The step of a prediction that needs the whole image, as a part of a sentence, and what to do."""
    if predictor.bundle.labels.objects is not None:
        return (
            "objects are told apart in the whole image",
            "Cut the image into parts, or use a machine with more memory",
        )
    if any(each.previous_stage is not None for each in predictor.configurations.values()):
        return (
            "a cascade hands the segmentation of the whole image from stage to stage",
            "Give a --configuration that is no cascade, or use a machine with more memory",
        )
    if maps:
        return "maps of probabilities, uncertainty and gates are made of the whole image", "Leave these options out"
    if form is not None:
        return f"--format {form} is made of the whole image", "Leave --format out"
    return None


def needs_rows(predictor: Predictor, case: InputCase, maps: bool, form: str | None) -> ByRows | None:
    """How a case is predicted row by row; None for one that is read as a whole, because it fits or can only be that.

    Raises DataError for a case that fits into the memory in neither way, or cannot be opened.
    """
    if not can_be_chunked(case):
        return None
    with opened_input(case, len(predictor.bundle.channels), checked=False) as image:
        return _way(predictor, case, case_sizes(predictor, image), maps, form)


def _way(predictor: Predictor, case: InputCase, sizes: Sizes, maps: bool, form: str | None) -> ByRows | None:
    free = available_memory()
    if sizes.whole <= free:
        return None
    short = f"would take {format_size(sizes.whole)} of memory as a whole, and {format_size(free)} are free"
    problem = rows_problem(predictor, maps, form)
    axis = next((axis for axis, needed in sizes.by_rows.items() if needed <= free), None)
    if problem is None and axis is not None:
        return ByRows(axis, short)
    if sizes.reading <= free:
        return None  # it may fit all the same: fewer tiles at a time, and the scores in another place
    if problem is not None:
        what, remedy = problem
        raise DataError(f"it {short}; some rows at a time it cannot be predicted, as {what}", remedy, case.identifier)
    least = format_size(min(sizes.by_rows.values(), default=sizes.whole))
    raise DataError(
        f"it {short}; predicted row by row it would take {least}",
        "Use a machine with more memory, give a coarser level if the model was trained on one, or cut the image",
        case.identifier,
    )


def judge_size(predictor: Predictor, case: InputCase, maps: bool, form: str | None) -> InputCase:
    """The case, with an error where it fits into the memory in no way: told before any is predicted."""
    if not can_be_chunked(case):
        return case
    try:
        with opened_input(case, len(predictor.bundle.channels), checked=False) as image:
            sizes = case_sizes(predictor, image)
    except (DataError, OSError):  # told when it is read
        return case
    try:
        _way(predictor, case, sizes, maps, form)
    except DataError as error:
        return case._replace(error=error)
    return case


def predict_by_rows(predictor: Predictor, case: InputCase, way: ByRows, path: Path, force: bool = False) -> None:
    """Write the segmentation of a case to `path`, predicted some rows at a time.

    Raises DataError as reading and judging the whole does, and OutOfMemory.
    """
    log.info("case %s: predicted some rows at a time, as it %s", case.identifier, way.reason)
    bundle, axis = predictor.bundle, way.axis
    schemes = [scheme for name in predictor.names for scheme in predictor.configurations[name].preprocess.normalisation]
    with opened_input(case, len(bundle.channels)) as image:
        figures = measure_image(image, axis, any(scheme.nonzero_only for scheme in schemes))
        require_finite(case.identifier, figures.not_finite)
        warn_of_constants(case.identifier, figures.facts, [each.name for each in bundle.channels], case.present)
        require_fit(case, fact_mismatches(bundle, figures.facts, image.present), force)
        values = bundle.labels.values
        number = np.min_scalar_type(max(values)) if min(values) >= 0 else np.dtype(np.int32)
        with scratch_file(path) as scratch:
            labels = LabelRows(scratch, image.geometry.shape, number, values[0])
            for start, rows in predictor.label_rows(image, figures):
                labels.write(axis, start, rows)
            for step in predictor.steps:
                apply_step(labels, image.geometry.spacing, step)
            write_label_rows(path, labels, image.geometry)


def apply_step(labels: LabelRows, spacing: Sequence[float], step: PostprocessStep) -> None:
    """As `ops.masks.apply_steps`, of labels that are not in memory."""
    found = RowComponents(labels.axis, 26)
    for _, piece in labels.pieces():
        found.add(_of_values(piece, step.values))
    voxels, _ = found.finish()
    removed = ~kept_components(step, voxels * float(np.prod(spacing)))
    if not removed.any():
        return
    for index, (start, piece) in enumerate(labels.pieces()):
        piece[found.chosen(index, _of_values(piece, step.values), removed)] = 0
        labels.write(labels.axis, start, piece)


def _of_values(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """As `np.isin`, which takes several times as long for few values."""
    mask = labels == values[0]
    for value in values[1:]:
        mask |= labels == value
    return mask
