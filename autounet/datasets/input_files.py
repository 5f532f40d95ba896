"""Which files of a folder are new images: none that AutoUNet wrote; where it has none, those in one of its folders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ..imageio import describe_unread, stem, suffix, unread_images
from ..schema.bundle import ModelBundle
from ..schema.errors import DataError, OptionError
from ..schema.predicted import is_result
from .layouts.files import glob_images, image_files, looks_like_images, looks_like_labels, subfolders

log = logging.getLogger(__name__)


def new_images(folder: Path) -> list[Path]:
    """The images in a folder without those that AutoUNet wrote there."""
    return without_results(image_files(folder))


def without_results(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if not is_result(file)]


def folder_files(path: Path, bundle: ModelBundle) -> list[Path]:
    pattern = next(iter(bundle.channel_patterns.values()), bundle.image_pattern)
    if bundle.channel_patterns and (found := matching_files(path, pattern)):
        left = [file.name for file in new_images(path) if file not in found]
        if left:
            log.warning("%d images do not fit the pattern %s: %s", len(left), pattern, ", ".join(left[:10]))
        return found
    filled = [folder for folder in subfolders(path) if new_images(folder)]
    if new_images(path):
        if filled:
            names = ", ".join(folder.name for folder in filled[:10])
            log.warning("%s holds images of its own, so those in its folders are not predicted: %s", path, names)
        return new_images(path)
    trained_in = Path(bundle.image_pattern).parent.name
    for name in ("imagesTs", trained_in, "imagesTr", "images", "image"):
        if name and new_images(path / name) and (path / name).is_dir():
            return new_images(path / name)
    named = [folder for folder in filled if looks_like_images(folder) and not looks_like_labels(folder)]
    candidates = named or filled
    if len(candidates) == 1:
        return new_images(candidates[0])
    if not candidates and image_files(path):  # of nothing but results: they are asked for
        return image_files(path)
    if not candidates and (unread := unread_images(path)):
        message, remedy = describe_unread(unread)
        raise DataError(f"{path} holds no images that can be read: {message}", remedy)
    if not candidates:
        raise DataError(f"{path} holds no images", f"Give a folder with {bundle.suffix or 'DICOM'} files")
    raise DataError(
        f"several folders of {path} hold images; candidates: {', '.join(folder.name for folder in candidates)}",
        "Give one of them",
    )


def matching_files(path: Path, pattern: str) -> list[Path]:
    """The files of a pattern, whatever their ending, else, as in a folder of new images, of its last part alone."""
    for candidate in (pattern, Path(pattern).name):
        ending = suffix(candidate)
        with suppress(OptionError):
            found = glob_images(path, candidate[: len(candidate) - len(ending)] + ".*" if ending else candidate, "")
            bare = Path(candidate).name[: -len(ending) or None]
            if fitting := [file for file in without_results(found) if not ending or fnmatchcase(stem(file), bare)]:
                return fitting
    return []
