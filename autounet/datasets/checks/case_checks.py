"""What the arrays of one case hold, as numbers small enough to keep, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cc3d
import numpy as np

from ...imageio import VOLUME_KINDS, Remark
from ...ops.masks import crop, nonzero_box, nonzero_mask
from ...schema.dataset import Case, ChannelFacts, ComponentFacts, Finding, IntensitySample, Severity
from ...schema.errors import FileError
from ...schema.geometry import Box3, Geometry, GeometryDifference, geometry_differences
from ...schema.record import utf8

SAMPLES = 10_000
"""intensities kept per case and channel"""
NO_SAMPLE = IntensitySample.of(b"", None, None)
_COUNTED = 1 << 20
"""value range up to which label values are counted by table"""
_INSPECTED = 1 << 14
"""voxels of a channel's regular sample, about"""
ISOLATED_VOXELS = 8
"""most voxels of an isolated component: what one click with a brush of two voxels a side leaves"""
ISOLATED_RATIO = 100
"""least ratio of the largest component of the class to an isolated one, so that small structures do not count"""
MOST_ISOLATED = 3
"""isolated components of one class in one case; a class with more of them comes in pieces"""


def count_values(values: np.ndarray) -> dict[int, int]:
    """Voxels per value that occurs, ascending. Zeros, most voxels of most label files, are set apart first."""
    rest = values[values != 0]
    counts = {0: values.size - rest.size} if rest.size < values.size else {}
    if rest.size:
        low, high = int(rest.min()), int(rest.max())
        if high - low < _COUNTED:
            table = np.bincount(rest - low)
            counts |= {int(index) + low: int(table[index]) for index in np.flatnonzero(table)}
        else:
            found, numbers = np.unique(rest, return_counts=True)
            counts |= dict(zip(found.tolist(), numbers.tolist(), strict=True))
    return dict(sorted(counts.items()))


def sample_intensities(
    image: np.ndarray, foreground: np.ndarray | None, seed: int, identifier: str
) -> tuple[IntensitySample, ...]:
    """Up to SAMPLES foreground intensities per channel of (C, Z, Y, X), at the same voxels in each.

    The voxels are drawn from (seed, identifier) alone. Images with NaN or infinite voxels give no sample.
    """
    where = np.flatnonzero(foreground) if foreground is not None else np.empty(0, np.int64)
    if where.size == 0 or not np.isfinite(image).all():
        return tuple(NO_SAMPLE for _ in image)
    key = hashlib.blake2b(utf8(f"{seed}:{identifier}"), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(key, "little"))
    chosen = where if where.size <= SAMPLES else np.sort(rng.choice(where, SAMPLES, replace=False, shuffle=False))
    samples = []
    for channel in image:
        flat = channel.ravel()
        inside = flat[where]
        values = flat[chosen].astype("<f4", copy=False).tobytes()
        samples.append(IntensitySample.of(values, float(inside.min()), float(inside.max())))
    return tuple(samples)


def describe_channels(image: np.ndarray) -> tuple[ChannelFacts, ...]:
    """Range and percentiles of each channel of (C, Z, Y, X)."""
    return tuple(_describe(channel) for channel in image)


def _describe(channel: np.ndarray) -> ChannelFacts:
    low, high = float(channel.min()), float(channel.max())
    if not np.isfinite([low, high]).all():
        return ChannelFacts()
    step = sample_step(channel.size)
    return channel_facts(low, high, channel[::step, ::step, ::step])


def sample_step(voxels: int) -> int:
    """Every how many voxels along each axis a channel of so many is looked at."""
    return max(1, round((voxels / _INSPECTED) ** (1 / 3)))


def channel_facts(low: float, high: float, sample: np.ndarray) -> ChannelFacts:
    """By the finite range of a channel, and some of its voxels."""
    sample = sample[sample != 0]
    if sample.size == 0:
        return ChannelFacts(minimum=low, maximum=high)
    first, middle, last = np.percentile(sample, (1, 50, 99)).tolist()
    return ChannelFacts(minimum=low, maximum=high, low=first, median=middle, high=last)


