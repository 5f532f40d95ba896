"""Images with outlines around what is to be found: COCO, LabelMe, and regions of interest of ImageJ.

COCO is one file for all images, LabelMe one beside each; regions are a zip file or folder files for each image, of its
name with a word such as RoiSet.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...imageio import (
    annotation_remarks,
    crowds_in,
    holds_rois,
    is_outlines,
    is_zarr,
    outlined_images,
    read_outlines,
    stem,
)
from ...schema.dataset import Case, Finding, LabelPart, Severity
from ...schema.errors import DataError, FileError
from ...schema.options import DataOptions
from .detected_layout import DetectedLayout, case_of, missing_label, parse_labels, read_description, relative
from .files import distinct_names, image_files, is_held_out, is_skipped, looks_like_labels, subfolders
from .pairing import pair
from .patterns import fits_pattern, glob_images

DEEPEST = 3
"""folders below the data folder in which such files are looked for"""
MOST_PROBED = 200
"""JSON files that are opened to see whether one holds outlines"""
MOST_COUNTED, SEVERAL = 40, 3
"""images whose outlines are counted; outlines in the median image from which on they are objects to be told apart"""
_OWN = ("dataset.json", "palette.json", "dataset_description.json")


class _Outlines(NamedTuple):
    """The files of one folder tree."""

    listed: dict[Path, list[str]]
    """COCO and LabelMe files with the names of their images"""
    rois: list[Path]


def detect(root: Path, options: DataOptions) -> bool:
    """Whether there are files of outlines, of which `--label` may name some."""
    if options.class_patterns or not root.is_dir():
        return False
    found = _find(root, options)
    return bool(found.listed or found.rois)


def _find(root: Path, options: DataOptions) -> _Outlines:
    """Those of training data, where the names of files or folders tell them from those of test data."""
    files = [path for path in _files(root) if options.label is None or fits_pattern(root, path, options.label)]
    rois = [path for path in files if path.suffix.lower() != ".json" and (options.label or holds_rois(path))]
    listed: dict[Path, list[str]] = {}
    probed = 0
    for path in files:
        if path.suffix.lower() == ".json" and (listed or probed < MOST_PROBED):
            probed += 1
            with nullcontext() if options.label else suppress(FileError):  # others may have any JSON here
                if images := outlined_images(path):
                    listed[path] = [each.name for each in images]
    training = {path: names for path, names in listed.items() if not _held_out(root, path)}
    return _Outlines(training or listed, [path for path in rois if not _held_out(root, path)] or rois)


def _files(root: Path) -> list[Path]:
    found = []
    for place, inner, files in os.walk(root):
        folder = Path(place)
        depth = len(folder.relative_to(root).parts)
        inner[:] = sorted(name for name in inner if depth < DEEPEST and not _passed(folder / name))
        found += [folder / name for name in sorted(files) if name not in _OWN and not name.startswith(".")]
    return [path for path in found if is_outlines(path)]


def _passed(folder: Path) -> bool:
    return is_zarr(folder) or is_skipped(folder)


def _held_out(root: Path, path: Path) -> bool:
    return any(is_held_out(each) for each in (path.with_suffix(""), *path.parents) if each.is_relative_to(root))


def find(root: Path, options: DataOptions) -> DetectedLayout:
    """A case for each image that is outlined. Raises DataError where masks can be meant as well."""
    found = _find(root, options)
    if options.label is None:
        _require_alone(root, found)
    images = _images(root, options)
    if not images:
        raise DataError(f"{root} holds outlines, and no images that can be read", "Add the images they were drawn on")
    owners, findings = _by_listed(root, found.listed, images) if found.listed else _by_name(root, found.rois, images)
    if not owners:
        raise DataError(
            f"none of the outlines in {root} belongs to one of its images, such as {images[0].name}",
            "Give images and outlines the same names",
        )
    cases = [_case(root, name, image, owners[image]) for name, image in
             zip(distinct_names(list(owners)), owners, strict=True)]  # fmt: skip
    if not (options.objects or options.join):
        findings += _object_findings(owners)
    files = dict.fromkeys(owners.values())
    for path in files if len(files) <= MOST_COUNTED else ():  # more are LabelMe's
        findings += _annotation_findings(root, path, bool(options.objects))
    declared = parse_labels(read_description(root).get("labels", {}))
    folders = Counter(relative(root, image.parent) for image in owners)
    pattern = f"{folders.most_common(1)[0][0]}/*{images[0].suffix}".removeprefix("./")
    return DetectedLayout(
        cases=cases, image_pattern=pattern, labels=declared, labels_declared=declared.complete, findings=findings
    )


def _require_alone(root: Path, found: _Outlines) -> None:
    """Raises DataError where another folder holds masks, by its name."""
    example = next(iter((*found.listed, *found.rois)))
    masks = [folder for folder in subfolders(root) if looks_like_labels(folder) and image_files(folder)]
    if masks:
        raise DataError(
            f"{root} holds outlines ({relative(root, example)}) and masks ({masks[0].name}/)",
            f"Say which are the labels: --label '{relative(root, example.parent)}/*{example.suffix}' or "
            f"--label '{masks[0].name}/*'".replace("'./", "'"),
        )


def _images(root: Path, options: DataOptions) -> list[Path]:
    """All below the folder, or those that the one pattern of `--channel` names."""
    if options.channels:
        if len(options.channels) > 1:
            raise DataError("outlines were drawn on one image, and --channel names several", "Give one pattern")
        return glob_images(root, next(iter(options.channels.values())), "--channel")
    found: list[Path] = []
    for place, inner, _ in os.walk(root):
        folder = Path(place)
        inner[:] = sorted(name for name in inner if not _passed(folder / name))
        found += image_files(folder)
    return found


Owners = dict[Path, Path]
"""image -> the file that outlines it"""


def _by_listed(
    root: Path, listed: Mapping[Path, Sequence[str]], images: Sequence[Path]
) -> tuple[Owners, list[Finding]]:
    """By the names that files give: as much of a path as they have, else the file's name, else its stem; of several
    the nearest to the file of outlines."""
    by_name: dict[str, list[Path]] = {}
    for image in images:
        for key in {image.name, stem(image)}:
            by_name.setdefault(key, []).append(image)
    owners: Owners = {}
    findings: list[Finding] = []
    for path, names in listed.items():
        lacking: list[str] = []
        for name in names:
            place = PurePosixPath(name or f"{path.stem}.png")
            same = by_name.get(place.name) or by_name.get(stem(place.name)) or by_name.get(path.stem, [])
            exact = [each for each in same if PurePosixPath(each.as_posix()).match(name.lstrip("./"))] if name else []
            if not same:
                lacking.append(name)
                continue
            image = min(exact or same, key=partial(_distance, path))
            if owners.setdefault(image, path) != path:
                findings.append(_twice(root, image, owners[image], path))
        if lacking:
            shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            message = (
                f"{relative(root, path)} outlines {len(lacking)} of {len(names)} images that are not there: {shown}"
            )
            findings.append(_warning("missing-image", message, "Add them, or take their entries out"))
    without = [image for image in images if image not in owners and not _held_out(root, image)]
    if without and owners:
        shown = ", ".join(relative(root, image) for image in without[:5])
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        message = f"{len(without)} images are in no file of outlines, and are left aside: {shown}{more}"
        findings.append(_warning("missing-label", message, "Outline them, if they are to be learned from"))
    return owners, findings


def _distance(path: Path, image: Path) -> int:
    """Folders between two files."""
    common = len(Path(os.path.commonpath([path.parent, image.parent])).parts)
    return len(path.parent.parts) + len(image.parent.parts) - 2 * common


def _by_name(root: Path, rois: Sequence[Path], images: Sequence[Path]) -> tuple[Owners, list[Finding]]:
    """Paired as images and masks are. Raises DataError where names do not tell."""
    owners = {match.first: match.second for match in pair(list(images), list(rois))}
    findings = [
        missing_label(root, stem(image), image, rois[0].parent)
        for image in images
        if image not in owners and not _held_out(root, image)
    ]
    left = [path for path in rois if path not in owners.values()]
    if left:
        message = f"{len(left)} files of regions belong to no image: {', '.join(path.name for path in left[:5])}"
        findings.append(_warning("missing-image", message, "Give them the names of their images"))
    return owners, findings


def _object_findings(owners: Owners) -> list[Finding]:
    """That outlines surround single objects, of which touching ones become one where classes are learned."""
    counts = []
    for image, path in list(owners.items())[:MOST_COUNTED]:
        with suppress(DataError):  # told when it is read
            counts.append(len(read_outlines(path, image)[0]))
    if not counts or sorted(counts)[len(counts) // 2] < SEVERAL:
        return []
    message = f"outlines surround {min(counts)} to {max(counts)} objects in an image, which are joined to classes"
    remedy = "Give --objects NAME to find single objects, also where they touch"
    return [_warning("objects", message, remedy)]


def _annotation_findings(root: Path, path: Path, objects: bool) -> Iterator[Finding]:
    """Of what does not fit together in a COCO file; of crowds where objects are told apart."""
    with suppress(FileError):  # told when it is read
        for each in annotation_remarks(path):
            yield _warning(each.code, f"{relative(root, path)} {each.text}", each.remedy)
        if objects and (crowds := crowds_in(path)):
            message = (
                f"{relative(root, path)} marks outlines as crowds of objects (iscrowd), {len(crowds)} in all, the "
                f"first in {crowds[0]}: nothing is learned and measured there"
            )
            yield _warning("crowds", message, "Outline each object, if they are to be learned from")


def _twice(root: Path, image: Path, first: Path, second: Path) -> Finding:
    message = f"{relative(root, first)} and {relative(root, second)} both outline {image.name}"
    remedy = "Say which is meant: --label with a pattern of their names"
    return Finding(case=stem(image), code="layout", message=message, remedy=remedy)


def _warning(code: str, message: str, remedy: str) -> Finding:
    return Finding(code=code, severity=Severity.warning, message=message, remedy=remedy)


def _case(root: Path, name: str, image: Path, outlines: Path) -> Case:
    part = LabelPart(path=relative(root, outlines))
    return case_of(root, name, [image], outlines).model_copy(update={"label_parts": (part,)})
