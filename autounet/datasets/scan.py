"""From a folder or table to a `Dataset`: its layout, cases, channels and time points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ..imageio import (
    describe_unread,
    file_kind,
    read_frames,
    read_header,
    suffix,
    unread_images,
)
from ..schema.dataset import Case, Dataset, Finding, Severity
from ..schema.errors import DataError
from ..schema.options import DataOptions
from ..schema.plugins import plugins
from .channels import find_channels, order_findings
from .coded_labels import with_coded_labels
from .labels import annotate, build_labels
from .layouts import LAYOUTS, OWN_LAYOUTS, case_table, msd
from .layouts.containers import with_levels
from .layouts.detected_layout import DetectedLayout, read_description, with_description, without_missing_channels
from .layouts.files import existing_folder, own_path
from .splits import with_groups
from .structures import with_structures


def split_frames(
    root: Path, cases: Sequence[Case], named: Sequence[str] | None, options: DataOptions
) -> tuple[list[Case], bool]:
    """The cases, each time point one of its own where the fourth axis is time, and whether it is.

    A time point is called `<case>_t<number from 0>`, and those of one file are a group unless a group is given.
    `named` are the channels' names as far as known. Raises DataError where labels and names do not decide which.
    """
    first = _first_readable(root, cases)
    if first is None:
        return list(cases), False
    case, frames = first
    in_label = _frames(root / case.label) if case.label and not case.label_parts else 1
    if frames == 1:
        if options.frames == "time":
            raise DataError(
                "--frames time is given, and it has no fourth axis", "Leave the option out", case.identifier
            )
        return list(cases), False
    if options.frames is None:
        _require_clear(root, case, frames, in_label, named)
    if options.frames == "channels" or (options.frames is None and in_label != frames):
        return list(cases), False
    return [frame for each in cases for frame in _time_points(root, each)], True


def _first_readable(root: Path, cases: Sequence[Case]) -> tuple[Case, int] | None:
    for case in cases:
        try:
            return case, max(read_frames(root / path) for path in case.images)
        except DataError:  # reported when the case is examined
            continue
    return None


def _frames(path: Path) -> int:
    """1 for a file that cannot be read, which is reported when the case is examined."""
    try:
        return read_frames(path)
    except DataError:
        return 1


def _require_clear(root: Path, case: Case, frames: int, in_label: int, named: Sequence[str] | None) -> None:
    channels = sum(read_header(root / path)[1] for path in case.images)
    as_channels, as_time = named is not None and len(named) == channels, in_label == frames
    if as_channels != as_time:
        return
    counted = (
        f"its label has {in_label} too, and {frames} channels are named"
        if as_time
        else f"its label has {'none' if in_label == 1 else in_label}, and "
        + (f"{len(named)} channel{'s are' if len(named) > 1 else ' is'} named" if named else "no channels are named")
    )
    raise DataError(
        f"{case.images[0]} has {frames} entries along a fourth axis; {counted}",
        f"Say what they are: --frames channels, or {frames} names in dataset.json under "
        f"channel_names; or --frames time, with a label of {frames} time points",
        case=case.identifier,
    )


def _time_points(root: Path, case: Case) -> list[Case]:
    """Raises DataError when the files of the case have different numbers of time points."""
    files = [*case.images, *case.label_files]
    counts = [read_frames(root / path) for path in files]
    if len(set(counts)) > 1:
        counted = ", ".join(f"{path} {count}" for path, count in zip(files, counts, strict=True))
        raise DataError(
            f"its files have different numbers of time points ({counted})",
            "Give a label for every time point, or store each labelled time point as an image of its own",
            case=case.identifier,
        )
    return [
        case.model_copy(
            update={
                "identifier": frame_name(case.identifier, frame, counts[0]),
                "frame": frame,
                "group": case.group or case.identifier,
            }
        )
        for frame in range(counts[0])
    ]


def frame_name(identifier: str, frame: int, count: int) -> str:
    """With as many digits as the last one needs, so that names sort by time."""
    return f"{identifier}_t{frame:0{len(str(max(0, count - 1)))}}"


def scan(data: Path, options: DataOptions, findings: list[Finding] | None = None) -> Dataset:
    """The data set in a folder or a table, with its layout detected, its cases sorted, and labels as far as declared.

    What a dataset.json or a table in the folder says comes before what is guessed, and options before both. Opens the
    header of one image, and of every label file with named segments. Raises DataError with every missing file at once,
    or listing the candidates when the folder can be read in several ways; OptionError when an option does not fit.
    Given a list of `findings`, what is missing is added to it instead, and the data set is what is left.
    """
    root = existing_folder(data)
    options = with_description(root, options)
    place = own_path(data)
    found, layout = _detect_layout(place, options)
    if options.missing_channels:
        found = replace(found, findings=without_missing_channels(found.findings))
    known = {case.identifier for case in found.cases} | {each.case for each in found.findings if each.case}
    listed_in = root if layout == "msd" else place
    whole, table_findings = case_table.supplement(listed_in, _complete_cases(found, findings, root), known)
    table_findings += _without_fold(whole, found)
    listed = sorted(whole, key=lambda case: case.identifier)
    listed = with_groups(listed, options.group)
    twice = {case.identifier for case, after in pairwise(listed) if case.identifier == after.identifier}
    if twice:
        raise DataError(f"several cases are called {', '.join(sorted(twice))}", "Give them different names")
    found, listed = with_levels(root, found, listed)
    found, coded = with_coded_labels(root, found, listed, options)
    found, listed, told = with_structures(root, found, listed, options)
    labels = build_labels(found.labels, options)
    labels = labels.model_copy(update={"codes": found.codes})
    listed, unknown = annotate(listed_in, root, listed, labels, known)
    _report(
        [*table_findings, *coded, *told, *unknown, *case_table.passed_over(listed_in), *unread_files(root, listed)],
        findings,
    )
    listed, time_points = split_frames(root, listed, found.channels, options)
    image = listed[0].images[0]
    channels, mixed = find_channels(root, listed, found.channels, options)
    _report([*mixed, *order_findings(root, listed, channels)], findings)
    return Dataset(
        root=str(root),
        name=str(read_description(root).get("name") or root.name),
        layout=layout,
        channels=channels,
        labels=labels,
        labels_declared=found.labels_declared,
        cases=tuple(listed),
        image_pattern=found.image_pattern,
        file_kind=file_kind(root / image),
        suffix=suffix(image),
        channel_patterns=found.channel_patterns or options.channels,
        fold_source=_fold_source(whole, found),
        time_points=time_points,
    )


def _detect_layout(place: Path, options: DataOptions) -> tuple[DetectedLayout, str]:
    """A file is a data list or a table; what a table leaves open is taken from its folder."""
    if place.is_file():
        if msd.detect(place, options):
            return msd.find(place, options), "msd"
        if case_table.detect(place, options):
            return case_table.find(place, options), "table"
        place = place.parent
    for name in (*sorted(plugins("layouts")), *OWN_LAYOUTS):
        layout = LAYOUTS[name]
        if options.class_patterns and name not in ("cases", "pairs"):
            continue  # patterns say where the masks are
        if layout.detect(place, options):
            return layout.find(place, options), name
    raise AssertionError("the last layout takes every folder")


def _complete_cases(found: DetectedLayout, findings: list[Finding] | None, root: Path) -> list[Case]:
    """The cases that lack nothing. Raises DataError, unless `findings` takes what is missing."""
    broken = {finding.case for finding in found.findings if finding.severity == Severity.fatal}
    whole = [case for case in found.cases if case.identifier not in broken]
    doubles = image_as_label(root, whole)
    whole = [case for case in whole if case.identifier not in {each.case for each in doubles}]
    _report([*found.findings, *doubles], findings if whole else None)
    if not whole:
        raise DataError(f"{root} holds no complete case", "Add images and labels")
    return whole


def _fold_source(cases: Sequence[Case], found: DetectedLayout) -> str | None:
    """A table's folds come before those of a list."""
    own = {case.identifier: case.fold for case in found.cases}
    if any(case.fold != own[case.identifier] for case in cases):
        return "table"
    return found.fold_source if any(case.fold for case in cases) else None


