"""What an output folder tells about a run, read from its files alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from autounet.running.deadline import Clock
from autounet.running.recipes import is_every_fold, parse_folds, trained_folds, trained_names
from autounet.schema.dataset import Splits
from autounet.schema.errors import OptionError, RecordError
from autounet.schema.options import RunOptions
from autounet.schema.plan import Plan
from autounet.schema.quantities import format_time
from autounet.schema.run import CheckResult, Metrics, fold_name

RUNNING_SECONDS = 120.0
"""a fold whose log or checkpoint changed within this time counts as running"""


def read_status(out: Path) -> dict[str, Any]:
    """Stages done, state of each fold, seconds left, and the same as lines of text. Raises OptionError."""
    out = Path(out)
    if not any((out / name).exists() for name in ("options.json", "findings.json", ".lock")):
        raise OptionError(f"{out} is not an output folder of autounet. Give the --out of a run")
    files = {
        "fingerprint": "fingerprint.json",
        "plan": "plan.json",
        "select": "selection.json",
        "report": "report.html",
    }
    stages = {stage: (out / file).exists() for stage, file in files.items()}
    stages["preprocess"] = any((out / "prepared").glob("*.done.json"))
    folds = _folds(out)
    stages["train"] = bool(folds) and all(fold["state"] == "done" for fold in folds)
    found: dict[str, Any] = {"stages": stages, "folds": folds, "mean_dice": None, "seconds_left": None}
    if (out / "metrics.json").exists():
        found["mean_dice"] = Metrics.load(out / "metrics.json").mean_dice
    found["seconds_left"] = 0.0 if stages["report"] and stages["train"] else _seconds_left(out)
    found["findings"] = _findings(out)
    found["lines"] = _lines(found)
    return found


def _findings(out: Path) -> int | None:
    """Warnings of the check; None before it, and while there are fatal ones, with which nothing is written."""
    try:
        return len(CheckResult.load(out / "findings.json").findings)
    except RecordError:
        return None


def _folds(out: Path) -> list[dict[str, Any]]:
    try:
        plan, splits, options = (
            Plan.load(out / "plan.json"),
            Splits.load(out / "splits.json"),
            RunOptions.load(out / "options.json"),
        )
    except RecordError:
        return []
    limited = (out / "clock.json").exists() or options.seconds is not None
    count = len(splits.folds)
    folds = parse_folds(options.folds, count)
    trained = [name for name in plan.configurations if (out / "models" / name).exists()]
    trained = trained or list(trained_names(plan, options, limited, is_every_fold(folds, count)))
    configurations = {name: plan.configurations[name] for name in trained}
    return [
        {"configuration": name, "fold": "all" if fold is None else fold, **_fold(out, name, fold)}
        for name in trained
        for fold in trained_folds(name, configurations, folds, count)
    ]


def _fold(out: Path, name: str, fold: int | None) -> dict[str, Any]:
    folder = out / "models" / name / fold_name(fold)
    metrics = out / "crossval" / name / f"fold_{fold}.json"
    state: dict[str, Any] = {"state": "waiting", "progress": 0.0, "dice": None}
    if (folder / "done.json").exists():
        state.update(state="done", progress=1.0)
    elif (folder / "started.json").exists():
        last = _last_line(folder / "log.jsonl")
        touched = max(file.stat().st_mtime for file in folder.iterdir())
        running = time.time() - touched < RUNNING_SECONDS
        state.update(state="running" if running else "interrupted", progress=float(last.get("progress", 0.0)))
    if metrics.exists():
        state["dice"] = Metrics.load(metrics).mean_dice
    return state


def _last_line(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}


def _seconds_left(out: Path) -> float | None:
    """What is left of the promised time; None without a promise."""
    try:
        clock = Clock.load(out / "clock.json")
    except RecordError:
        return None
    return None if clock.promised_seconds is None else max(0.0, clock.promised_seconds - clock.spent_seconds)


def _lines(found: dict[str, Any]) -> list[str]:
    order = ("fingerprint", "plan", "preprocess", "train", "select", "report")
    lines = [f"{stage}: {'done' if found['stages'][stage] else 'not done'}" for stage in order]
    if found["findings"]:
        lines.append(f"warnings about the data: {found['findings']} (findings.json, and in the report)")
    for fold in found["folds"]:
        dice = "" if fold["dice"] is None else f", mean Dice {fold['dice']:.4f}"
        lines.append(f"{fold['configuration']} fold {fold['fold']}: {fold['state']}, {fold['progress']:.0%}{dice}")
    if found["mean_dice"] is not None:
        lines.append(f"mean Dice: {found['mean_dice']:.4f}")
    if found["seconds_left"]:
        lines.append(f"time left of the promise: {format_time(found['seconds_left'])}")
    return lines
