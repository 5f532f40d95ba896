"""New images for a trained model: a file, a folder of images, or a folder laid out like the training data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..imageio import DICOM, SUFFIXES, file_kind, is_image, is_series, read_frames, stem
from ..schema.bundle import ModelBundle
from ..schema.errors import DataError, OptionError
from .layouts.bids import subject_inputs
from .layouts.case_folders import case_inputs
from .layouts.case_table import CASE, find_table
from .layouts.files import (
    TABLES,
    distinct_names,
    glob_images,
    image_files,
    looks_like_images,
    looks_like_labels,
    pair,
    strip_channel,
    subfolders,
)
from .layouts.paired_folders import join_channels
from .scan import frame_name

log = logging.getLogger(__name__)


class InputCase(NamedTuple):
    identifier: str
    images: tuple[Path, ...]
    """absolute, one per channel file; a folder is a DICOM series"""
    frame: int | None = None
    """the time point of 4-D files that this case is"""
    present: tuple[int, ...] | None = None
    """indices of the channels that the images are, where the case lacks some; None: all"""


def _case_of_channels(bundle: ModelBundle, name: str, files: Mapping[str, Path]) -> InputCase:
    """A case from its files by channel. Raises DataError for a combination of channels that was not trained."""
    channels = list(bundle.channel_patterns)  # one file may hold several of the model's channels
    present = [index for index, channel in enumerate(channels) if channel in files]
    own = tuple(files[channels[index]] for index in present)
    if len(present) == len(channels):
        return InputCase(name, own)
    require_trained(bundle, name, present)
    return InputCase(name, own, present=tuple(present))


def require_trained(bundle: ModelBundle, name: str, present: Sequence[int]) -> None:
    """Raises DataError for a combination of channels that did not occur in training."""
    if tuple(index in present for index in range(len(bundle.channels))) in bundle.channel_combinations:
        log.info("case %s: predicted with %d of %d channels", name, len(present), len(bundle.channels))
        return
    names = [channel.name for channel in bundle.channels]
    lacking = ", ".join(channel for index, channel in enumerate(names) if index not in present)
    known = [
        " + ".join(channel for channel, there in zip(names, each, strict=True) if there)
        for each in bundle.channel_combinations
    ]
    trained = f", or give {' or '.join(known)}, which the model was trained with" if known else ""
    raise DataError(f"it has no file for channel {lacking}", f"Add it{trained}", case=name)


def _case_of_numbers(bundle: ModelBundle, name: str, files: Sequence[Path]) -> InputCase:
    """A case whose files end in the numbers of their channels. Raises DataError as `require_trained`."""
    present = tuple(int(str(strip_channel(stem(file))[1])) for file in files)
    if len(present) == len(bundle.channels):
        return InputCase(name, tuple(files))
    require_trained(bundle, name, present)
    return InputCase(name, tuple(files), present=present)


_PHOTOGRAPHS = frozenset({"png", "jpeg", "bmp"})


def find_inputs(path: Path, bundle: ModelBundle) -> list[InputCase]:
    """The cases to predict, sorted by identifier. Raises DataError when there are none or a channel is missing.

    An image, a DICOM series, a table, or a folder in the layout of the training data, which the bundle names, or of
    images alone. Files that all end in `_0000`, `_0001`, ... are the channels of a case when there are as many as the
    model has. Where the model was trained on time points, each time point of a file is a case.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise DataError(f"{path} does not exist", "Give an image or a folder of images")
    found = _inputs_of(path, bundle)
    return [frame for case in found for frame in _time_points(case)] if bundle.time_points else found


def _time_points(case: InputCase) -> list[InputCase]:
    """The time points of a case's first file."""
    count = read_frames(case.images[0])
    if count == 1:
        return [case]
    return [case._replace(identifier=frame_name(case.identifier, frame, count), frame=frame) for frame in range(count)]


