"""Whether an image is of the kind that a model was trained on: told before it is predicted, with the figures of both.

What a header says (`header_mismatches`) is known of all images before the first is predicted; intensities
(`intensity_mismatches`) when an image is read, before it is predicted. A bundle knows as much of its training as its
version packed: what it does not know is not judged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..datasets.channels import other_order
from ..datasets.checks.case_checks import describe_channels
from ..datasets.grey_pictures import COLOURS, are_colours, is_grey_file
from ..datasets.inputs import InputCase
from ..imageio import DICOM, VOLUME_KINDS, ImageHeader, dicom_index, file_kind, read_full_header
from ..ops.orient import network_axes, permute
from ..schema.bundle import ChannelSummary, ModelBundle
from ..schema.dataset import Channel, ChannelFacts, ChannelKind
from ..schema.errors import DataError
from ..schema.geometry import Geometry

log = logging.getLogger(__name__)

OTHER_SPACING = 2.0
"""factor beyond the finest or coarsest spacing of the training, along one axis, from which on it is told: scanners and
protocols for the same thing stay within it"""
WRONG_SPACING = 8.0
"""the same, from which on an image is refused: 5 mm slices for a model of 1 mm still pass, a unit mistaken does not"""
LIGHT_HU = -100.0
"""Hounsfield units of fat (DICOM PS3.3 C.11.1.1.2): CT of a body holds something as light, fat or air"""
AIR_HU = -900.0
"""above that of air (-1000), and below all that other modalities hold"""
SCALED_DOWN, SCALED_UP = 20.0, 8.0
"""factors between the ranges of intensities of an image and the training's that no anatomy explains: CT scaled to 0..1;
16 bits in place of 8"""
DARK = 50.0
"""factor by which the brightest value of a picture may be below that of the darkest picture of the training"""
EIGHT_BITS = frozenset({"png", "jpeg", "gif", "bmp"})
"""formats of pictures, which hold no Hounsfield units"""
MODALITIES = {ChannelKind.ct: "CT", ChannelKind.mri: "MR"}
"""DICOM PS3.3 C.7.3.1.1.1, of the kinds that name one"""
REMEDY = "Check that this is the model for it. To predict it all the same, give --force (from Python force=True)"


class Mismatch(NamedTuple):
    """One way in which an image is unlike the training."""

    refuses: bool
    """False: it is predicted, with a warning"""
    topic: str
    """dimension, channels, colours, kind, spacing or intensities"""
    message: str
    can_be_forced: bool = True
    """False where the networks cannot take it at all"""


def header_mismatches(bundle: ModelBundle, case: InputCase) -> list[Mismatch]:
    """By the headers of the case's files, which are read. Empty where one cannot be read, which is told later."""
    try:
        headers = [read_full_header(path) for path in case.images]
    except (DataError, OSError):
        return []
    geometry = headers[0].geometry
    found = list(geometry_mismatches(bundle, geometry))
    expected = len(bundle.channels) if case.present is None else len(case.present)
    channels = len(case.images) if case.frame is not None else sum(each.channels for each in headers)
    picture = _picture_mismatch(bundle, case, headers) if case.present is None else None
    if picture is not None:
        found += picture
    elif channels != expected:
        names = ", ".join(channel.name for channel in bundle.channels)
        has = f"{channels} channel{'' if channels == 1 else 's'}"
        files = ", ".join(path.name for path in case.images)
        found.append(Mismatch(True, "channels", f"{files} has {has}, expected {expected} ({names})", False))
    if len(headers) == 1 and (order := other_order(headers[0].names, bundle.channels)):
        found.append(Mismatch(True, "channels", f"{case.images[0].name} {order}"))
    own = bundle.channels if case.present is None else [bundle.channels[index] for index in case.present]
    if len(case.images) == len(own):
        for path, channel in zip(case.images, own, strict=True):
            modality = _modality(path) if file_kind(path) == DICOM else ""
            found += _kind_mismatches(bundle, channel, file_kind(path), modality)
    return found


def _picture_mismatch(bundle: ModelBundle, case: InputCase, headers: Sequence[ImageHeader]) -> list[Mismatch] | None:
    """Of a coloured picture for a model of grey ones, and the other way round; None for all other images."""
    header, path = headers[0], case.images[0]
    if len(headers) > 1 or header.measured or header.frames > 1 or header.geometry.kind in VOLUME_KINDS:
        return None
    if header.channels == len(COLOURS) and len(bundle.channels) == 1:
        if is_grey_file(path):
            return [Mismatch(False, "colours", f"{path.name} is stored in colours and holds none: it is read as grey")]
        text = f"{path.name} has 3 channels, expected 1 ({bundle.channels[0].name})"
        return [Mismatch(True, "channels", f"{text}: it is in colours, and the model takes grey pictures", False)]
    if header.channels == 1 and are_colours(bundle.channels):
        if bundle.card.data is not None and bundle.card.data.grey_pictures:
            return []
        text = f"{path.name} has 1 channel, expected 3 ({', '.join(channel.name for channel in bundle.channels)})"
        return [Mismatch(True, "channels", f"{text}: it is grey, and the model was trained on coloured pictures")]
    return None


