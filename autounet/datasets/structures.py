"""Labels that name their structures: the value of each, which of them overlap, and where one is not annotated.

Structures are named by files of one mask each, or inside (3D Slicer, DICOM-SEG, RTSTRUCT). docs/data.md has the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..imageio import (
    LabelContent,
    LabelParts,
    is_outlines,
    may_overlap,
    outline_names,
    read_label_content,
    read_label_parts,
    read_outlined_objects,
    read_structures,
    sizes_of,
    structure_names,
)
from ..imageio.stored_values import values_of_objects
from ..ops.objects import object_depths
from ..schema.dataset import Case, CaseFacts, Finding, Severity
from ..schema.errors import DataError
from ..schema.labels import LabelCode, numbers_objects
from ..schema.options import DataOptions
from ..workers import available_cores, map_parallel
from .layouts.detected_layout import DeclaredLabels, DetectedLayout
from .unnumbered_masks import object_numbers, outlined_numbers

OVERLAPPING = 0.05
"""share of the smaller of two structures from which on they overlap by intention; where people draw one beside the
other, borders share a few voxels"""
MOST_NAMED = 8
"""cases or structures named in one finding"""
LEAST_PARALLEL = 16
"""cases from which on their labels are compared by several processes, which take seconds to start"""

Coded = tuple[DeclaredLabels, tuple[LabelCode, ...]]
"""the classes of structures, and the code of each"""
Meeting = Mapping[frozenset[str], int]
"""the sets of structures that meet in voxels, with the number of these"""


def parts_of(root: Path, case: Case) -> LabelParts:
    """The files of a case's label whose structures are named; none for one that is read by values."""
    return [(part.name, root / part.path) for part in case.label_parts]


def read_case_label(root: Path, case: Case, codes: Sequence[LabelCode]) -> LabelContent:
    """The label of a case that has one, from one file or several; of objects levels of depth. Raises DataError."""
    assert case.label is not None
    if case.label_parts:
        outlines = root / case.label_parts[0].path
        if not is_outlines(outlines) or not any(code.above is not None for code in codes):
            return read_label_parts(parts_of(root, case), root / case.images[0], codes)
        content = read_case_numbers(root, case, codes)
        if not numbers_objects(codes):
            return content._replace(values=values_of_objects(content.values, codes))
        return content._replace(values=levels_of_depth(content.values, content.geometry.spacing, codes))
    if not numbers_objects(codes):
        return read_label_content(root / case.label, codes, case.frame)
    content = read_case_numbers(root, case, codes)
    return content._replace(values=levels_of_depth(content.values, content.geometry.spacing, codes), colours=())


def read_case_numbers(root: Path, case: Case, codes: Sequence[LabelCode]) -> LabelContent:
    """The label of a case with a number for each object, as its file or its outlines tell them. Raises DataError.

    Where the codes say so, these are the connected pieces of the mask in the file.
    """
    assert case.label is not None
    if case.label_parts:
        content = read_outlined_objects(root / case.label_parts[0].path, root / case.images[0])
        return content._replace(values=outlined_numbers(content.values, codes))
    content = read_label_content(root / case.label, (), case.frame, numbers=True)
    return content._replace(values=object_numbers(content.values, codes))


def levels_of_depth(numbers: np.ndarray, spacing: Sequence[float], codes: Sequence[LabelCode]) -> np.ndarray:
    """The classes of numbered objects (Z, Y, X), by the codes of their labels; the ignore value stays."""
    values = values_of_objects(numbers, codes)
    levels = np.array([0, *(code.value for code in sorted(codes, key=lambda code: code.level) if code.level)], np.int32)
    depths = object_depths(np.where(values == levels[1], numbers, 0), spacing, len(levels) - 1)
    return np.where(depths > 0, levels[depths], values)


class Structured(NamedTuple):
    """A data set with the classes of its structures."""

    found: DetectedLayout
    cases: list[Case]
    findings: list[Finding]


