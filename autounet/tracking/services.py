"""TensorBoard, Weights & Biases and MLflow behind one interface, in a thread that no training waits for.

Each service is one class that fulfils `Tracker`, and one entry in `TRACKERS`; nothing else knows its library.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from pydantic import JsonValue

from ..schema.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """One line in the service's list of runs: the training of one fold, or the results of an output folder."""

    name: str
    """for people: 3d_fullres fold_0"""
    identity: str
    """letters and digits; the same when a training continues, another one when it starts again"""
    group: str
    """common to all runs of one output folder"""


class Tracker(Protocol):
    """Interface to a service. Every call names its run, which the first call opens or reopens; calls may raise."""

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        """Send the settings of the run: its plan and options."""

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        """Send numbers by name at a training step."""

    def file(self, run: TrackedRun, path: Path) -> None:
        """Send a file, such as the report."""

    def close(self) -> None:
        """Finish after the last call."""


class TensorBoard:
    """Event files, one folder per run, for `tensorboard --logdir OUT/tracking`. `project` is not used."""

    def __init__(self, folder: Path, project: str) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # a block of code in Markdown
        self._writer(run).add_text("config", indented)
        self._writer(run).flush()

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        writer = self._writer(run)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # so that it is seen while the training runs

    def file(self, run: TrackedRun, path: Path) -> None:
        """TensorBoard stores no files, so the path is sent as a text."""
        self._writer(run).add_text(path.name, str(path.resolve()))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, run: TrackedRun) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        if run.identity not in self._writers:
            folder = self.folder / f"{run.name.replace(' ', '_')}_{run.identity[:6]}"
            self._writers[run.identity] = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
        return self._writers[run.identity]


WANDB_STEP: Final = "training step"
"""our own x axis: W&B drops values at an earlier step than the last one, as a resumed training sends them"""


class WeightsAndBiases:
    """One run is open at a time."""

    def __init__(self, folder: Path, project: str) -> None:
        import wandb

        self.wandb, self.folder, self.project = wandb, folder, project
        self._open: tuple[TrackedRun, Any] | None = None

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        self._opened(run).config.update(dict(content), allow_val_change=True)

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        self._opened(run).log({WANDB_STEP: step, **values})

    def file(self, run: TrackedRun, path: Path) -> None:
        opened = self._opened(run)
        opened.save(str(path), base_path=str(path.parent), policy="now")
        if path.suffix == ".html":
            opened.log({path.stem: self.wandb.Html(path.read_text(encoding="utf-8"))})

    def close(self) -> None:
        if self._open is not None:
            self._open[1].finish()
            self._open = None

    def _opened(self, run: TrackedRun) -> Any:
        if self._open is not None and self._open[0] == run:
            return self._open[1]
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        opened = self.wandb.init(
            project=self.project, group=run.group, name=run.name, id=run.identity, resume="allow", dir=str(self.folder)
        )
        opened.define_metric("*", step_metric=WANDB_STEP)
        self._open = run, opened
        return opened


IDENTITY_TAG, GROUP_TAG = "autounet.identity", "autounet.group"
"""MLflow tags by which a run is found again"""


class MLflow:
    """Through the client, which has no open run and may be used from any thread."""

    def __init__(self, folder: Path, project: str) -> None:
        """MLflow chooses where to write, so `folder` is not used."""
        import mlflow
        from mlflow.entities import Metric

        self.client, self._metric = mlflow.MlflowClient(), Metric
        known = self.client.get_experiment_by_name(project)
        self.experiment = known.experiment_id if known else self.client.create_experiment(project)
        self._runs: dict[str, str] = {}

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        """As a file: parameters of MLflow are short texts, which a plan is not."""
        self.client.log_dict(self._run_id(run), dict(content), "config.json")

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_mlflow_name(name), value, now, step) for name, value in values.items()]
        self.client.log_batch(self._run_id(run), metrics=metrics)

    def file(self, run: TrackedRun, path: Path) -> None:
        self.client.log_artifact(self._run_id(run), str(path))

    def close(self) -> None:
        for identifier in self._runs.values():
            self.client.set_terminated(identifier)

    def _run_id(self, run: TrackedRun) -> str:
        if run.identity not in self._runs:
            same_identity = f"tags.`{IDENTITY_TAG}` = '{run.identity}'"
            known = self.client.search_runs([self.experiment], filter_string=same_identity, max_results=1)
            tags = {IDENTITY_TAG: run.identity, GROUP_TAG: run.group}
            opened = known[0] if known else self.client.create_run(self.experiment, tags=tags, run_name=run.name)
            self._runs[run.identity] = opened.info.run_id
        return self._runs[run.identity]


def _mlflow_name(name: str) -> str:
    """Metric names of MLflow hold ASCII letters, digits and few other characters."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-./ ") else "_" for letter in name)


TRACKERS: Final[dict[str, Callable[[Path, str], Tracker]]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
"""value of `--track`, which is also the library's name -> its class, called with a folder to write to and a project"""
MAX_QUEUED: Final = 10_000
"""calls that a slow server may lag behind; later ones are dropped"""
CLOSING_SECONDS: Final = 20.0
"""that the end of a command waits for the last calls"""


class BackgroundTracker:
    """A `Tracker` whose calls return at once and never raise. The first failure is logged and ends the tracking."""

    def __init__(self, name: str, open_service: Callable[[], Tracker]) -> None:
        self.name, self._open_service = name, open_service
        self._queue: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MAX_QUEUED)
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        self._put(lambda tracker: tracker.describe(run, content))

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        self._put(lambda tracker: tracker.scalars(run, values, step))

    def file(self, run: TrackedRun, path: Path) -> None:
        self._put(lambda tracker: tracker.file(run, path))

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Wait until all is sent, for `seconds` at most."""
        self._put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(f"it did not answer within {seconds:g} s")

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        if self._failed.is_set():
            return
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._fail(f"{MAX_QUEUED} calls are still to be sent")

    def _work(self) -> None:
        try:
            tracker = self._open_service()
            while not self._failed.is_set() and (call := self._queue.get()) is not None:
                call(tracker)
            tracker.close()
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")
        except SystemExit as error:  # a library that exits must not end the thread silently
            self._fail(f"it ended with {error.code}")

    def _fail(self, reason: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            log.warning("--track %s failed, the run continues without it (%s)", self.name, reason)


def require_tracker(name: str) -> None:
    """Raises OptionError for an unknown service, and for one whose library is not installed."""
    if name not in TRACKERS:
        raise unknown_name("--track", name, TRACKERS, ", or none")
    library = find_spec(name)
    if library is None or library.origin is None:  # a folder of that name, which wandb creates, is no library
        raise OptionError(f"--track {name} needs the package {name}", "Install it: pip install 'autounet[track]'")


def open_tracker(name: str, folder: Path, project: str) -> BackgroundTracker:
    """A tracker that writes below `folder`. Raises OptionError as `require_tracker` does."""
    require_tracker(name)
    return BackgroundTracker(name, lambda: TRACKERS[name](folder, project))
