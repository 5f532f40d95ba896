"""One folder per case; its channels and its label are told apart by their names.

Which pattern is the label is taken from names and contents only where a single one can be it: masks of a brain or a
field of view look like labels too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...imageio import is_nrrd_segmentation, is_series, read_image, suffix
from ...schema.dataset import Case, Finding
from ...schema.errors import DataError, OptionError
from ...schema.options import DataOptions
from .detected_layout import (
    DetectedLayout,
    case_of,
    channel_names,
    lacking_channels,
    missing_label,
    parse_labels,
    read_description,
    relative,
    with_channels,
)
from .files import image_files, is_held_out, looks_like_images, looks_like_labels, says_label, subfolders
from .patterns import glob_images
from .structure_masks import StructureMasks, find_masks, given_masks, structures_of, with_masks

DEEPEST = 3
"""folders below a case's own in which files are looked for"""
MOST_VALUES = 50
"""an image of whole numbers with no more different values looks like a label"""
_PARTS = re.compile(r"[A-Za-z0-9]+")


class FileRole(NamedTuple):
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
    """The folders that hold images, directly or below; also a DICOM series with a label next to its slices."""
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


def find_roles(root: Path, folders: Sequence[Path], besides: Collection[Path] = ()) -> list[FileRole]:
    """The kinds of files that more than half of the case folders have, in order of their names, `besides` those.

    Raises DataError when a folder has several files of one kind.
    """
    files = {folder.name: [path for path in images_below(folder) if path not in besides] for folder in folders}
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
                    f"{relative(root, other)} and {relative(root, path)} have names of the same kind ({pattern})",
                    "Say which files to use: --channel NAME=PATTERN --label PATTERN",
                    case=case,
                )
    kept = {pattern: own for pattern, own in roles.items() if len(own) > len(folders) / 2}
    return [FileRole(pattern, own) for pattern, own in sorted(kept.items())]


def _pattern(name: str, usual: set[str]) -> str:
    """A path below the case's folder, with * for the parts that differ from case to case."""
    if name == ".":
        return "*"
    ending = suffix(name)
    base = _PARTS.sub(lambda word: word[0] if word[0] in usual else "*", name[: len(name) - len(ending)])
    return "*/" + re.sub(r"\*([^/A-Za-z0-9]*\*)+", "*", base) + ending


def looks_like_label(role: FileRole) -> bool:
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


def short_names(roles: Sequence[FileRole]) -> list[str]:
    """Names without the words that all of them share, where something distinct is left."""
    words = [_PARTS.findall(role.name) for role in roles]
    common = set.intersection(*map(set, words)) if len(words) > 1 else set()
    short = ["_".join(word for word in own if word not in common) for own in words]
    return short if all(short) and len(set(short)) == len(short) else [role.name for role in roles]


MOST_FILES = 24
"""a folder with more kinds of files is no case"""
_TRAINING = re.compile(r"^(train|training|tr)$", re.IGNORECASE)


def detect(root: Path, options: DataOptions) -> bool:
    """Folders with a few files each that have the same names but for a part that tells the cases apart."""
    patterns = [*options.channels.values(), *options.class_patterns.values()]
    labels = [options.label] if options.label else []
    if not _one_per_folder(root, patterns, labels):
        return False
    folders = case_folders(root)
    if not folders or len([*patterns, *labels]) > 1:
        return bool(folders)
    if any(_not_a_case(folder) for folder in folders):
        return False
    masks = None if labels or patterns else find_masks(root, folders)
    roles = find_roles(root, folders, masks.paths if masks else ())
    return (0 if masks else 1) < len(roles) <= MOST_FILES


def _not_a_case(folder: Path) -> bool:
    return (
        looks_like_images(folder)
        or looks_like_labels(folder)
        or is_held_out(folder)
        or bool(_TRAINING.match(folder.name))
    )


