"""From names and values as people write them to `Labels`, completed by what the label files hold.

Also which classes were annotated in which case, as dataset.json or a table lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from ..imageio import label_limits, output_suffix
from ..schema.dataset import Case, CaseFacts, Dataset, Finding, Severity
from ..schema.errors import DataError, OptionError
from ..schema.labels import BACKGROUND, LabelClass, Labels, Region, require_background_zero
from ..schema.options import DataOptions
from .layouts.case_table import ANNOTATED, CASE, find_table
from .layouts.detected_layout import DeclaredLabels, read_description
from .numbered_labels import number_objects, object_finding

MOST_UNNAMED = 100
"""most unnamed values in label files; files with more are photographs, or labels that were interpolated"""


BACKGROUND_NAMES = (
    BACKGROUND, "bg", "unlabelled", "unlabeled", "none", "empty", "void", "nothing", "other", "others", "rest",
    "outside", "exterior", "clear label", "unknown",
)  # fmt: skip
"""names of the value 0 that stand for no structure; another one is a structure, as with --class"""


def build_labels(declared: DeclaredLabels, options: DataOptions) -> Labels:
    """Layout's declarations and the options joined: an option's name replaces the layout's for the same value.

    Values that only regions use become label_<value>. Raises DataError or OptionError for contradictions.
    """
    called = options.class_values
    twice = [value for value in set(called.values()) if list(called.values()).count(value) > 1]
    if twice:
        raise OptionError(f"--class gives the value {twice[0]} two names", "Name each value once")
    classes, regions = declared.classes, {**declared.regions, **options.regions}
    ignore = options.ignore if options.ignore is not None else declared.ignore
    named = {value: name for name, value in classes.items() if name not in called}
    if len(named) < len([name for name in classes if name not in called]):
        raise DataError("dataset.json gives two classes the same value", "Write each value once; use lists for regions")
    named |= {value: name for name, value in called.items()}
    if options.ignore is not None and options.ignore not in called.values():
        named.pop(options.ignore, None)
    for value in sorted({value for values in regions.values() for value in values}):
        named.setdefault(value, f"label_{value}")
    named.setdefault(0, BACKGROUND)
    require_background_zero({**called, **options.regions})
    for value, name in named.items():
        _require_background_zero({name: value})
    _require_background_zero(regions)
    own = 0 in called.values() or named[0].strip().casefold() not in BACKGROUND_NAMES
    given = called or options.regions or options.ignore is not None
    try:
        labels = _labels(named, regions, ignore, own)
        return labels if given else labels.model_copy(update={"entries": declared.entries})
    except ValidationError as error:
        problems = "; ".join(
            str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
            for problem in error.errors()
        )
        raise OptionError(f"labels: {problems}", "Correct --class, --region and --ignore, or dataset.json") from None


def _require_background_zero(values: Mapping[str, int | Sequence[int]]) -> None:
    try:
        require_background_zero(values, "the data set")
    except OptionError as error:
        raise DataError(error.message, error.remedy) from None


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
    if not any(code.above is not None for code in labels.codes) and number_objects(dataset, facts):
        findings.append(object_finding(dataset, facts, Severity.fatal if unknown else Severity.warning))
    elif unknown and dataset.labels_declared:
        findings += [_undeclared(value, cases_of[value], labels) for value in unknown]
    elif len(unknown) > MOST_UNNAMED:
        findings.append(
            Finding(
                code="too-many-values",
                message=f"the label files hold {len(unknown)} different values, from {unknown[0]} to {unknown[-1]}",
                remedy="Check that these are label files (--label PATTERN), saved without smoothing or compression. "
                "Where each number is an object, such as a cell, give --objects NAME",
            )
        )
    if not dataset.labels_declared:
        findings += [*_mixed_masks(cases_of, len(facts), labels), *_filling_values(facts, unknown)]
    low, high = label_limits(dataset.suffix)
    beyond = sorted(value for value in {*cases_of, *labels.values} - {labels.ignore} if not low <= value <= high)
    if beyond:
        findings.append(_unwritable(beyond[0], output_suffix(dataset.suffix), (low, high)))
    if facts and any(fact.value_counts for fact in facts) and not set(cases_of) - {0, labels.ignore}:
        ignored = f" and the ignore value {labels.ignore}" if labels.ignore is not None else ""
        findings.append(
            Finding(
                code="no-foreground",
                message=f"no label file holds any value besides 0{ignored}",
                remedy="Check the label files, or name others with --label PATTERN",
            )
        )
    elif facts and labels.objects is None:  # small objects lack some of the levels of depth
        findings += [_absent_class(cls) for cls in labels.foreground if cls.value not in cases_of]
    return findings


MASK_VALUES = (255, 65_535)
"""what programs for pictures write where others write 1"""


def _mixed_masks(cases_of: Mapping[int, Sequence[str]], count: int, labels: Labels) -> Iterator[Finding]:
    """Masks of 0 and 1 among masks of 0 and 255: the same structure would become two classes."""
    foreground = sorted(set(cases_of) - {0, labels.ignore})
    if len(foreground) != 2 or foreground[0] != 1 or foreground[1] not in MASK_VALUES:
        return
    ones, others = (set(cases_of[value]) for value in foreground)
    if ones & others:
        return
    fewer = sorted(ones if len(ones) < len(others) else others)
    shown = ", ".join(fewer[:5]) + (f" and {len(fewer) - 5} more" if len(fewer) > 5 else "")
    yield Finding(
        code="mixed-masks",
        severity=Severity.warning,
        message=f"{len(ones)} of {count} label files hold the value 1 and {len(others)} the value {foreground[1]}, "
        f"none both, so that they become two classes; the fewer are {shown}",
        remedy="Where both mean the same, give --join NAME to make them one class",
    )


FILLING_SHARE = 0.75
"""of the voxels of nearly every label file, from which on an unnamed value is probably what is around the structures"""


def _filling_values(facts: Sequence[CaseFacts], unnamed: Sequence[int]) -> Iterator[Finding]:
    """A background that is stored as another value than 0, as in inverted masks."""
    drawn = [fact.value_counts for fact in facts if fact.value_counts]
    for value in unnamed:
        filled = sum(counts.get(value, 0) >= FILLING_SHARE * sum(counts.values()) for counts in drawn)
        if filled >= 0.9 * len(drawn):
            message = (
                f"the value {value} fills more than {FILLING_SHARE:.0%} of {filled} of {len(drawn)} label files: it "
            )
            message += "becomes a class, and what is stored as 0 the background"
            remedy = f"If {value} is the background, store it as 0; else name it with --class NAME={value}"
            yield Finding(code="filling-value", severity=Severity.warning, message=message, remedy=remedy)


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
        message=f"label value {value} does not fit into {ending} files, the format that segmentations are written in",
        remedy=f"Renumber the classes to {limits[0]} to {limits[1]}, or store the images as TIFF",
    )


def _absent_class(label: LabelClass) -> Finding:
    return Finding(
        code="absent-class",
        severity=Severity.warning,
        message=f"class {label.name} (value {label.value}) occurs in no case",
        remedy="It cannot be learned; check the label files if it should occur",
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
        raise DataError("the data set has no class besides the background", "Name one with --class NAME=VALUE")
    regions = {region.name: region.values for region in labels.regions}
    complete = _labels(named, regions, labels.ignore, labels.background_named)
    complete = complete.model_copy(update={"codes": labels.codes, "entries": labels.entries})
    return dataset.model_copy(update={"labels": complete})


UNKNOWN_ANNOTATION = "unknown-annotation"
_DATASET_JSON = "dataset.json"
Words = tuple[str, ...]


def annotate(
    place: Path, root: Path, cases: Sequence[Case], labels: Labels, known: Iterable[str]
) -> tuple[list[Case], list[Finding]]:
    """Cases with the values of their annotated classes, and a fatal finding for each class or case that is not there.

    `place` is a table or the folder `root`; `known` are the identifiers of all cases, also of those that are left out.
    Whether a number is the value of some class shows only when the label files are read: see `annotation_findings`.
    Raises DataError for lists that cannot be read.
    """
    described, (file, tabled) = _described(root), _tabled(place)
    findings = [_unknown_case(name, _DATASET_JSON, known) for name in described if name not in set(known)]
    findings += [_listed_twice(name, file) for name in described if name in tabled]
    named = {region.name: region.values for region in labels.regions}
    named |= {label.name: (label.value,) for label in labels.classes}
    found = []
    for case in cases:
        source, words = (file, tabled) if case.identifier in tabled else (_DATASET_JSON, described)
        if case.identifier in words:
            values: list[int] = []
            for word in words[case.identifier]:
                if word in named or word.removeprefix("-").isdigit():
                    values += named.get(word) or (int(word),)
                else:
                    findings.append(_unknown_class(case.identifier, word, source, labels))
            case = case.model_copy(update={"annotated": tuple(dict.fromkeys(values))})
        found.append(case)
    return found, findings


def _described(root: Path) -> Mapping[str, Words]:
    listed = read_description(root).get(ANNOTATED, {})
    if not isinstance(listed, dict):
        raise DataError(
            f"{_DATASET_JSON}: annotated is {listed!r}, not an object", "Write a list of classes for each case"
        )
    for name, words in listed.items():
        if not isinstance(words, list) or not all(type(word) in (str, int) for word in words):
            raise DataError(f"{_DATASET_JSON}: annotated of case {name} is {words!r}", "Write a list of classes")
    return {name: tuple(str(word).strip() for word in words) for name, words in listed.items()}


def _tabled(place: Path) -> tuple[str, Mapping[str, Words]]:
    """Name of the table, and the entries of its column that are not empty."""
    table = find_table(place)
    if table is None or ANNOTATED not in table.columns:
        return "", {}
    words = {row[CASE]: tuple(filter(None, map(str.strip, row[ANNOTATED].split(";")))) for row in table.rows}
    return table.path.name, {name: each for name, each in words.items() if each}


def _unknown_class(case: str, word: str, source: str, labels: Labels) -> Finding:
    names = ", ".join(f"{label.name}={label.value}" for label in labels.classes)
    message = f"{source} lists {word!r} among its annotated classes, which is not a class ({names})"
    return Finding(
        case=case, code=UNKNOWN_ANNOTATION, message=message, remedy="Correct it, or name the class: --class NAME=VALUE"
    )


def _unknown_case(case: str, source: str, known: Iterable[str]) -> Finding:
    names = sorted(known)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    message = f"{source} lists its annotated classes, and there is no such case (cases: {shown})"
    return Finding(
        case=case, code=UNKNOWN_ANNOTATION, message=message, remedy="Correct the name, or remove it from the list"
    )


def _listed_twice(case: str, file: str) -> Finding:
    message = f"its annotated classes are listed in {_DATASET_JSON} and in {file}"
    return Finding(case=case, code=UNKNOWN_ANNOTATION, message=message, remedy="Keep one of the two lists")


def annotation_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Listed values that no class has (fatal); a warning for each class that occurs without being listed."""
    names = {label.value: label.name for label in dataset.labels.classes}
    listed = {case.identifier: case.annotated for case in dataset.cases if case.annotated is not None}
    known = sorted({0, *names, *(value for fact in facts for value in fact.value_counts)} - {dataset.labels.ignore})
    shown = ", ".join(map(str, known))
    findings = [
        Finding(
            case=case,
            code=UNKNOWN_ANNOTATION,
            message=f"its annotated classes contain the value {value}, which no class has ({shown})",
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
                        remedy="These voxels are not learned from. Add the class to the list if all of it is labelled",
                    )
                )
    return findings
