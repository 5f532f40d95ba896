"""Event files for TensorBoard in `OUT/tracking/`: `tensorboard --logdir OUT/tracking`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from .tracker import TrackedRun

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """A folder a run. There is no server, so `project` is not used."""

    def __init__(self, folder: Path, project: str) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # a block of code in Markdown
        self._write(run).add_text("config", indented)
        self._write(run).flush()

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        writer = self._write(run)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # so that it is seen while the training runs

    def file(self, run: TrackedRun, path: Path) -> None:
        """TensorBoard keeps no files: it is told where the file lies."""
        self._write(run).add_text(path.name, str(path.resolve()))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _write(self, run: TrackedRun) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        if run.identity not in self._writers:
            folder = self.folder / f"{run.name.replace(' ', '_')}_{run.identity[:6]}"
            self._writers[run.identity] = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
        return self._writers[run.identity]


STEP = "training step"
"""an axis of our own: W&B drops what is logged at an earlier step than before, as a resumed training does"""


class WeightsAndBiases:
    """One run is open at a time."""

    def __init__(self, folder: Path, project: str) -> None:
        import wandb

        self.wandb, self.folder, self.project = wandb, folder, project
        self._open: tuple[TrackedRun, Any] | None = None

    def describe(self, run: TrackedRun, content: Mapping[str, JsonValue]) -> None:
        self._run(run).config.update(dict(content), allow_val_change=True)

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        self._run(run).log({STEP: step, **values})

    def file(self, run: TrackedRun, path: Path) -> None:
        opened = self._run(run)
        opened.save(str(path), base_path=str(path.parent), policy="now")
        if path.suffix == ".html":
            opened.log({path.stem: self.wandb.Html(path.read_text(encoding="utf-8"))})

    def close(self) -> None:
        if self._open is not None:
            self._open[1].finish()
            self._open = None

    def _run(self, run: TrackedRun) -> Any:
        if self._open is not None and self._open[0] == run:
            return self._open[1]
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        opened = self.wandb.init(
            project=self.project, group=run.group, name=run.name, id=run.identity, resume="allow", dir=str(self.folder)
        )
        opened.define_metric("*", step_metric=STEP)
        self._open = run, opened
        return opened


IDENTITY, GROUP = "autounet.identity", "autounet.group"
"""tags by which a run is found again"""


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
        """As a file: parameters of MLflow are short texts, and a plan is not."""
        self.client.log_dict(self._run(run), dict(content), "config.json")

    def scalars(self, run: TrackedRun, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_key(name), value, now, step) for name, value in values.items()]
        self.client.log_batch(self._run(run), metrics=metrics)

    def file(self, run: TrackedRun, path: Path) -> None:
        self.client.log_artifact(self._run(run), str(path))

    def close(self) -> None:
        for identifier in self._runs.values():
            self.client.set_terminated(identifier)

    def _run(self, run: TrackedRun) -> Any:
        if run.identity not in self._runs:
            tagged = f"tags.`{IDENTITY}` = '{run.identity}'"
            known = self.client.search_runs([self.experiment], filter_string=tagged, max_results=1)
            tags = {IDENTITY: run.identity, GROUP: run.group}
            found = known[0] if known else self.client.create_run(self.experiment, tags=tags, run_name=run.name)
            self._runs[run.identity] = found.info.run_id
        return self._runs[run.identity]


def _key(name: str) -> str:
    """MLflow's names of metrics hold letters, digits, and few other characters."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-./ ") else "_" for letter in name)
