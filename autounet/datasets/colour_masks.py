"""Label pictures in colours that no palette names: a few flat ones become classes, more are one finding for the set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..imageio import VOLUME_KINDS, file_kind, read_header, read_image, read_labels
from ..schema.dataset import Finding, Severity
from ..schema.errors import DataError
from ..schema.labels import BACKGROUND, LabelCode, Labels

Colour = tuple[int, int, int]

MOST_COLOURS = 32
"""that become classes by themselves: CamVid, the street scenes with the most, has as many"""
FLAT = 0.5
"""least share of a colour's pixels that touch one of the same colour; those of smoothed or lossy edges stand alone"""
NAMES: Mapping[Colour, str] = {
    (0, 0, 0): "black", (255, 255, 255): "white", (255, 0, 0): "red", (0, 255, 0): "lime", (0, 0, 255): "blue",
    (255, 255, 0): "yellow", (0, 255, 255): "cyan", (255, 0, 255): "magenta", (128, 128, 128): "grey",
    (192, 192, 192): "silver", (128, 0, 0): "maroon", (0, 128, 0): "green", (0, 0, 128): "navy",
    (128, 128, 0): "olive", (128, 0, 128): "purple", (0, 128, 128): "teal", (255, 165, 0): "orange",
}  # fmt: skip
"""CSS Color Module Level 4, section 6.1: the basic names and orange"""
SHOWN = 12
"""colours in one message"""


class FoundPalette(NamedTuple):
    colours: dict[str, list[int]]
    """as in palette.json: the background first, then by red, green and blue"""
    finding: Finding


def find_palette(files: Sequence[Path]) -> FoundPalette | None:
    """The colours of label pictures as a palette; None where the files hold values, not colours.

    Raises DataError with one finding for all files where the colours are too many, or not flat.
    """
    pictures = [path for path in files if file_kind(path) not in VOLUME_KINDS]
    if not any(_is_coloured(path) for path in pictures):
        return None
    pixels, flat, seen = Counter[Colour](), Counter[Colour](), Counter[Colour]()
    grey: set[Colour] = set()
    coloured: set[Colour] = {(0, 0, 0)}
    for number, path in enumerate(pictures, 1):
        array = _read(path)
        if array is None:
            continue
        own, own_flat = _count(array)
        own_kind = grey if len(array) == 1 else coloured
        own_kind.update(own)
        pixels.update(own)
        flat.update(own_flat)
        seen.update(own.keys())
        if len(pixels) > MOST_COLOURS:
            most = ", ".join(str(list(colour)) for colour, _ in own.most_common(3))
            raise _not_classes(
                f"{len(pixels)} colours in the first {number} of {len(pictures)}; {path.name} alone holds {len(own)}, "
                f"mostly {most}"
            )
    if grey - coloured:
        return None  # some files hold values: not one set of colours
    smooth = [colour for colour, count in pixels.items() if flat[colour] < FLAT * count]
    if smooth:
        raise _not_classes(f"{len(pixels)} colours, of which {len(smooth)} only in single pixels, as on smoothed edges")
    names = _named(pixels, seen, len(pictures))
    return FoundPalette(names, _told(names, pixels, len(pictures)))


def _is_coloured(path: Path) -> bool:
    """Whether a label can only be read by a palette: three channels that differ, and no palette inside."""
    try:
        if read_header(path)[1] != 3:
            return False
    except DataError:
        return False  # told when it is examined
    try:
        read_labels(path)
    except DataError:
        array = _read(path)
        return array is not None and len(array) == 3
    return False


def _read(path: Path) -> np.ndarray | None:
    """(1 or 3, Z, Y, X) as shown; None for a file that cannot be read, which is told when it is examined."""
    try:
        return read_image(path)[0]
    except DataError:
        return None


def _count(array: np.ndarray) -> tuple[Counter[Colour], Counter[Colour]]:
    """Pixels of each colour of (1 or 3, Z, Y, X), and those that touch one of the same colour along y or x."""
    red, green, blue = array if len(array) == 3 else [array[0]] * 3
    packed = (red.astype(np.int64) << 40) | (green.astype(np.int64) << 20) | blue.astype(np.int64)
    touching = np.zeros(packed.shape, bool)
    for axis in (1, 2):
        before, after = (np.moveaxis(touching, axis, 0)[part] for part in (np.s_[:-1], np.s_[1:]))
        values = np.moveaxis(packed, axis, 0)
        same = values[:-1] == values[1:]
        before |= same
        after |= same
    return Counter(dict(_colours(packed))), Counter(dict(_colours(packed[touching])))


def _colours(packed: np.ndarray) -> Iterator[tuple[Colour, int]]:
    part = (1 << 20) - 1
    for code, count in zip(*(each.tolist() for each in np.unique(packed, return_counts=True)), strict=True):
        yield (code >> 40, code >> 20 & part, code & part), count


def _named(pixels: Counter[Colour], seen: Counter[Colour], files: int) -> dict[str, list[int]]:
    """Background is black; without black the most frequent of the colours that all files have, if there is one."""
    everywhere = [colour for colour in pixels if seen[colour] == files]
    zero: Colour | None = (0, 0, 0) if (0, 0, 0) in pixels else max(everywhere, key=pixels.__getitem__, default=None)
    named = {} if zero is None else {BACKGROUND: list(zero)}
    return named | {
        NAMES.get(colour, "colour_{:02x}{:02x}{:02x}".format(*colour)): list(colour)
        for colour in sorted(pixels)
        if colour != zero
    }


def _told(names: Mapping[str, list[int]], pixels: Counter[Colour], files: int) -> Finding:
    total = pixels.total()
    shown = [
        f"{name} {colour} ({100 * pixels[colour[0], colour[1], colour[2]] / total:.3g} %)"
        for name, colour in names.items()
    ]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return Finding(
        code="colours-found",
        severity=Severity.warning,
        message=f"the {files} label pictures hold {len(names)} flat colours and no palette says what they are: they "
        f"are classes named by colour, {', '.join(shown[:SHOWN])}{more}",
        remedy="A run writes OUT/palette.json; copy it, put your names into it and give it with --palette",
    )


def _not_classes(what: str) -> DataError:
    message = f"the label pictures are coded by colour, or no labels at all: they hold {what}"
    remedy = (
        f"Up to {MOST_COLOURS} flat colours are taken for classes. Make the masks again without smoothing and in a "
        'format without loss (PNG), or say which colours are classes: --palette FILE with {"class": [red, green, '
        "blue], ...}. If these are photographs, give the labels with --label"
    )
    return DataError.of([Finding(code="colours", message=message, remedy=remedy)])


def palette_of(labels: Labels) -> dict[str, list[Any]]:
    """Of labels that are coded by colour, as in palette.json, what is left out of training as `ignore`; else {}.

    A class of several colours has a list of them.
    """
    names = {each.value: each.name for each in labels.classes}
    if labels.ignore is not None:
        names[labels.ignore] = "ignore"
    colours: dict[str, list[Any]] = {}
    for code in sorted((each for each in labels.codes if each.colour is not None), key=_by_value):
        colours.setdefault(names[code.value], []).append(list(code.colour or ()))
    return {name: own[0] if len(own) == 1 else own for name, own in colours.items()}


def _by_value(code: LabelCode) -> tuple[int, Colour]:
    return code.value, code.colour or (0, 0, 0)
