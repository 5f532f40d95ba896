"""Patterns of file names: of options, and those that a model keeps of its training data."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from ...imageio import addresses, describe_unread, is_zarr, split_address, stem, suffix, unread_images
from ...schema.bundle import ModelBundle
from ...schema.errors import DataError, OptionError
from .files import (
    image_files,
    is_one_image,
    is_output_folder,
    is_skipped,
    labels_beside,
    listing,
    looks_like_images,
    looks_like_labels,
    new_images,
    subfolders,
    without_results,
)

log = logging.getLogger(__name__)


def glob_images(root: Path, pattern: str, option: str) -> list[Path]:
    """Image files that the pattern of an option names, sorted. Raises OptionError when there are none.

    A pattern without a slash is one of file names in every folder. Behind the name of a container (`*.h5/raw`) it is
    one of what that holds.
    """
    if Path(pattern).is_absolute():
        raise OptionError(f"{option} {pattern!r} is an absolute path", f"Give a pattern relative to {root}")
    outer, address = split_address(pattern.rstrip("/"))
    names = outer.as_posix() if address else pattern.rstrip("/")
    paths = root.glob(names) if "/" in names else _named(root, names)
    found = sorted(path for path in paths if is_one_image(path))
    inner = {folder for path in found for folder in path.parents if folder.is_relative_to(root) and folder != root}
    outputs = {folder for folder in inner if is_output_folder(folder) or ("/" not in names and is_skipped(folder))}
    outputs |= {folder for folder in inner if is_zarr(folder)}
    found = [path for path in found if outputs.isdisjoint(path.parents)]
    if address:
        found = [path / each for path in found for each in addresses(path, address)]
    elif not found and (root / names).is_dir():
        found = image_files(root / names)
    if not found:
        raise OptionError(f"{option} {pattern!r} names no image file in {root}", f"Its folders: {listing(root)}")
    return found


def fits_pattern(root: Path, path: Path, pattern: str) -> bool:
    """Whether a pattern, as those of options are, names a file, or the folder that it lies in."""
    names = [each.relative_to(root).as_posix() if "/" in pattern else each.name for each in (path, path.parent)]
    return any(fnmatchcase(name, pattern.rstrip("/")) for name in names)


def _named(root: Path, pattern: str) -> Iterator[Path]:
    """Files and folders of a name, at any depth, but not within images that are folders."""
    for place, inner, files in os.walk(root):
        yield from (Path(place, name) for name in (*files, *inner) if fnmatchcase(name, pattern))
        inner[:] = [name for name in inner if not is_zarr(Path(place, name))]


def matching_files(path: Path, pattern: str) -> list[Path]:
    """The files of a pattern, whatever their ending, else, as in a folder of new images, of its last part alone."""
    outer, address = split_address(pattern)
    for candidate in (pattern, f"{outer.name}/{address}" if address else outer.name):
        if address:
            with suppress(OptionError):
                return without_results(glob_images(path, candidate, ""))
            continue
        ending = suffix(candidate)
        with suppress(OptionError):
            found = glob_images(path, candidate[: len(candidate) - len(ending)] + ".*" if ending else candidate, "")
            bare = Path(candidate).name[: -len(ending) or None]
            if fitting := [file for file in without_results(found) if not ending or fnmatchcase(stem(file), bare)]:
                return fitting
    return []


MOST_LOOKED_AT = 1000
"""folders below one in which images are looked for to say that they are not predicted"""


def _holds_images(folder: Path) -> bool:
    """At any depth; of many folders the first are looked at."""
    places = (Path(place) for place, _, _ in islice(os.walk(folder), MOST_LOOKED_AT))
    return any(new_images(place) for place in places)


def folder_files(path: Path, bundle: ModelBundle) -> list[Path]:
    pattern = next(iter(bundle.channel_patterns.values()), bundle.image_pattern)
    if bundle.channel_patterns and (found := matching_files(path, pattern)):
        left = [file.name for file in new_images(path) if file not in found]
        if left:
            log.warning("%d images do not fit the pattern %s: %s", len(left), pattern, ", ".join(left[:10]))
        return found
    filled = [folder for folder in subfolders(path) if new_images(folder)]
    if new_images(path):
        if aside := [folder for folder in subfolders(path) if _holds_images(folder)]:
            names = ", ".join(folder.name for folder in aside[:10])
            log.warning("%s holds images of its own, so those in its folders are not predicted: %s", path, names)
        labels = labels_beside(new_images(path)) if "/" not in bundle.image_pattern else []
        return [file for file in new_images(path) if file not in labels]
    trained_in = split_address(bundle.image_pattern)[0].parent.name
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


def addressed(images: tuple[Path, ...], bundle: ModelBundle) -> tuple[Path, ...]:
    """Of a case that is one container: where the model was trained on one of several images in it, that one."""
    _, address = split_address(next(iter(bundle.channel_patterns.values()), bundle.image_pattern))
    if len(images) != 1 or not address or split_address(path := images[0])[1]:
        return images
    if not (is_zarr(path) or (path.is_file() and suffix(path))):
        return images
    there = addresses(path, address)
    return (path / there[0],) if len(there) == 1 else images


def wildcards(pattern: str, path: Path) -> tuple[str, ...] | None:
    """What the wildcards of a pattern stand for in a path, upwards as far as its folders fit; endings do not count.

    None where the file's name does not fit.
    """
    found: list[str] = []
    found_name = False
    parts = split_address(pattern.rstrip("/"))[0].as_posix().split("/")
    path = split_address(path)[0]
    parts[-1] = stem(parts[-1]) if suffix(parts[-1]) else parts[-1]
    names = [stem(path), *(folder.name for folder in path.parents)]
    for part, name in zip(reversed(parts), names, strict=False):
        if part == "**":
            break
        expression = "".join({"*": "(.*)", "?": "(.)"}.get(each, re.escape(each)) for each in part)
        match = re.fullmatch(expression, name, re.DOTALL)
        if match is None:
            return tuple(found) if found_name else None
        found += match.groups()
        found_name = True
    return tuple(found)
