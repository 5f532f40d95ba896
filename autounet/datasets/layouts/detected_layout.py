"""What a layout reads from a folder and its dataset.json, before any image is opened."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from ...imageio import stem, suffix
from ...schema.dataset import Case, Finding, Severity
from ...schema.errors import DataError, UsageError
from ...schema.labels import LabelCode
from ...schema.options import DataOptions
from .files import ChannelFiles, numbering_problem, unicode_text
from .pairing import pair
from .patterns import glob_images

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
"""as text; none has more digits than a file can hold"""


class DeclaredLabels(NamedTuple):
    """Classes, regions and ignore value as a layout, an option or a file declares them."""

    classes: dict[str, int]
    regions: dict[str, tuple[int, ...]]
    ignore: int | None
    entries: int | None = None
    """of `labels` in dataset.json, whatever they are"""

    @property
    def complete(self) -> bool:
        """Whether any class or region is named, so that all other values are errors."""
        return bool(self.classes or self.regions)


@dataclass(frozen=True)
class DetectedLayout:
    """The cases of a folder in one layout, with paths relative to it, and what the layout declares."""

    cases: list[Case]
    image_pattern: str
    labels: DeclaredLabels
    labels_declared: bool
    """whether every value is declared, so that an undeclared one is an error"""
    channels: list[str] | None = None
    """one name per channel, or None when the layout names none"""
    findings: list[Finding] = field(default_factory=list)
    channel_patterns: dict[str, str] = field(default_factory=dict)
    """channel name -> glob pattern, where channels are told apart by file names"""
    codes: tuple[LabelCode, ...] = ()
    fold_source: str | None = None
    """the file that gives the cases' folds"""


def read_description(root: Path) -> dict[str, Any]:
    """dataset.json of the folder, {} when there is none. Raises DataError when it is no JSON object."""
    path = root / "dataset.json"
    return read_object(path) if path.is_file() else {}


def read_object(path: Path, form: str = "an object") -> dict[str, Any]:
    """A JSON object. Raises DataError, which names the `form` that is wanted."""
    try:
        content = json.loads(unicode_text(path), object_pairs_hook=_without_repetition)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {error}", "Correct it") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, not {form}", "Correct it")
    return content


