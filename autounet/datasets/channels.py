"""The channels of a data set: how many, their names and kinds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from autounet.datasets.checks.examine import unreadable
from autounet.images import VOLUME_KINDS, read_header
from autounet.schema.dataset import Case, Channel, ChannelKind
from autounet.schema.errors import DataError, OptionError
from autounet.schema.options import DataOptions

_KIND_WORDS = {
    "ct": ChannelKind.ct,
    **dict.fromkeys(("mri", "mr", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi", "pd"),
                    ChannelKind.mri),
    **dict.fromkeys(("photo", "rgb", "red", "green", "blue", "r", "g", "b"), ChannelKind.photo),
}  # fmt: skip


def find_channels(
    root: Path, cases: Sequence[Case], names: list[str] | None, options: DataOptions
) -> tuple[Channel, ...]:
    """Names and kinds of the channels of the first case whose headers can be read. Raises DataError, OptionError."""
    count, photo = _count_channels(root, cases)
    if names is not None and all(case.present is not None for case in cases):
        count = len(names)  # no case has all of them
    unknown = set(options.kinds)
    if names is None:
        names = ["image"] if count == 1 or (count == 3 and photo) else [f"channel_{index}" for index in range(count)]
    if len(names) == 1 and count == 3 and photo:
        unknown -= {*names, "red", "green", "blue"}
        common = options.kinds.get(names[0], "photo")
        found = [Channel(name=name, kind=_kind(options.kinds.get(name, common))) for name in ("red", "green", "blue")]
    elif len(names) == count:
        unknown -= set(names)
        found = [
            Channel(name=name, kind=_kind(options.kinds[name]) if name in options.kinds else _kind_by_name(name))
            for name in names
        ]
    else:
        raise DataError(
            f"case {cases[0].identifier} has {count} channels, but {len(names)} are named ({', '.join(names)}). "
            "Correct dataset.json or the --channel options"
        )
    if unknown:
        known = ", ".join(channel.name for channel in found)
        raise OptionError(f"--kind names the channel {', '.join(sorted(unknown))}; the channels are {known}")
    return tuple(found)


def _count_channels(root: Path, cases: Sequence[Case]) -> tuple[int, bool]:
    """Channels of the first readable case, and whether it is a picture (no volume format)."""
    findings = []
    for case in sorted(cases, key=lambda case: case.present is not None):  # one with all channels, where there is one
        try:
            headers = [read_header(root / path) for path in case.images]
        except DataError as error:
            findings.append(unreadable(case, root, error))
            continue
        picture = headers[0][0].kind not in VOLUME_KINDS and len(headers) == 1
        return sum(1 if case.frame is not None else channels for _, channels in headers), picture
    raise DataError.of(findings)


def _kind(word: str) -> ChannelKind:
    try:
        return ChannelKind(word.lower())
    except ValueError:
        raise OptionError(f"--kind {word!r} is unknown. Kinds are {', '.join(ChannelKind)}") from None


def _kind_by_name(name: str) -> ChannelKind:
    """By the first word: CT (HU) -> ct, MRI -> mri, rgb_to_0_1 -> photo; else other."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return _KIND_WORDS.get(words[0], ChannelKind.other) if words else ChannelKind.other
