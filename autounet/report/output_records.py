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
from ..store.run_folder import RunFolder

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
        folder = RunFolder(self.out).selected(self.selection)
        if self.selection.objects is not None:
            return folder.objects
        return folder.postprocessed if self.selection.postprocessing else folder.path

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
    folder, problems = RunFolder(out), list[str]()

    def load(kind: type[R], path: Path) -> R | None:
        if not path.exists():
            return None
        try:
            return kind.load(path)
        except RecordError as error:
            problems.append(str(error))
            return None

    def case_metrics(name: str) -> list[CaseMetrics]:
        """Of all folds of one configuration."""
        files = folder.crossval(name).fold_metrics()
        return [case for path in files if (metrics := load(Metrics, path)) for case in metrics.cases]

    plan = load(Plan, folder.plan)
    names = list(plan.configurations) if plan else []
    runs = [run for name in names for fold in folder.folds(name) if (run := load(RunRecord, fold.record))]
    check = load(CheckResult, folder.findings)
    return OutputRecords(
        out=out,
        dataset=load(Dataset, folder.dataset),
        splits=load(Splits, folder.splits),
        fingerprint=load(Fingerprint, folder.fingerprint),
        plan=plan,
        selection=load(Selection, folder.selection),
        metrics=load(Metrics, folder.metrics),
        options=load(RunOptions, folder.options),
        device=load(DeviceProfile, folder.device),
        runs=sorted(runs, key=lambda run: (run.configuration_name, -1 if run.fold is None else run.fold)),
        findings=check.findings if check else (),
        configuration_metrics={name: cases for name in names if (cases := case_metrics(name))},
        problems=problems,
    )
