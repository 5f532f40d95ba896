"""What one training is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autounet.schema.labels import Labels
from autounet.schema.options import TrainOptions
from autounet.schema.plan import Configuration
from autounet.schema.presence import Presence
from autounet.schema.record import digest
from autounet.training.schedule import Horizon
from autounet.training.start import Start


@dataclass(frozen=True)
class FoldTask:
    """One configuration on one fold. `fold` None: all cases are for training.

    Raises ValueError where the configuration has a previous stage and `previous` is not given, or the reverse.
    """

    configuration_name: str
    configuration: Configuration
    labels: Labels
    options: TrainOptions
    prepared: Path
    """folder of the prepared cases"""
    train_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    fold: int | None
    folder: Path
    """where weights, state, record and logs go"""
    horizon: Horizon
    device: str = "cpu"
    workers: int = 0
    """processes that make batches; 0: this one"""
    class_voxels: tuple[int, ...] = ()
    """of the whole data set, per dense class; for losses that balance classes"""
    events: tuple[str, ...] = ()
    """what happened to the configuration before this training, for its record"""
    annotated: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    """case -> (K) which dense classes were annotated, for cases where some were not"""
    present: Mapping[str, Presence] = field(default_factory=dict)
    """case -> (C) which channels it has, for cases that lack some"""
    channel_combinations: tuple[Presence, ...] = ()
    """of channels, that occur in the whole data set; empty where every case has all channels"""
    previous: Path | None = None
    """folder of the previous stage's out-of-fold labels of all these cases, on this configuration's grid"""
    start: Start | None = None
    """weights to start from; `options.start` is their checksum"""

    def __post_init__(self) -> None:
        if (self.previous is None) != (self.configuration.previous_stage is None):
            raise ValueError(f"{self.configuration_name}: previous stage and the folder of its labels go together")

    @property
    def previous_classes(self) -> int:
        """Channels that the previous stage adds to the image."""
        return 0 if self.previous is None else self.labels.count - 1

    @property
    def fold_number(self) -> int:
        """-1 for a training on all cases."""
        return -1 if self.fold is None else self.fold

    @property
    def key(self) -> str:
        """Trainings with equal keys reach the same weights, given the same steps."""
        content = [self.configuration.key, self.options.digest(), self.train_cases, self.fold, self.labels.digest()]
        partial: list[object] = [(case, self.annotated[case]) for case in self.train_cases if case in self.annotated]
        partial += self.channel_combinations
        return digest([*content, partial] if partial else content)

    @property
    def seed(self) -> int:
        """Different for every fold, the same for every run."""
        return self.options.seed * 1000 + self.fold_number + 1