def _inputs_of(path: Path, bundle: ModelBundle) -> list[InputCase]:
    if path.is_file() and path.suffix.lower() in TABLES:
        return _from_table(path, bundle)
    if path.is_file() or (len(bundle.channel_patterns) <= 1 and is_series(path)):
        return [_single(path, bundle)]
    listed: dict[str, dict[str, Path]] = {}
    if bundle.layout == "table" and find_table(path) is not None:
        return _from_table(path, bundle)
    if bundle.layout == "bids":
        listed = subject_inputs(path)
    elif bundle.layout == "cases":
        listed = case_inputs(path, bundle.channel_patterns)
    if listed:
        return sorted(_case_of_channels(bundle, name, files) for name, files in listed.items())
    if len(bundle.channel_patterns) > 1:
        try:
            return _by_patterns(path, bundle.channel_patterns, bundle)
        except OptionError as error:
            raise DataError(error.message, "The model needs files for each of its channels") from None
    return _cases(_same_kind(_folder_files(path, bundle), bundle), bundle)


def _from_table(path: Path, bundle: ModelBundle) -> list[InputCase]:
    """The columns of the model's channels, in its order; of the images, when it has a single one of colours."""
    table = find_table(path)
    assert table is not None
    names = [channel.name for channel in bundle.channels]
    wanted = names if set(names) <= set(table.columns) else table.image_columns
    if len(wanted) != len(names) and len(wanted) != 1:
        raise DataError(
            f"{table.path} has the columns {', '.join(table.columns)}", f"The model needs {', '.join(names)}"
        )
    cases = []
    for row in table.rows:
        files = {index: table.path.parent / row[column] for index, column in enumerate(wanted) if row[column]}
        absent = [wanted[index] for index, file in files.items() if not file.exists()]
        if absent or not files:
            raise DataError(f"{table.path}: there is no file for {(absent or wanted)[0]}", "Add it", case=row[CASE])
        if len(files) < len(wanted):
            require_trained(bundle, row[CASE], list(files))
        present = None if len(files) == len(wanted) else tuple(files)
        cases.append(InputCase(row[CASE], tuple(files.values()), present=present))
    return sorted(cases)


def _single(path: Path, bundle: ModelBundle) -> InputCase:
    """One file, or DICOM series; its other channels are looked for in the same folder."""
    if not is_image(path) and not path.is_dir():
        raise DataError(f"{path} is not an image that can be read", "Give NIfTI, NRRD, MHA, PNG, TIFF, GIF or JPEG")
    base, channel = strip_channel(stem(path))
    if channel is None:
        return InputCase(stem(path), (path,))
    siblings = [file for file in image_files(path.parent) if strip_channel(stem(file))[0] == base]
    if len(siblings) == len(bundle.channels) and len(siblings) > 1:
        return InputCase(base, tuple(siblings))
    if bundle.channel_combinations and len(siblings) < len(bundle.channels):
        return _case_of_numbers(bundle, base, siblings)
    return InputCase(base if channel == "0000" else stem(path), (path,))


def _folder_files(path: Path, bundle: ModelBundle) -> list[Path]:
    pattern = next(iter(bundle.channel_patterns.values()), bundle.image_pattern)
    for candidate in (pattern, Path(pattern).name) if bundle.channel_patterns else ():
        found = sorted(file for file in path.glob(candidate) if file.is_file() and is_image(file))
        if found:
            return found
    if image_files(path):
        return image_files(path)
    trained_in = Path(bundle.image_pattern).parent.name
    for name in ("imagesTs", trained_in, "imagesTr", "images", "image"):
        if name and image_files(path / name) and (path / name).is_dir():
            return image_files(path / name)
    filled = [folder for folder in subfolders(path) if image_files(folder)]
    named = [folder for folder in filled if looks_like_images(folder) and not looks_like_labels(folder)]
    candidates = named or filled
    if len(candidates) == 1:
        return image_files(candidates[0])
    if not candidates:
        raise DataError(f"{path} holds no images", f"Give a folder with {bundle.suffix or 'DICOM'} files")
    raise DataError(
        f"several folders of {path} hold images; candidates: {', '.join(folder.name for folder in candidates)}",
        "Give one of them",
    )