def _without_fold(cases: Sequence[Case], found: DetectedLayout) -> list[Finding]:
    """Cases of a list that gives folds to others."""
    without = [case.identifier for case in cases if case.fold is None]
    if found.fold_source is None or len(without) == len(cases):
        return []
    message, remedy = f"{found.fold_source} gives it no fold", "Give one to every entry of training, or to none"
    return [Finding(case=name, code="splits", message=message, remedy=remedy) for name in without]


def _report(found: Sequence[Finding], findings: list[Finding] | None) -> None:
    """Add to `findings`. Raises DataError of what is fatal where there are none to add to."""
    fatal = [finding for finding in found if finding.severity == Severity.fatal]
    if fatal and findings is None:
        raise DataError.of(fatal)
    if findings is not None:
        findings += found


def image_as_label(root: Path, cases: Sequence[Case]) -> list[Finding]:
    """Cases whose label is their image. Raises DataError where it is so in all."""
    double = [case for case in cases if _resolved(root, case.label_files) & _resolved(root, case.images)]
    if len(double) == len(cases) > 1:
        raise DataError(
            f"the same files are given as images and as labels, such as {double[0].label}",
            "Give --channel and --label patterns of different files",
        )
    message, remedy = "is given as its image and as its label", "Give another file for one of the two"
    return [
        Finding(case=case.identifier, code="layout", message=f"{case.label} {message}", remedy=remedy)
        for case in double
    ]


def _resolved(root: Path, files: Sequence[str]) -> set[Path]:
    return {(root / path).resolve() for path in files}


def unread_files(root: Path, cases: Sequence[Case]) -> list[Finding]:
    """A warning for all images that lie beside those of the cases, or their labels, and whose format is not read."""
    named = [path for case in cases for path in (*case.images, *case.label_files)]
    files = [file for folder in sorted({(root / path).parent for path in named}) for file in unread_images(folder)]
    if not files:
        return []
    message, remedy = describe_unread(files)
    return [Finding(code="unread-format", severity=Severity.warning, message=message, remedy=remedy)]
