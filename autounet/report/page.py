"""Assembles the page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

import autounet

from ..figures import Picture
from ..schema.record import write_text
from . import charts, facts, run_tables, tables
from . import run_tables as selection
from .facts import grouped
from .overlays import NUMBERED
from .pictured import Ranked, Shown, counted, pictured, rank, shown
from .published import compare_published
from .records import Gathered, gather
from .run_charts import data_charts, memory_chart, training_curves
from .volumes import Entropy

MOST_BYTES = 9_900_000
"""of the page, which people send by mail"""


def write_report(out: Path, entropy: Entropy | None = None) -> Path:
    """Write `out`/report.html from whatever records `out` holds and return its path.

    The page is self-contained and below 10 MB. A missing or damaged part is left out with a sentence that says so.
    `entropy` tells the uncertainty of out-of-fold cases.
    """
    out = Path(out)
    environment = Environment(
        loader=PackageLoader("autounet.report", ""),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    content = _content(gather(out), entropy)
    text = template.render(content)
    while len(text.encode()) > MOST_BYTES and _lighten(content):
        text = template.render(content)
    path = out / "report.html"
    write_text(path, text)
    return path


def _lighten(content: dict[str, Any]) -> bool:
    """Leave out one part of a page that is too large: cases of the viewer first, then pictures. False: none is left."""
    if content["viewer"]:
        content["viewer"] = content["viewer"][:-1]
        return True
    drawn = [one for one in content["shown"] if one.pictures]
    if drawn:
        drawn[-1].pictures, drawn[-1].uncertainties, drawn[-1].rivalries = [], [], []
        drawn[-1].problem = "the page would be larger than 10 MB"
    return bool(drawn)


def _content(found: Gathered, entropy: Entropy | None) -> dict[str, Any]:
    """Everything the template names."""
    name = found.dataset.name if found.dataset else found.out.resolve().name
    return {
        "name": name,
        "version": autounet.__version__,
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "problems": found.problems,
        "found": found,
        "facts": facts.data_facts(found),
        "data_charts": data_charts(found.fingerprint, found.dataset) if found.fingerprint else [],
        "labels": facts.labels_table(found),
        "findings": grouped(found.findings),
        "plan": run_tables.plan_table(found.plan.configurations, found.runs) if found.plan else None,
        "trainings": _trainings(found),
        "training_table": run_tables.training_table(found.runs) if found.runs else None,
        "selection": selection.candidates_table(found.selection) if found.selection else None,
        "postprocessing": selection.trials_table(found.selection) if found.selection else None,
        "calibration": selection.calibration_text(found.selection) if found.selection else "",
        "reliability": charts.reliability_diagram(found.selection.calibration if found.selection else None),
        "published": (published := compare_published(found)),
        "published_table": tables.published_table(published),
        "commands": facts.commands(found),
        "machine": facts.machine_facts(found),
        "files": {case: quote(path.as_posix()) for case, path in found.prediction_files.items()},
        **_results(found, entropy),
    }


def _trainings(found: Gathered) -> list[tuple[str, list[Picture]]]:
    """The charts of each configuration, and its memory."""
    groups = []
    for name, runs in groupby(found.runs, key=lambda run: run.configuration_name):
        own = list(runs)
        memory = memory_chart(found.plan.configurations[name], own) if found.plan else None
        groups.append((name, [*training_curves(own), *([memory] if memory else [])]))
    return groups


def _results(found: Gathered, entropy: Entropy | None) -> dict[str, Any]:
    """Tables, charts and pictures of the selected out-of-fold result; all empty without metrics."""
    labels = found.dataset.labels if found.dataset else None
    class_names = [label.name for label in labels.foreground] if labels else []
    content: dict[str, Any] = {
        "headline": [], "classes": None, "ranked": [], "cases": None, "distributions": [], "shown": [], "viewer": [],
        "numbers": [], "class_names": class_names, "measured": False,
    }  # fmt: skip
    if found.metrics is None:
        return content
    names = counted(labels, found.metrics)
    ranked = rank(found.metrics, names)
    by_name = list(found.metrics.per_class)
    pictures = pictured(found, ranked, names, entropy)
    has_regions = labels is not None and labels.regions
    return content | {
        "headline": [(name, found.metrics.per_class[name]) for name in (names if has_regions else by_name)],
        "classes": tables.class_table(found.metrics, names),
        "ranked": ranked,
        "cases": tables.case_table(ranked, by_name, _links(found, pictures.cases)),
        "distributions": _distributions(found, ranked, by_name),
        "shown": list(pictures.cases),
        "viewer": list(pictures.viewer),
        "numbers": _numbers(found),
        "measured": any(entry.metrics.uncertainty is not None for entry in ranked),
    }


def _distributions(found: Gathered, ranked: list[Ranked], names: list[str]) -> list[Picture]:
    assert found.metrics is not None
    if not ranked:
        return []
    drawn = [
        charts.ranked_dice(ranked, shown(ranked)),
        charts.dice_distribution(found.metrics, names),
        charts.fold_distribution(ranked),
    ]
    return [picture for picture in drawn if picture is not None]


def _links(found: Gathered, cases: Sequence[Shown]) -> dict[str, str]:
    """To a case's pictures on the page, else to its segmentation beside the page."""
    files = {case: quote(path.as_posix()) for case, path in found.prediction_files.items()}
    return files | {one.case: f"#{one.anchor}" for one in cases if one.problem is None}


def _numbers(found: Gathered) -> list[str]:
    """The classes in the order of the numbers written into the pictures of a volume."""
    if not found.dataset or not found.fingerprint or found.fingerprint.dimension == 2:
        return []
    names = [label.name for label in found.dataset.labels.foreground]
    return names if 1 < len(names) <= NUMBERED else []
