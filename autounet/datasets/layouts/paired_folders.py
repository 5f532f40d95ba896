"""Images in one folder, labels in another, whatever they are called; or patterns given as options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...imageio import describe_unread, stem, suffix, unread_images, unread_labels
from ...schema.dataset import Case, Finding
from ...schema.errors import DataError
from ...schema.options import DataOptions
from .detected_layout import (
    DetectedLayout,
    case_of,
    channel_names,
    lacking_channels,
    match_labels,
    missing_image,
    missing_label,
    numbering_finding,
    parse_labels,
    read_description,
    relative,
    repeated_channel,
    repeated_image,
    unnumbered_image,
    with_channels,
)
from .dicom_tree import without_labels
from .files import (
    ChannelFiles,
    by_number,
    distinct_names,
    flat,
    image_files,
    is_held_out,
    labels_beside,
    listing,
    looks_like_images,
    looks_like_labels,
    strip_channel,
    subfolders,
    twins_of,
    usual_channels,
)
from .pairing import pair
from .patterns import glob_images, wildcards
from .structure_masks import given_masks, with_masks


class ChannelSource(NamedTuple):
    """Files of one channel, and the pattern that names them."""

    pattern: str
    files: Sequence[Path]


EXAMPLE = "--label '{}/*'"


def detect(root: Path, options: DataOptions) -> bool:
    return True


def find(root: Path, options: DataOptions) -> DetectedLayout:
    """Images from `--channel` or the image folder, labels from `--label` or the one folder that can hold them."""
    findings: list[Finding] = []
    present: dict[str, list[int]] = {}
    if options.channels:
        sources = {
            name: ChannelSource(pattern, glob_images(root, pattern, f"--channel {name}="))
            for name, pattern in options.channels.items()
        }
        by_channel = [list(source.files) for source in sources.values()]
        joined, findings = join_channels(sources)
        images = {name: [own[0] for own in files.values()] for name, files in joined.items()}
        present = {name: list(files) for name, files in joined.items()}
        patterns = list(options.channels.values())
    else:
        images, patterns = {}, []
        by_channel = [_image_files(root, options)]
    masks = given_masks(root, options.class_patterns)
    label_files = [path for own in masks.values() for path in own] or _label_files(root, options, by_channel)
    if not options.channels:
        images, pattern, findings = _group(by_channel[0], label_files)
        patterns = [f"{relative(root, by_channel[0][0].parent)}/{pattern}".removeprefix("./")]
    cases, unmatched = _match_masks(root, images, masks) if masks else match_labels(root, images, label_files)
    cases = [
        with_channels(case, present[case.identifier], len(options.channels)) if present else case for case in cases
    ]
    description = read_description(root)
    labels = parse_labels(description.get("labels", {}))
    return DetectedLayout(
        cases=cases,
        image_pattern=patterns[0],
        channels=list(options.channels) or channel_names(description),
        labels=labels,
        labels_declared=labels.complete,
        findings=findings + unmatched,
    )


def _match_masks(
    root: Path, images: Mapping[str, Sequence[Path]], masks: Mapping[str, Sequence[Path]]
) -> tuple[list[Case], list[Finding]]:
    """Cases from image files by identifier, and the mask files of each structure, paired by their names."""
    first = {files[0]: name for name, files in images.items()}
    by_case: dict[str, dict[str, Path]] = {name: {} for name in images}
    findings = []
    for structure, files in masks.items():
        partner = {match.second: first[match.first] for match in pair(list(first), files)}
        findings += [missing_image(root, path) for path in files if path not in partner]
        for path, name in partner.items():
            by_case[name][structure] = path
    cases = []
    for name, own in images.items():
        case = case_of(root, name, own, None)
        cases.append(with_masks(root, case, by_case[name]) if by_case[name] else case)
        if not by_case[name]:
            findings.append(missing_label(root, name, own[0], next(iter(masks.values()))[0].parent))
    return cases, findings


def _image_files(root: Path, options: DataOptions) -> list[Path]:
    """Those of the image folder; else those that lie in `root` itself, beside their labels or folders of these."""
    own, folders = image_files(root), [folder for folder in subfolders(root) if image_files(folder)]
    labels = set(glob_images(root, options.label, "--label") if options.label else labels_beside(own))
    if own and all(looks_like_labels(folder) or labels & set(image_files(folder)) for folder in folders):
        images = [path for path in own if path not in labels]
        if images and (folders or len(images) < len(own)):
            return images
    return image_files(_image_folder(root))


def _image_folder(root: Path) -> Path:
    filled = [folder for folder in subfolders(root) if image_files(folder)]
    if not filled:
        raise without_labels(root) or _no_image_folder(root)
    named = [folder for folder in filled if looks_like_images(folder)]
    if len(named) > 1:
        named = [folder for folder in named if not is_held_out(folder)] or named
    if not named:
        rest = [folder for folder in filled if not looks_like_labels(folder)]
        named = rest if len(rest) == 1 and len(filled) > 1 else []
    if len(named) == 1:
        return named[0]
    if error := without_labels(root):
        raise error
    candidates = ", ".join(folder.name for folder in named or filled)
    found = f"several folders of {root} can hold the images" if named else f"no folder of {root} is called images"
    raise DataError(f"{found}; candidates: {candidates}", f"Say which: --channel 'image={(named or filled)[0].name}/*'")


def _no_image_folder(root: Path) -> DataError:
    """The error for a folder none of whose folders hold images."""
    nested = [folder for folder in subfolders(root) if any(image_files(inner) for inner in subfolders(folder))]
    if nested:
        return _one_folder_deeper(root, nested)
    if image_files(root):
        return DataError(
            f"{root} holds {len(image_files(root))} image files and no folders",
            "Say which are images and which labels: --channel 'image=PATTERN' --label 'PATTERN'",
        )
    if unread := [file for folder in (root, *subfolders(root)) for file in unread_images(folder)]:
        message, remedy = describe_unread(unread)
        return DataError(f"{root} holds no images that can be read: {message}", remedy)
    return DataError(
        f"{root} holds no images: no folder with NIfTI, NRRD, MHA, PNG, TIFF, GIF, JPEG or BMP files", "Check the path"
    )


def _one_folder_deeper(root: Path, nested: Sequence[Path]) -> DataError:
    """What to type where the folders of a data set are themselves data sets, as training/ and test/ of DRIVE."""
    message = f"{root} holds no images itself; its folders do: {', '.join(folder.name for folder in nested)}"
    training = [folder for folder in nested if not is_held_out(folder)]
    if len(nested) > 1 and len(training) != 1:
        return DataError(message, "Give one of them, or a table of the cases of all (columns case, image, label)")
    chosen = (training or list(nested))[0]
    rest = [folder.name for folder in nested if folder != chosen]
    later = f" (and {', '.join(rest)} later to autounet predict)" if rest else ""
    return DataError(message, f"Give the folder with the training data: {chosen}{_label_option(chosen)}{later}")


def _label_option(folder: Path) -> str:
    """The option that says which files are the labels, where the folder alone does not."""
    named = [each for each in subfolders(folder) if looks_like_images(each) and image_files(each)]
    candidates = _label_folders(folder, [image_files(named[0])]) if len(named) == 1 else []
    options = " or ".join(EXAMPLE.format(each.name) for each in candidates)
    return f" {options}" if len(candidates) > 1 and not (folder / "dataset.json").is_file() else ""


def _label_files(root: Path, options: DataOptions, images: Sequence[Sequence[Path]]) -> list[Path]:
    if options.label:
        return glob_images(root, options.label, "--label")
    candidates = _label_folders(root, images)
    if len(candidates) == 1:
        return image_files(candidates[0])
    if not candidates and images[0][0].parent == root and (beside := labels_beside(image_files(root))):
        return beside
    if not candidates:
        what, remedy = f"no folder of {root} can hold the labels", "Say which files they are: --label 'PATTERN'"
        if unread := unread_labels((root, *subfolders(root))):
            raise DataError(f"{what}; {unread[0]}", f"{unread[1]}. Else: {remedy}")
        raise DataError(f"{what}; its folders: {listing(root)}", remedy)
    options_given = " or ".join(EXAMPLE.format(folder.name) for folder in candidates)
    raise DataError(
        f"several folders of {root} can hold the labels; candidates: {', '.join(folder.name for folder in candidates)}",
        f"Say which: {options_given}",
    )


def _label_folders(root: Path, images: Sequence[Sequence[Path]]) -> list[Path]:
    """Folders whose names or numbers of files say that they can hold the labels of the images."""
    taken = {path.parent for files in images for path in files}
    count = len(images[0])
    cases = len({strip_channel(stem(path))[0] for path in images[0]})
    candidates = []
    for folder in subfolders(root):
        files = image_files(folder)
        other_images = looks_like_images(folder) and not looks_like_labels(folder)
        if not files or folder in taken or is_held_out(folder) or other_images:
            continue
        if looks_like_labels(folder) or len(files) in (count, cases):
            candidates.append(folder)
    return candidates


def _group(files: Sequence[Path], labels: Sequence[Path]) -> tuple[dict[str, list[Path]], str, list[Finding]]:
    """Image files by case, the pattern of their names, and what is wrong with channel numbers.

    Files are the channels of a case (case_0000, case_0001) when the labels carry the names without the number.
    """
    label_names = {stem(path) for path in labels}
    numbered, rest = by_number(files)
    full_names = any(stem(path) in label_names for own in numbered.values() for each in own.values() for path in each)
    if not any(case in label_names for case in numbered) or full_names:
        twins = twins_of(files)
        named = dict(zip(distinct_names(list(twins)), twins.values(), strict=True))
        findings = [repeated_image(case, own) for case, own in named.items() if len(own) > 1]
        return {case: own[:1] for case, own in named.items()}, f"*{suffix(files[0])}", findings
    channels = usual_channels(numbered)
    found = [numbering_finding(case, own, channels) for case, own in numbered.items()]
    findings = [each for each in found if each] + [unnumbered_image(path) for path in rest]
    return {case: flat(own) for case, own in numbered.items()}, f"*_0000{suffix(files[0])}", findings


class JoinedChannels(NamedTuple):
    """Channel files by case."""

    cases: dict[str, ChannelFiles]
    findings: list[Finding]


def join_channels(channels: Mapping[str, ChannelSource], strict: bool = True) -> JoinedChannels:
    """The files of each channel by case; missing files, and several of one channel, are findings.

    Files belong together where the wildcards of their patterns stand for the same; where no two files of two channels
    do so, they are paired by their names. Raises DataError where that fails, unless `strict` is False.
    """
    by_channel = [_twins(source) for source in channels.values()]
    first = list(by_channel[0])
    joined: list[ChannelFiles] = [{0: by_channel[0][path]} for path in first]
    keys = _keys([source.pattern for source in channels.values()], by_channel)
    known = {keys[path]: case for path, case in zip(first, joined, strict=True) if path in keys}
    for index, twins in list(enumerate(by_channel))[1:]:
        found = {path: known[keys[path]] for path in twins if path in keys and keys[path] in known}
        if len(found) < len(twins):
            found = max(found, _by_names(first, joined, list(twins), strict and not found), key=len)
        for path, files in twins.items():
            case: ChannelFiles | None = found.get(path)
            if case is None:  # a case without the channels before
                joined.append(case := {})
                known.setdefault(keys.get(path, (str(path),)), case)
            case[index] = files
    cases = dict(zip(_case_names(first), joined, strict=False))
    for case in joined[len(first) :]:
        path = next(iter(case.values()))[0]
        cases[stem(path) if stem(path) not in cases else "_".join((path.parent.name, stem(path)))] = case
    return JoinedChannels(cases, _channel_findings(cases, list(channels)))


def _twins(source: ChannelSource) -> dict[Path, list[Path]]:
    """The files of a channel, each with the others of its folder that its pattern cannot tell from it, and itself."""
    twins: dict[tuple[Path, object], list[Path]] = {}
    for path in source.files:
        key = wildcards(source.pattern, path)
        twins.setdefault((path.parent, key or stem(path)), []).append(path)
    return {own[0]: own for own in twins.values()}


def _keys(patterns: Sequence[str], by_channel: Sequence[Mapping[Path, object]]) -> dict[Path, tuple[str, ...]]:
    """What each file's wildcards stand for, where that tells the files of every channel apart; else nothing."""
    keys: dict[Path, tuple[str, ...]] = {}
    for pattern, files in zip(patterns, by_channel, strict=True):
        own = {path: key for path in files if (key := wildcards(pattern, path)) is not None}
        if len(set(own.values())) < len(files):
            return {}
        keys |= own
    return keys


def _by_names(
    first: Sequence[Path], cases: Sequence[ChannelFiles], files: Sequence[Path], strict: bool
) -> dict[Path, ChannelFiles]:
    """The case of each file that can be paired with one of the first channel."""
    if not first:
        return {}
    try:
        matches = pair(first, files)
    except DataError:
        if strict:
            raise
        return {}
    case_of_first = dict(zip(first, cases, strict=False))
    return {match.second: case_of_first[match.first] for match in matches}


def _channel_findings(cases: Mapping[str, ChannelFiles], channels: Sequence[str]) -> list[Finding]:
    findings = []
    for name, files in cases.items():
        for index, own in files.items():
            if len(own) > 1:
                findings.append(repeated_channel(name, channels[index], own))
        if len(files) < len(channels):
            findings.append(
                lacking_channels(name, [channel for index, channel in enumerate(channels) if index not in files])
            )
    return findings


def _case_names(files: Sequence[Path]) -> list[str]:
    """Names without `_0000` when all files end in it."""
    found = distinct_names(files)
    if all(name.endswith("_0000") for name in found):
        return [name[:-5] for name in found]
    return found
