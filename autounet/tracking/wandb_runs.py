"""Runs in Weights & Biases; account, server and offline mode are its own settings (`wandb login`, WANDB_MODE)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from autounet.tracking.tracker import TrackedRun

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
