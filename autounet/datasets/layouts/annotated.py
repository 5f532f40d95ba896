"""Which classes were annotated in a case: the column `annotated` of a table, or `annotated` of dataset.json.

    "annotated": {"case_7": ["liver", 3], "case_9": []}

Classes are given by name or value, or as a region. A case that is not listed, or has an empty cell, was annotated for
every class; an empty list in dataset.json says that it was annotated for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from autounet.datasets.layouts.found import read_description
from autounet.datasets.layouts.table_file import ANNOTATED, CASE, find_table
from autounet.schema.dataset import Case, Finding
from autounet.schema.errors import DataError
from autounet.schema.labels import Labels

CODE = "unknown-annotation"
_DESCRIPTION = "dataset.json"

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
    findings = [_unknown_case(name, _DESCRIPTION, known) for name in described if name not in set(known)]
    findings += [_listed_twice(name, file) for name in described if name in tabled]
    named = {region.name: region.values for region in labels.regions}
    named |= {label.name: (label.value,) for label in labels.classes}
    found = []
    for case in cases:
        source, words = (file, tabled) if case.identifier in tabled else (_DESCRIPTION, described)
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
        raise DataError(f"{_DESCRIPTION}: annotated is {listed!r}, no object. Write a list of classes for each case")
    for name, words in listed.items():
        if not isinstance(words, list) or not all(type(word) in (str, int) for word in words):
            raise DataError(f"{_DESCRIPTION}: annotated of case {name} is {words!r}. Write a list of classes")
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
    message = f"{source} lists {word!r} among its annotated classes, which is no class ({names})"
    return Finding(case=case, code=CODE, message=message, remedy="Correct it, or name the class: --class NAME=VALUE")


def _unknown_case(case: str, source: str, known: Iterable[str]) -> Finding:
    names = sorted(known)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    message = f"{source} lists its annotated classes, and there is no such case (cases: {shown})"
    return Finding(case=case, code=CODE, message=message, remedy="Correct the name, or take it out of the list")


def _listed_twice(case: str, file: str) -> Finding:
    message = f"its annotated classes are listed in {_DESCRIPTION} and in {file}"
    return Finding(case=case, code=CODE, message=message, remedy="Keep one of the two lists")