def _same_kind(files: Sequence[Path], bundle: ModelBundle) -> Sequence[Path]:
    """The files of the kind the model was trained on, else all. Photographs of all kinds count as one."""
    trained = SUFFIXES.get(bundle.suffix.lower(), DICOM)
    kinds = _PHOTOGRAPHS if trained in _PHOTOGRAPHS else {trained}
    same = [file for file in files if file_kind(file) in kinds]
    left = [file.name for file in files if same and file not in same]
    if left and trained == DICOM:
        log.warning("%d files that are no DICOM series are left out: %s, ...", len(left), ", ".join(left[:3]))
    elif left:
        log.warning("%d files that are no %s are left out: %s, ...", len(left), bundle.suffix, ", ".join(left[:3]))
    return same or files


def _cases(files: Sequence[Path], bundle: ModelBundle) -> list[InputCase]:
    parts = [strip_channel(stem(file)) for file in files]
    if all(channel is not None for _, channel in parts):
        groups: dict[str, list[Path]] = {}
        for file, (base, _) in zip(files, parts, strict=True):
            groups.setdefault(base, []).append(file)
        trained_so = f"_0000{bundle.suffix}" in bundle.image_pattern
        fitting = max(len(group) for group in groups.values()) <= len(bundle.channels)
        if trained_so or (fitting and all(stem(group[0]).endswith("_0000") for group in groups.values())):
            if bundle.channel_combinations:
                return [_case_of_numbers(bundle, base, group) for base, group in sorted(groups.items())]
            _require_same_channels(groups)
            return [InputCase(base, tuple(group)) for base, group in sorted(groups.items())]
    return sorted(InputCase(name, (file,)) for name, file in zip(distinct_names(files), files, strict=True))


def _require_same_channels(groups: dict[str, list[Path]]) -> None:
    """Raises DataError for the first case whose channel files are not numbered like those of the fullest one."""
    numbers = {base: [str(strip_channel(stem(file))[1]) for file in group] for base, group in groups.items()}
    usual = max(numbers.values(), key=len)
    for base, own in numbers.items():
        if own != usual:
            have = ", ".join(file.name for file in groups[base])
            raise DataError(
                f"it has only {have}; other cases have the channels {', '.join(usual)}",
                "Add the missing files",
                case=base,
            )


def _matching(path: Path, name: str, pattern: str) -> list[Path]:
    """The files of a channel's pattern, else, as in a folder of new images, of its last part alone."""
    try:
        return glob_images(path, pattern, f"channel {name}:")
    except OptionError as error:
        try:
            return glob_images(path, Path(pattern).name, f"channel {name}:")
        except OptionError:
            raise error from None


def _matching_if_any(path: Path, name: str, pattern: str) -> list[Path]:
    """As `_matching`; nothing where no image has the channel."""
    try:
        return _matching(path, name, pattern)
    except OptionError:
        return []


def _by_patterns(path: Path, patterns: dict[str, str], bundle: ModelBundle) -> list[InputCase]:
    if bundle.channel_combinations:
        lists = [_matching_if_any(path, name, pattern) for name, pattern in patterns.items()]
        joined = join_channels(lists, list(patterns))
        return sorted(
            _case_of_channels(
                bundle, name, {list(patterns)[index]: file for index, file in zip(own, files, strict=True)}
            )
            for (name, files), own in zip(joined.images.items(), joined.present.values(), strict=True)
        )
    lists = [_matching(path, name, pattern) for name, pattern in patterns.items()]
    cases = {file: [file] for file in lists[0]}
    called = dict(zip(lists[0], distinct_names(lists[0]), strict=True))
    for name, files in zip(list(patterns)[1:], lists[1:], strict=True):
        for match in pair(lists[0], files):
            cases[match.first].append(match.second)
        short = next((called[file] for file, found in cases.items() if len(found) < len(cases[lists[0][0]])), None)
        if short is not None:
            raise DataError(f"it has no file for channel {name}", "Add it", case=short)
    return sorted(InputCase(called[file], tuple(found)) for file, found in cases.items())