def with_structures(root: Path, found: DetectedLayout, cases: list[Case], options: DataOptions) -> Structured:
    """`found` with a class for each structure, and the cases with those that were annotated in each.

    Unchanged where no label names its structures. Raises DataError.
    """
    own = [case for case in cases if case.label_parts]
    outlined = bool(own) and is_outlines(root / own[0].label_parts[0].path)
    if not own or (outlined and (options.join or options.objects)):
        return Structured(found, cases, [])
    names = {case.identifier: _names_in(root, case) for case in own}
    fullest = sorted(names.values(), key=len, reverse=True)
    every = list(dict.fromkeys(name for each in fullest for name in each))
    known = {**found.labels.classes, **options.class_values}
    wanted = [name for name in every if name in known] if options.class_values else every
    if not wanted:
        message = f"no label has the structures {', '.join(options.class_values)}; there are {_listed(every)}"
        raise DataError(message, "Correct the names given with --class")
    meeting = _meeting(root, own, options)
    labels, codes = _overlapping_codes(wanted, meeting, known, options)
    codes += tuple(LabelCode(value=0, segments=(name,)) for name in every if name not in wanted)
    joined = DeclaredLabels(
        found.labels.classes | labels.classes, found.labels.regions | labels.regions, found.labels.ignore
    )
    findings = _region_findings(labels, meeting)
    if len(wanted) < len(every):
        left = [name for name in every if name not in wanted]
        message = f"{len(left)} structures are left aside, as --class names others: {_listed(left)}"
        findings.append(_warning("left-aside", message, "Name them, too, if they are to be learned"))
    if outlined:  # what an image does not show has no outline there
        return Structured(replace(found, labels=joined, labels_declared=True, codes=codes), cases, findings)
    if options.missing_structures != "absent":
        cases = [_annotated(case, names.get(case.identifier), wanted, codes) for case in cases]
        findings += _missing_findings(names, wanted)
    return Structured(replace(found, labels=joined, labels_declared=True, codes=codes), cases, findings)


def _names_in(root: Path, case: Case) -> list[str]:
    """The structures that a case's label names, in its order; none of what cannot be read, which is told later."""
    names: list[str] = []
    for part in case.label_parts:
        with suppress(DataError):
            path = root / part.path
            read = outline_names if is_outlines(path) else structure_names
            names += [part.name] if part.name is not None else read(path)
    return list(dict.fromkeys(names))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _warning(code: str, message: str, remedy: str) -> Finding:
    return Finding(code=code, severity=Severity.warning, message=message, remedy=remedy)


# ---- overlaps ---------------------------------------------------------------------------------------------------


class _MeetingTask(NamedTuple):
    root: Path
    case: Case


_known_meetings: dict[object, Meeting] = {}
"""by the stamps of a case's files: one command asks for the same several times"""


def _meeting(root: Path, cases: Sequence[Case], options: DataOptions) -> Meeting:
    """Of all cases, where that decides on classes; files of one mask each are read for it only when regions are asked.

    What cannot be read is left out: it is told when the case is examined.
    """
    if options.overlaps != "regions":
        cases = [case for case in cases if any(part.name is None for part in case.label_parts)]
    if options.overlaps == "smaller":
        return {}
    stamps = {case.identifier: _stamp(root, case) for case in cases}
    left = [_MeetingTask(root, case) for case in cases if stamps[case.identifier] not in _known_meetings]
    workers = available_cores() if len(left) >= LEAST_PARALLEL else 1
    for task, found in zip(left, map_parallel(_meeting_of, left, workers), strict=True):
        _known_meetings[stamps[task.case.identifier]] = found
    total: Counter[frozenset[str]] = Counter()
    for stamp in stamps.values():
        total.update(_known_meetings[stamp])
    return total


def _stamp(root: Path, case: Case) -> object:
    files = [(root / part.path, part.name) for part in case.label_parts]
    return case.images, tuple((path, name, path.stat().st_size, path.stat().st_mtime_ns) for path, name in files)


def _meeting_of(task: _MeetingTask) -> Meeting:
    try:
        parts = parts_of(task.root, task.case)
        if len(parts) == 1 and parts[0][0] is None and not is_outlines(parts[0][1]) and not may_overlap(parts[0][1]):
            return {}
        return read_structures(parts, task.root / task.case.images[0]).voxels
    except DataError:
        return {}


def _pairs_of(meeting: Meeting) -> Counter[frozenset[str]]:
    """Voxels that each pair of structures shares."""
    shared: Counter[frozenset[str]] = Counter()
    for names, count in meeting.items():
        for pair in combinations(sorted(names), 2):
            shared[frozenset(pair)] += count
    return shared


def _overlapping_codes(names: Sequence[str], meeting: Meeting, known: Mapping[str, int], options: DataOptions) -> Coded:
    """Classes of structures, of which those that overlap by intention are regions.

    Where others share voxels, the structure that is smaller in all cases together has them.
    """
    kept: Counter[frozenset[str]] = Counter()
    for each, count in meeting.items():
        kept[each & frozenset(names)] += count
    sizes = sizes_of(kept.items())
    least = 0.0 if options.overlaps == "regions" else OVERLAPPING
    real = {pair for pair, count in _pairs_of(kept).items() if count > least * min(sizes[name] for name in pair)}
    reduced = {each: _reduced(each, sizes, real) for each in kept if each}
    labels, codes = combination_codes(
        names, [each for each in reduced.values() if len(each) > 1], reduced.values(), known
    )
    values = {code.segments: code.value for code in codes}
    for each, fewer in reduced.items():
        if each != fewer:
            codes += (LabelCode(value=values[tuple(sorted(fewer))], segments=tuple(sorted(each))),)
    return labels, codes


