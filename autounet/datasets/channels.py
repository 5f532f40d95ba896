"""Names and kinds of a data set's channels, by its files' headers, descriptions and options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..imageio import VOLUME_KINDS, read_full_header
from ..schema.dataset import Case, Channel, ChannelKind, Finding
from ..schema.errors import DataError, FileError, OptionError
from ..schema.options import DataOptions
from .checks.examine import unreadable
from .grey_pictures import COLOURS, mixed_pictures

_KIND_WORDS = {
    "ct": ChannelKind.ct,
    **dict.fromkeys(("mri", "mr", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi", "pd"),
                    ChannelKind.mri),
    **dict.fromkeys(("photo", "rgb", "red", "green", "blue", "r", "g", "b"), ChannelKind.photo),
}  # fmt: skip


class StoredChannels(NamedTuple):
    """What the files of a case hold."""

    number: int
    photograph: bool
    """red, green and blue, or grey, in one file that is no volume"""
    measured: bool
    """channels of their own in one file, as of fluorescence: see `ImageHeader.measured`"""
    names: tuple[str, ...]
    """as that file gives them; none where it does not"""
    findings: tuple[Finding, ...] = ()


def find_channels(
    root: Path, cases: Sequence[Case], names: list[str] | None, options: DataOptions
) -> tuple[tuple[Channel, ...], tuple[Finding, ...]]:
    """Names and kinds of the channels of the first case whose headers can be read, and what is to be told of them.

    Raises DataError and OptionError. Channels that a file says are measured apart have the names that it gives, and are
    no photograph but where they are called red, green and blue.
    """
    stored = _stored_channels(root, cases)
    count, colours = stored.number, stored.number == len(COLOURS) and stored.photograph
    if names is None or (len(names) == 1 < count and stored.measured):
        names = list(stored.names) or None
    elif all(case.present is not None for case in cases):
        count = len(names)  # no case has all of them
    if names is None:
        names = ["image"] if count == 1 or colours else [f"channel_{index}" for index in range(count)]
    unknown = set(options.kinds)
    if len(names) == 1 and colours:
        unknown -= {*names, *COLOURS}
        common = options.kinds.get(names[0], "photo")
        kinds = {name: ChannelKind(options.kinds.get(name, common).lower()) for name in COLOURS}
    elif len(names) == count:
        unknown -= set(names)
        kinds = {name: _kind_by_name(name) for name in names}
        if stored.measured and tuple(name.lower() for name in names) != COLOURS:
            kinds = {name: ChannelKind.other if kind is ChannelKind.photo else kind for name, kind in kinds.items()}
        kinds |= {name: ChannelKind(options.kinds[name].lower()) for name in names if name in options.kinds}
    else:
        raise DataError(
            f"it has {count} channel{'s' if count > 1 else ''}, but {len(names)} are named ({', '.join(names)})",
            "Correct dataset.json or the --channel options",
            case=cases[0].identifier,
        )
    if unknown:
        known = ", ".join(kinds)
        raise OptionError(f"--kind names the unknown channel {', '.join(sorted(unknown))}", f"The channels are {known}")
    return tuple(Channel(name=name, kind=kind) for name, kind in kinds.items()), stored.findings


def _stored_channels(root: Path, cases: Sequence[Case]) -> StoredChannels:
    """Of the first readable case. Raises DataError.

    Of pictures, red, green and blue where some are grey and others coloured: programs save a coloured one as grey where
    it holds no colours. Else the number that most have.
    """
    findings = []
    pictures: dict[int, list[str]] = {}
    for case in sorted(cases, key=lambda case: case.present is not None):  # one with all channels, where there is one
        try:
            read = {
                path: read_full_header(root / path) for path in dict.fromkeys(case.images)
            }  # one may be named often
            headers = [read[path] for path in case.images]
        except FileError as error:
            findings.append(unreadable(case, root, error))
            continue
        first = headers[0]
        own = first.geometry.kind not in VOLUME_KINDS and len(headers) == 1
        count = sum(1 if case.frame is not None else each.channels for each in headers)
        if own and first.measured:
            return StoredChannels(count, False, True, first.names)
        if not pictures and not (own and first.geometry.dimension == 2):
            return StoredChannels(count, own, False, ())
        if own:
            pictures.setdefault(count, []).append(case.images[0])
    if not pictures:
        raise DataError.of(findings)
    if set(pictures) == {1, len(COLOURS)}:
        count, told = mixed_pictures(root, pictures[1], pictures[len(COLOURS)])
        return StoredChannels(count, True, False, (), (told,))
    return StoredChannels(max(pictures, key=lambda count: (len(pictures[count]), count)), True, False, ())


def other_order(names: Sequence[str], channels: Sequence[Channel]) -> str | None:
    """What is wrong with an image that names its channels, where they are those of a data set in another order."""
    known = [channel.name for channel in channels]
    if list(names) == known or sorted(names) != sorted(known):
        return None
    return f"has the channels {', '.join(names)}, where the others have {', '.join(known)}"


def order_findings(root: Path, cases: Sequence[Case], channels: Sequence[Channel]) -> list[Finding]:
    """Of files that name their channels, those that have them in another order than the first: fatal, each."""
    findings = []
    for case in cases if len(channels) > 1 else ():
        try:
            names = read_full_header(root / case.images[0]).names if len(case.images) == 1 else ()
        except FileError:  # told when the case is examined
            continue
        if not names and case is cases[0]:
            break  # of a set whose files name none
        if order := other_order(names, channels):
            remedy = "Store them in one order"
            message = f"{case.images[0]} {order}"
            findings.append(Finding(case=case.identifier, code="channel-mismatch", message=message, remedy=remedy))
    return findings


def _kind_by_name(name: str) -> ChannelKind:
    """By the first word: CT (HU) -> ct, MRI -> mri, rgb_to_0_1 -> photo; else other."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return _KIND_WORDS.get(words[0], ChannelKind.other) if words else ChannelKind.other