def _without_repetition(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two entries of one name JSON keeps the last. Raises ValueError."""
    found: dict[str, Any] = {}
    for name, value in entries:
        if name in found:
            raise ValueError(f"{name!r} is there twice")
        found[name] = value
    return found


def channel_names(description: dict[str, Any]) -> list[str] | None:
    """Names under `channel_names` or `modality`, ordered by their numbers."""
    declared = description.get("channel_names", description.get("modality"))
    if isinstance(declared, list):
        return [str(name) for name in declared]
    if not isinstance(declared, dict) or not declared:
        return None
    try:
        return [str(declared[key]) for key in sorted(declared, key=int)]
    except ValueError:
        raise DataError(f"dataset.json: the channels {list(declared)} are not numbered", "Number them from 0") from None


def parse_labels(declared: Any) -> DeclaredLabels:
    """Classes, regions and ignore value of a dataset.json, both ways round ({"0": "name"} or {"name": 0 or [1, 2]}).

    A region of one value is a class of its own. Raises DataError for anything else.
    """
    if not isinstance(declared, dict):
        raise DataError(f"dataset.json: labels is {declared!r}, not an object", 'Write "name": value pairs')
    classes: dict[str, int] = {}
    regions: dict[str, tuple[int, ...]] = {}
    ignore = None
    for key, entry in declared.items():
        if isinstance(entry, str) and WHOLE_NUMBER.fullmatch(key):
            name, values = entry, (int(key),)
        elif isinstance(entry, list) and entry and all(isinstance(value, int) for value in entry):
            name, values = key, tuple(entry)
        elif (isinstance(entry, int) and not isinstance(entry, bool)) or WHOLE_NUMBER.fullmatch(str(entry)):
            name, values = key, (int(entry),)
        else:
            raise DataError(f"dataset.json: label {key!r} has {entry!r}, not an integer", 'Write "name": value pairs')
        if name in classes or name in regions:
            raise DataError(f"dataset.json: two labels are called {name!r}", "Give each value its own name")
        if name == "ignore":
            ignore = values[0]
        elif len(values) > 1:
            regions[name] = values
        else:
            classes[name] = values[0]
    return DeclaredLabels(classes, regions, ignore, len(declared) or None)


_OPTION_TYPES: dict[str, type] = {
    "channels": dict, "kinds": dict, "regions": dict, "label": str, "group": str, "ignore": int, "join": str,
    "objects": str, "palette": str, "frames": str, "missing_channels": bool, "overlaps": str, "missing_structures": str,
}  # fmt: skip


def with_description(root: Path, options: DataOptions) -> DataOptions:
    """The options, those left out taken from dataset.json. Raises DataError for entries that no option can have."""
    description = read_description(root)
    given: dict[str, Any] = {
        key: description[key] for key in _OPTION_TYPES if isinstance(description.get(key), _OPTION_TYPES[key])
    }
    if not all(
        isinstance(pattern, str) and set(pattern) & set("*?/[") for pattern in given.get("channels", {}).values()
    ):
        del given["channels"]  # names, as other programs write them, and no patterns
    try:
        described = DataOptions.model_validate(given)
    except UsageError as error:
        raise DataError(f"dataset.json: {error.message}", error.remedy) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"dataset.json: {where} is {problem['input']!r}: {problem['msg']}", "Correct it") from None
    if options.channels:
        described = described.model_copy(
            update={"kinds": {name: kind for name, kind in described.kinds.items() if name in options.channels}}
        )
    missing = {key: getattr(described, key) for key in given if not getattr(options, key)}
    if options.ignore is not None:
        missing.pop("ignore", None)
    return options.model_copy(update=missing)


def relative(root: Path, path: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def match_labels(
    root: Path, images: Mapping[str, Sequence[Path]], labels: Sequence[Path]
) -> tuple[list[Case], list[Finding]]:
    """Cases from image files by identifier and loose label files, paired by their names.

    Findings: images without label, labels without image.
    """
    first = {files[0]: name for name, files in images.items()}
    partner = {first[match.first]: match.second for match in pair(list(first), labels)}
    findings = [
        missing_label(root, name, files[0], labels[0].parent) for name, files in images.items() if name not in partner
    ]
    used = set(partner.values())
    findings += [missing_image(root, path) for path in labels if path not in used]
    return [case_of(root, name, files, partner.get(name)) for name, files in images.items()], findings


def override_labels(root: Path, cases: Iterable[Case], pattern: str) -> tuple[list[Case], list[Finding]]:
    """The cases with other labels: those that `--label PATTERN` names."""
    images = {case.identifier: [root / path for path in case.images] for case in cases}
    return match_labels(root, images, glob_images(root, pattern, "--label"))


def case_of(root: Path, identifier: str, images: Sequence[Path], label: Path | None) -> Case:
    return Case(
        identifier=identifier,
        images=tuple(relative(root, path) for path in images),
        label=relative(root, label) if label else None,
    )


def missing_label(root: Path, identifier: str, image: Path, folder: Path) -> Finding:
    return Finding(
        case=identifier,
        code="missing-label",
        message=f"{relative(root, image)} has no label file in {relative(root, folder)}/",
        remedy="Add its label, or remove the image from the folder",
    )


def missing_image(root: Path, label: Path) -> Finding:
    return Finding(
        case=stem(label),
        code="missing-image",
        message=f"{relative(root, label)} has no image",
        remedy="Add its image, or remove the label from the folder",
    )


MISSING_CHANNEL = "missing-channel"


def missing_channel(case: str, message: str) -> Finding:
    remedy = "Add the file, remove the case, or give --missing-channels to train with the channels that are there"
    return Finding(case=case, code=MISSING_CHANNEL, message=message, remedy=remedy)


def lacking_channels(case: str, channels: Sequence[str]) -> Finding:
    """A case that has no file for these channels."""
    return missing_channel(case, f"it has no file for channel {', '.join(channels)}")


def repeated_channel(case: str, channel: str, files: Sequence[Path]) -> Finding:
    """A case with several files for one channel."""
    message = f"channel {channel} is there more than once: {', '.join(file.name for file in files)}"
    return Finding(case=case, code="missing-image", message=message, remedy="Keep one of them")


def repeated_image(case: str, files: Sequence[Path]) -> Finding:
    """Files that differ in nothing but their endings."""
    message = f"there are {len(files)} images of this name: {', '.join(file.name for file in files)}"
    return Finding(case=case, code="missing-image", message=message, remedy="Keep one of them")


def numbering_finding(case: str, files: ChannelFiles, channels: int, names: Sequence[str] = ()) -> Finding | None:
    """What is wrong with a case's channel numbers; see `numbering_problem`."""
    problem = numbering_problem(case, files, channels, names)
    if problem is None:
        return None
    if problem.only_lacks:
        return missing_channel(case, problem.message)
    return Finding(case=case, code="missing-image", message=problem.message, remedy=problem.remedy)


def unnumbered_image(path: Path) -> Finding:
    """An image without a channel number among others that have one, which is left out."""
    return Finding(
        case=stem(path),
        code="layout",
        severity=Severity.warning,
        message=f"{path.parent.name}/{path.name} is left out: it has no channel number in its name",
        remedy=f"Rename it to {stem(path)}_0000{suffix(path)} if it is an image of this set, or take it away",
    )


def with_channels(case: Case, present: Iterable[int], count: int) -> Case:
    """The case with the indices of the channels that it has files for, of `count` in the data set."""
    own = tuple(present)
    return case if len(own) == count else case.model_copy(update={"present": own})


def without_missing_channels(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that remain where cases may lack channels."""
    return [finding for finding in findings if finding.code != MISSING_CHANNEL]
