"""New images for a trained model: a file, a folder of images, or a folder laid out like the training data."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..imageio import (
    DICOM,
    SUFFIXES,
    VOLUME_KINDS,
    describe_unread,
    file_kind,
    is_container,
    is_series,
    read_frames,
    read_header,
    stem,
    suffix,
    unread_images,
)
from ..schema.bundle import ModelBundle
from ..schema.errors import DataError
from ..schema.names import RENAME, case_problem, printable
from .layouts.bids import subject_inputs
from .layouts.case_folders import case_inputs
from .layouts.case_table import CASE, find_table
from .layouts.dicom_tree import tree_inputs
from .layouts.files import (
    TABLES,
    ChannelFiles,
    by_number,
    distinct_names,
    files_per_case,
    flat,
    image_files,
    is_there,
    listing,
    new_images,
    numbering_problem,
    own_path,
    strip_channel,
    twins_of,
    without_results,
)
from .layouts.paired_folders import ChannelSource, join_channels
from .layouts.patterns import addressed, folder_files, matching_files
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
    error: DataError | None = None
    """why it cannot be predicted, where that is known before its images are read"""


def refused(name: str, images: Sequence[Path], message: str, remedy: str) -> InputCase:
    """A case that cannot be predicted, which stops no other."""
    return InputCase(name, tuple(images), error=DataError(message, remedy, name))


def _case_of_channels(bundle: ModelBundle, name: str, files: Mapping[str, Sequence[Path]]) -> InputCase:
    """A case from its files by channel, one for each unless the model was trained with those that are there."""
    channels = list(bundle.channel_patterns)  # one file may hold several of the model's channels
    present = [index for index, channel in enumerate(channels) if channel in files]
    own = [file for index in present for file in files[channels[index]]]
    for channel in channels:
        if len(twice := files.get(channel, ())) > 1:
            shown = ", ".join(file.name for file in twice)
            return refused(name, own, f"channel {channel} is there more than once: {shown}", "Keep one of them")
    return _with_present(bundle, InputCase(name, tuple(own)), present, len(channels))


def _with_present(bundle: ModelBundle, case: InputCase, present: Sequence[int], count: int) -> InputCase:
    """The case with the channels that it has of `count`, refused where the model was not trained with these alone."""
    if len(present) == count:
        return case
    try:
        require_trained(bundle, case.identifier, present)
    except DataError as error:
        return case._replace(error=error)
    return case._replace(present=tuple(present))


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


def find_inputs(path: Path, bundle: ModelBundle) -> list[InputCase]:
    """The cases to predict, sorted by identifier; those that cannot be predicted carry the reason.

    An image, a DICOM series or a tree of them, a table, or a folder in the layout of the training data, which the
    bundle names, or of images alone. Files that end in `_0000`, ... are the channels of a case, each once, when the
    model's images were so or the numbers fit its channels; else the numbers are part of their names. Time points are
    cases where the model was trained so. What AutoUNet wrote is left out. Raises DataError when there is no image.
    """
    path = own_path(path)
    if not is_there(path):
        raise DataError(f"{path} does not exist", "Give an image or a folder of images")
    found = [case._replace(images=addressed(case.images, bundle)) for case in _inputs_of(path, bundle)]
    found += _unread(path, found)
    if bundle.time_points:
        found = [frame for case in found for frame in _time_points(case)]
    found = [_safely_named(case) for case in found]
    counts = Counter(case.identifier for case in found)
    return sorted((case if counts[case.identifier] == 1 else _alike(case) for case in found), key=lambda case: case[:2])


def _safely_named(case: InputCase) -> InputCase:
    """Refused where its name could lead out of the output folder."""
    problem = case_problem(case.identifier)
    if not problem:
        return case
    name = case.images[0].name if case.images and not case_problem(case.images[0].name) else "case"
    return refused(name, case.images, f"the case name {printable(case.identifier[:200])!r} {problem}", RENAME)


def _unread(path: Path, cases: Sequence[InputCase]) -> list[InputCase]:
    """One for all images beside those of the cases, in the folder that was given or below, whose format is not read."""
    folders = {image.parent for case in cases for image in case.images} | {path}
    files = [file for folder in sorted(folders) if folder.is_relative_to(path) for file in unread_images(folder)]
    return [refused(files[0].name, files, *describe_unread(files))] if files else []


def _alike(case: InputCase) -> InputCase:
    """One of several of the same name, under the name of its file."""
    message = f"several images are called {case.identifier}: {', '.join(image.name for image in case.images)} is one"
    name = case.images[0].name if case.images else case.identifier
    return refused(name, case.images, message, "Give each another name, or predict them into different folders")


def _time_points(case: InputCase) -> list[InputCase]:
    """The time points of a case's first file."""
    if case.error is not None:
        return [case]
    try:
        count = read_frames(case.images[0])
    except DataError as error:
        return [case._replace(error=DataError(error.message, error.remedy, case.identifier))]
    if count == 1:
        return [case]
    return [case._replace(identifier=frame_name(case.identifier, frame, count), frame=frame) for frame in range(count)]


