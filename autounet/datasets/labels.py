"""From names and values as people write them to `Labels`, completed by what the label files hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..imageio import label_limits, output_suffix
from ..schema.dataset import CaseFacts, Dataset, Finding, Severity
from ..schema.errors import DataError, OptionError
from ..schema.labels import LabelClass, Labels, Region
from ..schema.options import DataOptions

MOST_UNNAMED = 100
"""more unnamed values than this in label files: they are pictures, or spoilt by interpolation"""


def parse_labels(declared: Any) -> tuple[dict[str, int], dict[str, tuple[int, ...]], int | None]:
    """Classes, regions and ignore value of a dataset.json, both ways round ({"0": "name"} or {"name": 0 or [1, 2]}).

    A region of one value is a class of its own. Raises DataError for anything else.
    """
    if not isinstance(declared, dict):
        raise DataError(f"dataset.json: labels is {declared!r}, not an object. Write name: value pairs")
    classes: dict[str, int] = {}
    regions: dict[str, tuple[int, ...]] = {}
    ignore = None
    for key, entry in declared.items():
        if isinstance(entry, str) and re.fullmatch(r"-?\d+", key):
            name, values = entry, (int(key),)
        elif isinstance(entry, list) and entry and all(isinstance(value, int) for value in entry):
            name, values = key, tuple(entry)
        elif (isinstance(entry, int) and not isinstance(entry, bool)) or str(entry).lstrip("-").isdigit():
            name, values = key, (int(entry),)
        else:
            raise DataError(f"dataset.json: label {key!r} has {entry!r}, not an integer. Write name: value pairs")
        if name in classes or name in regions:
            raise DataError(f"dataset.json: two labels are called {name!r}. Give each value its own name")
        if name == "ignore":
            ignore = values[0]
        elif len(values) > 1:
            regions[name] = values
        else:
            classes[name] = values[0]
    return classes, regions, ignore


def build_labels(
    classes: Mapping[str, int], regions: Mapping[str, tuple[int, ...]], ignore: int | None, options: DataOptions
) -> Labels:
    """Layout's declarations and the options joined: an option's name replaces the layout's for the same value.

    Values that only regions use become label_<value>. Raises DataError or OptionError for contradictions.
    """
    twice = [value for value in set(options.classes.values()) if list(options.classes.values()).count(value) > 1]
    if twice:
        raise OptionError(f"--class gives the value {twice[0]} two names. Name each value once")
    regions = {**regions, **options.regions}
    ignore = options.ignore if options.ignore is not None else ignore
    named = {value: name for name, value in classes.items() if name not in options.classes}
    if len(named) < len([name for name in classes if name not in options.classes]):
        raise DataError("dataset.json gives two classes the same value. Write each value once; use lists for regions")
    named |= {value: name for name, value in options.classes.items()}
    if options.ignore is not None and options.ignore not in options.classes.values():
        named.pop(options.ignore, None)
    for value in sorted({value for values in regions.values() for value in values}):
        named.setdefault(value, f"label_{value}")
    named.setdefault(0, "background")
    try:
        return _labels(named, regions, ignore, 0 in options.classes.values())
    except ValidationError as error:
        problems = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise OptionError(f"labels: {problems}. Correct --class, --region and --ignore, or dataset.json") from None


def _labels(
    named: Mapping[int, str], regions: Mapping[str, tuple[int, ...]], ignore: int | None, background_named: bool
) -> Labels:
    order = sorted(named, key=lambda value: (value != 0, value))
    return Labels(
        classes=tuple(LabelClass(name=named[value], value=value) for value in order),
        background_named=background_named,
        regions=tuple(Region(name=name, values=values) for name, values in regions.items()),
        ignore=ignore,
        pairs=left_right_pairs([named[value] for value in order]),
    )


def left_right_pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Names that become each other when left and right are exchanged: (LeftParotid, RightParotid), (eye_l, eye_r)."""
    rules = ((r"left", "right"), (r"(?<=[_\- ])l$", "r"), (r"^l(?=[_\- ])", "r"))
    known = {name.lower(): name for name in names}
    pairs: list[tuple[str, str]] = []
    for name in names:
        for pattern, other in rules:
            partner = known.get(re.sub(pattern, other, name.lower()))
            taken = {each for pair in pairs for each in pair}
            if partner is not None and partner != name and not {name, partner} & taken:
                pairs.append((name, partner))
                break
    return tuple(pairs)


