"""What of a run goes to a tracker: curves of each fold, Dice per fold, the plan, the results and the report."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from ..schema.errors import RecordError
from ..schema.metrics import ClassMetrics, Metrics
from ..schema.options import RunOptions, TrainOptions
from ..schema.plan import Configuration, Plan
from ..schema.record import Record, digest
from ..schema.run import EpochLog
from ..tracking import TrackedRun, Tracker, open_tracker

NO_TRACKER = "none"
"""takes back the tracker of an earlier command"""
FOLDER = "tracking"
RESULTS = "results"
"""name of the run with what concerns no single fold"""


class TrackingRecord(Record):
    """`tracking/folder.json`."""

    identity: str
    """drawn once: a copy of the data in another output folder is another group of runs"""


class Tracked:
    """The runs of one output folder; without a tracker nothing is done."""

    def __init__(self, tracker: Tracker | None, out: Path) -> None:
        self.tracker, self.out = tracker, out
        self.group = out.resolve().name
        self.identity = "" if tracker is None else _identity(out / FOLDER / "folder.json")

    def begin(self, name: str, fold: str, key: str, configuration: Configuration, options: TrainOptions) -> TrackedRun:
        """The training of a fold; `key` is that of its job."""
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
        if self.tracker is not None:
            self.tracker.scalars(run, line_values(line), line.step)

    def fold(self, run: TrackedRun, metrics: Metrics, step: int) -> None:
        """The validation of a fold on whole images, at the step that its training ended with."""
        if self.tracker is not None:
            self.tracker.scalars(run, metric_values(metrics), step)

    def finish(self, plan: Plan, report: Path | None) -> None:
        """The plan, what metrics.json holds, and the report."""
        if self.tracker is None:
            return
        run, metrics = self.run(RESULTS, ""), self.out / "metrics.json"
        self.tracker.describe(run, {"plan": plan.model_dump(mode="json")})
        if metrics.exists():
            self.tracker.scalars(run, metric_values(Metrics.load(metrics)), 0)
        if report is not None:
            self.tracker.file(run, report)


@contextmanager
def tracking(options: RunOptions, out: Path, project: str) -> Iterator[Tracked]:
    """For the time of a command. Raises OptionError where the tracker's library is not installed."""
    if options.track in (None, NO_TRACKER):
        yield Tracked(None, out)
        return
    tracker = open_tracker(str(options.track), out / FOLDER, project)
    try:
        yield Tracked(tracker, out)
    finally:
        tracker.close()


def line_values(line: EpochLog) -> dict[str, float]:
    """By the names that the services show."""
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
    """The mean Dice, and every metric of every class where it is defined: `dice/liver`."""
    values = {
        f"{metric}/{name}": value
        for name, entry in metrics.per_class.items()
        for metric in ClassMetrics.model_fields
        if isinstance(value := getattr(entry, metric), float)
    }
    return values if metrics.mean_dice is None else {"mean Dice": metrics.mean_dice, **values}


def _identity(file: Path) -> str:
    try:
        return TrackingRecord.load(file).identity
    except RecordError:
        file.parent.mkdir(parents=True, exist_ok=True)
        record = TrackingRecord(identity=uuid.uuid4().hex)
        record.save(file)
        return record.identity
