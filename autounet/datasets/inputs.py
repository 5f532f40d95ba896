"""New images for a trained model: a file, a folder of images, or a folder laid out like the training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autounet.datasets.folders import glob_images, image_files, looks_like_images, looks_like_labels, subfolders
from autounet.datasets.loading import read_channels
from autounet.datasets.pairing import names, pair, strip_channel
from autounet.images import is_image, stem, suffix
from autounet.schema.dataset import Channel
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.run import ModelBundle

__all__ = ["InputCase", "find_inputs", "image_files", "load_input"]


class InputCase(NamedTuple):
    identifier: str
    images: tuple[Path, ...]
    """absolute, one per channel file"""


def find_inputs(path: Path, bundle: ModelBundle) -> list[InputCase]:
    """The cases to predict, sorted by identifier. Raises DataError when there are none or a channel is missing.

    Files that all end in `_0000`, `_0001`, ... are the channels of a case when there are as many as the model has.
    """
    path = Path(path).expanduser().resolve()
    if not path.exists():
        raise DataError(f"{path} does not exist. Give an image or a folder of images")
    if path.is_file():
        return [_single(path, bundle)]
    if len(bundle.channel_patterns) > 1:
        try:
            return _by_patterns(path, bundle.channel_patterns)
        except OptionError as error:
            raise DataError(f"{error}. The model needs files for each of its channels") from None
    files = _folder_files(path, bundle)
    same = [file for file in files if suffix(file).lower() == bundle.suffix.lower()]
    return _cases(same or files, bundle)


def _single(path: Path, bundle: ModelBundle) -> InputCase:
    """One file; its other channels are looked for beside it."""
    if not is_image(path):
        raise DataError(f"{path} is no image that can be read. Give NIfTI, NRRD, MHA, PNG, TIFF, GIF or JPEG")
    base, channel = strip_channel(stem(path))
    if channel is None:
        return InputCase(stem(path), (path,))
    siblings = [file for file in image_files(path.parent) if strip_channel(stem(file))[0] == base]
    if len(siblings) == len(bundle.channels) and len(siblings) > 1:
        return InputCase(base, tuple(siblings))
    return InputCase(base if channel == "0000" else stem(path), (path,))


def _folder_files(path: Path, bundle: ModelBundle) -> list[Path]:
    pattern = next(iter(bundle.channel_patterns.values()), bundle.image_pattern)
    for candidate in ([*path.glob(pattern)] if bundle.channel_patterns else [], image_files(path)):
        found = sorted(file for file in candidate if file.is_file() and is_image(file))
        if found:
            return found
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
        raise DataError(f"{path} holds no images. Give a folder with {bundle.suffix} files")
    raise DataError(
        f"several folders of {path} hold images; candidates: {', '.join(folder.name for folder in candidates)}. "
        "Give one of them"
    )


def _cases(files: Sequence[Path], bundle: ModelBundle) -> list[InputCase]:
    parts = [strip_channel(stem(file)) for file in files]
    if all(channel is not None for _, channel in parts):
        groups: dict[str, list[Path]] = {}
        for file, (base, _) in zip(files, parts, strict=True):
            groups.setdefault(base, []).append(file)
        counts = {len(group) for group in groups.values()}
        if max(counts) <= len(bundle.channels) and all(stem(group[0]).endswith("_0000") for group in groups.values()):
            for base, group in groups.items():
                if len(group) < max(counts):
                    have = ", ".join(file.name for file in group)
                    raise DataError(f"case {base}: only {have}; other cases have {max(counts)} channel files. Add them")
            return [InputCase(base, tuple(group)) for base, group in sorted(groups.items())]
    return sorted(InputCase(name, (file,)) for name, file in zip(names(files), files, strict=True))


def _by_patterns(path: Path, patterns: dict[str, str]) -> list[InputCase]:
    lists = [glob_images(path, pattern, f"channel {name}:") for name, pattern in patterns.items()]
    cases = {file: [file] for file in lists[0]}
    called = dict(zip(lists[0], names(lists[0]), strict=True))
    for name, files in zip(list(patterns)[1:], lists[1:], strict=True):
        for match in pair(lists[0], files):
            cases[match.first].append(match.second)
        short = next((called[file] for file, found in cases.items() if len(found) < len(cases[lists[0][0]])), None)
        if short is not None:
            raise DataError(f"case {short}: no file for channel {name}. Add it")
    return sorted(InputCase(called[file], tuple(found)) for file, found in cases.items())


def load_input(case: InputCase, channels: Sequence[Channel]) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) float32 and geometry. Raises DataError naming the case."""
    try:
        image, geometry = read_channels(case.images, len(channels))
    except DataError as error:
        raise DataError(f"case {case.identifier}: {error}") from None
    wrong = int(image.size - np.count_nonzero(np.isfinite(image)))
    if wrong:
        raise DataError(f"case {case.identifier}: {wrong} voxels are NaN or infinite. Replace them, or export again")
    return image, geometry
