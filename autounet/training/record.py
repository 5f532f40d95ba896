"""The record of a finished training, which is also the mark that it is finished."""

from __future__ import annotations

import platform
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import autounet
from autounet.schema.errors import RecordError
from autounet.schema.run import EpochLog, RunRecord
from autounet.training.state import TrainState
from autounet.training.task import FoldTask


def run_record(task: FoldTask, state: TrainState, curve: Sequence[EpochLog], events: Sequence[str]) -> RunRecord:
    return RunRecord(
        configuration_name=task.configuration_name,
        configuration=task.configuration.key,
        fold=task.fold,
        options=task.options,
        train_cases=task.train_cases,
        validation_cases=task.validation_cases,
        device=task.device,
        steps=state.step,
        seconds=state.elapsed,
        curve=tuple(curve),
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        peak_memory_bytes=peak_memory(torch.device(task.device)),
        versions={
            "autounet": autounet.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        events=tuple(events),
    )


def peak_memory(device: torch.device) -> int | None:
    """Bytes at most allocated on a GPU, or resident on a CPU, since this process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return None


def finished_record(task: FoldTask) -> RunRecord | None:
    """The record of an earlier, complete training of the same thing, or None."""
    try:
        record = RunRecord.load(task.folder / "record.json")
    except RecordError:
        return None
    same = (
        record.configuration == task.configuration.key
        and record.options == task.options
        and record.train_cases == task.train_cases
    )
    return record if same and (task.folder / "weights.safetensors").exists() else None


def move_aside(folder: Path) -> Path | None:
    """A finished training of something else is kept under a new name, never deleted. Returns where it went."""
    if not (folder / "record.json").exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.replaced_{number}")).exists():
        number += 1
    return folder.rename(target)
