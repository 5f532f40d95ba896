"""nnU-Net v2 raw: imagesTr/<case>_<channel, 4 digits>.<ext>, labelsTr/<case>.<ext>, dataset.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...imageio import stem, suffix
from ...schema.dataset import Finding, Severity
from ...schema.errors import DataError
from ...schema.options import DataOptions
from .detected_layout import (
    DetectedLayout,
    case_of,
    channel_names,
    missing_channel,
    missing_image,
    missing_label,
    numbering_finding,
    override_labels,
    parse_labels,
    read_description,
    unnumbered_image,
    with_channels,
)
from .files import (
    ChannelFiles,
    by_number,
    files_per_case,
    flat,
    image_files,
    listing,
    numbering_problem,
    strip_channel,
)


def detect(root: Path, options: DataOptions) -> bool:
    description = read_description(root)
    return not options.channels and "channel_names" in description and "labels" in description


def find(root: Path, options: DataOptions) -> DetectedLayout:
    description = read_description(root)
    ending = str(description.get("file_ending", ".nii.gz"))
    names = channel_names(description) or []
    if "dataset" in description:
        images = _listed(root, description)
        findings = _missing_channels(images)
        present = {name: _present(images, name) for name in images}
        count = _most(images)
    else:
        numbered, rest = _by_name(root, ending)
        count = _channel_count(numbered, len(names))
        found = [numbering_finding(case, own, count, names) for case, own in numbered.items()]
        findings = [each for each in found if each] + [_left_out(path, ending) for path in rest]
        images = _with_labels(root, numbered, ending)
        present = {name: list(files) for name, files in numbered.items()}
    if options.label:
        cases = [case_of(root, name, files, None) for name, (files, _) in images.items()]
        cases, unmatched = override_labels(root, cases, options.label)
    else:
        cases = [case_of(root, name, files, label) for name, (files, label) in images.items()]
        unmatched = _label_findings(root, images, ending)
    cases = [with_channels(case, present[case.identifier], count) for case in cases]
    return DetectedLayout(
        cases=cases,
        image_pattern=f"imagesTr/*_0000{ending}",
        channels=channel_names(description),
        labels=parse_labels(description["labels"]),
        labels_declared=True,
        findings=findings + unmatched,
    )


Images = dict[str, tuple[list[Path], Path]]
"""case -> channel files, label file"""


def _by_name(root: Path, ending: str) -> tuple[dict[str, ChannelFiles], list[Path]]:
    """The channel files of imagesTr by case and number, and the other images there."""
    folder = root / "imagesTr"
    if not folder.is_dir():
        raise DataError(f"{root} has a dataset.json but no folder imagesTr", f"Its folders: {listing(root)}")
    files = _with_ending(folder, ending)
    others = [path for path in image_files(folder) if path not in files]
    if not files and others:
        found = ", ".join(sorted({suffix(path) for path in others}))
        message = f"{folder} has no images that end in {ending}; it has {found}"
        raise DataError(message, "Correct file_ending in dataset.json")
    if not files:
        raise DataError(f"{folder} has no images", "Put the images there")
    numbered, rest = by_number(files)
    if not numbered:
        remedy = f"Rename it to {stem(rest[0])}_0000{ending}, and all others"
        raise DataError(f"{rest[0]} has no channel number in its name", remedy)
    return numbered, rest + others


def _with_labels(root: Path, numbered: Mapping[str, ChannelFiles], ending: str) -> Images:
    labels = {stem(path): path for path in _with_ending(root / "labelsTr", ending)}
    return {
        case: (flat(own), labels.get(case, root / "labelsTr" / f"{case}{ending}")) for case, own in numbered.items()
    }


def _channel_count(numbered: Mapping[str, ChannelFiles], named: int) -> int:
    """Channel files of a case; where all cases have equally many, numbered well, it is not they that are wrong."""
    sizes = {len(files) if not numbering_problem(case, files, len(files)) else 0 for case, files in numbered.items()}
    return sizes.pop() if len(sizes) == 1 and 0 not in sizes else files_per_case(numbered, max(1, named))


def _left_out(path: Path, ending: str) -> Finding:
    """An image of imagesTr without a channel number, or with another ending than the others."""
    if suffix(path).lower() == ending.lower():
        return unnumbered_image(path)
    return Finding(
        case=strip_channel(stem(path))[0],
        code="layout",
        severity=Severity.warning,
        message=f"imagesTr/{path.name} is left out: file_ending in dataset.json is {ending}",
        remedy=f"Convert it to {ending} if it is an image of this set, or take it away",
    )


def _with_ending(folder: Path, ending: str) -> list[Path]:
    return [path for path in image_files(folder) if suffix(path).lower() == ending.lower()]


def _listed(root: Path, description: dict[str, Any]) -> Images:
    """The optional `dataset` of dataset.json: case -> {"images": [...], "label": ...}, paths relative to it."""
    try:
        if not all(isinstance(entry["images"], list) and entry["images"] for entry in description["dataset"].values()):
            raise TypeError
        return {
            str(name): ([root / path for path in entry["images"]], root / entry["label"])
            for name, entry in description["dataset"].items()
        }
    except (AttributeError, KeyError, TypeError):
        raise DataError(
            "dataset.json: `dataset` has an entry without a list `images` or without `label`",
            "Write both for each case",
        ) from None


def _most(images: Images) -> int:
    """Channel files of the case that has most."""
    return max((len(files) for files, _ in images.values()), default=0)


def _present(images: Images, name: str) -> list[int]:
    """Which channels of the fullest case another one has, by their numbers; all that it has where none are numbered."""
    fullest = max((files for files, _ in images.values()), key=len)
    if len(images[name][0]) == len(fullest):
        return list(range(len(fullest)))
    usual = [strip_channel(stem(path))[1] for path in fullest]
    return [usual.index(number) for path in images[name][0] if (number := strip_channel(stem(path))[1]) in usual]


def _missing_channels(images: Images) -> list[Finding]:
    """Cases with fewer channel files than others, and listed files that do not exist."""
    most = _most(images)
    findings = []
    for name, (files, _) in images.items():
        absent = [path.name for path in files if not path.is_file()]
        if len(files) == most and not absent:
            continue
        have = ", ".join(path.name for path in files if path.is_file()) or "none"
        if not absent and len(_present(images, name)) == len(files):
            lacking = ", ".join(f"{index:04d}" for index in range(most) if index not in _present(images, name))
            message = f"it has {len(files)} of {most} channel files ({have}), but none for {lacking}"
            findings.append(missing_channel(name, message))
            continue
        findings.append(
            Finding(
                case=name,
                code="missing-image",
                message=f"it has {len(files) - len(absent)} of {most} channel files ({have})",
                remedy="Add the missing channels, or remove the case",
            )
        )
    return findings


def _label_findings(root: Path, images: Images, ending: str) -> list[Finding]:
    findings = [
        missing_label(root, name, files[0], label.parent)
        for name, (files, label) in images.items()
        if not label.is_file()
    ]
    expected = {label for _, label in images.values()}
    folders = {label.parent for label in expected}
    files = [path for folder in sorted(folders) for path in _with_ending(folder, ending)]
    listed = [path for path in files if path not in expected]
    return findings + [missing_image(root, path) for path in listed]