def _modality(series: Path) -> str:
    """Of a DICOM series in a folder of its own, or among others by its UID."""
    if series.is_dir():
        return next((each.modality for each in dicom_index(series) if each.is_slice), "")
    return next((each.modality for each in dicom_index(series.parent) if each.series == series.name), "")


def geometry_mismatches(bundle: ModelBundle, geometry: Geometry) -> Iterator[Mismatch]:
    """Dimension and spacing."""
    yield from _dimension_mismatches(bundle, geometry)
    data = bundle.card.data
    measured = geometry.kind in {*VOLUME_KINDS, "array"} and bundle.file_kind in VOLUME_KINDS
    if data is None or not (measured or (set(geometry.spacing) != {1.0} and set(data.spacing) != {1.0})):
        return  # one of them has no spacing in mm
    orientation = bundle.configurations[bundle.selection.chosen[0]].preprocess.orientation
    axes, _ = network_axes(geometry.direction, geometry.dimension, orientation)
    spacing, shape = permute(geometry.spacing, axes), permute(geometry.shape, axes)
    factors = [
        max(own / coarsest, finest / own)
        for own, finest, coarsest, count in zip(spacing, data.finest, data.coarsest, shape, strict=True)
        if count > 1
    ]
    if max(factors, default=1.0) > OTHER_SPACING:
        trained = _times(_span(each) for each in zip(data.finest, data.coarsest, strict=True))
        yield Mismatch(
            max(factors) > WRONG_SPACING,
            "spacing",
            f"its spacing (z, y, x) is {_times(map(_short, spacing))} mm, and in training it was {trained} mm",
        )


def _dimension_mismatches(bundle: ModelBundle, geometry: Geometry) -> Iterator[Mismatch]:
    data, chosen = bundle.card.data, [bundle.configurations[name] for name in bundle.selection.chosen]
    slice_by_slice = all(configuration.network.dims == 2 for configuration in chosen)
    dimension = data.dimension if data else 0 if slice_by_slice else 3
    shape = _times(map(str, geometry.shape))
    sizes = (
        f" of {_times(_span(each) for each in zip(data.smallest, data.largest, strict=True))} voxels" if data else ""
    )
    flat = min(geometry.shape) == 1
    knows_flat = slice_by_slice or (data is not None and min(data.smallest) == 1)
    if dimension == 3 and flat and not knows_flat:
        yield Mismatch(True, "dimension", f"it is 2-D ({shape}), and the model was trained on volumes{sizes}")
    elif dimension == 3 and flat and geometry.dimension == 2 and bundle.file_kind in VOLUME_KINDS:
        yield Mismatch(
            False, "dimension", f"it is a 2-D picture ({shape}), and the model was trained on slices of volumes{sizes}"
        )
    elif dimension == 2 and not flat:
        yield Mismatch(
            geometry.kind in VOLUME_KINDS,  # stacks of pictures are meant to be predicted page by page
            "dimension",
            f"it is a volume ({shape}), and the model was trained on 2-D images{sizes}",
        )


def _kind_mismatches(bundle: ModelBundle, channel: Channel, kind: str, modality: str) -> Iterator[Mismatch]:
    wanted = MODALITIES.get(channel.kind)
    if wanted and modality and modality != wanted:
        text = f"its DICOM modality is {modality}, and that of the model's channel {channel.name} is {wanted}"
        yield Mismatch(True, "kind", text)
    if wanted and kind in EIGHT_BITS and bundle.file_kind in VOLUME_KINDS:
        yield Mismatch(
            channel.kind is ChannelKind.ct,
            "kind",
            f"it is a {kind.upper()} picture, and the model was trained on {channel.kind.value.upper()} stored as "
            f"{bundle.suffix or 'DICOM'}",
        )


def intensity_mismatches(
    bundle: ModelBundle, image: np.ndarray, present: Sequence[bool] | None = None
) -> list[Mismatch]:
    """Of (C, Z, Y, X), of the channels that are `present` (None: all). Constant ones are not judged: see `reading`."""
    return fact_mismatches(bundle, describe_channels(image), present)


def fact_mismatches(
    bundle: ModelBundle, every: Sequence[ChannelFacts], present: Sequence[bool] | None = None
) -> list[Mismatch]:
    """As `intensity_mismatches`, by what is known of each channel."""
    found: list[Mismatch] = []
    for index, (channel, facts) in enumerate(zip(bundle.channels, every, strict=True)):
        if (present is not None and not present[index]) or facts.low is None or facts.minimum == facts.maximum:
            continue
        text, refuses = _intensity_problem(channel.kind, facts, _trained(bundle, index))
        if text:
            assert facts.minimum is not None
            assert facts.maximum is not None
            values = f"its {channel.name} values are {_span((facts.minimum, facts.maximum))}"
            found.append(Mismatch(refuses, "intensities", f"{values}, and in training {text}"))
    return found