def image_hash(image: np.ndarray, box: Box3) -> str:
    """32 hex digits over the shape of (C, Z, Y, X), where its non-zero `box` lies, and the intensities in it."""
    state = hashlib.sha256(repr((image.shape, box)).encode())
    for channel in image:
        state.update(np.ascontiguousarray(crop(channel, box)).data)
    return state.hexdigest()[:32]


def count_components(values: np.ndarray, counts: Mapping[int, int], ignore: int | None) -> dict[int, ComponentFacts]:
    """Per value of (Z, Y, X), with its `counts`, its components; without 0 and `ignore`.

    A component of at most ISOLATED_VOXELS next to one ISOLATED_RATIO times larger counts as isolated, unless the class
    has more than MOST_ISOLATED of them.
    """
    wanted = np.array([value for value in counts if value not in (0, ignore)])
    if not wanted.size:
        return {}
    box = nonzero_box(values[None])
    labelled, number = cc3d.connected_components(_dense(crop(values, box), wanted), connectivity=26, return_N=True)
    flat = labelled.ravel()
    marked = np.flatnonzero(flat)
    sizes = np.bincount(flat[marked], minlength=number + 1)[1:]
    first = np.empty(number + 1, np.int64)
    first[flat[marked[::-1]]] = marked[::-1]  # of equal indices the last assignment stays: the first voxel
    places = np.stack(np.unravel_index(first[1:], labelled.shape), axis=1) + [start for start, _ in box]
    of_value = values[tuple(places.T)]
    return {int(value): _summary(sizes[of_value == value], places[of_value == value]) for value in wanted}


