"""What one training is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..nets.efficient_weights import load_pretrained
from ..nets.transfer import transfer
from ..schema.dataset import ChannelAvailability
from ..schema.errors import ModelError
from ..schema.labels import Labels
from ..schema.options import TrainOptions
from ..schema.plan import Configuration, NetworkSpec
from ..schema.record import digest
from ..store.weights import read_pretrained
from .schedule import Horizon

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Start:
    """Weights in a file."""

    weights: Path
    trained: NetworkSpec | None = None
    """the network whose weights they are; None: they are those of an encoder, in timm's naming"""
    new: tuple[str, ...] = ()
    """tensors of the network that stay as drawn"""
    channels: tuple[int | None, ...] | None = None
    """for each input channel the trained network's, None where it had none; None for all: they are the same"""

    def set(self, network: nn.Module, spec: NetworkSpec) -> None:
        """Put the weights into `network`, as built from `spec`. Raises ModelError naming the file."""
        content = read_pretrained(self.weights)
        try:
            if self.trained is None:
                load_pretrained(network, content)
            else:
                transfer(network, spec, content, self.trained, self.new, self.channels)
        except ModelError as error:
            raise ModelError(f"{self.weights}: {error}") from None


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
    present: Mapping[str, ChannelAvailability] = field(default_factory=dict)
    """case -> (C) which channels it has, for cases that lack some"""
    channel_combinations: tuple[ChannelAvailability, ...] = ()
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
