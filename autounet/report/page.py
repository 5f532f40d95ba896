"""Assembles the page."""

from __future__ import annotations

import logging
import platform
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

import autounet
from autounet.report import charts, selection, tables
from autounet.report.command import run_command
from autounet.report.findings import grouped
from autounet.report.overlays import NUMBERED, overlays
from autounet.report.panels import case_panels
from autounet.report.published import compare_published
from autounet.report.ranking import Ranked, counted, rank, shown
from autounet.report.records import Gathered, gather
from autounet.report.style import Picture
from autounet.schema.annotated import partly_annotated
from autounet.schema.errors import AutoUNetError
from autounet.schema.quantities import format_size
from autounet.schema.record import write_text

log = logging.getLogger(__name__)


def write_report(out: Path) -> Path:
    """Write `out`/report.html from whatever records `out` holds and return its path.

    The page is self-contained. A missing or damaged part is left out with a sentence that says so.
    """
    out = Path(out)
    environment = Environment(
        loader=PackageLoader("autounet.report", ""),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path = out / "report.html"
    write_text(path, environment.get_template("page.html.j2").render(**_content(gather(out))))
    return path


def _content(found: Gathered) -> dict[str, Any]:
    """Everything the template names."""
    name = found.dataset.name if found.dataset else found.out.resolve().name
    return {
        "name": name,
        "version": autounet.__version__,
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "problems": found.problems,
        "found": found,
        "data": _data(found),
        "findings": grouped(found.findings),
        "plan": tables.plan_table(found.plan.configurations, found.runs) if found.plan else None,
        "trainings": _trainings(found),
        "training_table": tables.training_table(found.runs) if found.runs else None,
        "selection": selection.candidates_table(found.selection) if found.selection else None,
        "postprocessing": selection.trials_table(found.selection) if found.selection else None,
        "calibration": selection.calibration_text(found.selection) if found.selection else "",
        "published": (published := compare_published(found)),
        "published_table": tables.published_table(published),
        "reproduce": _reproduce(found),
        **_results(found),
    }


def _data(found: Gathered) -> dict[str, Any]:
    """Facts as (name, text) pairs and the table of classes."""
    facts: list[tuple[str, str]] = []
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
    labels = None
    if found.dataset:
        voxels = [case.voxels for case in found.fingerprint.cases] if found.fingerprint else []
        labels = tables.labels_table(found.dataset.labels, voxels, _annotated(found))
    return {"facts": facts, "labels": labels}


def _annotated(found: Gathered) -> list[tuple[bool, ...]] | None:
    """Of every case of the fingerprint which classes were annotated; None where all were."""
    assert found.dataset is not None
    partial, everything = partly_annotated(found.dataset), (True,) * found.dataset.labels.count
    if not partial or not found.fingerprint:
        return None
    return [partial.get(case.identifier, everything) for case in found.fingerprint.cases]


def _measured(found: Gathered) -> list[tuple[str, str]]:
    """Sizes, spacings and intensities; axes in the order z, y, x."""
    fingerprint = found.fingerprint
    assert fingerprint is not None
    first = 3 - fingerprint.dimension
    shapes = list(zip(*(case.shape for case in fingerprint.cases), strict=True))[first:]
    spacings = list(zip(*(case.spacing for case in fingerprint.cases), strict=True))[first:]
    order = "z × y × x" if fingerprint.dimension == 3 else "height × width"
    facts = [(f"size, {order}", " × ".join(tables.spread(values, 4) for values in shapes))]
    if any(value != 1 for values in spacings for value in values):
        facts.append((f"spacing, {order}", " × ".join(tables.spread(values) for values in spacings) + " mm"))
    for channel in fingerprint.channels:
        if channel.mean is not None and channel.std is not None:
            text = f"mean {channel.mean:.4g}, standard deviation {channel.std:.4g}"
            if channel.percentile_00_5 is not None and channel.percentile_99_5 is not None:
                text += f", 99 % between {channel.percentile_00_5:.4g} and {channel.percentile_99_5:.4g}"
            facts.append((f"{channel.name} in the foreground", text))
    return facts


def _trainings(found: Gathered) -> list[tuple[str, list[Picture]]]:
    groups = groupby(found.runs, key=lambda run: run.configuration_name)
    return [(name, charts.training_curves(list(runs))) for name, runs in groups]


def _results(found: Gathered) -> dict[str, Any]:
    """Tables, charts and pictures of the selected out-of-fold result; all empty without metrics."""
    if found.metrics is None:
        return {
            "headline": [],
            "classes": None,
            "ranked": [],
            "cases": None,
            "distributions": [],
            "pictures": [],
            "numbers": [],
        }
    names = counted(found.dataset.labels if found.dataset else None, found.metrics)
    ranked = rank(found.metrics, names)
    picked = shown(ranked)
    distributions = [charts.ranked_dice(ranked, picked)] if ranked else []
    by_name = list(found.metrics.per_class)
    by_class = charts.dice_distribution(found.metrics, by_name)
    has_regions = found.dataset is not None and found.dataset.labels.regions
    return {
        "headline": [(name, found.metrics.per_class[name]) for name in (names if has_regions else by_name)],
        "classes": tables.class_table(found.metrics, names),
        "ranked": ranked,
        "cases": tables.case_table(ranked, by_name),
        "distributions": [*distributions, *([by_class] if by_class else [])],
        "pictures": [_case_pictures(found, word, entry) for word, entry in picked],
        "numbers": _numbers(found),
    }


def _numbers(found: Gathered) -> list[str]:
    """The classes in the order of the numbers written into the pictures of a volume."""
    if not found.dataset or not found.fingerprint or found.fingerprint.dimension == 2:
        return []
    names = [label.name for label in found.dataset.labels.foreground]
    return names if 1 < len(names) <= NUMBERED else []


def _case_pictures(found: Gathered, word: str, entry: Ranked) -> dict[str, Any]:
    """One shown case; `problem` says why there is no picture."""
    per_class = [f"{name} {tables.number(values.dice)}" for name, values in entry.metrics.per_class.items()]
    content: dict[str, Any] = {
        "word": word,
        "case": entry.case,
        "dice": tables.number(entry.dice),
        "per_class": ", ".join(per_class) if len(per_class) > 1 else "",
        "pictures": [],
        "problem": None,
    }
    if found.dataset is None or found.predictions is None:
        content["problem"] = "the records that say where its files lie are missing"
        return content
    try:
        panels = case_panels(found.dataset, found.dataset.case(entry.case), found.predictions)
        values = [label.value for label in found.dataset.labels.foreground]
        content["pictures"] = overlays(panels, entry.case, values)
    except StopIteration:
        content["problem"] = "the data set does not list it"
    except AutoUNetError as error:
        content["problem"] = str(error).rstrip(".")
    except Exception as error:  # the page comes after hours of training and is not lost for one picture
        log.warning("no picture of case %s", entry.case, exc_info=True)
        content["problem"] = f"{type(error).__name__}: {error}"
    return content


def _reproduce(found: Gathered) -> dict[str, Any]:
    """Commands, and what they ran on, as (name, text) pairs."""
    root = found.dataset.root if found.dataset else "DATA"
    commands = [run_command(root, str(found.out), found.options)] if found.options else []
    if (found.out / "model").exists():
        commands.append(f"autounet predict {found.out / 'model'} NEW_IMAGES --out SEGMENTATIONS")
    facts: list[tuple[str, str]] = []
    if found.device:
        device = found.device
        facts.append(("machine", f"{device.name} ({device.device}), {device.cores} cores"))
        facts.append(("memory free for training", format_size(device.memory_bytes)))
    if found.runs:
        facts += sorted(found.runs[-1].versions.items())
    else:
        facts += [("autounet", autounet.__version__), ("python", platform.python_version())]
    if found.plan:
        facts.append(("digest of the fingerprint", found.plan.fingerprint))
        facts += [(f"digest of {name}", item.digest()) for name, item in found.plan.configurations.items()]
    return {"commands": commands, "facts": facts}