def label_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Undeclared values, too many, or too large to be written, no foreground (fatal); classes that never occur."""
    labels = dataset.labels
    known = {*labels.values} | ({labels.ignore} if labels.ignore is not None else set())
    cases_of: dict[int, list[str]] = {}
    for fact in facts:
        for value in fact.value_counts:
            cases_of.setdefault(value, []).append(fact.identifier)
    unknown = sorted(set(cases_of) - known)
    findings = []
    if unknown and dataset.labels_declared:
        findings += [_undeclared(value, cases_of[value], labels) for value in unknown]
    elif len(unknown) > MOST_UNNAMED:
        findings.append(
            Finding(
                code="too-many-values",
                message=f"the label files hold {len(unknown)} different values, from {unknown[0]} to {unknown[-1]}",
                remedy="Check that these are label files (--label PATTERN), saved without smoothing or compression",
            )
        )
    low, high = label_limits(dataset.suffix)
    beyond = sorted(value for value in {*cases_of, *labels.values} - {labels.ignore} if not low <= value <= high)
    if beyond:
        findings.append(_unwritable(beyond[0], output_suffix(dataset.suffix), (low, high)))
    if facts and any(fact.value_counts for fact in facts) and not set(cases_of) - {0, labels.ignore}:
        findings.append(
            Finding(
                code="no-foreground",
                message="no label file holds any value besides 0" + _and_ignore(labels),
                remedy="Check the label files, or name others with --label PATTERN",
            )
        )
    elif facts:
        findings += [_absent(cls, labels) for cls in labels.foreground if cls.value not in cases_of]
    return findings


def _and_ignore(labels: Labels) -> str:
    return f" and the ignore value {labels.ignore}" if labels.ignore is not None else ""


def _undeclared(value: int, cases: Sequence[str], labels: Labels) -> Finding:
    shown = ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")
    declared = ", ".join(f"{label.name}={label.value}" for label in labels.classes)
    return Finding(
        case=cases[0],
        code="undeclared-label",
        message=f"label value {value} is not declared (declared: {declared}); it occurs in {shown}",
        remedy=f"Name it with --class NAME={value}, leave it out with --ignore {value}, or correct the label files",
    )


def _unwritable(value: int, ending: str, limits: tuple[int, int]) -> Finding:
    return Finding(
        code="unwritable-label",
        message=f"label value {value} does not fit {ending} files, in which segmentations of these images are written",
        remedy=f"Renumber the classes to {limits[0]} to {limits[1]}, or store the images as TIFF",
    )


def _absent(label: LabelClass, labels: Labels) -> Finding:
    return Finding(
        code="absent-class",
        severity=Severity.warning,
        message=f"class {label.name} (value {label.value}) occurs in no case",
        remedy="It cannot be learned; check the label files if it should be there",
    )


def complete_labels(dataset: Dataset, facts: Sequence[CaseFacts]) -> Dataset:
    """The data set with a class for every value that occurs; unnamed values become label_<value>.

    Raises DataError for undeclared values when the layout declares them, and when there is no foreground class.
    """
    fatal = [finding for finding in label_findings(dataset, facts) if finding.severity == Severity.fatal]
    if fatal:
        raise DataError.of(fatal)
    labels = dataset.labels
    named = {label.value: label.name for label in labels.classes}
    for value in sorted({value for fact in facts for value in fact.value_counts}):
        if value != labels.ignore:
            named.setdefault(value, f"label_{value}")
    if len(named) < 2:
        raise DataError("no class besides the background is declared or found. Name one with --class NAME=VALUE")
    regions = {region.name: region.values for region in labels.regions}
    complete = _labels(named, regions, labels.ignore, labels.background_named)
    complete = complete.model_copy(update={"codes": labels.codes})
    return dataset.model_copy(update={"labels": complete})