def _trained(bundle: ModelBundle, index: int) -> ChannelSummary:
    """What is known of a channel; of imported models the range that it is clipped to."""
    if bundle.card.data is not None:
        return bundle.card.data.channels[index]
    channel, chosen = bundle.channels[index], bundle.configurations[bundle.selection.chosen[0]]
    scheme = chosen.preprocess.normalisation[index]
    known = channel.kind is ChannelKind.ct and scheme.scheme == "ct"
    return ChannelSummary(
        name=channel.name,
        kind=channel.kind.value,
        percentile_00_5=scheme.lower if known else None,
        percentile_99_5=scheme.upper if known else None,
    )


def _intensity_problem(kind: ChannelKind, facts: ChannelFacts, trained: ChannelSummary) -> tuple[str, bool]:
    """What the training held that the image does not, and whether it is refused for it; "" where nothing is wrong.

    Hounsfield units and the values of pictures are comparable, those of MRI and of microscopes are not: of these only
    what cannot be theirs is told.
    """
    minima, maxima = trained.minimum, trained.maximum
    if kind is ChannelKind.ct:
        return _ct_problem(facts, trained), True
    low, high = facts.minimum or 0.0, facts.maximum or 0.0
    if kind is ChannelKind.photo and minima and maxima:
        text = f"they were {_span((minima[0], maxima[1]))}, with {_span(maxima)} as the highest of an image"
        too_bright, too_dark = high > SCALED_UP * maxima[1], high * SCALED_UP < maxima[0]
        negative = minima[0] >= 0 and -low * SCALED_UP > maxima[1]
        return (text if too_bright or too_dark or negative else ""), too_bright or negative or high * DARK < maxima[0]
    if minima and maxima and kind is not ChannelKind.photo:
        text = f"they were {_span((minima[0], maxima[1]))}, with {_span(minima)} as the lowest of an image"
        is_ct = low <= AIR_HU and (facts.low or 0.0) <= AIR_HU / 2 and minima[0] > AIR_HU / 2
        was_ct = minima[1] <= AIR_HU and low >= 0
        return (text if is_ct or was_ct else ""), is_ct and kind is ChannelKind.mri
    return "", False


def _ct_problem(facts: ChannelFacts, trained: ChannelSummary) -> str:
    """Values that are no Hounsfield units, or those with an offset of a model of the others."""
    low, high = facts.minimum or 0.0, facts.maximum or 0.0
    minima, maxima = trained.minimum, trained.maximum
    if minima and maxima:
        text = f"they were {_span((minima[0], maxima[1]))}, with {_span(minima)} as the lowest of an image"
        shifted = (minima[1] <= LIGHT_HU and low >= 0) or (minima[0] >= 0 and low <= LIGHT_HU)
        width = (facts.high or 0.0) - (facts.low or 0.0)
        if shifted or width > SCALED_UP * (maxima[1] - minima[0]):
            return text
    first, last = trained.percentile_00_5, trained.percentile_99_5
    if first is not None and last is not None:
        apart, flat = high < first or low > last, (high - low) * SCALED_DOWN < last - first
        if apart or flat:
            return f"those of what it segments were mostly {_span((first, last))}"
    return ""


def require_fit(case: InputCase, found: Iterable[Mismatch], force: bool) -> None:
    """Raises DataError for an image that is refused; of one that is not, each mismatch is a warning."""
    found = list(found)
    if error := _refusal(case, found, force):
        raise error
    for each in found:
        log.warning("case %s: %s", case.identifier, each.message)


def _refusal(case: InputCase, found: Iterable[Mismatch], force: bool) -> DataError | None:
    wrong = [each for each in found if each.refuses and not (force and each.can_be_forced)]
    if not wrong:
        return None
    remedy = REMEDY if all(each.can_be_forced for each in wrong) else "Give an image like those of the training"
    return DataError("; ".join(each.message for each in wrong), remedy, case.identifier)


def judge_headers(bundle: ModelBundle, cases: Sequence[InputCase], force: bool) -> list[InputCase]:
    """The cases, with the reason for those that are refused; what is only told is logged, each topic once."""
    judged: list[InputCase] = []
    told: dict[str, list[str]] = {}
    for case in cases:
        found = [] if case.error is not None else header_mismatches(bundle, case)
        refusal = _refusal(case, found, force)
        judged.append(case._replace(error=refusal) if refusal else case)
        for each in () if refusal else found:
            told.setdefault(each.topic, []).append(f"case {case.identifier}: {each.message}")
    refusals = [own.error for case, own in zip(cases, judged, strict=True) if case.error is None and own.error]
    for messages in told.values():
        more = f" (as of {len(messages) - 1} more)" if len(messages) > 1 else ""
        log.warning("%s%s", messages[0], more)
    if refusals and len(refusals) < len(cases):
        log.warning("%d of %d images do not fit the model and will not be predicted", len(refusals), len(cases))
    return judged


def _times(parts: Iterable[str]) -> str:
    return " x ".join(parts)


def _span(values: tuple[float, float]) -> str:
    low, high = map(_short, values)
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    return f"{value:.5g}" if math.isfinite(value) else str(value)
