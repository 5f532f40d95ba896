"""Medical Segmentation Decathlon: dataset.json lists every image and its label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...imageio import stem, suffix
from ...schema.dataset import Case, Finding
from ...schema.errors import DataError
from ...schema.options import DataOptions
from .detected_layout import (
    DetectedLayout,
    case_of,
    channel_names,
    missing_label,
    numbering_finding,
    override_labels,
    parse_labels,
    read_description,
    with_channels,
)
from .files import ChannelFiles, by_number, files_per_case, flat, image_files


def detect(root: Path, options: DataOptions) -> bool:
    return not options.channels and isinstance(read_description(root).get("training"), list)


def find(root: Path, options: DataOptions) -> DetectedLayout:
    """Every listed file must be there. A listed `x.nii.gz` may be stored as `x_0000.nii.gz`, `x_0001.nii.gz`, ..."""
    description = read_description(root)
    labels = parse_labels(description.get("labels", {}))
    names = channel_names(description) or []
    cases: list[Case] = []
    findings: list[Finding] = []
    for entry in description["training"]:
        image, label = _paths(root, entry)
        identifier = stem(image)
        numbered: ChannelFiles = {} if image.is_file() else _channel_files(image)
        files = [image] if image.is_file() else flat(numbered)
        count = files_per_case({identifier: numbered}, max(1, len(names))) if numbered else 1
        if numbered and (found := numbering_finding(identifier, numbered, count, names)):
            findings.append(found)
        if not files:
            findings.append(_missing(root, identifier, image, "missing-image"))
        if label is None and not options.label:
            findings.append(missing_label(root, identifier, image, root / "labelsTr"))
        elif label is not None and not label.is_file() and not options.label:
            findings.append(_missing(root, identifier, label, "missing-label"))
        case = case_of(root, identifier, files or [image], label)
        cases.append(with_channels(case, numbered, count) if numbered else case)
    if options.label and cases:
        cases, unmatched = override_labels(root, cases, options.label)
        findings += unmatched
    by_channel = bool(cases) and stem(cases[0].images[0]) == f"{cases[0].identifier}_0000"
    channel = "_0000" if by_channel else ""
    folder = Path(cases[0].images[0]).parent.as_posix() if cases else "imagesTr"
    ending = suffix(cases[0].images[0]) if cases else ".nii.gz"
    return DetectedLayout(
        cases=cases,
        image_pattern=f"{folder}/*{channel}{ending}",
        channels=names or None,
        labels=labels,
        labels_declared=labels.complete,
        findings=findings,
    )


def _paths(root: Path, entry: Any) -> tuple[Path, Path | None]:
    if isinstance(entry, dict) and isinstance(entry.get("image"), str):
        label = entry.get("label")
        return root / entry["image"], root / label if isinstance(label, str) else None
    raise DataError(f"dataset.json: training holds {entry!r}", "Write an image and a label for each case")


def _channel_files(image: Path) -> ChannelFiles:
    """`x_0000.nii.gz`, `x_0001.nii.gz`, ... next to a listed `x.nii.gz` (the layout of nnU-Net's first version)."""
    return by_number(image_files(image.parent))[0].get(stem(image), {})


def _missing(root: Path, identifier: str, path: Path, code: str) -> Finding:
    return Finding(
        case=identifier,
        code=code,
        message=f"dataset.json lists {path.relative_to(root).as_posix()}, which does not exist",
        remedy="Add the file, or remove the case from dataset.json",
    )