def _one_per_folder(root: Path, patterns: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether each pattern names at most one file in each folder, and all of them name files in the same folders.

    Several files of a case that a pattern of `labels` names are masks of one structure each.
    """
    owners = []
    for pattern in (*patterns, *labels):
        try:
            files = glob_images(root, pattern, "")
        except OptionError:  # reported by the layout that reads the patterns
            return False
        owners.append(Counter(path.relative_to(root).parts[0] for path in files))
    if any(max(own.values()) > 1 for own in owners[: len(patterns)]):
        return False
    several = [own for own in owners[len(patterns) :] if max(own.values()) > 1]
    if any(len(own) < 2 or any(looks_like_labels(root / name) for name in own) for own in several):
        return False  # one folder of labels
    return all(own.keys() & owners[0].keys() for own in owners)


def find(root: Path, options: DataOptions) -> DetectedLayout:
    """Channels and label as the options say, else as far as a single reading is possible."""
    folders = case_folders(root)
    channels = {name: _role(root, pattern, f"--channel {name}=") for name, pattern in options.channels.items()}
    label = _given_label(root, options)
    if not channels or label is None:
        channels, label = _guessed(root, folders, channels, label)
    cases, findings = _cases(root, channels, label)
    description = read_description(root)
    labels = parse_labels(description.get("labels", {}))
    named = channel_names(description)
    return DetectedLayout(
        cases=cases,
        image_pattern=next(iter(channels.values())).pattern,
        channels=named if named and not options.channels and len(named) != len(channels) else list(channels),
        labels=labels,
        labels_declared=labels.complete,
        findings=findings,
        channel_patterns={name: role.pattern for name, role in channels.items()},
    )


def _role(root: Path, pattern: str, option: str) -> FileRole:
    files = glob_images(root, pattern, option)
    return FileRole(pattern, {path.relative_to(root).parts[0]: path for path in files})


def _given_label(root: Path, options: DataOptions) -> FileRole | StructureMasks | None:
    """Of `--label` or `--class NAME=PATTERN`; several files of a case are masks of one structure each."""
    if options.label is None:
        patterns = options.class_patterns
        owned = {
            name: {path.relative_to(root).parts[0]: path for path in files}
            for name, files in given_masks(root, patterns).items()
        }
        cases = sorted({case for own in owned.values() for case in own})
        by_case = {case: {name: own[case] for name, own in owned.items() if case in own} for case in cases}
        return StructureMasks(", ".join(patterns.values()), by_case) if patterns else None
    files: dict[str, list[Path]] = {}
    for path in glob_images(root, options.label, "--label"):
        files.setdefault(path.relative_to(root).parts[0], []).append(path)
    if max(map(len, files.values())) == 1:
        return FileRole(options.label, {case: own[0] for case, own in files.items()})
    named = structures_of(files)
    if named is None:
        message = f"--label {options.label!r} names several files of a case whose names tell no structures apart"
        raise OptionError(message, "Say which is which: --class NAME=PATTERN for each structure")
    return StructureMasks(options.label, named)


def _guessed(
    root: Path, folders: Sequence[Path], channels: Mapping[str, FileRole], label: FileRole | StructureMasks | None
) -> tuple[dict[str, FileRole], FileRole | StructureMasks]:
    """What the options leave open. Raises DataError with the candidates unless there is a single reading."""
    taken = {path for role in channels.values() for path in role.files.values()} | paths_of(label)
    structures = find_masks(root, folders)
    rest = find_roles(root, folders, taken | paths_of(structures))
    masks: list[FileRole | StructureMasks] = [role for role in rest if looks_like_label(role)]
    images = [role for role in rest if role not in masks]
    masks += [structures] if structures and label is None else []
    if channels:
        if label is None and len(masks) == 1:
            return dict(channels), masks[0]
    elif images and len(masks) == (1 if label is None else 0):
        names = short_names(images)
        return dict(zip(names, images, strict=True)), label or masks[0]
    raise _ambiguous(root, len(folders), images, masks, not channels, label is None)


def paths_of(label: FileRole | StructureMasks | None) -> set[Path]:
    """Every file of the labels."""
    if isinstance(label, FileRole):
        return set(label.files.values())
    return label.paths if label is not None else set()


def _ambiguous(
    root: Path,
    count: int,
    images: Sequence[FileRole],
    masks: Sequence[FileRole | StructureMasks],
    need_channels: bool,
    need_label: bool,
) -> DataError:
    """The error with what the folders hold, what may be images or labels, and the options that say so."""
    described = []
    for role in masks:
        values = few_values(next(iter(role.files.values()))) if isinstance(role, FileRole) else None
        shown = f" (values {', '.join(map(str, values[:8]))}{', ...' if len(values) > 8 else ''})" if values else ""
        described.append(f"{role.pattern}{shown}")
    text = f"{root} has one folder per case ({count}), and "
    if need_label:
        text += f"{'several files' if len(masks) > 1 else 'no file'} of each can be the label"
    else:
        text += "it is not clear which files are the images"
    candidates = described or [role.pattern for role in images]
    text += f"; candidates: {', '.join(candidates)}"
    if described and images:
        text += f"; images: {', '.join(role.pattern for role in images)}"
    options = []
    if need_label:
        options += [" or ".join(f"--label '{role.pattern}'" for role in masks or images)]
    if need_channels:
        some = images or [role for role in masks if isinstance(role, FileRole)]
        options += [f"--channel '{name}={role.pattern}'" for name, role in zip(short_names(some), some, strict=True)]
    return DataError(text, f"Say which: {' '.join(options)}")


def _cases(
    root: Path, channels: Mapping[str, FileRole], label: FileRole | StructureMasks
) -> tuple[list[Case], list[Finding]]:
    names = sorted({case for role in channels.values() for case in role.files} | set(label.files))
    cases, findings = [], []
    for name in names:
        lacking = [channel for channel, role in channels.items() if name not in role.files]
        if lacking:
            findings.append(lacking_channels(name, lacking) if len(lacking) < len(channels) else _without_images(name))
        present = [index for index, role in enumerate(channels.values()) if name in role.files]
        images = [role.files[name] for role in channels.values() if name in role.files]
        if name not in label.files and images:
            findings.append(missing_label(root, name, images[0], root / name))
        found = case_of(root, name, images, label.files.get(name) if isinstance(label, FileRole) else None)
        if isinstance(label, StructureMasks) and name in label.files:
            found = with_masks(root, found, label.files[name])
        cases.append(with_channels(found, present, len(channels)))
    return cases, findings


def _without_images(name: str) -> Finding:
    remedy = "Add its images, or remove the case"
    return Finding(case=name, code="missing-image", message="it has a label but no image", remedy=remedy)


def case_inputs(root: Path, patterns: Mapping[str, str]) -> dict[str, dict[str, list[Path]]]:
    """Case -> channel -> its files, for new images laid out like this; `root` may be the folder of one case.

    Every folder that holds images is a case where any has a channel.
    """
    folders = case_folders(root)
    found = {folder.name: _matching(folder, patterns) for folder in folders}
    if any(found.values()):
        return found
    own = _matching(root, patterns)
    return {root.name: own} if own else {}


def _matching(folder: Path, patterns: Mapping[str, str]) -> dict[str, list[Path]]:
    """Channel -> the files of a case's folder that its pattern names, whatever their ending."""
    found: dict[str, list[Path]] = {}
    for path in images_below(folder):
        inside = path.relative_to(folder.parent).as_posix()
        for channel, pattern in patterns.items():
            name = inside if "/" in pattern else path.name
            bare = name[: len(name) - len(suffix(name))]
            fits = fnmatchcase(name, pattern) or fnmatchcase(bare, pattern[: len(pattern) - len(suffix(pattern))])
            if fits and name.count("/") == pattern.count("/"):
                found.setdefault(channel, []).append(path)
    return found
