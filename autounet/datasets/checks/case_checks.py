"""What can be wrong with one case, from its arrays. Every function gives findings and raises nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...imageio import VOLUME_KINDS
from ...ops.orient import nonzero_mask
from ...schema.dataset import Case, CaseFacts, ChannelFacts, Dataset, Finding, Severity
from ...schema.errors import DataError
from ...schema.geometry import Box3, Geometry


def annotation_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Listed values that no class has (fatal); a warning for each class that occurs without being listed."""
    names = {label.value: label.name for label in dataset.labels.classes}
    listed = {case.identifier: case.annotated for case in dataset.cases if case.annotated is not None}
    known = sorted({0, *names, *(value for fact in facts for value in fact.value_counts)} - {dataset.labels.ignore})
    findings = [
        Finding(
            case=case,
            code="unknown-annotation",
            message=f"its annotated classes name the value {value}, which no class has ({', '.join(map(str, known))})",
            remedy="Correct the list, or name the class: --class NAME=VALUE",
        )
        for case, values in listed.items()
        for value in values
        if value not in known
    ]
    for fact in facts:
        annotated = listed.get(fact.identifier)
        if annotated is None:
            continue
        for value, voxels in fact.value_counts.items():
            if value not in (0, dataset.labels.ignore, *annotated):
                name = names.get(value, f"label_{value}")
                findings.append(
                    Finding(
                        case=fact.identifier,
                        code="unlisted-class",
                        severity=Severity.warning,
                        message=f"its label holds {voxels} voxels of {name} (value {value}), which is not among its "
                        "annotated classes",
                        remedy="They are not learned from; add the class to the list if all of it is labelled",
                    )
                )
    return findings


GEOMETRY_TOLERANCE = 1e-3
"""mm, or direction cosine, that the headers of one case may differ by: what rounding in the formats leaves"""


def differences(own: Geometry, image: Geometry) -> list[str]:
    """How a file's spacing, origin and direction differ from the image's, in words; none within the tolerance.

    Only volume formats say where their voxels lie, and a flat image says less than a volume: others never differ.
    """
    if own.kind not in VOLUME_KINDS or image.kind not in VOLUME_KINDS or own.dimension != image.dimension:
        return []
    return [
        f"{field} {_rounded(getattr(own, field))} instead of {_rounded(getattr(image, field))}"
        for field in ("spacing", "origin", "direction")
        if np.abs(np.subtract(getattr(own, field), getattr(image, field))).max() > GEOMETRY_TOLERANCE
    ]


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) + 0.0 for value in values)


FIX = "autounet check DATA --fix --out NEW"
MOST_OUTSIDE = 0.01
"""share of a class that may lie beyond the image's border of zeros, where nothing is learned or predicted"""
MOST_ON_NOTHING = 0.5
"""share of all that is labelled that may lie on zeros"""


def finding(case: Case, code: str, message: str, remedy: str, severity: Severity = Severity.fatal) -> Finding:
    return Finding(case=case.identifier, code=code, severity=severity, message=message, remedy=remedy)


def unreadable(case: Case, root: Path | str, error: DataError) -> Finding:
    """A case's file that cannot be read."""
    message, _, remedy = str(error).replace(f"{root}/", "").rpartition(". ")
    return finding(case, "unreadable-file", message or remedy, remedy if message else "Copy or export the file again")


def spoilt_label(case: Case, root: Path | str, error: DataError) -> Finding:
    """A label file that is read as an image, but whose values are no whole numbers."""
    found = unreadable(case, root, error)
    remedy = f"{found.remedy}: they come from interpolation. {FIX} repairs masks of two values"
    return found.model_copy(update={"code": "grey-label", "remedy": remedy})


def lossy_label(case: Case, name: str, values: int) -> Finding:
    message = f"{name} is a JPEG file and holds {values} values: its compression has changed them"
    remedy = f"Draw or export the label again as PNG or TIFF, or let {FIX} repair masks of two values"
    return finding(case, "lossy-label", message, remedy)


def channel_findings(case: Case, name: str, own: Geometry, image: Geometry) -> list[Finding]:
    """A channel file that lies on other voxels than the case's first one."""
    if own.shape != image.shape:
        message = f"{name} has shape {own.shape}, but {case.images[0]} has {image.shape} (z, y, x)"
        return [finding(case, "shape-mismatch", message, f"Resample the channels to one grid, as {FIX} does")]
    return _elsewhere(case, name, own, image)


def label_grid_findings(case: Case, name: str, own: Geometry, image: Geometry) -> list[Finding]:
    """A label file that lies on other voxels than the image."""
    if own.shape != image.shape:
        message = f"the image {case.images[0]} has shape {image.shape}, its label {name} {own.shape} (z, y, x)"
        remedy = f"Give the label that was drawn on this image, or resample it to the image's grid, as {FIX} does"
        return [finding(case, "shape-mismatch", message, remedy)]
    return _elsewhere(case, name, own, image)


def _elsewhere(case: Case, name: str, own: Geometry, image: Geometry) -> list[Finding]:
    found = differences(own, image)
    if not found:
        return []
    message = f"{name} lies elsewhere than {case.images[0]}: {'; '.join(found)}"
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
    message = f"{which} is {facts[constant[0]].minimum:g} everywhere ({', '.join(case.images)})"
    severity = Severity.fatal if len(constant) == len(facts) else Severity.warning
    return [finding(case, "constant-image", message, "Export the image again, or take the case out", severity)]


def outside_findings(case: Case, image: np.ndarray, box: Box3, values: np.ndarray, ignore: int | None) -> list[Finding]:
    """Labels where the image (C, Z, Y, X) holds nothing; `values` (Z, Y, X) as in the file.

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
        message = f"{beyond} of {total} labelled voxels lie outside the image, beyond the last voxel that is not zero"
    elif empty > MOST_ON_NOTHING * total:
        message = f"{empty} of {total} labelled voxels lie where the image is zero"
    else:
        return []
    remedy = f"Check that {case.label} was drawn on {case.images[0]}, and that neither is shifted or flipped"
    return [finding(case, "label-outside-image", message, remedy, Severity.warning)]
