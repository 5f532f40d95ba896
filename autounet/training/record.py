"""The record of a finished training, which is also the mark that it is finished."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np
import torch

import autounet

from ..schema.errors import AutoUNetError, RecordError
from ..schema.run import EpochLog, RunRecord
from .memory import peak_memory
from .state import TrainState
from .task import FoldTask


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


def finished_record(task: FoldTask) -> RunRecord | None:
    """The record of an earlier, complete training of the same thing, or None.

    Raises AutoUNetError when the folder holds a complete training of something else, or one whose record cannot be
    read: weights are never overwritten. The pipeline moves such folders aside before it trains.
    """
    path = task.folder / "record.json"
    if not (path.exists() and (task.folder / "weights.safetensors").exists()):
        return None
    try:
        record = RunRecord.load(path)
    except RecordError as error:
        raise AutoUNetError(f"{task.folder} holds a training that cannot be told apart: {error}. Rename it") from None
    same = (
        record.configuration == task.configuration.key
        and record.options == task.options
        and record.train_cases == task.train_cases
    )
    if not same:
        raise AutoUNetError(
            f"{task.folder} holds a finished training with another configuration, options or cases. Rename it"
        )
    return record
