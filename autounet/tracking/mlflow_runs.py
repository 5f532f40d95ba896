"""Runs in MLflow; the server is its own setting (MLFLOW_TRACKING_URI), the experiment the name of the data set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from autounet.tracking.tracker import TrackedRun

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
