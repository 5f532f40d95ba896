"""What values of options there can be: rules that need no data and no device. Each raises UsageError."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import UsageError, unknown_name
from .metrics import chosen_metrics
from .plugins import Kind, require_name

CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
"""names of all configurations that the planner can make; a previous stage comes before the one that needs it"""
KINDS = ("ct", "mri", "photo", "other")
DEVICES = ("auto", "cpu", "cuda", "mps")


def require_known(option: str, given: object, known: Iterable[str], others: str = "") -> None:
    if isinstance(given, str) and given not in (names := tuple(known)):
        raise unknown_name(option, given, names, others)


def require_device(given: object, several: bool = False) -> None:
    """Raises UsageError for what can be no device on any machine; `several`: or devices with commas, or cuda:all."""
    if not isinstance(given, str) or (several and given == "cuda:all"):
        return
    for each in given.split(",") if several else [given]:
        if not each.strip():
            raise UsageError(f"--device {given!r}: a device has no name", f"Give some of {', '.join(DEVICES)}, cuda:1")
        if re.fullmatch(r"\s*cuda:\d+\s*" if several else r"cuda:\d+", each) is None:
            require_known("--device", each.strip() if several else each, DEVICES, ", or a number as in cuda:1")


def require_folds(given: object) -> None:
    if isinstance(given, str) and re.fullmatch(r"all|full|\s*\d+(\s*,\s*\d+)*\s*", given) is None:
        raise UsageError(f"--folds {given} names no folds", "Give all, full, or indices such as 0,1")


def require_configurations(given: object) -> None:
    if not isinstance(given, list | tuple) or list(given) == ["auto"]:
        return
    if "auto" in given:
        raise UsageError("--configurations auto stands for all and takes no other names", "Give auto, or names")
    for each in given:
        require_known("--configurations", each, CONFIGURATIONS, ", or auto")


def require_group(given: object) -> None:
    if not isinstance(given, str):
        return
    try:
        groups = re.compile(given).groups
    except re.error as error:
        raise UsageError(f"--group {given!r} is not a regular expression: {error}", "Correct it") from None
    if not groups:
        raise UsageError(f"--group {given!r} has no group", "Write one in parentheses, (...), that matches every case")


def require_kinds(given: object) -> None:
    for name, kind in given.items() if isinstance(given, Mapping) else ():
        if isinstance(kind, str):
            require_known(f"--kind {name}:", kind.lower(), KINDS)


def require_ignore(content: object) -> None:
    ignore = content.get("ignore") if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or ignore is None:
        return
    if ignore == 0:
        raise UsageError("--ignore 0: 0 is the background", "Give the value of voxels that nobody annotated")
    named = {**(content.get("regions") or {}), **(content.get("classes") or {})}
    for name, values in named.items():
        if ignore in (values if isinstance(values, list | tuple) else [values]):
            raise UsageError(f"--ignore {ignore}: {name} has this value, too", "Leave one of the two out")


def check(content: Any, rules: Mapping[str, Callable[[object], None]]) -> Any:
    for field, rule in rules.items():
        if isinstance(content, Mapping) and content.get(field) is not None:
            rule(content[field])
    return content


def name_of(option: str, kind: Kind) -> Callable[[object], None]:
    return lambda given: require_name(option, kind, given)


def one_of(option: str, known: Iterable[str]) -> Callable[[object], None]:
    names = tuple(known)
    return lambda given: require_known(option, given, names)


def require_metrics(given: object) -> None:
    if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
        chosen_metrics(given)
