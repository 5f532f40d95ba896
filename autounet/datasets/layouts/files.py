"""Looking through folders: image files, globs, and folders that may hold images or labels."""

from __future__ import annotations

import re
from pathlib import Path

from ...imageio import is_image, is_series
from ...schema.errors import DataError, OptionError

_IMAGES = re.compile(r"^(images?|imgs?|img|scans?|photos?)(?![a-z]*mask)", re.IGNORECASE)
_LABELS = re.compile(r"label|mask|seg|annot|manual|gt$|^gt|ground.?truth|truth|target", re.IGNORECASE)
_PREVIEWS = re.compile(r"thumb(nail)?s?$|preview", re.IGNORECASE)
_HELD_OUT = re.compile(r"(^|[-_ ])(?i:ts|test|testing|val|validation)$|(?<=[a-z])(Ts|Test|Testing|Val|Validation)$")


TABLES = (".csv", ".tsv", ".json")
"""endings of files that may list the cases"""


def image_files(folder: Path) -> list[Path]:
    """Images directly in the folder, sorted by name: files, and folders that hold a DICOM series.

    A single file is a folder of one.
    """
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.iterdir() if _is_one_image(path)) if folder.is_dir() else []


def _is_one_image(path: Path) -> bool:
    return is_image(path) if path.is_file() else is_series(path)


def glob_images(root: Path, pattern: str, option: str) -> list[Path]:
    """Image files that the pattern of an option names, sorted. Raises OptionError when there are none."""
    if Path(pattern).is_absolute():
        raise OptionError(f"{option} {pattern!r}: give a pattern relative to {root}")
    pattern = pattern.rstrip("/")
    found = sorted(path for path in root.glob(pattern) if _is_one_image(path))
    if not found and (root / pattern).is_dir():
        found = image_files(root / pattern)
    if not found:
        raise OptionError(f"{option} {pattern!r} names no image file in {root}. Its folders: {listing(root)}")
    return found


def listing(root: Path) -> str:
    """The folders of `root` with their number of image files, for messages."""
    folders = [f"{folder.name}/ ({len(image_files(folder))} images)" for folder in subfolders(root)]
    return ", ".join(folders) or "none"


def subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _skipped(path))


def _skipped(folder: Path) -> bool:
    """Hidden folders, and small copies of images made for looking at."""
    return folder.name.startswith(".") or bool(_PREVIEWS.search(folder.name))


def looks_like_images(folder: Path) -> bool:
    return bool(_IMAGES.match(folder.name))


def looks_like_labels(folder: Path) -> bool:
    return bool(_LABELS.search(folder.name))


def says_label(name: str) -> bool:
    """Whether a word of a file's name says label, mask, segmentation, ..."""
    return bool(_LABELS.search(name))


def is_held_out(folder: Path) -> bool:
    """imagesTs, labels_test, img_val: the part of a data set that is not for training."""
    return bool(_HELD_OUT.search(folder.name))


def existing_folder(data: Path) -> Path:
    """The folder, absolute, of a folder or a table. Raises DataError when it is missing, another file, or empty."""
    folder = Path(data).expanduser().resolve()
    if not folder.exists():
        raise DataError(f"{data} does not exist. Give the folder that holds images and labels")
    if folder.is_file() and folder.suffix.lower() in TABLES:
        return folder.parent
    if not folder.is_dir():
        raise DataError(f"{data} is a file. Give the folder that holds images and labels")
    if not any(folder.iterdir()):
        raise DataError(f"{data} is empty. Give the folder that holds images and labels")
    return folder
