"""Options written into the folder's dataset.json instead of on the command line, which wins over it.

`channels`, `kinds`, `label`, `regions`, `ignore`, `group`, `palette`, `frames` and `missing_channels` mean what the
options of these names do; classes stand under `labels`, as in nnU-Net's and the Decathlon's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...schema.dataset import Case, Finding
from ...schema.errors import DataError
from ...schema.labels import Labels
from ...schema.options import DataOptions
from .detected_layout import read_description
from .table import ANNOTATED, CASE, find_table

_TYPES: dict[str, type] = {
    "channels": dict, "kinds": dict, "regions": dict, "label": str, "group": str, "ignore": int, "palette": str,
    "frames": str, "missing_channels": bool,
}  # fmt: skip


def with_description(root: Path, options: DataOptions) -> DataOptions:
    """The options, those left out taken from dataset.json. Raises DataError for entries that no option can have."""
    description = read_description(root)
    given: dict[str, Any] = {key: description[key] for key in _TYPES if isinstance(description.get(key), _TYPES[key])}
    if not all(
        isinstance(pattern, str) and set(pattern) & set("*?/[") for pattern in given.get("channels", {}).values()
    ):
        del given["channels"]  # names, as other programs write them, and no patterns
    try:
        described = DataOptions.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"dataset.json: {where} is {problem['input']!r}: {problem['msg']}. Correct it") from None
    if options.channels:
        described = described.model_copy(
            update={"kinds": {name: kind for name, kind in described.kinds.items() if name in options.channels}}
        )
    missing = {key: getattr(described, key) for key in given if not getattr(options, key)}
    if options.ignore is not None:
        missing.pop("ignore", None)
    return options.model_copy(update=missing)


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
