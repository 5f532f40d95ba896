"""Plug-ins: losses, network families, augmentations, metrics and layouts of other packages, known by name.

A package names them in its entry points (`autounet.losses`, ...); `register` does the same from Python. What is
installed is told from the files of the packages alone: nothing of a plug-in is imported before its name is asked for.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from .errors import ModelError, PluginError, UsageError, unknown_name
from .record import Part

log = logging.getLogger(__name__)

Kind = Literal["losses", "families", "augmentations", "metrics", "layouts"]
PREFIX = "autounet."
"""of the groups of entry points; what follows is the kind"""
SINGULAR: dict[Kind, str] = {
    "losses": "loss",
    "families": "network family",
    "augmentations": "augmentation",
    "metrics": "metric",
    "layouts": "layout",
}
BUILT_IN: dict[Kind, tuple[str, ...]] = {
    "losses": ("dice_ce", "dice", "ce", "bce", "weighted_ce", "topk", "dice_topk", "focal", "dice_focal", "tversky",
               "focal_tversky", "log_dice_ce"),
    "families": ("plain", "residual", "original", "unet3d", "nested", "attention", "swin", "efficient", "mednext"),
    "augmentations": ("full", "light", "none"),
    "metrics": ("dice", "iou", "sensitivity", "precision", "hd95", "nsd", "volume", "volume_difference", "assd",
                "nsd_subvoxel", "boundary_iou", "lesion_f1", "panoptic_quality", "cl_dice", "ap50", "ap60", "ap70",
                "ap80", "ap90", "count_error"),
    "layouts": ("table", "msd", "nnunet", "dicom", "outlines", "containers", "bids", "cases", "pairs"),
}  # fmt: skip
"""keys of `LOSSES`, `FAMILIES`, `AUGMENTATIONS`, `METRICS` and `LAYOUTS`, which are not loaded to check a name"""
NAME = re.compile(r"[A-Za-z]\w{0,59}")
"""of a plug-in: it stands on the command line between commas, and in names of files"""
REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

METADATA = (".dist-info", ".egg-info")
"""endings of the folders that say what is installed"""

T = TypeVar("T")


class PluginUse(Part):
    """A plug-in that a result depends on."""

    kind: Kind
    name: str
    package: str
    """the distribution that brings it; of a registered one its module"""
    version: str

    def __str__(self) -> str:
        return f"the {SINGULAR[self.kind]} {self.name} of {self.package} {self.version}"


class Plugin(NamedTuple):
    """A plug-in that is there, not loaded yet."""

    use: PluginUse
    reference: str
    """`module:attribute`"""

    def load(self) -> Any:
        """Raises PluginError where its code cannot be imported."""
        module, _, attribute = self.reference.partition(":")
        try:
            found = import_module(module)
            for name in attribute.split("."):
                found = getattr(found, name)
        except Exception as error:
            raise PluginError(
                f"{self.use} cannot be loaded from {self.reference}: {type(error).__name__}: {error}",
                f"Install another version of {self.use.package}, or remove it",
            ) from error
        return found


_registered: dict[tuple[Kind, str], Plugin] = {}


def register(kind: Kind, name: str, reference: str, version: str) -> None:
    """Make a plug-in known to this process and to those that it starts, without an entry point.

    `kind` is losses, families, augmentations, metrics or layouts, `reference` is `module:attribute` of what the entry
    point would name. It is a text, since worker processes import it; for the same reason it cannot be in `__main__`.
    `version` goes into the records and keys of what is made with it: another one trains again. Raises PluginError for
    a name that is taken and what cannot be imported, UsageError for another kind.
    """
    if kind not in get_args(Kind):
        raise unknown_name("autounet.register():", kind, get_args(Kind))
    if not isinstance(reference, str) or REFERENCE.fullmatch(reference) is None or reference.startswith("__main__:"):
        remedy = "Give module:attribute of a module that worker processes can import, not of the script itself"
        raise UsageError(f"autounet.register(): {reference!r} cannot be imported by its name", remedy)
    if not isinstance(version, str) or not version:
        raise UsageError(f"autounet.register(): the version {version!r} is no text", 'Give one such as "1.0"')
    use = PluginUse(kind=kind, name=name, package=reference.partition(":")[0].partition(".")[0], version=version)
    plugin = Plugin(use, reference)
    _require_free(plugin, (each for each in _installed(tuple(sys.path)) if each.use.kind == kind))
    plugin.load()
    _take_over([plugin])

    from ..workers import INHERITED

    INHERITED[_take_over] = list(_registered.values())


def _take_over(plugins: Iterable[Plugin]) -> None:
    _registered.update({(each.use.kind, each.use.name): each for each in plugins})


def plugins(kind: Kind) -> dict[str, Plugin]:
    """Of one kind, by name. Raises PluginError where two have one name, or one that AutoUNet has itself."""
    found: dict[str, Plugin] = {}
    for each in _installed(tuple(sys.path)):
        if each.use.kind == kind:
            _require_free(each, found.values())
            found[each.use.name] = each
    return found | {name: each for (own, name), each in _registered.items() if own == kind}


def _require_free(plugin: Plugin, others: Iterable[Plugin]) -> None:
    use = plugin.use
    remedy = f"Rename it, or remove {use.package}"
    if not isinstance(use.name, str) or NAME.fullmatch(use.name) is None:
        raise PluginError(f"{use}: the name has other characters than letters, digits and _", remedy)
    if use.name in BUILT_IN[use.kind]:
        raise PluginError(f"{use} has the name of one that AutoUNet has itself", remedy)
    for other in others:
        if other.use.name == use.name and other.reference != plugin.reference:
            raise PluginError(f"{use} has the same name as {other.use}", f"Rename or remove one of the two: {remedy}")


def names(kind: Kind) -> tuple[str, ...]:
    """Built-in ones, then those of plug-ins, sorted."""
    return (*BUILT_IN[kind], *sorted(plugins(kind)))


def require_name(option: str, kind: Kind, given: object) -> None:
    """Raises UsageError for a text that names none; plug-ins are looked for where it is not built in."""
    if isinstance(given, str) and given not in BUILT_IN[kind] and given not in (known := names(kind)):
        raise unknown_name(option, given, known, ", or install the plug-in that has it")


def plugins_used(**chosen: Iterable[str]) -> tuple[PluginUse, ...]:
    """Those of plug-ins among the names of each kind: `plugins_used(losses=["dice"], families=["plain"])`, sorted."""
    found = [
        plugins(kind)[name].use
        for kind in get_args(Kind)
        for name in sorted(set(chosen.get(kind, ())) - set(BUILT_IN[kind]))
        if name in plugins(kind)
    ]
    return tuple(found)


def require_plugins(where: str, needed: Iterable[PluginUse]) -> None:
    """Logs which versions differ. Raises ModelError for what is not there. Nothing is loaded."""
    missing = [use for use in needed if use.name not in plugins(use.kind)]
    if missing:
        packages = ", ".join(sorted({f"{use.package} {use.version}" for use in missing}))
        raise ModelError(
            f"{where} needs {' and '.join(map(str, missing))}, which is not installed",
            f"Install {packages}, if you trust whoever gave you the model: the model does not bring its code",
        )
    for use in needed:
        if (installed := plugins(use.kind)[use.name].use) != use:
            log.warning("%s was made with %s; installed is %s %s", where, use, installed.package, installed.version)


class Registry(Mapping[str, T]):
    """What is there of one kind, by name; iterates over the built-in ones in their order, then over plug-ins."""

    def __init__(self, kind: Kind, built_in: Mapping[str, T], problem: Callable[[str, Any], str | None]) -> None:
        """`problem(name, found)` says what is wrong with what a plug-in brings, None where nothing is."""
        self.kind, self.built_in, self.problem = kind, dict(built_in), problem

    def __getitem__(self, name: str) -> T:
        """Raises KeyError for an unknown name, PluginError for a plug-in that is not what its group asks for."""
        if name in self.built_in:
            return self.built_in[name]
        plugin = plugins(self.kind)[name]
        found: T = plugin.load()
        if problem := self.problem(name, found):
            raise PluginError(f"{plugin.use}: {plugin.reference} {problem}", f"Correct {plugin.use.package}")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in plugins(self.kind)

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from sorted(plugins(self.kind))

    def __len__(self) -> int:
        return len(self.built_in) + len(plugins(self.kind))


def not_callable(name: str, found: object) -> str | None:
    """The problem of what has to be a function."""
    return None if callable(found) else "cannot be called"


@cache
def _installed(paths: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Of the packages in the folders `paths`; of two of one name the first counts, as in importing.

    The metadata of every package is what `importlib.metadata` reads, too, in many times the time: a package without
    the word in its entry points is passed over. Packages inside zip files are not seen.
    """
    packages: dict[str, Path] = {}
    for path in paths:
        with suppress(OSError):
            for name in sorted(each for each in os.listdir(path or os.curdir) if each.endswith(METADATA)):
                package = re.sub(r"[-_.]+", "-", name.partition("-")[0]).lower()
                packages.setdefault(package, Path(path, name))
    found: list[Plugin] = []
    for folder in packages.values():
        with suppress(OSError), open(folder / "entry_points.txt", "rb") as file:
            if PREFIX.encode() in file.read():
                found += _plugins_of(PathDistribution(folder))
    return tuple(found)


def _plugins_of(distribution: PathDistribution) -> Iterator[Plugin]:
    kinds = {PREFIX + kind: kind for kind in get_args(Kind)}
    for entry in distribution.entry_points:
        if isinstance(entry, EntryPoint) and entry.group in kinds:
            use = PluginUse(
                kind=kinds[entry.group], name=entry.name, package=distribution.name, version=distribution.version
            )
            yield Plugin(use, f"{entry.module}:{entry.attr}" if entry.attr else entry.module)