def _inputs_of(path: Path, bundle: ModelBundle) -> list[InputCase]:
    """Of a tree of DICOM files where they lie in it, or the model was trained on one, or nothing else is found."""

    def tree() -> list[InputCase]:
        return [InputCase(name, (series,)) for name, series in tree_inputs(path, bundle.channels).items()]

    if (bundle.layout == "dicom" or is_series(path)) and (cases := tree()):
        return cases
    try:
        return _files_of(path, bundle)
    except DataError:
        if not (cases := tree()):
            raise
        return cases


def _files_of(path: Path, bundle: ModelBundle) -> list[InputCase]:
    if path.is_file() and path.suffix.lower() in TABLES:
        return _from_table(path, bundle)
    if path.is_file() or is_container(path) or (len(bundle.channel_patterns) <= 1 and is_series(path)):
        return [_single(path, bundle)]
    listed: dict[str, dict[str, list[Path]]] = {}
    if bundle.layout == "table" and find_table(path) is not None:
        return _from_table(path, bundle)
    if bundle.layout == "bids":
        listed = subject_inputs(path)
    elif bundle.layout == "cases":
        listed = case_inputs(path, bundle.channel_patterns)
    listed = _without_written(path, listed)
    if listed:
        cases = [_case_of_channels(bundle, name, files) for name, files in listed.items()]
        among = bundle.layout == "cases" and path.name not in listed
        strays = [file for file in new_images(path) if among and file.name not in listed]
        message, remedy = "it lies beside the folders of the cases", "Put it into the folder of its case, or elsewhere"
        return cases + [refused(file.name, [file], message, remedy) for file in strays]
    if len(bundle.channel_patterns) > 1:
        return _by_patterns(path, bundle)
    return _cases(folder_files(path, bundle), bundle)


def _without_written(
    path: Path, listed: Mapping[str, Mapping[str, Sequence[Path]]]
) -> dict[str, dict[str, list[Path]]]:
    """Case -> channel -> files, without what AutoUNet wrote, and without folders that hold nothing else."""
    found = {}
    for name, files in listed.items():
        folder = path / name
        if not (folder.is_dir() and image_files(folder) and not new_images(folder)):
            found[name] = {channel: own for channel, every in files.items() if (own := without_results(every))}
    return found


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
        absent = [wanted[index] for index, file in files.items() if not is_there(file)]
        if absent or not files:
            message = f"{table.path}: there is no file for {(absent or wanted)[0]}"
            cases.append(refused(row[CASE], list(files.values()), message, "Add it"))
        else:
            cases.append(_with_present(bundle, InputCase(row[CASE], tuple(files.values())), list(files), len(wanted)))
    return cases


def _single(path: Path, bundle: ModelBundle) -> InputCase:
    """One file, or DICOM series; other channels are looked for in its folder, that of the link where it is one."""
    if not suffix(path) and not path.is_dir():
        if unread_images(path.parent).count(path):
            raise DataError(f"{path}: {describe_unread([path])[0]}", describe_unread([path])[1])
        raise DataError(f"{path} is not an image that can be read", "Give NIfTI, NRRD, MHA, PNG, TIFF, GIF or JPEG")
    base, channel = strip_channel(stem(path))
    if channel is None:
        return InputCase(base, (path,))
    alike = [file for file in new_images(path.parent) if strip_channel(stem(file))[0] == base]
    siblings = [path, *(file for file in alike if stem(file) != stem(path))]  # of its channel, it is the file given
    count = _numbers_are_channels(by_number(siblings)[0], bundle)
    if count is None:
        return InputCase(stem(path), (path,))
    found = _cases([path] if count == 1 else sorted(siblings), bundle)
    return next(case for case in found if path in case.images)


