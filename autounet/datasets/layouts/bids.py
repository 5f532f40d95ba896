"""BIDS: images in sub-*/[ses-*/]anat/, labels as derivatives/<pipeline>/sub-*/.../*_dseg or *_mask files.

A case is a subject's session. Channels are the images' suffixes (T1w, FLAIR), with what other entities tell them
apart (ce-gadolinium_T1w); the sessions of one subject are a group. Names: bids-specification, "Entities" and
"Derivatives: imaging, segmentations".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...imageio import is_image, stem, suffix
from ...schema.dataset import Finding
from ...schema.errors import DataError
from ...schema.options import DataOptions
from .detected_layout import (
    DetectedLayout,
    case_of,
    lacking_channels,
    missing_label,
    parse_labels,
    read_description,
    relative,
    repeated_channel,
    with_channels,
)
from .patterns import glob_images

_OWNERS = ("sub", "ses")
"""entities that name the case; all others name the kind of image"""
_LABELS = ("dseg", "mask")
_NO_IMAGES = (*_LABELS, "probseg", "xfm", "bold", "sbref", "dwi", "events", "physio", "magnitude1", "magnitude2",
              "phasediff", "phase1", "phase2", "epi", "defacemask")  # fmt: skip


class BidsFile(NamedTuple):
    path: Path
    case: str
    """sub-01 or sub-01_ses-02"""
    subject: str
    kind: str
    """the other entities and the suffix: T1w, ce-gadolinium_T1w, desc-lesion_mask"""

    @property
    def suffix(self) -> str:
        return self.kind.rpartition("_")[2]

    def entity(self, key: str) -> str | None:
        return next((part[len(key) + 1 :] for part in self.kind.split("_") if part.startswith(f"{key}-")), None)


def parse_name(path: Path) -> BidsFile | None:
    """None for a name that is not built like sub-01_ses-02_ce-gadolinium_T1w.nii.gz."""
    *entities, last = stem(path).split("_")
    if not entities or not entities[0].startswith("sub-") or "-" in last or not all("-" in part for part in entities):
        return None
    owners = [part for part in entities if part.partition("-")[0] in _OWNERS]
    rest = [part for part in entities if part not in owners]
    return BidsFile(path, "_".join(owners), entities[0], "_".join([*rest, last]))


def detect(root: Path, options: DataOptions) -> bool:
    return not options.channels and any(parse_name(path) for path in _raw(root, limit=20))


def _raw(root: Path, limit: int | None = None) -> list[Path]:
    """Image files below sub-*/, or below derivatives/*/sub-*/ where there are none; `limit` to the first few."""
    for start in ("sub-*", "derivatives/*/sub-*"):
        found = []
        for folder in sorted(path for path in root.glob(start) if path.is_dir()):
            found += sorted(path for path in folder.rglob("*") if path.is_file() and is_image(path))
            if limit is not None and len(found) >= limit:
                break
        if found:
            return found[:limit]
    return []


def _images(root: Path) -> list[BidsFile]:
    """Those in folders called anat where there are any, else all that show anatomy."""
    found = [named for path in _raw(root) if (named := parse_name(path)) and named.suffix not in _NO_IMAGES]
    return [named for named in found if named.path.parent.name == "anat"] or found


def find(root: Path, options: DataOptions) -> DetectedLayout:
    images = _images(root)
    channels = sorted({named.kind for named in images})
    if not channels:
        raise DataError(
            f"{root} holds folders of subjects, but no images in them", "Say which: --channel 'T1w=sub-*/anat/*_T1w*'"
        )
    labels = _labels(root, options)
    by_case = subject_inputs(root)
    subjects: dict[str, str] = {}
    findings: list[Finding] = []
    for named in images:
        subjects[named.case] = named.subject
    label_of = {named.case: named.path for named in labels}
    cases = []
    for name, files in by_case.items():
        lacking = [channel for channel in channels if channel not in files]
        if lacking:
            findings.append(lacking_channels(name, lacking))
        findings += [repeated_channel(name, channel, own) for channel, own in files.items() if len(own) > 1]
        if name not in label_of:
            findings.append(missing_label(root, name, next(iter(files.values()))[0], _pipeline(root, labels[0])))
        found = case_of(root, name, [files[channel][0] for channel in channels if channel in files], label_of.get(name))
        found = with_channels(
            found, [index for index, channel in enumerate(channels) if channel in files], len(channels)
        )
        cases.append(found.model_copy(update={"group": subjects[name]}))
    findings += [_without_image(root, named) for named in labels if named.case not in by_case]
    declared = parse_labels(read_description(root).get("labels", {}))
    return DetectedLayout(
        cases=cases,
        image_pattern=f"sub-*/anat/*_{channels[0]}{suffix(images[0].path)}",
        channels=channels,
        labels=declared._replace(classes=declared.classes or _class_names(root, labels[0])),
        labels_declared=declared.complete,
        findings=findings,
        channel_patterns={channel: f"sub-*/**/*_{channel}{suffix(images[0].path)}" for channel in channels},
    )


def _labels(root: Path, options: DataOptions) -> list[BidsFile]:
    """The label files, of one kind. Raises DataError with the candidates where there are several kinds."""
    if options.label:
        found = [named for path in glob_images(root, options.label, "--label") if (named := parse_name(path))]
        if not found:
            raise DataError(
                f"--label {options.label!r} matches no file with a subject in its name",
                "Name label files like sub-01_dseg.nii.gz",
            )
        return _one_each(root, found)
    places = [*root.glob("derivatives/*/**/sub-*"), *root.glob("derivatives/sub-*"), *root.glob("sub-*")]
    kinds: dict[str, list[BidsFile]] = {}
    for path in _files_below(places):
        named = parse_name(path)
        if named and named.suffix in _LABELS:
            inside = relative(root, path).split("/sub-")[0] if "/sub-" in relative(root, path) else ""
            kinds.setdefault(f"{inside}: {named.kind}" if inside else named.kind, []).append(named)
    if not kinds:
        raise DataError(
            f"{root} has no label files: no *_dseg or *_mask file in derivatives/", "Say which: --label 'PATTERN'"
        )
    if len(kinds) > 1:
        candidates = ", ".join(f"{kind} ({len(own)} files)" for kind, own in sorted(kinds.items()))
        example = relative(root, next(iter(kinds.values()))[0].path)
        own = next(iter(kinds.values()))[0]
        pattern = example.replace(own.subject, "sub-*").replace(
            own.case, "*"
        )  # a path, of which names become wildcards
        raise DataError(
            f"{root} has several kinds of label files; candidates: {candidates}", f"Say which: --label '{pattern}'"
        )
    return _one_each(root, next(iter(kinds.values())))


def _pipeline(root: Path, label: BidsFile) -> Path:
    """The folder in which the label's subjects lie."""
    return root / relative(root, label.path).partition("/sub-")[0]


