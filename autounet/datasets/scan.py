"""Finding out how a folder is laid out, and what is in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from autounet.datasets import msd, nnunet, pairs
from autounet.datasets.examine import unreadable
from autounet.datasets.folders import existing_folder
from autounet.datasets.found import Found, read_description
from autounet.datasets.labels import build_labels
from autounet.images import VOLUME_KINDS, file_kind, read_header, suffix
from autounet.schema.dataset import Case, Channel, ChannelKind, Dataset
from autounet.schema.errors import DataError, OptionError
from autounet.schema.options import DataOptions


class Layout(NamedTuple):
    detect: Callable[[Path, DataOptions], bool]
    find: Callable[[Path, DataOptions], Found]


LAYOUTS: dict[str, Layout] = {
    "msd": Layout(msd.detect, msd.find),
    "nnunet": Layout(nnunet.detect, nnunet.find),
    "pairs": Layout(pairs.detect, pairs.find),
}
"""tried in this order; the first that recognises the folder reads it"""

_KIND_WORDS = {
    "ct": ChannelKind.ct,
    **dict.fromkeys(("mri", "mr", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi", "pd"),
                    ChannelKind.mri),
    **dict.fromkeys(("photo", "rgb", "red", "green", "blue", "r", "g", "b"), ChannelKind.photo),
}  # fmt: skip


def scan(data: Path, options: DataOptions) -> Dataset:
    """The data set in a folder, layout detected; cases sorted by identifier, labels as declared or only background.

    Opens the header of one image. Raises DataError with every missing file at once, or listing the candidates when
    the folder can be read in several ways; OptionError when an option does not fit.
    """
    root = existing_folder(data)
    name, layout = next((name, layout) for name, layout in LAYOUTS.items() if layout.detect(root, options))
    found = layout.find(root, options)
    if found.findings:
        raise DataError.of(found.findings)
    if not found.cases:
        raise DataError(f"{root} lists no case. Add images and labels")
    cases = sorted((_grouped(case, options.group) for case in found.cases), key=lambda case: case.identifier)
    twice = {case.identifier for case, after in pairwise(cases) if case.identifier == after.identifier}
    if twice:
        raise DataError(f"several cases are called {', '.join(sorted(twice))}. Give them different names")
    image = cases[0].images[0]
    return Dataset(
        root=str(root),
        name=str(read_description(root).get("name") or root.name),
        layout=name,
        channels=_channels(root, cases, found.channels, options),
        labels=build_labels(found.classes, found.regions, found.ignore, options),
        labels_declared=found.labels_declared,
        cases=tuple(cases),
        image_pattern=found.image_pattern,
        file_kind=file_kind(image),
        suffix=suffix(image),
    )


def _grouped(case: Case, pattern: str | None) -> Case:
    if pattern is None:
        return case
    try:
        match = re.search(pattern, case.identifier)
    except re.error as error:
        raise OptionError(f"--group {pattern!r} is not a regular expression: {error}") from None
    if match is None or not match.groups() or match[1] is None:
        raise OptionError(f"--group {pattern!r} captures nothing in {case.identifier!r}. Write one (...) that matches")
    return case.model_copy(update={"group": match[1]})


def _channels(root: Path, cases: list[Case], names: list[str] | None, options: DataOptions) -> tuple[Channel, ...]:
    """Names and kinds of the channels of the first case whose headers can be read."""
    count, photo = _count_channels(root, cases)
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


def _count_channels(root: Path, cases: list[Case]) -> tuple[int, bool]:
    """Channels of the first readable case, and whether it is a picture (no volume format)."""
    findings = []
    for case in cases:
        try:
            headers = [read_header(root / path) for path in case.images]
        except DataError as error:
            findings.append(unreadable(case, root, error))
            continue
        picture = headers[0][0].kind not in VOLUME_KINDS and len(headers) == 1
        return sum(channels for _, channels in headers), picture
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
