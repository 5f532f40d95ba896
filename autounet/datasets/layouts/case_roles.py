"""The kinds of files that the folders of a data set with one folder per case have in common.

A file's name is turned into a pattern by leaving open what differs from case to case: `p01/p01_flair.nii.gz` and
`p02/p02_flair.nii.gz` are `*/*_flair.nii.gz`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autounet.datasets.layouts.folders import image_files, says_label, subfolders
from autounet.datasets.layouts.found import relative
from autounet.images import is_nrrd_segmentation, is_series, read_image, suffix
from autounet.schema.errors import DataError

DEEPEST = 3
"""folders below a case's own in which files are looked for"""
MOST_VALUES = 50
"""an image of whole numbers with no more different values looks like a label"""
_PARTS = re.compile(r"[A-Za-z0-9]+")


class Role(NamedTuple):
    """A kind of file that the case folders have: a channel, the label, or something else."""

    pattern: str
    """relative to the data folder, for example */*_flair.nii.gz"""
    files: dict[str, Path]
    """by case"""

    @property
    def name(self) -> str:
        """What is left of the pattern without the case's folder, wildcards and ending."""
        inside = self.pattern.partition("/")[2]
        inside = inside[: len(inside) - len(suffix(inside))]
        return re.sub(r"[*/]+", "_", inside).strip("_-. ") or "image"


def case_folders(root: Path) -> list[Path]:
    """The folders that hold images, directly or below; a DICOM series with a label beside its slices is one."""
    return [folder for folder in subfolders(root) if next(images_below(folder), None) is not None]


def images_below(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Image files and DICOM series in a case's folder, sorted by name, folders last."""
    if depth == 0 and is_series(folder):
        yield folder
    found = image_files(folder)
    yield from found
    if depth < DEEPEST:
        for inner in subfolders(folder):
            if inner not in found:
                yield from images_below(inner, depth + 1)


def find_roles(root: Path, folders: Sequence[Path]) -> list[Role]:
    """The kinds of files that more than half of the case folders have, in order of their names.

    Raises DataError when a folder has several files of one kind.
    """
    files = {folder.name: list(images_below(folder)) for folder in folders}
    inside = {path: path.relative_to(root / case).as_posix() for case, paths in files.items() for path in paths}
    counts = Counter(
        word for paths in files.values() for word in {word for path in paths for word in _PARTS.findall(inside[path])}
    )
    usual = {word for word, count in counts.items() if count > len(folders) / 2}
    roles: dict[str, dict[str, Path]] = {}
    for case, paths in files.items():
        for path in paths:
            pattern = _pattern(inside[path], usual)
            other = roles.setdefault(pattern, {}).setdefault(case, path)
            if other != path and len(folders) > 1:
                raise DataError(
                    f"case {case}: {relative(root, other)} and {relative(root, path)} have names of the same kind "
                    f"({pattern}). Say which files to use: --channel NAME=PATTERN --label PATTERN"
                )
    kept = {pattern: own for pattern, own in roles.items() if len(own) > len(folders) / 2}
    return [Role(pattern, own) for pattern, own in sorted(kept.items())]


def _pattern(name: str, usual: set[str]) -> str:
    """A path below the case's folder, with * for the parts that differ from case to case."""
    if name == ".":
        return "*"
    ending = suffix(name)
    base = _PARTS.sub(lambda word: word[0] if word[0] in usual else "*", name[: len(name) - len(ending)])
    return "*/" + re.sub(r"\*([^/A-Za-z0-9]*\*)+", "*", base) + ending


def looks_like_label(role: Role) -> bool:
    """By its name, or by the first case's content: whole numbers of few values. What cannot be read goes by name."""
    path = next(iter(role.files.values()))
    if says_label(role.name) or is_nrrd_segmentation(path):
        return True
    values = few_values(path)
    return values is not None


def few_values(path: Path) -> list[int] | None:
    """The values of an image of few whole numbers, from a regular sample of it; None for any other."""
    try:
        image, _ = read_image(path)
    except DataError:
        return None
    step = max(1, round((image[0].size / 500_000) ** (1 / 3)))
    found = np.unique(image[0, :, ::step, ::step] if image.shape[1] == 1 else image[0, ::step, ::step, ::step])
    if image.shape[0] > 1 or len(found) > MOST_VALUES or not (found == np.rint(found)).all():
        return None
    return [int(value) for value in found]


def short_names(roles: Sequence[Role]) -> list[str]:
    """Names without the words that all of them share, where something distinct is left."""
    words = [_PARTS.findall(role.name) for role in roles]
    common = set.intersection(*map(set, words)) if len(words) > 1 else set()
    short = ["_".join(word for word in own if word not in common) for own in words]
    return short if all(short) and len(set(short)) == len(short) else [role.name for role in roles]
