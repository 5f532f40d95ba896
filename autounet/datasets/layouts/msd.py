"""A JSON file that lists every image and its label: dataset.json of the Medical Segmentation Decathlon, and the data
lists of MONAI and Auto3DSeg, where an entry may have its `fold` and several files as its image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ...imageio import is_container, is_series, stem, suffix
from ...schema.dataset import Case, Finding, Severity
from ...schema.errors import DataError
from ...schema.options import DataOptions
from .detected_layout import (
    DetectedLayout,
    case_of,
    channel_names,
    numbering_finding,
    override_labels,
    parse_labels,
    read_description,
    read_object,
    relative,
    with_channels,
)
from .files import (
    LARGEST_TABLE,
    ChannelFiles,
    by_number,
    distinct_names,
    files_per_case,
    flat,
    image_files,
    is_there,
    readable_text,
)

DATASET = "dataset.json"
_USED = {"image", "label", "fold"}
"""what is read of an entry"""
_SEPARATORS = "_-. "


@dataclass(frozen=True)
class Entry:
    """One case as it is listed."""

    images: list[Path]
    label: Path | None
    fold: str | None


def detect(place: Path, options: DataOptions) -> bool:
    return not options.channels and find_list(place) is not None


def find_list(place: Path) -> Path | None:
    """The list that `place` is, or dataset.json in this folder, or the only list there where it has no dataset.json.

    Raises DataError where there are several.
    """
    if place.is_file():
        return place if place.name == DATASET or place in _lists(place.parent) else None
    if (place / DATASET).is_file():
        return place / DATASET if isinstance(read_description(place).get("training"), list) else None
    found = _lists(place)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"several files of {place} list cases; candidates: {names}", "Give one in place of the folder")
    return found[0] if found else None


def _lists(folder: Path) -> list[Path]:
    """Lists of another name than dataset.json, in any encoding: who reads one that is no Unicode is told.

    JSON files of other programs are none, whatever is wrong with them.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name == DATASET or not path.is_file() or path.stat().st_size > LARGEST_TABLE:
            continue
        try:
            content = json.loads(readable_text(path)[0])
        except (OSError, ValueError, RecursionError):
            continue
        listed = content.get("training") if isinstance(content, dict) else None
        if isinstance(listed, list) and any(isinstance(entry, dict) and "image" in entry for entry in listed):
            found.append(path)
    return found


def find(place: Path, options: DataOptions) -> DetectedLayout:
    """Every listed file must be there. A listed `x.nii.gz` may be stored as `x_0000.nii.gz`, `x_0001.nii.gz`, ...

    Paths are absolute, or relative to the folder of the list.
    """
    file = find_list(place)
    assert file is not None
    root = file.parent
    description = read_description(root) | read_object(file)
    labels = parse_labels(description.get("labels", {}))
    names = channel_names(description) or []
    listed = [_entry(root, file, entry) for entry in description["training"]]
    identifiers, patterns = _named(root, [entry.images for entry in listed])
    findings = _unused(file, description)
    usual = Counter(len(entry.images) for entry in listed).most_common(1)
    cases: list[Case] = []
    for identifier, entry in zip(identifiers, listed, strict=True):
        case, found = _case(root, file, identifier, entry, names, bool(options.label))
        if len(entry.images) != usual[0][0]:
            message = f"{file.name} lists {len(entry.images)} files as its image, and {usual[0][0]} for most cases"
            remedy = "Give every case the same channels in the same order, or remove it from the list"
            found = [Finding(case=identifier, code="missing-image", message=message, remedy=remedy)]
        cases.append(case)
        findings += found
    if options.label and cases:
        cases, unmatched = override_labels(root, cases, options.label)
        findings += unmatched
    by_channel = bool(cases) and stem(cases[0].images[0]) == f"{cases[0].identifier}_0000"
    folder = Path(cases[0].images[0]).parent.as_posix() if cases else "imagesTr"
    ending = suffix(cases[0].images[0]) if cases else ".nii.gz"
    return DetectedLayout(
        cases=cases,
        image_pattern=f"{folder}/*{'_0000' if by_channel else ''}{ending}",
        channels=names or list(patterns) or None,
        labels=labels,
        labels_declared=labels.complete,
        findings=findings,
        channel_patterns=dict(zip(names, patterns.values(), strict=True)) if len(names) == len(patterns) else patterns,
        fold_source=file.name if any(entry.fold is not None for entry in listed) else None,
    )


def _case(
    root: Path, file: Path, identifier: str, entry: Entry, names: Sequence[str], other_labels: bool
) -> tuple[Case, list[Finding]]:
    """`other_labels`: they come from elsewhere."""
    findings = []
    image, label = entry.images[0], entry.label
    alone = len(entry.images) == 1 and not _exists(image)
    numbered = by_number(image_files(image.parent))[0].get(stem(image), {}) if alone else ChannelFiles()
    files = flat(numbered) or entry.images
    count = files_per_case({identifier: numbered}, max(1, len(names))) if numbered else 1
    if numbered and (found := numbering_finding(identifier, numbered, count, names)):
        findings.append(found)
    findings += [_missing(root, file, identifier, each, "missing-image") for each in files if not _exists(each)]
    if label is None and not other_labels:
        message, remedy = f"{file.name} gives it no label", "Add its label to the entry, or remove the entry"
        findings.append(Finding(case=identifier, code="missing-label", message=message, remedy=remedy))
    elif label is not None and not _exists(label) and not other_labels:
        findings.append(_missing(root, file, identifier, label, "missing-label"))
    case = case_of(root, identifier, files, label).model_copy(update={"fold": entry.fold})
    return (with_channels(case, numbered, count) if numbered else case), findings


