"""Assembles and writes report.html."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

import autounet

from ..figures import Picture
from ..schema.labels import Labels
from ..schema.option_table import run_command
from ..schema.quantities import format_size
from ..schema.record import utf8, write_text
from ..store.run_folder import RunFolder
from . import data_section, results_section, training_section
from .advice import find_advice
from .comparison import published_table
from .output_records import OutputRecords, read_output_records
from .overlays import MAX_NUMBERED
from .published import compare_published
from .shown_cases import ShownCase, best_median_worst, show_cases
from .volumes import EntropyReader

MAX_BYTES = 9_900_000
"""of the page, which people send by mail"""


def write_report(out: Path, entropy: EntropyReader | None = None) -> Path:
    """Write `out`/report.html from whatever records `out` holds and return its path.

    The page needs no other file and is below 10 MB. Instead of a missing or damaged part it has a sentence.
    `entropy` reads the uncertainty of out-of-fold cases.
    """
    out = Path(out)
    environment = Environment(
        loader=PackageLoader("autounet.report", ""),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["asdict"] = asdict
    template = environment.get_template("page.html.j2")
    content = _content(read_output_records(out), entropy)
    text = template.render(content)
    while len(utf8(text)) > MAX_BYTES and _drop_part(content):
        text = template.render(content)
    path = RunFolder(out).report
    write_text(path, text)
    return path


def _drop_part(content: dict[str, Any]) -> bool:
    """Leave out one part of a page that is too large: cases of the viewer first, then pictures. False: none is left."""
    if content["viewer"]:
        content["viewer"] = content["viewer"][:-1]
        return True
    last = max((place for place, shown in enumerate(content["shown"]) if shown.overlays), default=None)
    if last is None:
        return False
    content["shown"][last] = content["shown"][last].without_pictures("the page would be larger than 10 MB")
    return True


def _content(records: OutputRecords, entropy: EntropyReader | None) -> dict[str, Any]:
    """Everything that the template names."""
    dataset, fingerprint, plan, selection = records.dataset, records.fingerprint, records.plan, records.selection
    comparison = compare_published(dataset, fingerprint, records.metrics)
    calibration = selection.calibration if selection else None
    return {
        "name": dataset.name if dataset else records.out.resolve().name,
        "version": autounet.__version__,
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "records": records,
        "facts": data_section.data_facts(records),
        "data_charts": data_section.data_charts(fingerprint, dataset) if fingerprint else [],
        "labels": data_section.labels_table(dataset, fingerprint) if dataset else None,
        "findings": data_section.group_findings(records.findings),
        "plan": training_section.plan_table(plan.configurations, records.runs) if plan else None,
        "trainings": _trainings(records),
        "training_table": training_section.training_table(records.runs) if records.runs else None,
        "candidates": training_section.candidates_table(selection) if selection else None,
        "postprocessing": training_section.postprocessing_table(selection) if selection else None,
        "objects": training_section.objects_table(selection.objects) if selection and selection.objects else None,
        "calibration": training_section.calibration_text(calibration) if calibration else "",
        "reliability": training_section.reliability_diagram(calibration) if calibration else None,
        "published": comparison,
        "published_table": published_table(comparison),
        "left_behind": results_section.left_behind_text(records.metrics, records.runs),
        "advice": find_advice(records),
        "commands": _commands(records),
        "machine": _machine_facts(records),
        **_results(records, entropy),
    }


def _trainings(records: OutputRecords) -> list[tuple[str, list[Picture]]]:
    """(configuration, its charts)."""
    plan = records.plan.configurations if records.plan else {}
    return [
        (name, training_section.training_charts(plan.get(name), list(runs)))
        for name, runs in groupby(records.runs, key=lambda run: run.configuration_name)
    ]


def _results(records: OutputRecords, entropy: EntropyReader | None) -> dict[str, Any]:
    """Tables, charts and pictures of the selected out-of-fold result; all empty without metrics."""
    metrics, labels = records.metrics, records.dataset.labels if records.dataset else None
    class_names = _shown_classes(labels) if labels else []
    files = {case: quote(os.fsencode(path.as_posix())) for case, path in records.prediction_files.items()}
    content: dict[str, Any] = {"class_names": class_names, "numbers": _numbered_classes(records), "files": files}
    if metrics is None:
        return content | {
            "headline": [], "classes": None, "cases": None, "result_charts": [], "shown": [], "viewer": [],
            "measured": False,
        }  # fmt: skip
    counted = results_section.counted_names(labels, metrics)
    ranked = results_section.rank_cases(metrics, counted)
    shown, viewer = show_cases(records, ranked, counted, entropy)
    headline = counted if labels is not None and labels.regions else list(metrics.per_class)
    return content | {
        "headline": [(name, metrics.per_class[name]) for name in headline],
        "classes": results_section.class_table(metrics, counted),
        "cases": results_section.case_table(ranked, list(metrics.per_class), files | _anchors(shown)),
        "result_charts": results_section.result_charts(metrics, ranked, best_median_worst(ranked)),
        "shown": shown,
        "viewer": viewer,
        "measured": any(entry.metrics.uncertainty is not None for entry in ranked),
    }


def _anchors(shown: Sequence[ShownCase]) -> dict[str, str]:
    """case -> address of its pictures on the page."""
    return {one.case: f"#{one.anchor}" for one in shown if one.problem is None}


def _shown_classes(labels: Labels) -> list[str]:
    """What the pictures show: of objects that are told apart not their depths."""
    return [label.name for label in labels.foreground] if labels.objects is None else [labels.objects]


def _numbered_classes(records: OutputRecords) -> list[str]:
    """The classes in the order of the numbers that are written into the pictures of a volume."""
    if not records.dataset or not records.fingerprint or records.fingerprint.dimension == 2:
        return []
    names = _shown_classes(records.dataset.labels)
    return names if 1 < len(names) <= MAX_NUMBERED else []


def _commands(records: OutputRecords) -> list[str]:
    """Command lines that repeat the run and that predict with its model."""
    root = records.dataset.root if records.dataset else "DATA"
    commands = [run_command(root, str(records.out), records.options)] if records.options else []
    model = RunFolder(records.out).bundle
    return [*commands, *([f"autounet predict {model} NEW_IMAGES --out SEGMENTATIONS"] if model.exists() else [])]


def _machine_facts(records: OutputRecords) -> list[tuple[str, str]]:
    """Pairs of name and value: machine, versions, seeds, digests of the plan."""
    facts: list[tuple[str, str]] = []
    if device := records.device:
        cores = "" if "cores" in device.name else f", {device.cores} cores"  # a CPU's name has them
        facts.append(("machine", f"{device.name} ({device.device}){cores}"))
        facts.append(("memory available for training", format_size(device.memory_bytes)))
    if records.runs:
        facts += sorted(records.runs[-1].versions.items())
        facts.append(("seed", ", ".join(dict.fromkeys(str(run.options.seed) for run in records.runs))))
    else:
        facts += [("autounet", autounet.__version__), ("python", platform.python_version())]
    if plan := records.plan:
        facts.append(("digest of the fingerprint", plan.fingerprint))
        facts += [(f"digest of {name}", item.digest()) for name, item in plan.configurations.items()]
    return facts