def _cases(files: Sequence[Path], bundle: ModelBundle) -> list[InputCase]:
    """Of images in one folder, or of files that one pattern names."""
    files, previews = _without_previews(files, bundle)
    numbered, rest = by_number(files)
    count = _numbers_are_channels(numbered, bundle)
    if count is None:
        numbered, rest = {}, list(files)
    names = [channel.name for channel in bundle.channels] if count == len(bundle.channels) else []
    cases = [_numbered_case(bundle, case, own, count or 1, names) for case, own in numbered.items()]
    twins = twins_of(rest)
    for name, own in zip(distinct_names(list(twins)), twins.values(), strict=True):
        if len(own) > 1:
            message = f"there are {len(own)} images of this name: {', '.join(file.name for file in own)}"
            cases.append(refused(name, own, message, "Keep one of them"))
        elif name in numbered:
            message = f"it has no channel number, and the channels of {name} are in other files"
            cases.append(refused(own[0].name, own, message, "Take it away, for example if it is a label"))
        else:
            cases.append(_unnumbered_case(bundle, name, own[0], bool(numbered)))
    return cases + previews


def _without_previews(files: Sequence[Path], bundle: ModelBundle) -> tuple[list[Path], list[InputCase]]:
    """Pictures of the same names as volumes, for a model of volumes, are left out; for one of pictures, the volumes."""
    volumes = SUFFIXES.get(bundle.suffix.lower(), DICOM) in VOLUME_KINDS
    fits = {file: (file_kind(file) in VOLUME_KINDS) == volumes for file in files}
    own = {file.with_name(stem(file)): file for file, fit in fits.items() if fit}
    left = [file for file, fit in fits.items() if not fit and file.with_name(stem(file)) in own]
    refusals = [
        refused(
            file.name,
            [file],
            f"it is left out: {own[file.with_name(stem(file))].name} has the same name and is of the model's kind",
            "Take it away, or predict it from another folder",
        )
        for file in left
    ]
    return [file for file in files if file not in left], refusals


def _numbers_are_channels(numbered: Mapping[str, ChannelFiles], bundle: ModelBundle) -> int | None:
    """The number of files that a case has by the numbers in their names; None where these are part of the names."""
    if not numbered:
        return None
    count = files_per_case(numbered, len(bundle.channels), bundle.time_points)
    if stem(Path(bundle.image_pattern).name).endswith("_0000"):
        return count
    known = all(number < count for files in numbered.values() for number in files)
    return count if known and any(0 in files for files in numbered.values()) else None


def _numbered_case(bundle: ModelBundle, name: str, files: ChannelFiles, count: int, names: Sequence[str]) -> InputCase:
    case = InputCase(name, tuple(flat(files)))
    problem = numbering_problem(name, files, count, names)
    if problem is None:
        return case
    if problem.only_lacks and bundle.channel_combinations and count == len(bundle.channels):
        return _with_present(bundle, case, list(files), count)
    return refused(name, case.images, problem.message, problem.remedy)


def _unnumbered_case(bundle: ModelBundle, name: str, file: Path, among_numbered: bool) -> InputCase:
    """A file that holds all channels; among files with channel numbers it is refused where it does not."""
    wanted = len(bundle.channels)
    if among_numbered and wanted > 1 and not bundle.time_points:
        with suppress(DataError):  # told when it is read
            channels = read_header(file)[1]
            if channels != wanted:
                message = f"{file.name} has no channel number in its name, and holds {channels} of {wanted} channels"
                first, last = (f"{name}_{number:04d}{suffix(file)}" for number in (0, wanted - 1))
                remedy = f"Name the files of its channels {first} to {last}, or take it away if it is no image"
                return refused(name, [file], message, remedy)
    return InputCase(name, (file,))


def _by_patterns(path: Path, bundle: ModelBundle) -> list[InputCase]:
    """Of a model whose channels are told apart by patterns of file names."""
    sources = {
        name: ChannelSource(pattern, matching_files(path, pattern)) for name, pattern in bundle.channel_patterns.items()
    }
    if not any(source.files for source in sources.values()):
        patterns = ", ".join(f"{name} {pattern}" for name, pattern in bundle.channel_patterns.items())
        raise DataError(
            f"no image file in {path} has a name of the model's channels ({patterns})",
            f"The model needs files for each of its channels. Folders: {listing(path)}",
        )
    channels = list(sources)
    return [
        _case_of_channels(bundle, name, {channels[index]: own for index, own in files.items()})
        for name, files in join_channels(sources, strict=False).cases.items()
    ]
