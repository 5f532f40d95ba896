"""Image files in folders, which label belongs to which image by their names, and which of a folder are new images."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...imageio import (
    is_image,
    is_series,
    is_zarr,
    read_header,
    split_address,
    stem,
    suffix,
)
from ...schema.errors import DataError
from ...schema.run import is_result

log = logging.getLogger(__name__)

_IMAGES = re.compile(r"^(images?|imgs?|img|scans?|photos?)(?![a-z]*mask)", re.IGNORECASE)
_LABELS = re.compile(r"label|mask|seg|annot|manual|gt$|^gt|ground.?truth|truth|target", re.IGNORECASE)
_LABEL_WORD = re.compile(
    r"[-_. ](cp[-_. ])?(labels?|masks?|seg|segmentation|annotations?|gt|manual|(ground)?truth)$"
    r"|^(labels?|masks?|seg|gt)[-_. ]",
    re.IGNORECASE,
)
_PREVIEWS = re.compile(r"thumb(nail)?s?$|preview", re.IGNORECASE)
_HELD_OUT = re.compile(r"(^|[-_ ])(?i:ts|test|testing|val|validation)$|(?<=[a-z])(Ts|Test|Testing|Val|Validation)$")
TABLES = (".csv", ".tsv", ".json")
"""endings of files that may list the cases"""
LARGEST_TABLE = 1 << 26
"""bytes; a larger CSV or JSON file next to the images is not a list of cases"""


def image_files(folder: Path) -> list[Path]:
    """Images directly in the folder, sorted by name: files, and folders that hold a DICOM series.

    A single file is a folder of one.
    """
    if not is_there(folder):
        return []
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.iterdir() if is_one_image(path)) if folder.is_dir() else []


def is_one_image(path: Path) -> bool:
    """A link to a file that is gone counts: whoever reads it says so."""
    if path.is_file() or (path.is_symlink() and not path.exists()):
        return is_image(path)
    return (is_zarr(path) and not path.name.startswith(".")) or is_series(path)


def listing(root: Path) -> str:
    """The folders of `root` with their number of image files, for messages."""
    folders = [f"{folder.name}/ ({len(image_files(folder))} images)" for folder in subfolders(root)]
    return ", ".join(folders) or "none"


def subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_skipped(path) and not is_zarr(path))


def is_skipped(folder: Path) -> bool:
    """Hidden folders, small copies of images made for looking at, and what AutoUNet wrote."""
    return folder.name.startswith(".") or bool(_PREVIEWS.search(folder.name)) or is_output_folder(folder)


def is_output_folder(folder: Path) -> bool:
    """Whether a run's results lie here, and no image of anybody's beside them."""
    from ...store.run_folder import RunFolder

    run = RunFolder(folder)
    return run.fingerprint.is_file() and run.dataset.is_file() and not any(map(is_image, folder.iterdir()))


def looks_like_images(folder: Path) -> bool:
    return bool(_IMAGES.match(folder.name))


def looks_like_labels(folder: Path) -> bool:
    return bool(_LABELS.search(folder.name))


def says_label(name: str) -> bool:
    """Whether a word of a file's name says label, mask, segmentation, ..."""
    return bool(_LABELS.search(name))


def labels_beside(files: Sequence[Path]) -> list[Path]:
    """Of files in one folder, those whose names are another one's with a word like mask: a_mask.tif beside a.tif."""
    names = {_LABEL_WORD.sub("", stem(path)) for path in files if not _LABEL_WORD.search(stem(path))}
    words = {re.sub(r"[-_. ](img|image|raw)$", "", name, flags=re.IGNORECASE) for name in names} | names
    found = [path for path in files if _LABEL_WORD.search(stem(path))]
    return found if all(_LABEL_WORD.sub("", stem(path)) in words for path in found) else []


def is_held_out(folder: Path) -> bool:
    """imagesTs, labels_test, img_val: the part of a data set that is not for training."""
    return bool(_HELD_OUT.search(folder.name))


NO_UNICODE = "is no text in UTF-8 or UTF-16"
SAVE_AS_UTF8 = "Save it as UTF-8 (in Excel: CSV UTF-8)"


def readable_text(path: Path) -> tuple[str, bool]:
    """A text file's content, and whether it is Unicode.

    UTF-8, or UTF-16 and UTF-32 by their byte order mark or the zeros of the first letters. Of any other encoding what
    is ASCII can be read, which tells what the file is. Raises OSError.
    """
    content = path.read_bytes()
    encoding = json.detect_encoding(content)
    try:
        return content.decode("utf-8-sig" if encoding == "utf-8" else encoding), True
    except UnicodeDecodeError:
        return content.decode("latin-1"), False


def unicode_text(path: Path) -> str:
    """Raises OSError, and DataError for a file that is no Unicode."""
    text, is_unicode = readable_text(path)
    if not is_unicode:
        raise DataError(f"{path} {NO_UNICODE}", SAVE_AS_UTF8)
    return text


def is_there(path: Path) -> bool:
    """Whether a path that a file names exists, of an address in a container the container.

    Also False for one that no system can hold, such as a very long one.
    """
    try:
        return split_address(path)[0].exists()
    except OSError:
        return False


def own_path(path: Path) -> Path:
    """The path, absolute. A link stays itself: data stores (git-annex) give files other names than their links have."""
    return Path(os.path.abspath(Path(path).expanduser()))


def existing_folder(data: Path) -> Path:
    """The folder, absolute, of a folder or a table. Raises DataError when it is missing, another file, or empty."""
    folder = own_path(data)
    if not folder.exists():
        raise DataError(f"{data} does not exist", "Give the folder that holds images and labels")
    if folder.is_file() and folder.suffix.lower() in TABLES:
        return folder.parent
    if not folder.is_dir():
        raise DataError(f"{data} is a file", "Give the folder that holds images and labels, or a table of the cases")
    if not any(folder.iterdir()):
        raise DataError(f"{data} is empty", "Give the folder that holds images and labels")
    return folder