def _dense(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(Z, Y, X) with 1 for the first of the `wanted` values (ascending), 2 for the next, ..., 0 for all others."""
    number = np.uint8 if len(wanted) < 256 else np.uint32
    if len(wanted) == 1:
        return (values == wanted[0]).astype(number)
    places = np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)
    return np.where(wanted[places] == values, places + 1, 0).astype(number)


def _summary(sizes: np.ndarray, places: np.ndarray) -> ComponentFacts:
    """Of one class, from the voxels of its components and a place (z, y, x) in each."""
    largest = int(sizes.max())
    isolated = np.flatnonzero((sizes <= ISOLATED_VOXELS) & (sizes * ISOLATED_RATIO <= largest))
    first = _voxel(places[sizes.argmax()])
    if not 0 < len(isolated) <= MOST_ISOLATED:
        return ComponentFacts(count=len(sizes), largest=largest, isolated=0, first=first)
    smallest = isolated[sizes[isolated].argmin()]
    return ComponentFacts(
        count=len(sizes),
        largest=largest,
        isolated=len(isolated),
        smallest=int(sizes[smallest]),
        place=_voxel(places[smallest]),
        first=first,
    )


def _voxel(place: np.ndarray) -> tuple[int, int, int]:
    z, y, x = place.tolist()
    return z, y, x


HEADER_TOLERANCE = 1e-3
"""by which direction cosines in the headers of one case may differ: some programs write three decimals"""


def world_differences(own: Geometry, image: Geometry) -> tuple[GeometryDifference, ...]:
    """How spacing, origin and direction of a file differ from the image's; none for files that do not store them.

    Only volume formats say where their voxels lie, and a 2-D image says less than a volume: others never differ.
    """
    if own.kind not in VOLUME_KINDS or image.kind not in VOLUME_KINDS or own.dimension != image.dimension:
        return ()
    return tuple(each for each in geometry_differences(own, image, HEADER_TOLERANCE) if each.field != "shape")


FIX = "autounet check DATA --fix --out NEW"
COPY_AGAIN = "Copy or export the file again"
IMPOSSIBLE, FAR = 1e6, 1e4
"""usual intensities (see `far_voxels`) from the median from which on no voxel is plausible, and no `FEW` are"""
FEW = 1e-3
"""share of the voxels"""
MOST_OUTSIDE = 0.01
"""share of a class that may lie beyond the image's border of zeros, where nothing is learned or predicted"""
MOST_ON_ZEROS = 0.5
"""share of all that is labelled that may lie on zeros"""


def finding(case: Case, code: str, message: str, remedy: str, severity: Severity = Severity.fatal) -> Finding:
    return Finding(case=case.identifier, code=code, severity=severity, message=message, remedy=remedy)


def unreadable(case: Case, root: Path | str, error: FileError) -> Finding:
    """A case's file that cannot be read."""
    return finding(case, "unreadable-file", error.within(root), error.remedy or COPY_AGAIN)


def fractional_label(case: Case, root: Path | str, error: FileError) -> Finding:
    """A label file that is read as an image, but whose values are not whole numbers."""
    remedy = (
        "If it is an image, name the labels with --label. Else save whole numbers: fractions come from interpolation, "
        f"and {FIX} repairs masks of two values"
    )
    return finding(case, "grey-label", error.within(root), remedy)


def lossy_label(case: Case, name: str, values: int) -> Finding:
    message = f"{name} is a JPEG file and holds {values} values: its compression has changed them"
    remedy = f"Draw or export the label again as PNG or TIFF, or let {FIX} repair masks of two values"
    return finding(case, "lossy-label", message, remedy)


def remark_findings(case: Case, name: str, remarks: Sequence[Remark]) -> list[Finding]:
    """Warnings of what was left out, guessed, or read otherwise than a viewer shows a file."""
    return [finding(case, each.code, f"{name} {each.text}", each.remedy, Severity.warning) for each in remarks]


def channel_findings(case: Case, name: str, own: Geometry, image: Geometry) -> list[Finding]:
    """A channel file that lies on other voxels than the case's first one."""
    if own.shape != image.shape:
        message = f"{name} has shape {own.shape}, but {case.images[0]} has {image.shape} (z, y, x)"
        return [finding(case, "shape-mismatch", message, f"Resample the channels to one grid, as {FIX} does")]
    return _misaligned(case, name, own, image)


def label_grid_findings(case: Case, name: str, own: Geometry, image: Geometry) -> list[Finding]:
    """A label file that lies on other voxels than the image."""
    if own.shape != image.shape:
        message = f"the image {case.images[0]} has shape {image.shape}, its label {name} {own.shape} (z, y, x)"
        remedy = f"Give the label that was drawn on this image, or resample it to the image's grid, as {FIX} does"
        return [finding(case, "shape-mismatch", message, remedy)]
    return _misaligned(case, name, own, image)


def _misaligned(case: Case, name: str, own: Geometry, image: Geometry) -> list[Finding]:
    found = world_differences(own, image)
    if not found:
        return []
    message = f"{name} is not aligned with {case.images[0]}: {'; '.join(map(str, found))}"
    remedy = f"Correct the header that is wrong, or resample {name} onto {case.images[0]}, as {FIX} does"
    return [finding(case, "geometry-mismatch", message, remedy)]


def intensity_findings(case: Case, image: np.ndarray, facts: tuple[ChannelFacts, ...]) -> list[Finding]:
    """NaN and infinite voxels (fatal); channels of one value (a warning, fatal when all are)."""
    if any(channel.minimum is None for channel in facts):
        nan, infinite = int(np.isnan(image).sum()), int(np.isinf(image).sum())
        counts = [text for number, text in ((nan, f"{nan} NaN"), (infinite, f"{infinite} infinite")) if number]
        code = "nan-voxels" if nan else "infinite-voxels"
        message = f"{', '.join(case.images)} holds {' and '.join(counts)} voxels of {image.size}"
        remedy = f"Replace them with a valid intensity, as {FIX} does, or export the image again"
        return [finding(case, code, message, remedy)]
    constant = [index for index, channel in enumerate(facts) if channel.minimum == channel.maximum]
    if not constant:
        return []
    which = "the image" if len(facts) == 1 else f"channel {', '.join(map(str, constant))}"
    message = f"{which} has the value {facts[constant[0]].minimum:g} in every voxel ({', '.join(case.images)})"
    severity = Severity.fatal if len(constant) == len(facts) else Severity.warning
    return [finding(case, "constant-image", message, "Export the image again, or remove the case", severity)]


def far_findings(case: Case, image: np.ndarray, facts: Sequence[ChannelFacts]) -> list[Finding]:
    """Warnings of voxels far beyond all others, which z-score and foreground statistics would follow."""
    found = []
    for index, (channel, each) in enumerate(zip(image, facts, strict=True)):
        if problem := far_voxels(channel, each):
            which = "the image" if len(facts) == 1 else f"channel {index}"
            message = f"{which} has {problem} ({', '.join(case.images)})"
            found.append(finding(case, "implausible-intensity", message, FAR_REMEDY, Severity.warning))
    return found


FAR_REMEDY = "Such voxels decide on the normalisation of the whole image: export it again, or replace them"


def far_voxels(channel: np.ndarray, facts: ChannelFacts) -> str:
    """What is implausible of the intensities of (Z, Y, X), as a part of a sentence; empty where nothing is.

    The usual intensity is the distance from the 1st to the 99th percentile of what is not 0, or the median where that
    is larger. Images of few bright structures reach some thousand times as much; damaged numbers any multiple of it.
    """
    if facts.low is None or facts.high is None or facts.median is None:
        return ""
    usual = max(facts.high - facts.low, abs(facts.median))
    if _furthest(facts) <= FAR * usual:
        return ""
    away = np.abs(channel.astype(np.float64) - facts.median)
    number = int(np.count_nonzero(away > FAR * usual))
    if number > FEW * channel.size and away.max() <= IMPOSSIBLE * usual:
        return ""
    value = float(channel.flat[int(away.argmax())])
    voxels = "1 voxel" if number == 1 else f"{number} voxels"
    return f"{voxels} up to {value:.4g}, while most intensities are {facts.low:.4g} to {facts.high:.4g}"


def _furthest(facts: ChannelFacts) -> float:
    """Distance of the extreme intensity from the median."""
    assert facts.minimum is not None
    assert facts.maximum is not None
    assert facts.median is not None
    return max(facts.maximum - facts.median, facts.median - facts.minimum)


def outside_findings(case: Case, image: np.ndarray, box: Box3, values: np.ndarray, ignore: int | None) -> list[Finding]:
    """Labels where the image (C, Z, Y, X) is zero; `values` (Z, Y, X) as in the file.

    Beyond the box around what is not zero nothing is learned: it is cropped away. And a label that lies on zeros for
    the most part was drawn on another image.
    """
    foreground = values != 0
    if ignore is not None:
        foreground &= values != ignore
    total = int(np.count_nonzero(foreground))
    inside = tuple(slice(start, stop) for start, stop in box)
    beyond = total - int(np.count_nonzero(foreground[inside]))
    worst = 0.0
    if beyond:
        outside = foreground.copy()
        outside[inside] = False
        lost = zip(*np.unique(values[outside], return_counts=True), strict=True)
        worst = max(float(number / np.count_nonzero(values == value)) for value, number in lost)
    empty = 0
    if total and worst <= MOST_OUTSIDE:
        empty = int(np.count_nonzero(~nonzero_mask(image[:, *inside])[foreground[inside]]))
    if worst > MOST_OUTSIDE:
        message = f"{beyond} of {total} labelled voxels lie outside the imaged region, where all image voxels are zero"
    elif empty > MOST_ON_ZEROS * total:
        message = f"{empty} of {total} labelled voxels lie where the image is zero"
    else:
        return []
    remedy = f"Check that {case.label} was drawn on {case.images[0]}, and that neither is shifted or flipped"
    return [finding(case, "label-outside-image", message, remedy, Severity.warning)]
