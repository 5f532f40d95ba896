"""What each stage of a run is a function of: one frozen record each, which holds all that changes its result.

The digest of the record, with the stage's version, is the key of the stage's result (`workflow/cache.py`). Names of
classes, paths, devices and numbers of workers are in none of them, unless the result holds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .dataset import ChannelAvailability
from .labels import Labels, TargetKind
from .options import CompileSetting, TrainOptions
from .plan import InferenceSpec, NetworkSpec, PreprocessSpec, TrainedConfiguration
from .plugins import PluginUse, plugins_used
from .record import CaseName, ConfigurationName, Part, digest

MONITORED_CASES = 16
"""validation cases that the patches shown while training come from, at most"""


class StageInputs(Part):
    """`VERSION` is raised whenever the same inputs would give another result."""

    VERSION: ClassVar[int] = 1

    @property
    def key(self) -> str:
        return digest([type(self).__name__, self.VERSION, self.model_dump(mode="json")])


class PreparedCaseInputs(StageInputs):
    """One case on the grid of a configuration."""

    preprocess: PreprocessSpec
    content: str
    """hash of the case's files, and of what says how they are read"""
    values: tuple[int, ...]
    """of the classes, in dense order"""
    ignore: int | None
    present: ChannelAvailability | None = None
    """which channels the case has; None: all"""


class PreparationInputs(StageInputs):
    """All cases on one grid."""

    cases: dict[str, str]
    """case -> key of its inputs"""


class TrainingCase(Part):
    """One case that a network is trained on."""

    identifier: CaseName
    prepared: str
    """key of the prepared case"""
    annotated: tuple[bool, ...] | None = None
    """(K) which dense classes were annotated; None: all"""
    present: ChannelAvailability | None = None
    """(C) which channels it has; None: all"""
    previous: str | None = None
    """key of what the previous stage of a cascade says of the case"""


class InitialWeights(Part):
    """How weights from elsewhere become those of the network; `TrainOptions.start` is their checksum."""

    trained: NetworkSpec | None = None
    """the network whose weights they are; None: they are those of an encoder, in timm's naming"""
    new: tuple[str, ...] = ()
    """tensors of the network that stay random"""
    channels: tuple[int | None, ...] | None = None
    """for each input channel the trained network's, None where it had none; None for all: they are the same"""


def plugins_of(network: NetworkSpec, options: TrainOptions) -> tuple[PluginUse, ...]:
    """Those that a training depends on, in the versions that are there."""
    return plugins_used(families=[network.family], losses=[options.loss], augmentations=[options.augmentation])


class TrainingInputs(StageInputs):
    """One configuration on one fold."""

    configuration: TrainedConfiguration
    options: TrainOptions
    fold: int | None
    """which seeds the training; None: a training on all cases"""
    labels: Labels
    """`Labels.nameless`"""
    cases: tuple[TrainingCase, ...]
    class_voxels: tuple[int, ...] = ()
    """of the whole data set, per dense class, for losses that balance classes; empty for all others"""
    channel_combinations: tuple[ChannelAvailability, ...] = ()
    """of channels, that occur in the whole data set; empty where every case has all channels"""
    steps: int | None
    """at most; None: until the time is used up"""
    promised_seconds: float | None
    """of the whole command, which the training gets a share of"""
    monitored: tuple[TrainingCase, ...] = ()
    """validation cases whose patches say when the training has converged and ends; empty: it goes through all steps"""
    initial: InitialWeights | None = None
    plugins: tuple[PluginUse, ...] = ()
    """that network, loss and augmentation are of"""

    @property
    def previous_classes(self) -> int:
        """Channels that the previous stage of a cascade adds to the image."""
        return 0 if self.configuration.previous_stage is None else self.labels.count - 1

    @property
    def fold_number(self) -> int:
        """-1 for a training on all cases."""
        return -1 if self.fold is None else self.fold

    @property
    def seed(self) -> int:
        """Different for every fold, the same for every run."""
        return self.options.seed * 1000 + self.fold_number + 1


class TrainingPlace(Part):
    """Everything about a training that changes no weights: its folders, its device, and what its record says."""

    configuration_name: ConfigurationName
    folder: Path
    """where weights, state, record and log go: a `FoldFolder`"""
    prepared: Path
    """folder of the prepared cases"""
    previous: Path | None = None
    """folder of the previous stage's out-of-fold labels of all cases, on this configuration's grid"""
    initial: Path | None = None
    """file of the weights to start from"""
    labels: Labels
    """with the names of the classes, for the log"""
    validation_cases: tuple[CaseName, ...] = ()
    annotated: dict[str, tuple[bool, ...]] = {}
    """case -> (K) which dense classes were annotated, for validation cases where some were not"""
    device: str = "cpu"
    devices: tuple[str, ...] = ()
    """of the processes that share each batch, `device` the first; fewer than two: this process alone"""
    workers: int = 0
    """processes that make batches; 0: this one"""
    compile: CompileSetting = "auto"
    """whether the steps run a compiled network"""
    planned_bytes: int = 0
    """memory that the plan expected"""
    events: tuple[str, ...] = ()
    """what happened to the configuration before this training, for its record"""
    warnings: tuple[str, ...] = ()
    """what this training cannot do, for people and its record"""


class ValidationInputs(StageInputs):
    """The out-of-fold results of one fold."""

    training: str
    """key of the training"""
    fold: int
    inference: InferenceSpec
    labels: Labels
    """with the names of the classes, which the metrics hold"""
    cases: tuple[TrainingCase, ...]


class ValidatedCaseInputs(StageInputs):
    """The out-of-fold result of one case, which stays where its fold's other cases change."""

    weights: str
    """checksum of the fold's"""
    configuration: TrainedConfiguration
    inference: InferenceSpec
    fold: int
    labels: Labels
    prepared: str
    """key of the prepared case"""
    annotated: tuple[bool, ...] | None = None
    previous: str | None = None
    """checksum of what the previous stage of a cascade says of the case"""


class EnsembleCaseInputs(StageInputs):
    """The mean of several configurations' out-of-fold scores of one case."""

    members: tuple[str | None, ...]
    """keys of their results"""


class CascadeInputs(StageInputs):
    """The labels of one stage of a cascade on the grid of the next, for the cases of one fold."""

    validation: str
    """key of the scores: `ValidationInputs` without the names of classes, which change no label"""
    following: PreprocessSpec
    """of the next stage"""


class CascadeCaseInputs(StageInputs):
    scores: str
    """checksum"""
    prepared: str
    """key of the case on the grid of the scores"""
    following: str
    """key of the case on the grid of the next stage"""
    targets: TargetKind
    members: tuple[tuple[int, ...], ...]
    """dense classes of each region; empty for classes"""


class TrialInputs(StageInputs):
    """Trial steps that measure the memory of a configuration."""

    configuration: TrainedConfiguration
    options: TrainOptions
    device: str
    plugins: tuple[PluginUse, ...] = ()


class SelectionInputs(StageInputs):
    """Choice, postprocessing, calibration and packing."""

    labels: Labels
    configurations: dict[ConfigurationName, TrainedConfiguration]
    inference: dict[str, InferenceSpec]
    folds: tuple[int | None, ...]
    metrics: tuple[str, ...]
    """that metrics.json holds"""
    plugins: tuple[PluginUse, ...] = ()
    """that metrics are of"""
    jobs: dict[str, str]
    """name -> key of every job before"""
