"""Labels of one mask file for each structure: case/segmentations/liver.nii.gz, case/segmentations/spleen.nii.gz, ..."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...imageio import read_image, stem
from ...schema.dataset import Case, LabelPart
from ...schema.errors import DataError
from .detected_layout import relative
from .files import image_files, looks_like_labels, says_label, subfolders
from .patterns import glob_images

DEEPEST = 3
"""folders below a case's own in which masks are looked for"""
_FOLDERS = re.compile(r"roi|structure|organ|contour|class", re.IGNORECASE)
_READ = 3
"""files of a folder that are read to see whether it holds masks"""
_UNNAMED = 3
"""least number of masks in a folder whose name says nothing"""
_SEPARATORS = re.compile(r"[-_. ]+")


class StructureMasks(NamedTuple):
    """The mask files of the structures of each case."""

    pattern: str
    """of them all, relative to the data folder"""
    files: dict[str, dict[str, Path]]
    """case -> structure -> its file"""

    @property
    def paths(self) -> set[Path]:
        return {path for own in self.files.values() for path in own.values()}


def find_masks(root: Path, folders: Sequence[Path]) -> StructureMasks | None:
    """The one folder of masks, of one name, that more than half of the case folders have; None where there is none.

    It holds masks where its name says so (segmentations, masks, organs, ...), or holds a few of them, all files have
    one value besides 0, and the files' names recur from case to case.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for folder in folders:
        for inner in _folders_below(folder):
            if files := image_files(inner):
                found.setdefault(inner.relative_to(folder).as_posix(), {})[folder.name] = files
    usual = {name: files for name, files in found.items() if len(files) > len(folders) / 2}
    masks = {name: own for name, files in usual.items() if (own := _masks_in(name, files))}
    if len(masks) != 1:
        return None
    inside, structures = next(iter(masks.items()))
    return StructureMasks(f"*/{inside}/*", structures)


def _folders_below(folder: Path, depth: int = 1) -> Iterable[Path]:
    for inner in subfolders(folder):
        yield inner
        if depth < DEEPEST:
            yield from _folders_below(inner, depth + 1)


def _masks_in(folder: str, files: Mapping[str, list[Path]]) -> dict[str, dict[str, Path]] | None:
    named = structures_of(files)
    if named is None:
        return None
    counts = Counter(name for own in named.values() for name in own)
    says = looks_like_labels(Path(folder)) or bool(_FOLDERS.search(folder))
    if len(counts) < (2 if says else _UNNAMED) or (len(named) > 1 and max(counts.values()) < 2):
        return None
    example = max(files.values(), key=len)
    step = max(1, len(example) // _READ)
    return named if all(map(is_mask, example[::step])) else None


def structures_of(files: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, Path]] | None:
    """Case -> structure -> file, structures by the files' names; None where two files of a case have one name.

    The case's own name is left out of it, and words like mask or seg where all names begin or end with them.
    """
    words = {
        path: [word for word in _SEPARATORS.split(_without(stem(path), case)) if word]
        for case, own in files.items()
        for path in own
    }
    for place in (0, -1):
        while _common(words.values(), place):
            words = {path: own[1:] if place == 0 else own[:-1] for path, own in words.items()}
    names = {path: "_".join(own) for path, own in words.items()}
    found = {case: {names[path]: path for path in own} for case, own in files.items()}
    if any(len(found[case]) < len(own) or "" in found[case] for case, own in files.items()):
        return None
    return {case: dict(sorted(own.items())) for case, own in found.items()}


def _without(name: str, case: str) -> str:
    for shorter in (name.removeprefix(case), name.removesuffix(case)):
        if shorter != name and (shorter == "" or _SEPARATORS.match(shorter) or _SEPARATORS.search(shorter[-1])):
            return shorter
    return name


def _common(words: Iterable[Sequence[str]], place: int) -> bool:
    """Whether all names have the same word there, which says label, and further ones."""
    every = list(words)
    ends = {own[place] for own in every if own}
    return len(ends) == 1 and all(len(own) > 1 for own in every) and says_label(next(iter(ends)))


def is_mask(path: Path) -> bool:
    """Whether an image has one channel, and one value besides 0 at most."""
    try:
        image, _ = read_image(path)
    except DataError:
        return False
    drawn = image[image != 0]
    return len(image) == 1 and (not drawn.size or bool((drawn == drawn[0]).all() and np.rint(drawn[0]) == drawn[0]))


def given_masks(root: Path, patterns: Mapping[str, str]) -> dict[str, list[Path]]:
    """Structure -> its mask files, of `--class NAME=PATTERN`. Raises OptionError."""
    return {name: glob_images(root, pattern, f"--class {name}=") for name, pattern in patterns.items()}


def with_masks(root: Path, case: Case, masks: Mapping[str, Path]) -> Case:
    """The case with these files as its label."""
    parts = tuple(LabelPart(name=name, path=relative(root, path)) for name, path in masks.items())
    folders = {path.parent for path in masks.values()}
    label = relative(root, folders.pop()) if len(folders) == 1 else parts[0].path
    return case.model_copy(update={"label": label, "label_parts": parts})
