"""Gathers whatever records an output folder holds; what is absent or damaged becomes a sentence, not an error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ..imageio import output_suffix, suffix
from ..schema.dataset import Dataset, Finding, Splits
from ..schema.errors import RecordError
from ..schema.fingerprint import Fingerprint
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.options import RunOptions
from ..schema.plan import Plan
from ..schema.record import Record
from ..schema.run import DeviceProfile, RunRecord
from ..schema.selection import Selection
from ..store.run_folder import RunFolder

R = TypeVar("R", bound=Record)


@dataclass
class Gathered:
    """The records of one output folder; None or empty where there is none."""

    out: Path
    dataset: Dataset | None = None
    splits: Splits | None = None
    fingerprint: Fingerprint | None = None
    plan: Plan | None = None
    selection: Selection | None = None
    metrics: Metrics | None = None
    options: RunOptions | None = None
    device: DeviceProfile | None = None
    runs: list[RunRecord] = field(default_factory=list)
    """by configuration, then fold"""
    findings: list[Finding] = field(default_factory=list)
    singles: dict[str, list[CaseMetrics]] = field(default_factory=dict)
    """out-of-fold metrics of each validated configuration by itself"""
    problems: list[str] = field(default_factory=list)
    """records that exist and cannot be read, a sentence each"""

    @property
    def prediction_files(self) -> dict[str, Path]:
        """case -> its selected out-of-fold segmentation, where there is one; paths relative to `out`."""
        folder = self.predictions
        if folder is None or self.dataset is None:
            return {}
        names = {
            case.identifier: folder / (case.identifier + output_suffix(suffix(case.images[0])))
            for case in self.dataset.cases
        }
        return {case: path.relative_to(self.out) for case, path in names.items() if path.exists()}

    @property
    def predictions(self) -> Path | None:
        """The folder with the selected out-of-fold segmentations, postprocessed where that was selected."""
        if self.selection is None:
            return None
        folder = RunFolder(self.out).selected(self.selection)
        return folder.postprocessed if self.selection.postprocessing else folder.path


def gather(out: Path) -> Gathered:
    """Read all records below `out`."""
    found, folder = Gathered(out=out), RunFolder(out)
    found.dataset = _load(found, Dataset, folder.dataset)
    found.splits = _load(found, Splits, folder.splits)
    found.fingerprint = _load(found, Fingerprint, folder.fingerprint)
    found.plan = _load(found, Plan, folder.plan)
    found.selection = _load(found, Selection, folder.selection)
    found.metrics = _load(found, Metrics, folder.metrics)
    found.options = _load(found, RunOptions, folder.options)
    found.device = _load(found, DeviceProfile, folder.device)
    planned = found.plan.configurations if found.plan else {}
    loaded = [_load(found, RunRecord, fold.record) for name in planned for fold in folder.folds(name)]
    runs = [run for run in loaded if run is not None]
    found.runs = sorted(runs, key=lambda run: (run.configuration_name, -1 if run.fold is None else run.fold))
    found.singles = {name: cases for name in planned if (cases := _validated(found, folder.crossval(name).path))}
    found.findings = _findings(found, folder.findings)
    return found


def _load(found: Gathered, kind: type[R], path: Path) -> R | None:
    if not path.exists():
        return None
    try:
        return kind.load(path)
    except RecordError as error:
        found.problems.append(str(error))
        return None


def _validated(found: Gathered, folder: Path) -> list[CaseMetrics]:
    """Of the folds of one configuration."""
    files = sorted(path for path in folder.glob("fold_*.json") if not path.stem.endswith(".done"))
    loaded = [_load(found, Metrics, path) for path in files]
    return [case for metrics in loaded if metrics is not None for case in metrics.cases]


def _findings(found: Gathered, path: Path) -> list[Finding]:
    """A list of findings, or an object with the key `findings` as `autounet check --json` writes it."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["findings"] if isinstance(content, dict) else content
        return [Finding.model_validate(entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        found.problems.append(f"{path} is not a list of findings: {error}")
        return []