def _exists(path: Path) -> bool:
    return is_there(path) and (path.is_file() or is_series(path) or is_container(path))


def _entry(root: Path, file: Path, entry: Any) -> Entry:
    """Raises DataError for what is no case."""
    shown = f"{file.name}: training holds {entry!r}"
    if not isinstance(entry, dict):
        raise DataError(shown, "Write an image and a label for each case")
    images, label, fold = (entry.get(key) for key in ("image", "label", "fold"))
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(each, str) and each for each in images):
        raise DataError(shown, "Write an image, a path or a list of paths, and a label for each case")
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if label is not None and not isinstance(label, str):
        raise DataError(f"{shown}: its label is no path", "Join labels into one file with a value for each class")
    if isinstance(fold, float) and fold.is_integer():  # as pandas writes whole numbers
        fold = int(fold)
    if fold is not None and (isinstance(fold, bool) or not isinstance(fold, int | str)):
        raise DataError(f"{shown}: its fold is no whole number", "Number the folds from 0")
    paths = [_path(root, each) for each in images]
    return Entry(paths, _path(root, label) if label else None, None if fold is None else str(fold))


def _path(root: Path, text: str) -> Path:
    """Absolute or relative to the list; written with backslashes on Windows."""
    path = root / text
    return root / text.replace("\\", "/") if "\\" in text and not is_there(path) else path


def _named(root: Path, images: Sequence[Sequence[Path]]) -> tuple[list[str], dict[str, str]]:
    """A name for each case, and of cases with several files the pattern of each channel, by its name.

    The name is what the files' names have in common, up to a separator, or their folder's name where that is the same
    for several cases. No patterns where the rest of the names, or else their folders, do not tell channels apart.
    """
    if all(len(files) == 1 for files in images):
        stems = [stem(files[0]) for files in images]
        return (stems if len(set(stems)) == len(stems) else distinct_names([files[0] for files in images])), {}
    names = [_common([stem(path) for path in files]) for files in images]
    if "" in names or len(set(names)) < len(names):
        names = distinct_names([files[0] for files in images])
        rests = {tuple(stem(path) for path in files) for files in images}
        pattern = "*/{}{}"
    else:
        rests = {tuple(stem(path)[len(name) :] for path in files) for name, files in zip(names, images, strict=True)}
        pattern = "*{}{}"
    if rests == {("",) * len(images[0])}:
        rests = {tuple(relative(root, path.parent) for path in files) for files in images}
        pattern = "{}/*{}"
    endings = next(iter(rests))
    channels = [Path(ending).name.strip(_SEPARATORS) for ending in endings]
    if len(rests) > 1 or len(set(channels)) < len(channels) or "" in channels:
        return names, {}
    suffixes = [suffix(path) for path in images[0]]
    return names, {
        channel: pattern.format(ending, last) for channel, ending, last in zip(channels, endings, suffixes, strict=True)
    }


def _common(stems: Sequence[str]) -> str:
    """c0_t1, c0_t1ce -> c0"""
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*stems, strict=False))
    prefix = "".join(column[0] for column in letters)
    ends = all(each[len(prefix) : len(prefix) + 1] in ("", *_SEPARATORS) for each in stems)
    if not ends and prefix[-1:] not in tuple(_SEPARATORS):
        cut = max(prefix.rfind(separator) for separator in _SEPARATORS)
        prefix = prefix[:cut] if cut > 0 else prefix
    return prefix.rstrip(_SEPARATORS)


def _unused(file: Path, description: Mapping[str, Any]) -> list[Finding]:
    """What a list holds besides the cases to train on: warnings."""
    found = []
    for key in ("validation", "testing", "test"):
        entries = description.get(key)
        labelled = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        if labelled and (key == "validation" or any(entry.get("label") for entry in labelled)):
            message = f"{file.name} lists {len(labelled)} cases under {key}, which are neither trained on nor validated"
            remedy = (
                "Move them to training to use them; there a fold in each entry says which cases are validated together"
            )
            found.append((message, remedy))
    others = {str(key) for entry in description["training"] if isinstance(entry, dict) for key in entry} - _USED
    if others:
        message = (
            f"{', '.join(sorted(others))} of the entries of {file.name} {'is' if len(others) == 1 else 'are'} not used"
        )
        found.append((message, "Nothing needs to be done if image, label and fold say all"))
    if beside := [path.name for path in _lists(file.parent) if path != file]:
        message = f"{', '.join(beside)} {'lists' if len(beside) == 1 else 'list'} cases, too, and {file.name} is used"
        found.append((message, "Give the other file in place of the folder to use that one"))
    return [
        Finding(code="unused-entries", severity=Severity.warning, message=message, remedy=remedy)
        for message, remedy in found
    ]


def _missing(root: Path, file: Path, identifier: str, path: Path, code: str) -> Finding:
    return Finding(
        case=identifier,
        code=code,
        message=f"{file.name} lists {relative(root, path)}, which does not exist",
        remedy=f"Add the file, or remove the case from {file.name}. Paths are relative to the folder of {file.name}",
    )
