"""Images in one folder, labels in another, whatever they are called; or patterns given as options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...imageio import stem, suffix
from ...schema.dataset import Finding
from ...schema.errors import DataError
from ...schema.options import DataOptions
from .detected_layout import (
    DetectedLayout,
    channel_names,
    lacking_channels,
    match_labels,
    parse_labels,
    read_description,
    relative,
    with_channels,
)
from .files import (
    distinct_names,
    glob_images,
    image_files,
    is_held_out,
    listing,
    looks_like_images,
    looks_like_labels,
    pair,
    strip_channel,
    subfolders,
)

EXAMPLE = "--label '{}/*'"


def detect(root: Path, options: DataOptions) -> bool:
    return True


def find(root: Path, options: DataOptions) -> DetectedLayout:
    """Images from `--channel` or the image folder, labels from `--label` or the one folder that can hold them."""
    findings: list[Finding] = []
    present: dict[str, list[int]] = {}
    if options.channels:
        by_channel = [glob_images(root, pattern, f"--channel {name}=") for name, pattern in options.channels.items()]
        images, present, findings = join_channels(by_channel, list(options.channels))
        patterns = list(options.channels.values())
    else:
        folder = _image_folder(root)
        images, patterns = {}, [f"{folder.name}/*"]
        by_channel = [image_files(folder)]
    label_files = _label_files(root, options, by_channel)
    if not options.channels:
        images, pattern = _group(by_channel[0], label_files)
        patterns = [f"{relative(root, by_channel[0][0].parent)}/{pattern}"]
    cases, unmatched = match_labels(root, images, label_files)
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


def _image_folder(root: Path) -> Path:
    filled = [folder for folder in subfolders(root) if image_files(folder)]
    if not filled:
        raise _no_image_folder(root)
    named = [folder for folder in filled if looks_like_images(folder)]
    if len(named) > 1:
        named = [folder for folder in named if not is_held_out(folder)] or named
    if not named:
        rest = [folder for folder in filled if not looks_like_labels(folder)]
        named = rest if len(rest) == 1 and len(filled) > 1 else []
    if len(named) == 1:
        return named[0]
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
    if not candidates:
        raise DataError(
            f"no folder of {root} can hold the labels; its folders: {listing(root)}",
            "Say which files they are: --label 'PATTERN'",
        )
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


def _group(files: Sequence[Path], labels: Sequence[Path]) -> tuple[dict[str, list[Path]], str]:
    """Image files by case, and the pattern of their names.

    Files are the channels of a case (case_0000, case_0001) when the labels carry the names without the number.
    """
    label_names = {stem(path) for path in labels}
    parts = [strip_channel(stem(path)) for path in files]
    numbered = all(channel is not None for _, channel in parts) and any(base in label_names for base, _ in parts)
    if numbered and not any(stem(path) in label_names for path in files):
        images: dict[str, list[Path]] = {}
        for path, (base, _) in zip(files, parts, strict=True):
            images.setdefault(base, []).append(path)
        return images, f"*_0000{suffix(files[0])}"
    return {name: [path] for name, path in zip(distinct_names(files), files, strict=True)}, f"*{suffix(files[0])}"


class JoinedChannels(NamedTuple):
    """Channel files by case."""

    images: dict[str, list[Path]]
    present: dict[str, list[int]]
    """indices of the channels that the files are"""
    findings: list[Finding]


def join_channels(by_channel: Sequence[Sequence[Path]], channels: Sequence[str]) -> JoinedChannels:
    """One file of each channel's list per case, paired with the first channel's; missing files are findings."""
    first = list(by_channel[0])
    partners = [
        {match.first: match.second for match in (pair(first, files) if first and files else ())}
        for files in by_channel[1:]
    ]
    images: dict[str, list[Path]] = {}
    present: dict[str, list[int]] = {}
    for name, path in zip(_case_names(first), first, strict=True):
        present[name] = [0, *(index for index, partner in enumerate(partners, 1) if path in partner)]
        images[name] = [path, *(partner[path] for partner in partners if path in partner)]
    for index, (files, partner) in enumerate(zip(by_channel[1:], partners, strict=True), 1):
        alone = [path for path in files if path not in set(partner.values())]
        for path in alone:  # a case without the first channel
            name = stem(path) if stem(path) not in images else "_".join((path.parent.name, stem(path)))
            images[name], present[name] = [path], [index]
    findings = [
        lacking_channels(name, [channel for index, channel in enumerate(channels) if index not in own])
        for name, own in present.items()
        if len(own) < len(channels)
    ]
    return JoinedChannels(images, present, findings)


def _case_names(files: Sequence[Path]) -> list[str]:
    """Names without `_0000` when all files end in it."""
    found = distinct_names(files)
    if all(name.endswith("_0000") for name in found):
        return [name[:-5] for name in found]
    return found
