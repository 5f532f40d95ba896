"""Label files that number objects: how they are told from classes, and the classes that they become.

Objects joined are one class; objects told apart are classes of their depth (`ops.objects`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..imageio import VOLUME_KINDS, is_outlines
from ..schema.dataset import Case, CaseFacts, Dataset, Finding, Severity
from ..schema.errors import DataError, OptionError
from ..schema.labels import LabelCode, labels_of_objects
from ..schema.options import DataOptions
from .layouts.detected_layout import DeclaredLabels, DetectedLayout


def join_objects(found: DetectedLayout, options: DataOptions, name: str) -> DetectedLayout:
    """Every value above 0 but the ignore value as one class. Raises OptionError with options that name classes."""
    ignore = _require_unnamed(found, options, "--join")
    codes = [LabelCode(value=1, above=0)]
    if ignore is not None and ignore > 1:
        codes += [LabelCode(value=ignore, above=ignore - 1), LabelCode(value=1, above=ignore)]
    labels = DeclaredLabels({name: 1}, {}, ignore)
    return replace(found, labels=labels, labels_declared=True, codes=tuple(codes))


def _require_unnamed(found: DetectedLayout, options: DataOptions, option: str) -> int | None:
    """The ignore value. Raises OptionError where another option names classes."""
    if given := [word for word in ("classes", "regions", "palette") if getattr(options, word)]:
        other = {"classes": "--class", "regions": "--region"}.get(given[0], "--palette")
        raise OptionError(f"{option} makes one class of all values, and {other} names some", f"Leave {other} out")
    return options.ignore if options.ignore is not None else found.labels.ignore


IGNORED_CROWDS = 65_535
"""ignore value of sets with crowds; files of 16 bits hold it"""


def tell_apart(
    found: DetectedLayout, cases: Sequence[Case], options: DataOptions, name: str, crowds: bool = False
) -> DetectedLayout:
    """As `join_objects`, with a class for each depth in the objects, whose region is called `name`.

    With `crowds`, outlines of several objects that nobody told apart, there is an ignore value for them. Raises also
    DataError where a label comes in several files.
    """
    ignore = _require_unnamed(found, options, "--objects")
    ignore = IGNORED_CROWDS if ignore is None and crowds else ignore
    if several := [case for case in cases if case.label_parts and not is_outlines(Path(case.label_parts[0].path))]:
        raise DataError(
            f"--objects needs one label file that numbers the objects, and {len(several)} cases have several",
            "Write one mask for each image, with a number for each object",
            several[0].identifier,
        )
    labels = labels_of_objects(name, ignore)
    declared = DeclaredLabels(
        {each.name: each.value for each in labels.foreground},
        {region.name: region.values for region in labels.regions},
        ignore,
    )
    return replace(found, labels=declared, labels_declared=True, codes=labels.codes)


LEAST_OBJECTS = 3
"""objects in the median label file"""
MOST_COMPARED = 40
"""label files that are compared"""
LEAST_VOXELS = 4
"""of the median object; the values of a photograph are single pixels"""
COMPACT = 0.8
"""share of the objects that are one component"""
MOST_EXPLAINED = 0.5
"""share of what sizes, or places along an axis, differ by that the values may explain: those of organs nearly all"""
SIZE_RATIO = 10.0
"""most between the quartiles of sizes in the median file: cells, nuclei and colonies are alike"""
LEAST_COMPARED = 8
"""objects beyond the first of each value, from which on sizes and places of equal values are compared"""
NEW_NUMBERS = 0.75
"""share of the values that occur in a single file, where programs go on counting from file to file"""


class _Object(NamedTuple):
    case: int
    value: int
    size: float
    """logarithm of its voxels"""
    z: float
    """where its first voxel lies: mm, or in a picture parts of the image, as are the next two"""
    y: float
    x: float


def number_objects(dataset: Dataset, facts: Sequence[CaseFacts]) -> bool:
    """Whether label files hold a number for each object, as cellpose, StarDist and QuPath write them, not classes.

    Then the files hold different values, each in one piece and all alike in size, and those that several files share
    have nothing in common there: neither size nor place. Classes have, also where some of them are missing.
    """
    own = [fact for fact in facts if set(fact.components) - {dataset.labels.ignore}]
    step = max(1, len(own) // MOST_COMPARED)
    own = own[::step]
    counts = Counter(value for fact in own for value in fact.components)
    median = sorted(len(fact.components) for fact in own)[len(own) // 2] if own else 0
    different = len({frozenset(fact.components) for fact in own})
    if len(own) < 2 or median < LEAST_OBJECTS or len(counts) <= LEAST_OBJECTS or different < max(2, len(own) / 3):
        return False
    pieces = [each.count == 1 for fact in own for each in fact.components.values()]
    sizes = [each.largest for fact in own for each in fact.components.values()]
    ratios = sorted(_quartile_ratio([fact.value_counts[value] for value in fact.components]) for fact in own)
    if sum(pieces) < COMPACT * len(pieces) or ratios[len(ratios) // 2] > SIZE_RATIO:
        return False
    if sorted(sizes)[len(sizes) // 2] < LEAST_VOXELS:
        return False
    if len(own) > 2 and sum(count == 1 for count in counts.values()) >= NEW_NUMBERS * len(counts):
        return True
    objects = [each for index, fact in enumerate(own) for each in _objects(index, fact) if counts[each.value] > 1]
    if len(objects) - len({each.value for each in objects}) < LEAST_COMPARED:
        return False
    size, *places = _explained(objects)
    return size < MOST_EXPLAINED and min(places, default=0.0) < MOST_EXPLAINED


def _quartile_ratio(sizes: Sequence[int]) -> float:
    low, high = np.percentile(sizes, (25, 75))
    return float(high / low)


def _objects(case: int, fact: CaseFacts) -> list[_Object]:
    geometry = fact.geometry
    voxel = geometry.spacing if geometry.kind in VOLUME_KINDS else tuple(1 / length for length in geometry.shape)
    found = []
    for value, each in fact.components.items():
        z, y, x = (index * length for index, length in zip(each.first, voxel, strict=True))
        found.append(_Object(case, value, math.log(fact.value_counts[value]), z, y, x))
    return found


def _explained(objects: Sequence[_Object]) -> list[float]:
    """Of the sizes, then of the places along each axis that objects differ by most: how much their values explain.

    1 less the ratio of the mean squares that are left by value and case, and by case alone: 0 for numbers that mean
    nothing, 1 where all objects of one value are equal but for a shift of their whole case.
    """
    cases, values = (sorted({each[field] for each in objects}) for field in (0, 1))
    by_case = np.array([[each.case == case for case in cases] for each in objects], float)
    by_value = np.array([[each.value == value for value in values] for each in objects], float)
    measures = np.array([each[2:] for each in objects])
    rest, both = (_mean_squares(design, measures) for design in (by_case, np.concatenate([by_case, by_value], axis=1)))
    most = rest[1:].max(initial=0.0)
    return [
        1 - float(left / whole) if whole > 0 else 0.0
        for index, (left, whole) in enumerate(zip(both, rest, strict=True))
        if index == 0 or whole > SIDEWAYS * most
    ]


SIDEWAYS = 0.1
"""of the mean square along the axis that objects differ by most, up to which another axis says nothing of them"""


def _mean_squares(design: np.ndarray, measures: np.ndarray) -> np.ndarray:
    """Of what is left of each column of `measures` (N, M) after the best fit by the columns of `design` (N, P)."""
    fitted, _, rank, _ = np.linalg.lstsq(design, measures, rcond=None)
    return ((measures - design @ fitted) ** 2).sum(axis=0) / max(1, len(measures) - int(rank))


def object_finding(dataset: Dataset, facts: Sequence[CaseFacts], severity: Severity) -> Finding:
    """Of label files that number objects: fatal where they would become classes that nobody named."""
    numbers = sorted(len(fact.components) for fact in facts if fact.components)
    values = [value for fact in facts for value in fact.components]
    message = (
        f"the label files seem to number objects, such as cells, and not to hold classes: {numbers[0]} to "
        f"{numbers[-1]} values in a file, other ones in each ({min(values)} to {max(values)} in all), alike in size, "
        "and objects of the same value have nothing in common"
    )
    remedy = (
        "Give --objects NAME to find single objects of that name, also where they touch, or --join NAME for one class "
        "in which they are not told apart. If the values are classes after all, name each with --class NAME=VALUE"
    )
    return Finding(code="objects", severity=severity, message=message, remedy=remedy)
