"""One new image: its files, and which of the model's channels they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autounet.datasets.layouts.pairing import strip_channel
from autounet.images import stem
from autounet.schema.bundle import ModelBundle
from autounet.schema.errors import DataError

log = logging.getLogger(__name__)


class InputCase(NamedTuple):
    identifier: str
    images: tuple[Path, ...]
    """absolute, one per channel file; a folder is a DICOM series"""
    frame: int | None = None
    """the time point of 4-D files that this case is"""
    present: tuple[int, ...] | None = None
    """indices of the channels that the images are, where the case lacks some; None: all"""


def of_channels(bundle: ModelBundle, name: str, files: Mapping[str, Path]) -> InputCase:
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
    raise DataError(f"case {name}: no file for channel {lacking}. Add it{trained}")


def numbered(bundle: ModelBundle, name: str, files: Sequence[Path]) -> InputCase:
    """A case whose files end in the numbers of their channels. Raises DataError as `require_trained`."""
    present = tuple(int(str(strip_channel(stem(file))[1])) for file in files)
    if len(present) == len(bundle.channels):
        return InputCase(name, tuple(files))
    require_trained(bundle, name, present)
    return InputCase(name, tuple(files), present=present)
