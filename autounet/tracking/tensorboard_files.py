"""Event files for TensorBoard in `OUT/tracking/`: `tensorboard --logdir OUT/tracking`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from autounet.tracking.tracker import TrackedRun

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
