"""Image files in folders, and which label belongs to which image by their names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...imageio import is_image, is_series, read_header, stem, suffix
from ...schema.errors import DataError, OptionError

_IMAGES = re.compile(r"^(images?|imgs?|img|scans?|photos?)(?![a-z]*mask)", re.IGNORECASE)
_LABELS = re.compile(r"label|mask|seg|annot|manual|gt$|^gt|ground.?truth|truth|target", re.IGNORECASE)
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
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.iterdir() if _is_one_image(path)) if folder.is_dir() else []


def _is_one_image(path: Path) -> bool:
    """A link to a file that is gone counts: whoever reads it says so."""
    return is_image(path) if path.is_file() or (path.is_symlink() and not path.exists()) else is_series(path)


def glob_images(root: Path, pattern: str, option: str) -> list[Path]:
    """Image files that the pattern of an option names, sorted. Raises OptionError when there are none."""
    if Path(pattern).is_absolute():
        raise OptionError(f"{option} {pattern!r} is an absolute path", f"Give a pattern relative to {root}")
    pattern = pattern.rstrip("/")
    found = sorted(path for path in root.glob(pattern) if _is_one_image(path))
    inner = {folder for path in found for folder in path.parents if folder.is_relative_to(root) and folder != root}
    outputs = {folder for folder in inner if is_output_folder(folder)}
    found = [path for path in found if outputs.isdisjoint(path.parents)]
    if not found and (root / pattern).is_dir():
        found = image_files(root / pattern)
    if not found:
        raise OptionError(f"{option} {pattern!r} names no image file in {root}", f"Its folders: {listing(root)}")
    return found


def listing(root: Path) -> str:
    """The folders of `root` with their number of image files, for messages."""
    folders = [f"{folder.name}/ ({len(image_files(folder))} images)" for folder in subfolders(root)]
    return ", ".join(folders) or "none"


def subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _skipped(path))


def _skipped(folder: Path) -> bool:
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


def is_held_out(folder: Path) -> bool:
    """imagesTs, labels_test, img_val: the part of a data set that is not for training."""
    return bool(_HELD_OUT.search(folder.name))


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


_CHANNEL = re.compile(r"^(.+)_([0-9]{4})$")


class Match(NamedTuple):
    case: str
    first: Path
    second: Path


def strip_channel(name: str) -> tuple[str, str | None]:
    """("case_0001") -> ("case", "0001"); names without the four digits of nnU-Net give (name, None)."""
    match = _CHANNEL.match(name)
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


def _coarse(path: Path) -> list[str]:
    """Parts of folder and file name between separators: 21_manual1 -> 21, manual1."""
    return _between_separators(f"{path.parent.name} {stem(path)}")


def _fine(path: Path) -> list[str]:
    """Letters and numbers apart, leading zeros dropped: img007 -> img, 7."""
    return _letters_and_numbers(f"{path.parent.name} {stem(path)}")


def _between_separators(text: str) -> list[str]:
    return [part.lower() for part in re.split(r"[^A-Za-z0-9]+", text) if part]


def _letters_and_numbers(text: str) -> list[str]:
    parts = re.findall(r"[A-Za-z]+|\d+", text)
    return [part.lstrip("0") or "0" if part.isdigit() else part.lower() for part in parts]


def _same_case(first: Path, second: Path) -> bool:
    """Whether two names alone, with no others to compare with, can be those of one case.

    All numbers of one are in the other (21_training, 21_manual1); without numbers both begin with the same word.
    """
    one, other = (Counter(filter(str.isdigit, _letters_and_numbers(stem(path)))) for path in (first, second))
    if one or other:
        return bool(one and other) and (one <= other or other <= one)
    return _between_separators(stem(first))[:1] == _between_separators(stem(second))[:1]


def pair(first: Sequence[Path], second: Sequence[Path]) -> list[Match]:
    """Files of `first` with their partners in `second`, in the order of `first`; files without one are left out.

    Equal stems; else equal stems without the `_0000` of channel files; else the one part of the name that is
    unique to each file in both folders (21_training, 21_manual1: 21); else equal names after leaving out the parts
    that all files of a folder share (p1_frame2, p1_frame2_seg). Files of equal stem are told apart by their folder.
    Of one file in each folder nothing is unique, so their names have to agree (`_same_case`).
    The case is the name of the first file, without `_0000` where that is no part of the second's name.
    Raises DataError when nothing fits or a file has several partners.
    """
    if not first or not second:
        raise DataError("images and labels cannot be paired: a folder holds no image files", "Check the paths")
    called = dict(zip(first, distinct_names(first), strict=True))
    found = _by_key(first, second, stem)
    if not found:
        found = _by_key(first, second, lambda path: strip_channel(stem(path))[0])
        bases = {  # another number than 0000 may be part of the name, unless the second's name says that it is not
            path: strip_channel(name)[0] if found or name.endswith("_0000") else name for path, name in called.items()
        }
        if len(set(bases.values())) == len(bases):
            called = bases
    alone = len(first) == len(second) == 1
    if alone and not found and _same_case(first[0], second[0]):
        found = {first[0]: second[0]}
    for split in () if alone else (_coarse, _fine):
        rules = (_by_unique_part, _by_rest)
        found = found or max((rule(first, second, split) for rule in rules), key=len)
    if not found:
        raise DataError(
            f"names cannot be paired: {_example(first)} in one folder, {_example(second)} in the other",
            "Give each image and its label the same name, up to one part that all files share",
        )
    return [Match(called[path], path, found[path]) for path in first if path in found]


def _example(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:2]) or "no file"


def _by_key(first: Sequence[Path], second: Sequence[Path], key: Callable[[Path], str]) -> dict[Path, Path]:
    left, right = [key(path) for path in first], [stem(path) for path in second]
    if len(set(left)) < len(left) or len(set(right)) < len(right):
        return {}
    partner = dict(zip(right, second, strict=True))
    return {path: partner[name] for path, name in zip(first, left, strict=True) if name in partner}


def _by_unique_part(
    first: Sequence[Path], second: Sequence[Path], split: Callable[[Path], list[str]]
) -> dict[Path, Path]:
    """Pairs by parts that occur in one file of each folder; nothing when two parts contradict each other."""
    owners: list[dict[str, Path]] = []
    for paths in (first, second):
        parts = [(part, path) for path in paths for part in set(split(path))]
        counts = Counter(part for part, _ in parts)
        owners.append({part: path for part, path in parts if counts[part] == 1})
    partners: dict[Path, set[Path]] = {}
    for part, path in owners[0].items():
        if part in owners[1]:
            partners.setdefault(path, set()).add(owners[1][part])
    found = {path: next(iter(matches)) for path, matches in partners.items() if len(matches) == 1}
    complete = len(found) == len(partners) and len(set(found.values())) == len(found)
    enough = len(found) > 0.5 * min(len(first), len(second))
    return {path: found[path] for path in first if path in found} if complete and enough else {}


def _by_rest(first: Sequence[Path], second: Sequence[Path], split: Callable[[Path], list[str]]) -> dict[Path, Path]:
    """Pairs by what is left of the names without the parts that every file of the folder has."""
    rests = []
    for paths in (first, second):
        parts = [split(path) for path in paths]
        common = set.intersection(*map(set, parts)) if parts else set()
        rests.append([tuple(part for part in own if part not in common) for own in parts])
    if any(len(set(rest)) < len(rest) for rest in rests) or () in rests[0] + rests[1]:
        return {}
    partner = dict(zip(rests[1], second, strict=True))
    return {path: partner[rest] for path, rest in zip(first, rests[0], strict=True) if rest in partner}
