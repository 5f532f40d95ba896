"""Which file belongs to which by their names: labels to images, predictions to references."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...imageio import stem
from ...schema.errors import DataError
from .files import distinct_names, strip_channel


class Match(NamedTuple):
    case: str
    first: Path
    second: Path


def _texts(paths: Sequence[Path]) -> dict[Path, str]:
    """The names that are compared: with their folder, unless several files lie in the same, which tells nothing."""
    same = len(paths) > 1 and len({path.parent for path in paths}) == 1
    return {path: stem(path) if same else f"{path.parent.name} {stem(path)}" for path in paths}


def _between_separators(text: str) -> list[str]:
    """21_manual1 -> 21, manual1"""
    return [part.lower() for part in re.split(r"[^A-Za-z0-9]+", text) if part]


def _letters_and_numbers(text: str) -> list[str]:
    """Leading zeros dropped: img007 -> img, 7"""
    parts = re.findall(r"[A-Za-z]+|\d+", text)
    return [part.lstrip("0") or "0" if part.isdigit() else part.lower() for part in parts]


def _same_case(first: Path, second: Path) -> bool:
    """Whether two names alone, with no others to compare with, can be those of one case.

    All numbers of one are in the other (21_training, 21_manual1); without numbers both begin with the same word.
    """
    one, other = (Counter(filter(str.isdigit, _letters_and_numbers(stem(path)))) for path in (first, second))
    if one or other:
        return bool(one and other) and (one <= other or other <= one)
    return _between_separators(stem(first))[:1] == _between_separators(stem(second))[:1]


def pair(first: Sequence[Path], second: Sequence[Path]) -> list[Match]:
    """Files of `first` with their partners in `second`, in the order of `first`; files without one are left out.

    Equal stems; else equal stems without the `_0000` of channel files; else the one part of the name that is
    unique to each file in both folders (21_training, 21_manual1: 21); else equal names after leaving out the parts
    that all files of a folder share (p1_frame2, p1_frame2_seg). Files of equal stem are told apart by their folder.
    Of one file in each folder nothing is unique, so their names have to agree (`_same_case`).
    The case is the name of the first file, without `_0000` where that is no part of the second's name.
    Raises DataError when nothing fits or a file has several partners.
    """
    if not first or not second:
        raise DataError("images and labels cannot be paired: a folder holds no image files", "Check the paths")
    called = dict(zip(first, distinct_names(first), strict=True))
    found = _by_key(first, second, stem)
    if not found:
        found = _by_key(first, second, lambda path: strip_channel(stem(path))[0])
        bases = {  # another number than 0000 may be part of the name, unless the second's name says that it is not
            path: strip_channel(name)[0] if found or name.endswith("_0000") else name for path, name in called.items()
        }
        if len(set(bases.values())) == len(bases):
            called = bases
    alone = len(first) == len(second) == 1
    if alone and not found and _same_case(first[0], second[0]):
        found = {first[0]: second[0]}
    for split in () if alone else (_between_separators, _letters_and_numbers):
        rules = (_by_unique_part, _by_rest)
        found = found or max((rule(first, second, split) for rule in rules), key=len)
    if not found:
        raise DataError(
            f"names cannot be paired: {_example(first)} in one folder, {_example(second)} in the other",
            "Give each image and its label the same name, up to one part that all files share",
        )
    return [Match(called[path], path, found[path]) for path in first if path in found]


def _example(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:2]) or "no file"


def _by_key(first: Sequence[Path], second: Sequence[Path], key: Callable[[Path], str]) -> dict[Path, Path]:
    left, right = [key(path) for path in first], [stem(path) for path in second]
    if len(set(left)) < len(left) or len(set(right)) < len(right):
        return {}
    partner = dict(zip(right, second, strict=True))
    return {path: partner[name] for path, name in zip(first, left, strict=True) if name in partner}


def _by_unique_part(
    first: Sequence[Path], second: Sequence[Path], split: Callable[[str], list[str]]
) -> dict[Path, Path]:
    """Pairs by parts that occur in one file of each folder; nothing when two parts contradict each other."""
    owners: list[dict[str, Path]] = []
    for paths in (first, second):
        parts = [(part, path) for path, text in _texts(paths).items() for part in set(split(text))]
        counts = Counter(part for part, _ in parts)
        owners.append({part: path for part, path in parts if counts[part] == 1})
    partners: dict[Path, set[Path]] = {}
    for part, path in owners[0].items():
        if part in owners[1]:
            partners.setdefault(path, set()).add(owners[1][part])
    found = {path: next(iter(matches)) for path, matches in partners.items() if len(matches) == 1}
    complete = len(found) == len(partners) and len(set(found.values())) == len(found)
    enough = len(found) > 0.5 * min(len(first), len(second))
    return {path: found[path] for path in first if path in found} if complete and enough else {}


def _by_rest(first: Sequence[Path], second: Sequence[Path], split: Callable[[str], list[str]]) -> dict[Path, Path]:
    """Pairs by what is left of the names without the parts that every file of the folder has."""
    rests = []
    for paths in (first, second):
        parts = [split(text) for text in _texts(paths).values()]
        common = set.intersection(*map(set, parts)) if parts else set()
        rests.append([tuple(part for part in own if part not in common) for own in parts])
    if any(len(set(rest)) < len(rest) for rest in rests) or () in rests[0] + rests[1]:
        return {}
    partner = dict(zip(rests[1], second, strict=True))
    return {path: partner[rest] for path, rest in zip(first, rests[0], strict=True) if rest in partner}
