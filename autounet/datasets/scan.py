"""Finding out how a folder is laid out, and what is in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..imageio import file_kind, suffix
from ..schema.dataset import Case, Dataset, Finding
from ..schema.errors import DataError, OptionError
from ..schema.options import DataOptions
from .channels import find_channels, split_frames
from .coding import coded
from .labels import build_labels
from .layouts import bids, cases, msd, nnunet, pairs, table
from .layouts.declarations import annotate, with_description
from .layouts.detected_layout import Found, read_description, without_missing_channels
from .layouts.files import existing_folder


class Layout(NamedTuple):
    detect: Callable[[Path, DataOptions], bool]
    find: Callable[[Path, DataOptions], Found]


LAYOUTS: dict[str, Layout] = {
    "table": Layout(table.detect, table.find),
    "msd": Layout(msd.detect, msd.find),
    "nnunet": Layout(nnunet.detect, nnunet.find),
    "bids": Layout(bids.detect, bids.find),
    "cases": Layout(cases.detect, cases.find),
    "pairs": Layout(pairs.detect, pairs.find),
}
"""tried in this order; the first that recognises the folder reads it"""


def scan(data: Path, options: DataOptions, findings: list[Finding] | None = None) -> Dataset:
    """The data set in a folder or a table, layout detected; cases sorted by identifier, labels as far as declared.

    What a dataset.json or a table in the folder says comes before what is guessed, and options before both. Opens the
    header of one image, and of every label file with named segments. Raises DataError with every missing file at once,
    or listing the candidates when the folder can be read in several ways; OptionError when an option does not fit.
    Given a list of `findings`, what is missing is added to it instead, and the data set is what is left.
    """
    root = existing_folder(data)
    options = with_description(root, options)
    place = Path(data).expanduser().resolve()
    found, layout = _find(place, options)
    if options.missing_channels:
        found.findings = without_missing_channels(found.findings)
    known = {case.identifier for case in found.cases} | {each.case for each in found.findings if each.case}
    whole, told = table.supplement(place, _whole(found, findings, root), known)
    listed = sorted(whole, key=lambda case: case.identifier)
    listed = [_grouped(case, options.group) for case in listed]
    twice = {case.identifier for case, after in pairwise(listed) if case.identifier == after.identifier}
    if twice:
        raise DataError(f"several cases are called {', '.join(sorted(twice))}. Give them different names")
    found = coded(root, found, listed, options)
    labels = build_labels(found.classes, found.regions, found.ignore, options)
    labels = labels.model_copy(update={"codes": found.codes})
    listed, unknown = annotate(place, root, listed, labels, known)
    _tell([*told, *unknown], findings)
    listed, time_points = split_frames(root, listed, found.channels, options)
    image = listed[0].images[0]
    return Dataset(
        root=str(root),
        name=str(read_description(root).get("name") or root.name),
        layout=layout,
        channels=find_channels(root, listed, found.channels, options),
        labels=labels,
        labels_declared=found.labels_declared,
        cases=tuple(listed),
        image_pattern=found.image_pattern,
        file_kind=file_kind(root / image),
        suffix=suffix(image),
        channel_patterns=found.channel_patterns or options.channels,
        time_points=time_points,
    )


def _find(place: Path, options: DataOptions) -> tuple[Found, str]:
    """A file is a table; what it leaves open is taken from its folder."""
    if place.is_file():
        if table.detect(place, options):
            return table.find(place, options), "table"
        place = place.parent
    for name, layout in LAYOUTS.items():
        if layout.detect(place, options):
            return layout.find(place, options), name
    raise AssertionError("the last layout takes every folder")


def _whole(found: Found, findings: list[Finding] | None, root: Path) -> list[Case]:
    """The cases that lack nothing. Raises DataError, unless `findings` takes what is missing."""
    broken = {finding.case for finding in found.findings}
    whole = [case for case in found.cases if case.identifier not in broken]
    _tell(found.findings, findings if whole else None)
    if not whole:
        raise DataError(f"{root} lists no case. Add images and labels")
    return whole


def _tell(found: Sequence[Finding], findings: list[Finding] | None) -> None:
    """Add to `findings`. Raises DataError where there are none to add to."""
    if found and findings is None:
        raise DataError.of(found)
    if findings is not None:
        findings += found


def _grouped(case: Case, pattern: str | None) -> Case:
    if pattern is None:
        return case
    try:
        match = re.search(pattern, case.identifier)
    except re.error as error:
        raise OptionError(f"--group {pattern!r} is not a regular expression: {error}") from None
    if match is None or not match.groups() or match[1] is None:
        raise OptionError(f"--group {pattern!r} captures nothing in {case.identifier!r}. Write one (...) that matches")
    return case.model_copy(update={"group": match[1]})