_CHANNEL = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)  # a name may hold a line feed


def strip_channel(name: str) -> tuple[str, str | None]:
    """("case_0001") -> ("case", "0001"); names without the four digits of nnU-Net give (name, None)."""
    match = _CHANNEL.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


ChannelFiles = dict[int, list[Path]]
"""channel number -> the files that a case has for it: one, where nothing is wrong"""


def by_number(files: Iterable[Path]) -> tuple[dict[str, ChannelFiles], list[Path]]:
    """Channel files by case and number, sorted by both, and the files whose names do not end in a number."""
    numbered: dict[str, ChannelFiles] = {}
    rest = []
    for file in files:
        case, channel = strip_channel(stem(file))
        if channel is None:
            rest.append(file)
        else:
            numbered.setdefault(case, {}).setdefault(int(channel), []).append(file)
    return {case: dict(sorted(own.items())) for case, own in sorted(numbered.items())}, rest


def flat(files: ChannelFiles) -> list[Path]:
    """All files of a case, channel after channel."""
    return [file for _, own in sorted(files.items()) for file in own]


def usual_channels(numbered: Mapping[str, ChannelFiles]) -> int:
    """Channel files of most of the cases that are numbered from 0000 on, each once; of the fullest if none is."""
    counts = Counter(len(files) for case, files in numbered.items() if not numbering_problem(case, files, len(files)))
    return max(counts, key=lambda count: (counts[count], count), default=max(map(len, numbered.values()), default=1))


_MOST_HEADERS = 8
"""cases whose headers are read to see how many channels a file holds"""


def files_per_case(numbered: Mapping[str, ChannelFiles], channels: int, time_points: bool = False) -> int:
    """How many files hold the `channels` of a case: fewer where one holds several, as the colours of a photograph.

    By the headers of the fullest cases; where these do not decide, a file for each. `time_points`: files of four axes
    hold one channel.
    """
    if channels == 1:
        return 1
    for files in sorted(numbered.values(), key=len, reverse=True)[:_MOST_HEADERS]:
        total = 0
        for count, number in enumerate(sorted(files), start=1):
            with suppress(DataError):  # told when it is read
                total += 1 if time_points else read_header(files[number][0])[1]
            if total == channels:
                return count
    return channels


def twins_of(files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Files of one folder that have the same name but for the ending, by the first of them."""
    twins: dict[Path, list[Path]] = {}
    for file in files:
        twins.setdefault(file.with_name(stem(file)), []).append(file)
    return {own[0]: own for own in twins.values()}


class NumberingProblem(NamedTuple):
    """What is wrong with the numbers of a case's channel files."""

    message: str
    remedy: str
    only_lacks: bool
    """whether channels are missing and nothing else is wrong, which may be meant"""


def numbering_problem(
    case: str, files: ChannelFiles, channels: int, names: Sequence[str] = ()
) -> NumberingProblem | None:
    """None where the files are numbered from 0000 to `channels` - 1, each once. `names`: the channels', if known."""
    titles = [f"{number:04d}" for number in range(channels)]
    if len(names) == channels > 1:
        titles = [f"{number} ({name})" for number, name in zip(titles, names, strict=True)]
    twice = {number: own for number, own in files.items() if len(own) > 1}
    missing = [number for number in range(channels) if number not in files]
    beyond = [own[0] for number, own in files.items() if number >= channels]
    found, remedies = [], []
    for number, own in twice.items():
        title = titles[number] if number < channels else f"{number:04d}"
        found.append(f"channel {title} is there {_times(len(own))}: {', '.join(file.name for file in own)}")
        remedies.append("Keep one of them")
    if missing:
        found.append(f"it has no file for channel {', '.join(titles[number] for number in missing)}")
        ending = suffix(next(iter(files.values()))[0])
        remedies += [] if beyond else [f"Add {', '.join(f'{case}_{number:04d}{ending}' for number in missing)}"]
    if beyond:
        shown = ", ".join(file.name for file in beyond[:3]) + (f" and {len(beyond) - 3} more" if beyond[3:] else "")
        own_number = str(strip_channel(stem(beyond[0]))[1])
        known = f"channels are numbered {titles[0]} to {titles[-1]}" if channels > 1 else "the only channel is 0000"
        found.append(f"{shown} {'end' if len(beyond) > 1 else 'ends'} in the number of no channel: {known}")
        renamed = f"{stem(beyond[0])}_0000{suffix(beyond[0])}"
        remedies.append(f"Correct the numbers; where {own_number} is part of a name, the name lacks _0000: {renamed}")
    if not found:
        return None
    return NumberingProblem("; ".join(found), ". ".join(remedies), bool(missing) and not twice and not beyond)


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A distinct name for each file: its stem; else its folder's name; else folder and stem joined."""
    candidates = (
        [stem(path) for path in paths],
        [path.parent.name for path in paths],
        ["_".join([*path.parent.parts[-2:], stem(path)]) for path in paths],
    )
    for found in candidates:
        if len(set(found)) == len(found):
            return found
    duplicate = Counter(candidates[0]).most_common(1)[0][0]
    raise DataError(f"several files are called {duplicate}", "Give the cases different names")


# new images: none that AutoUNet wrote; where a folder has none, those in one of its folders


def new_images(folder: Path) -> list[Path]:
    """The images in a folder without those that AutoUNet wrote there."""
    return without_results(image_files(folder))


def without_results(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if not is_result(file)]
