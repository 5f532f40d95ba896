"""The records of one output folder, as many as can be read: a damaged one becomes a sentence in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..imageio import output_suffix, suffix
from ..schema.dataset import Dataset, Finding, Splits
from ..schema.errors import RecordError
from ..schema.fingerprint import CheckResult, Fingerprint
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.options import RunOptions
from ..schema.plan import Plan
from ..schema.record import Record
from ..schema.run import DeviceProfile, RunRecord
from ..schema.selection import Selection

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class OutputRecords:
    """The records of one output folder; None or empty where there is none, or none that can be read."""

    out: Path
    dataset: Dataset | None = None
    splits: Splits | None = None
    fingerprint: Fingerprint | None = None
    plan: Plan | None = None
    selection: Selection | None = None
    metrics: Metrics | None = None
    options: RunOptions | None = None
    device: DeviceProfile | None = None
    runs: Sequence[RunRecord] = ()
    """finished trainings, by configuration, then fold"""
    findings: Sequence[Finding] = ()
    configuration_metrics: Mapping[str, Sequence[CaseMetrics]] = field(default_factory=dict)
    """configuration -> out-of-fold metrics of its cases"""
    problems: Sequence[str] = ()
    """a sentence for each record that exists and cannot be read"""

    @property
    def prediction_folder(self) -> Path | None:
        """Folder of the selected out-of-fold segmentations, postprocessed where that was selected."""
        if self.selection is None:
            return None
        folder = self.out / "crossval" / self.selection.folder
        return folder / "postprocessed" if self.selection.postprocessing else folder

    @property
    def prediction_files(self) -> dict[str, Path]:
        """case -> its selected out-of-fold segmentation, where that exists; paths relative to `out`."""
        folder = self.prediction_folder
        if folder is None or self.dataset is None:
            return {}
        files = {
            case.identifier: folder / (case.identifier + output_suffix(suffix(case.images[0])))
            for case in self.dataset.cases
        }
        return {case: path.relative_to(self.out) for case, path in files.items() if path.exists()}


def read_output_records(out: Path) -> OutputRecords:
    """Read all records below `out`."""
    problems: list[str] = []

    def load(kind: type[R], path: Path) -> R | None:
        if not path.exists():
            return None
        try:
            return kind.load(path)
        except RecordError as error:
            problems.append(str(error))
            return None

    def case_metrics(folder: Path) -> list[CaseMetrics]:
        """Of all folds of one configuration."""
        files = sorted(path for path in folder.glob("fold_*.json") if not path.stem.endswith(".done"))
        return [case for path in files if (metrics := load(Metrics, path)) for case in metrics.cases]

    plan = load(Plan, out / "plan.json")
    names = list(plan.configurations) if plan else []
    folds = [path for name in names for path in sorted((out / "models" / name).glob("fold_*"))]
    current = [path for path in folds if not path.suffix]  # fold_0.old_1 was moved aside
    runs = [run for path in current if (run := load(RunRecord, path / "record.json"))]
    check = load(CheckResult, out / "findings.json")
    return OutputRecords(
        out=out,
        dataset=load(Dataset, out / "dataset.json"),
        splits=load(Splits, out / "splits.json"),
        fingerprint=load(Fingerprint, out / "fingerprint.json"),
        plan=plan,
        selection=load(Selection, out / "selection.json"),
        metrics=load(Metrics, out / "metrics.json"),
        options=load(RunOptions, out / "options.json"),
        device=load(DeviceProfile, out / "device.json"),
        runs=sorted(runs, key=lambda run: (run.configuration_name, -1 if run.fold is None else run.fold)),
        findings=check.findings if check else (),
        configuration_metrics={name: cases for name in names if (cases := case_metrics(out / "crossval" / name))},
        problems=problems,
    )
