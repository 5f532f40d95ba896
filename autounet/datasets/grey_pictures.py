"""Grey and coloured pictures in one set, and grey ones that are stored in colours: read with the channels of the set.

Nothing is lost either way: a grey picture has three equal channels, and one with three equal channels is grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..imageio import VOLUME_KINDS, read_image
from ..schema.dataset import Channel, ChannelKind, Finding, Severity
from ..schema.errors import DataError

COLOURS = ("red", "green", "blue")
MOST_READ = 50
"""pictures stored in colours that are looked at for one that is not grey, of a set that has grey ones as well"""
MOST_NAMED = 5
"""pictures in one finding"""


def are_colours(channels: Sequence[Channel]) -> bool:
    """Whether channels are those of a photograph in colours."""
    return len(channels) == len(COLOURS) and all(channel.kind is ChannelKind.photo for channel in channels)


def is_grey(image: np.ndarray) -> bool:
    """Whether all channels of (C, Z, Y, X) are equal in every pixel."""
    return bool((image == image[:1]).all())


def in_channels(image: np.ndarray, kind: str, channels: int, colours: bool) -> np.ndarray:
    """A picture (C, Z, Y, X) of a file of this kind with as many `channels`, grey ones or `colours`.

    Unchanged where that would lose something, and what is no picture.
    """
    if kind in VOLUME_KINDS or len(image) == channels:
        return image
    if channels == 1 and len(image) == len(COLOURS) and is_grey(image):
        return image[:1]
    return np.repeat(image, len(COLOURS), axis=0) if colours and len(image) == 1 else image


def is_grey_file(path: Path) -> bool:
    """Whether a picture that is stored in colours is grey; False where it cannot be read, which is told later."""
    try:
        return is_grey(read_image(path)[0])
    except DataError:
        return False


def mixed_pictures(root: Path, grey: Sequence[str], coloured: Sequence[str]) -> tuple[int, Finding]:
    """The number of channels of a set with pictures stored as grey ones and others stored in colours, and what to tell.

    One where those in colours are all grey, else three.
    """
    looked_at = coloured[:: max(1, len(coloured) // MOST_READ)]
    if len(looked_at) == len(coloured) and all(is_grey_file(root / name) for name in coloured):
        message = (
            f"{len(coloured)} of {len(grey) + len(coloured)} pictures are stored in colours and hold none: red, green "
            f"and blue are equal everywhere. They are read as grey ones, as the others: {_listed(coloured)}"
        )
        return 1, _warning(message, "Nothing has to be done. check --fix --out NEW stores all as grey pictures")
    message = (
        f"{len(grey)} of {len(grey) + len(coloured)} pictures are grey and the others coloured. Grey ones are read "
        f"with equal red, green and blue: {_listed(grey)}"
    )
    return len(COLOURS), _warning(
        message,
        "If they are of another kind than the others, take them out, or train on each kind by itself. check --fix "
        "--out NEW stores all in colours",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def _warning(message: str, remedy: str) -> Finding:
    return Finding(code="grey-and-coloured", severity=Severity.warning, message=message, remedy=remedy)
