"""Trees of DICOM files as archives write them: patients, studies and series at any depth, files of any name.

Series are found by their UIDs, and labels are the segmentations and structure sets that refer to them (DICOM-SEG,
RTSTRUCT). A case is a series with a label; cases of one patient are a group.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from os.path import commonpath
from pathlib import Path
from typing import NamedTuple

from ...imageio import (
    LABEL_MODALITIES,
    DicomFile,
    dicom_index,
    holds_dicom,
    is_image,
    referenced_instances,
    structure_names,
)
from ...schema.dataset import Case, Channel, ChannelKind, Finding, LabelPart, Severity
from ...schema.errors import DataError
from ...schema.names import case_problem
from ...schema.options import DataOptions
from .detected_layout import DetectedLayout, parse_labels, read_description, relative

log = logging.getLogger(__name__)

_MODALITIES = {ChannelKind.ct: "CT", ChannelKind.mri: "MR"}
SHOWN = 5
"""files or patients named in one finding"""
Series = Mapping[str, Sequence[DicomFile]]
"""the slices of each series, by its UID"""


def detect(root: Path, options: DataOptions) -> bool:
    """Whether there are labels as DICOM objects, of which `--label` may name some."""
    return not options.channels and not options.class_patterns and bool(_objects(root, options))


def _objects(root: Path, options: DataOptions) -> list[DicomFile]:
    if not holds_dicom(root):
        return []
    found = [each for each in dicom_index(root) if each.modality in LABEL_MODALITIES]
    if options.label is None:
        return found
    pattern = options.label.rstrip("/")
    return [
        each
        for each in found
        if fnmatchcase(relative(root, each.path) if "/" in pattern else each.path.name, pattern)
        or fnmatchcase(relative(root, each.path.parent) if "/" in pattern else each.path.parent.name, pattern)
    ]


def without_labels(root: Path) -> DataError | None:
    """The error for a folder of DICOM images alone; None for others."""
    names = (Path(place, name) for place, _, files in os.walk(root) for name in files)
    if not holds_dicom(root) or any(is_image(path) for path in names):
        return None
    series = _series_of(dicom_index(root))
    patients = {own[0].patient for own in series.values()}
    return DataError(
        f"{root} holds {len(series)} DICOM series of {len(patients)} patients, and no labels: there is no segmentation "
        "(DICOM-SEG) and no structure set (RTSTRUCT) in it",
        "Add the labels, or say which series are images and which are labels: --channel NAME=PATTERN --label PATTERN. "
        "New images are for autounet predict",
    )


def _series_of(index: Sequence[DicomFile]) -> dict[str, list[DicomFile]]:
    series: dict[str, list[DicomFile]] = {}
    for each in index:
        if each.is_slice:
            series.setdefault(each.series, []).append(each)
    return series


def find(root: Path, options: DataOptions) -> DetectedLayout:
    """A case for each series that a label refers to. Raises DataError."""
    index = dicom_index(root)
    series, objects = _series_of(index), _objects(root, options)
    owners = {each.path: _referred(each, series) for each in objects}
    lost = [each for each in objects if owners[each.path] is None]
    labels: dict[str, list[DicomFile]] = {}
    for each in objects:
        if (uid := owners[each.path]) is not None:
            labels.setdefault(uid, []).append(each)
    if not labels:
        raise DataError(
            f"{root} has {len(lost)} labels as DICOM objects, and none of the series that they refer to is there, such "
            f"as that of {relative(root, lost[0].path)}",
            "Add the series of images that they were drawn on",
        )
    modality = _one_modality(root, {uid: series[uid] for uid in labels}, labels)
    names = case_names(root, {uid: series[uid] for uid in labels})
    patients = {uid: series[uid][0].patient for uid in labels}
    tell = len(set(patients.values())) > 1
    cases, findings = [], _findings(root, index, labels, lost)
    for uid, own in labels.items():
        parts = tuple(LabelPart(path=relative(root, each.path)) for each in own)
        image = relative(root, series_path(series[uid], index))
        group = patients[uid] if tell and patients[uid] else None
        cases.append(Case(identifier=names[uid], images=(image,), label=parts[0].path, label_parts=parts, group=group))
        findings += _conflicts(root, names[uid], own)
    declared = parse_labels(read_description(root).get("labels", {}))
    return DetectedLayout(
        cases=cases,
        image_pattern="**/*",
        labels=declared,
        labels_declared=declared.complete,
        channels=[modality],
        findings=findings,
    )


def _referred(label: DicomFile, series: Series) -> str | None:
    """The series that a label was drawn on: by UID, else by those of its images.

    A label that refers to none belongs to the only series of its patient in the same coordinates.
    """
    named = [uid for uid in label.refers_to if uid in series]
    if named:
        return max(named, key=lambda uid: len(series[uid]))
    with suppress(DataError):  # told when the case is read
        images = referenced_instances(label.path)
        shown = {uid: sum(each.instance in images for each in own) for uid, own in series.items()}
        if any(shown.values()):
            return max(shown, key=lambda uid: shown[uid])
    frame = label.frame_of_reference
    alike = [uid for uid, own in series.items() if frame and own[0].frame_of_reference == frame]
    alike = [uid for uid in alike if series[uid][0].patient == label.patient]
    return alike[0] if len(alike) == 1 and not label.refers_to else None


def _one_modality(root: Path, series: Series, labels: Series) -> str:
    """Raises DataError where labels were drawn on images of several."""
    counts = Counter(own[0].modality or "image" for own in series.values())
    if len(counts) == 1:
        return next(iter(counts))
    example = {own[0].modality: relative(root, labels[uid][0].path) for uid, own in series.items()}
    shown = "; ".join(f"{name} ({counts[name]} series, for example {path})" for name, path in example.items())
    raise DataError(
        f"labels were drawn on images of several modalities: {shown}",
        "Say which labels are meant: --label with a pattern of their paths",
    )


def series_path(slices: Sequence[DicomFile], index: Sequence[DicomFile]) -> Path:
    """The folder of a series that has one to itself; else the folder that holds all of its files, and its UID."""
    own = {each.path for each in slices}
    folders = {path.parent for path in own}
    if len(folders) == 1 and all(each.path in own for each in index if each.path.parent in folders):
        return folders.pop()
    return Path(commonpath(folders)) / slices[0].series


def case_names(root: Path, series: Series) -> dict[str, str]:
    """A name for each series: the folders from the first that differ, as few as tell all apart; else its patient.

    Folders that are called by UIDs count only where nothing else tells.
    """
    places = {uid: _folders(root, own) for uid, own in series.items()}
    rows = list(places.values())
    depth = min(map(len, rows))
    first = next((level for level in range(depth) if len({row[level] for row in rows}) > 1), depth)
    found: list[dict[str, str]] = []
    if len(series) == 1:
        plain = [part for part in rows[0] if not is_uid(part)]
        found.append(dict.fromkeys(series, (plain or [root.name])[0]))
    found += [{uid: "_".join(row[first : stop + 1]) for uid, row in places.items()} for stop in range(first, depth)]
    patients = {uid: own[0].patient for uid, own in series.items()}
    dates = {uid: f"{patients[uid]}_{own[0].date}" for uid, own in series.items()}
    found += [patients, dates, {uid: f"{dates[uid]}_{own[0].number}" for uid, own in series.items()}]
    found.sort(key=lambda names: any(is_uid(name) for name in names.values()))
    found.append({uid: uid for uid in series})
    return next(names for names in found if _usable(list(names.values())))


def _folders(root: Path, slices: Sequence[DicomFile]) -> tuple[str, ...]:
    return Path(commonpath({each.path.parent for each in slices})).relative_to(root).parts


def is_uid(name: str) -> bool:
    return name.count(".") > 2 and name.replace(".", "").isdigit()


def _usable(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names) and not any(not name.strip("_") or case_problem(name) for name in names)


def _conflicts(root: Path, case: str, labels: Sequence[DicomFile]) -> list[Finding]:
    """Structures that several labels of one series hold, as of two observers."""
    owner: dict[str, Path] = {}
    for each in labels:
        with suppress(DataError):  # told when the case is read
            for name in structure_names(each.path):
                other = owner.setdefault(name, each.path)
                if other != each.path:
                    both = f"{relative(root, other)} and {relative(root, each.path)}"
                    message = f"{both} both hold the structure {name}"
                    remedy = "Say which labels are meant: --label with a pattern of their paths"
                    return [Finding(case=case, code="layout", message=message, remedy=remedy)]
    return []


def _findings(root: Path, index: Sequence[DicomFile], labels: Series, lost: Sequence[DicomFile]) -> list[Finding]:
    """What is left aside, in one warning; patients without a label, and labels without images, in one each."""
    used = {each.path for own in labels.values() for each in own}
    findings = []
    if text := _left_aside([each for each in index if each.series not in labels and each.path not in used]):
        remedy = "Nothing needs to be done, unless a label should refer to one of them"
        findings.append(_warning("left-aside", f"left aside, as no label refers to them: {text}", remedy))
    labelled = {each.patient for each in index if each.series in labels}
    without = sorted({each.patient for each in index if each.is_slice} - labelled)
    if without:
        message = f"{len(without)} of {len(labelled) + len(without)} patients have no label and are left aside"
        remedy = "Add their labels, if they are to be learned from"
        findings.append(_warning("missing-label", f"{message}: {_listed(without)}", remedy))
    if lost:
        files = _listed([relative(root, each.path) for each in lost])
        message = f"{len(lost)} labels refer to series that are not there, and are left aside: {files}"
        findings.append(_warning("missing-image", message, "Add the series that they were drawn on"))
    return findings


def _warning(code: str, message: str, remedy: str) -> Finding:
    return Finding(code=code, severity=Severity.warning, message=message, remedy=remedy)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _left_aside(files: Sequence[DicomFile]) -> str:
    """How many series of which kind."""
    kinds = Counter[str]()
    for each in {each.series: each for each in files}.values():
        localizer = not each.is_slice and each.modality in ("CT", "MR", "PT", "NM")
        kinds[f"{each.modality or 'unknown'}{' (localizers)' if localizer else ''}"] += 1
    return ", ".join(f"{count} series of {kind}" for kind, count in sorted(kinds.items()))


class _Candidate(NamedTuple):
    uid: str
    slices: Sequence[DicomFile]

    @property
    def is_volume(self) -> bool:
        return len(self.slices) > 1 or self.slices[0].frames > 1


def tree_inputs(root: Path, channels: Sequence[Channel]) -> dict[str, Path]:
    """Name -> series, of the new images in a tree, for a model of one channel; {} where there is none.

    Series of the channel's modality; of a study with volumes no single slices, which are scouts. What is left aside is
    said once.
    """
    index = dicom_index(root) if len(channels) == 1 and root.is_dir() and holds_dicom(root) else ()
    series = _series_of(index)
    modality = _MODALITIES.get(channels[0].kind, channels[0].name)
    if any(own[0].modality == modality for own in series.values()):
        series = {uid: own for uid, own in series.items() if own[0].modality == modality}
    elif channels[0].kind in _MODALITIES:
        return {}
    candidates = [_Candidate(uid, own) for uid, own in series.items()]
    with_volumes = {each.slices[0].study for each in candidates if each.is_volume}
    kept = {each.uid: each.slices for each in candidates if each.is_volume or each.slices[0].study not in with_volumes}
    if not kept:
        return {}
    if text := _left_aside([each for each in index if each.series not in kept]):
        log.warning("%s: %d series are predicted; left aside: %s", root, len(kept), text)
    names = case_names(root, kept)
    return {names[uid]: series_path(own, index) for uid, own in kept.items()}