def _one_each(root: Path, labels: Sequence[BidsFile]) -> list[BidsFile]:
    seen: dict[str, BidsFile] = {}
    for named in labels:
        if named.case in seen:
            both = f"{relative(root, seen[named.case].path)} and {relative(root, named.path)}"
            raise DataError(f"{both} can be its label", "Say which: --label 'PATTERN'", case=named.case)
        seen[named.case] = named
    return list(seen.values())


def _files_below(folders: Iterable[Path]) -> list[Path]:
    return sorted({path for folder in folders for path in folder.rglob("*") if path.is_file() and is_image(path)})


def _class_names(root: Path, label: BidsFile) -> dict[str, int]:
    """From the dseg.tsv of the file, of its pipeline or of the whole set; of a mask, what it is a mask of."""
    if label.suffix == "mask":
        name = label.entity("label") or label.entity("desc")
        return {name: 1} if name else {}
    folders = [label.path.parent, *label.path.parents[: len(label.path.relative_to(root).parts) - 1]]
    names = [f"{stem(label.path)}.tsv", f"{label.kind}.tsv", "dseg.tsv"]
    for path in (folder / name for folder in folders for name in names):
        if path.is_file():
            rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig", errors="replace")), delimiter="\t")
            found = {row.get("name") or "": row.get("index") or "" for row in rows}
            if not all(name and index.strip().isdigit() for name, index in found.items()):
                raise DataError(f"{path} lacks the columns index (a whole number) and name", "Add them")
            return {name: int(index) for name, index in found.items()}
    return {}


def _without_image(root: Path, label: BidsFile) -> Finding:
    message, remedy = f"{relative(root, label.path)} has no image", "Add its image, or take the label out"
    return Finding(case=label.case, code="missing-image", message=message, remedy=remedy)


def subject_inputs(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Case -> channel -> its files, for new images laid out like this; {} for a folder that is none."""
    by_case: dict[str, dict[str, list[Path]]] = {}
    for named in _images(root):
        by_case.setdefault(named.case, {}).setdefault(named.kind, []).append(named.path)
    return by_case
