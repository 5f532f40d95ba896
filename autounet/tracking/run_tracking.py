"""What of a run is sent to a tracker: curves and Dice of each fold, the plan, the results and the report."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from ..schema.errors import RecordError
from ..schema.metrics import METRIC_NAMES, Metrics
from ..schema.options import RunOptions, TrainOptions
from ..schema.plan import Plan, TrainedConfiguration
from ..schema.record import Record, digest
from ..schema.run import EpochLog
from ..store.run_folder import RunFolder
from .services import TrackedRun, Tracker, open_tracker

NO_TRACKER = "none"
"""value of `--track` that ends the tracking of an earlier command"""
FOLDER = "tracking"
RESULTS = "results"
"""name of the run that concerns no single fold"""


class TrackingRecord(Record):
    """`tracking/folder.json`."""

    identity: str
    """random, made once per output folder: runs of the same data in another folder are other runs"""


class RunTracker:
    """Sends the runs of one output folder to a tracker; without one every call does nothing."""

    def __init__(self, tracker: Tracker | None, out: Path) -> None:
        self.tracker, self.out = tracker, out
        self.group = out.resolve().name
        self.identity = "" if tracker is None else _identity(out / FOLDER / "folder.json")

    def begin(
        self, name: str, fold: str, key: str, configuration: TrainedConfiguration, options: TrainOptions
    ) -> TrackedRun:
        """Open the run of a fold's training and send its settings; `key` is the key of its job."""
        run = self.run(f"{name} {fold}", key)
        if self.tracker is not None:
            content: dict[str, JsonValue] = {
                "name": name,
                "fold": fold,
                "configuration": configuration.model_dump(mode="json"),
                "training": options.model_dump(mode="json"),
            }
            self.tracker.describe(run, content)
        return run

    def run(self, name: str, key: str) -> TrackedRun:
        return TrackedRun(name, digest([self.identity, name, key]), self.group)

    def line(self, run: TrackedRun, line: EpochLog) -> None:
        """Send a line of the training log."""
        if self.tracker is not None:
            self.tracker.scalars(run, line_values(line), line.step)

    def fold(self, run: TrackedRun, metrics: Metrics, step: int) -> None:
        """Send the metrics of a fold's validation images at `step`, the last one of its training."""
        if self.tracker is not None:
            self.tracker.scalars(run, metric_values(metrics), step)

    def finish(self, plan: Plan, report: Path | None) -> None:
        """Send the plan, the content of metrics.json and the report."""
        if self.tracker is None:
            return
        run, metrics = self.run(RESULTS, ""), RunFolder(self.out).metrics
        self.tracker.describe(run, {"plan": plan.model_dump(mode="json")})
        if metrics.exists():
            self.tracker.scalars(run, metric_values(Metrics.load(metrics)), 0)
        if report is not None:
            self.tracker.file(run, report)


@contextmanager
def track_run(options: RunOptions, out: Path, project: str) -> Iterator[RunTracker]:
    """Tracker for the time of a command. Raises OptionError where the library of the service is not installed."""
    if options.track in (None, NO_TRACKER):
        yield RunTracker(None, out)
        return
    tracker = open_tracker(str(options.track), out / FOLDER, project)
    try:
        yield RunTracker(tracker, out)
    finally:
        tracker.close()


def line_values(line: EpochLog) -> dict[str, float]:
    """Values of a line of the training log under the names that the services show."""
    values = {
        "loss": line.loss,
        "learning rate": line.learning_rate,
        "seconds a step": line.step_seconds,
        "share of time waiting for data": line.data_wait_seconds / line.step_seconds if line.step_seconds else 0.0,
    }
    if line.peak_memory_bytes is not None:
        values["peak memory GB"] = line.peak_memory_bytes / 1024**3
    return values | {f"patch Dice/{name}": value for name, value in (line.validation_dice or {}).items()}


def metric_values(metrics: Metrics) -> dict[str, float]:
    """Mean Dice and every defined metric of every class, named for example `dice/liver`."""
    values = {
        f"{metric}/{name}": value
        for name, entry in metrics.per_class.items()
        for metric in (*METRIC_NAMES, *entry.plugins)
        if (value := entry.value(metric)) is not None
    }
    return values if metrics.mean_dice is None else {"mean Dice": metrics.mean_dice, **values}


def _identity(file: Path) -> str:
    """Identity of an output folder, stored at the first call."""
    try:
        return TrackingRecord.load(file).identity
    except RecordError:
        file.parent.mkdir(parents=True, exist_ok=True)
        record = TrackingRecord(identity=uuid.uuid4().hex)
        record.save(file)
        return record.identity