def _reduced(names: frozenset[str], sizes: Mapping[str, int], real: set[frozenset[str]]) -> frozenset[str]:
    """The smallest structure, and of the others those that overlap all before them by intention."""
    left: list[str] = []
    for name in sorted(names, key=lambda name: (sizes[name], name)):
        if all(frozenset({name, other}) in real for other in left):
            left.append(name)
    return frozenset(left)


def combination_codes(
    names: Iterable[str],
    combined: Iterable[frozenset[str]],
    occurring: Iterable[frozenset[str]],
    known: Mapping[str, int],
    stored: Mapping[str, int] | None = None,
) -> Coded:
    """A class for each name and each combination, and for names that are in combinations regions made of these.

    A name in combinations has a class of its own only where it is among the sets `occurring`. Values are those `known`
    for a class, then those `stored` for a name, else numbers from 1 on.
    """
    sets, names = list(dict.fromkeys(combined)), list(names)
    joined = {name for each in sets for name in each}
    alone = set(occurring)
    single = [frozenset({name}) for name in names if name not in joined or frozenset({name}) in alone]
    ordered = [*single, *sets]
    called = {each: _class_name(each, joined) for each in ordered}
    values = {name: known[name] for name in called.values() if name in known}
    for each, name in called.items():
        used = {0, *values.values(), *known.values()}
        own = (stored or {}).get(next(iter(each)), 0)
        free = next(value for value in range(1, len(used) + 2) if value not in used)
        values.setdefault(name, own if own and own not in used else free)
    regions = {
        name: tuple(values[called[each]] for each in ordered if name in each) for name in names if name in joined
    }
    widest = sorted(regions, key=lambda name: -len(regions[name]))  # later regions overwrite earlier ones
    codes = tuple(LabelCode(value=values[called[each]], segments=tuple(sorted(each))) for each in ordered)
    return DeclaredLabels(values, {name: regions[name] for name in widest}, None), codes


def _class_name(combination: frozenset[str], joined: set[str]) -> str:
    names = sorted(combination)
    return f"{names[0]} alone" if len(names) == 1 and names[0] in joined else " + ".join(names)


# ---- what is told -----------------------------------------------------------------------------------------------


def _region_findings(labels: DeclaredLabels, meeting: Meeting) -> list[Finding]:
    if not labels.regions:
        return []
    shared = {pair: count for pair, count in _pairs_of(meeting).items() if pair <= set(labels.regions)}
    pairs = [" and ".join(sorted(pair)) for pair in sorted(shared, key=lambda pair: -shared[pair])]
    message = f"structures overlap, and are learned as regions: {_listed(pairs)}"
    return [
        _warning("overlapping-structures", message, "Give --overlaps smaller if each voxel is to be of one structure")
    ]


def overlap_findings(facts: Sequence[CaseFacts]) -> list[Finding]:
    """One warning for all voxels that several structures share and that went to the smaller one."""
    shared: Counter[tuple[str, ...]] = Counter()
    where: dict[tuple[str, ...], list[str]] = {}
    for fact in facts:
        for each in fact.shared:
            shared[each.structures] += each.voxels
            where.setdefault(each.structures, []).append(fact.identifier)
    if not shared:
        return []
    shown = [
        f"{' and '.join(names)} ({count} voxels in {_cases(where[names])})" for names, count in shared.most_common()
    ]
    message = f"structures share voxels, each of which went to the smaller structure: {_listed(shown)}"
    remedy = (
        "Give --overlaps regions if they are to overlap, as a tumour and the organ it lies in; else correct the masks"
    )
    return [_warning("overlapping-structures", message, remedy)]


def _cases(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} cases, such as {names[0]}"


def _annotated(case: Case, names: Sequence[str] | None, wanted: Sequence[str], codes: Sequence[LabelCode]) -> Case:
    """With the classes that its label can show, where it does not name every structure."""
    if names is None or set(wanted) <= set(names):
        return case
    own = set(names)
    values = [code.value for code in codes if code.value and set(code.segments) <= own]
    return case.model_copy(update={"annotated": tuple(dict.fromkeys(values))})


def _missing_findings(names: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> list[Finding]:
    lacking = {name: [case for case, own in names.items() if name not in own] for name in wanted}
    lacking = {name: cases for name, cases in lacking.items() if cases}
    if not lacking:
        return []
    shown = [f"{name} (in {_cases(cases)})" for name, cases in lacking.items()]
    message = f"labels of {len(names)} cases do not all name the same structures; missing: {_listed(shown)}"
    remedy = (
        "A structure that a label does not name is taken as not annotated in this case. If it is absent there, give "
        "--missing-structures absent"
    )
    return [_warning("missing-structures", message, remedy)]
