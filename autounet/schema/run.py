"""What a training was: its log and its record."""

from __future__ import annotations

from autounet.schema.options import TrainOptions
from autounet.schema.record import Part, Record


def fold_name(fold: int | None) -> str:
    """Name of a fold's folder; None is the training on all cases."""
    return "fold_all" if fold is None else f"fold_{fold}"


class EpochLog(Part):
    """One line of log.jsonl."""

    step: int
    progress: float
    """0..1"""
    seconds: float
    """training time so far"""
    learning_rate: float
    loss: float
    validation_dice: dict[str, float] | None = None
    """pseudo Dice over validation patches, when measured"""
    step_seconds: float
    """mean since the line before"""
    data_wait_seconds: float
    """of a step, in which it waited for its batch"""
    peak_memory_bytes: int | None = None
    """so far: allocated on a GPU, resident on a CPU; None where nobody counts"""


class RunRecord(Record):
    """`record.json` of one fold."""

    configuration_name: str
    configuration: str
    """digest of the configuration it was trained with"""
    fold: int | None
    """None: trained on all cases"""
    options: TrainOptions
    train_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    device: str
    steps: int
    seconds: float
    curve: tuple[EpochLog, ...]
    parameters: int
    peak_memory_bytes: int | None
    versions: dict[str, str]
    events: tuple[str, ...] = ()
