"""What the data are and how the run is repeated, as (name, text) pairs. Pure."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import autounet

from ..schema.dataset import Finding, Severity, partly_annotated
from ..schema.options import GIB, DataOptions, RunOptions
from ..schema.quantities import format_size
from . import tables
from .records import Gathered
from .table import Table, spread

OPEN = 5
"""findings up to which a kind is shown without a click"""
MOST_LINES = 200
"""of one kind on the page; findings.json holds all"""


@dataclass(frozen=True)
class Group:
    """Findings with one code and severity, in their order."""

    severity: str
    code: str
    lines: Sequence[tuple[str, str]]
    """(case, or "" for the whole data set; finding and remedy); at most MOST_LINES"""
    total: int

    @property
    def open(self) -> bool:
        return self.total <= OPEN


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """Fatal kinds first, each kind where its first finding stands."""
    kinds: dict[tuple[bool, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity is not Severity.fatal, finding.code), []).append(finding)
    ordered = sorted(kinds.items(), key=lambda kind: kind[0][0])
    return [
        Group(
            str(found[0].severity),
            code,
            [(each.case or "", f"{each.message}. {each.remedy}") for each in found[:MOST_LINES]],
            len(found),
        )
        for (_, code), found in ordered
    ]


def run_command(data: str, out: str, options: RunOptions) -> str:
    """`autounet run ...` with every option that was given, quoted for a POSIX shell."""
    words = ["autounet", "run", data, "--out", out, *_data_words(options.data)]
    if options.memory_bytes is not None:
        words += ["--memory", f"{options.memory_bytes / GIB:.10g}GB"]
    if options.seconds is not None:
        words += ["--time", duration_option(options.seconds)]
    if options.configurations is not None:
        words += ["--configurations", ",".join(options.configurations)]
    for name in ("family", "loss", "preset", "folds", "epochs", "iterations", "device", "workers", "seed"):
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    if options.metrics is not None:
        words += ["--metrics", ",".join(options.metrics)]
    if options.deterministic:
        words.append("--deterministic")
    return shlex.join(words)


def duration_option(seconds: float) -> str:
    """30m, 2h, 90s: the largest unit that keeps it a whole number."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.10g}s"


def _data_words(data: DataOptions) -> list[str]:
    words: list[str] = []
    pairs: tuple[tuple[str, dict[str, str]], ...] = (
        ("--channel", data.channels),
        ("--kind", data.kinds),
        ("--class", {name: str(value) for name, value in data.classes.items()}),
        ("--region", {name: ",".join(map(str, values)) for name, values in data.regions.items()}),
    )
    for option, entries in pairs:
        for name, value in entries.items():
            words += [option, f"{name}={value}"]
    for name in ("label", "ignore", "group", "splits", "palette", "frames"):
        value = getattr(data, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    return [*words, "--missing-channels"] if data.missing_channels else words


Facts = list[tuple[str, str]]


def data_facts(found: Gathered) -> Facts:
    facts: Facts = []
    if found.dataset:
        channels = ", ".join(f"{channel.name} ({channel.kind})" for channel in found.dataset.channels)
        facts += [("cases", str(len(found.dataset.cases))), ("channels", channels), ("layout", found.dataset.layout)]
    if found.fingerprint:
        facts += _measured(found)
    if found.splits:
        sizes = ", ".join(str(len(fold)) for fold in found.splits.folds)
        folds = f"{len(found.splits.folds)} folds of {sizes} cases ({found.splits.source})"
        none = "none: one case or group cannot be split"
        facts.append(("cross-validation", none if found.splits.source == "full" else folds))
    return facts


def labels_table(found: Gathered) -> Table | None:
    """Of the classes; None without dataset.json."""
    if found.dataset is None:
        return None
    voxels = [case.voxels for case in found.fingerprint.cases] if found.fingerprint else []
    return tables.labels_table(found.dataset.labels, voxels, _annotated(found))


def commands(found: Gathered) -> list[str]:
    root = found.dataset.root if found.dataset else "DATA"
    told = [run_command(root, str(found.out), found.options)] if found.options else []
    if (found.out / "model").exists():
        told.append(f"autounet predict {found.out / 'model'} NEW_IMAGES --out SEGMENTATIONS")
    return told


def machine_facts(found: Gathered) -> Facts:
    """Machine, versions, digests of what the run was made of."""
    facts: Facts = []
    if found.device:
        device = found.device
        facts.append(("machine", f"{device.name} ({device.device}), {device.cores} cores"))
        facts.append(("memory free for training", format_size(device.memory_bytes)))
    if found.runs:
        facts += sorted(found.runs[-1].versions.items())
        facts.append(("seed", ", ".join(dict.fromkeys(str(run.options.seed) for run in found.runs))))
    else:
        facts += [("autounet", autounet.__version__), ("python", platform.python_version())]
    if found.plan:
        facts.append(("digest of the fingerprint", found.plan.fingerprint))
        facts += [(f"digest of {name}", item.digest()) for name, item in found.plan.configurations.items()]
    return facts


def _annotated(found: Gathered) -> list[tuple[bool, ...]] | None:
    """Of every case of the fingerprint which classes were annotated; None where all were."""
    assert found.dataset is not None
    partial, everything = partly_annotated(found.dataset), (True,) * found.dataset.labels.count
    if not partial or not found.fingerprint:
        return None
    return [partial.get(case.identifier, everything) for case in found.fingerprint.cases]


def _measured(found: Gathered) -> Facts:
    """Sizes, spacings and intensities; axes in the order z, y, x."""
    fingerprint = found.fingerprint
    assert fingerprint is not None
    first = 3 - fingerprint.dimension
    shapes = list(zip(*(case.shape for case in fingerprint.cases), strict=True))[first:]
    spacings = list(zip(*(case.spacing for case in fingerprint.cases), strict=True))[first:]
    order = "z × y × x" if fingerprint.dimension == 3 else "height × width"
    facts = [(f"size, {order}", " × ".join(spread(values, 4) for values in shapes))]
    if any(value != 1 for values in spacings for value in values):
        facts.append((f"spacing, {order}", " × ".join(spread(values) for values in spacings) + " mm"))
    for channel in fingerprint.channels:
        if channel.mean is not None and channel.std is not None:
            text = f"mean {channel.mean:.4g}, standard deviation {channel.std:.4g}"
            if channel.percentile_00_5 is not None and channel.percentile_99_5 is not None:
                text += f", 99 % between {channel.percentile_00_5:.4g} and {channel.percentile_99_5:.4g}"
            facts.append((f"{channel.name} in the foreground", text))
    return facts
