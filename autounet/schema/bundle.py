"""The packed model."""

from __future__ import annotations

from pydantic import Field, JsonValue

from .dataset import Channel
from .geometry import Shape3, Spacing3
from .labels import Labels
from .plan import Configuration
from .plugins import PluginUse
from .record import ConfigurationName, Part, PlainPath, Record
from .selection import Selection

NO_LICENCE = "not stated"


class ChannelSummary(Part):
    """One channel; the first three intensities are those of the foreground of all cases, None where there is none."""

    name: str
    kind: str
    median: float | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None
    minimum: tuple[float, float] | None = None
    """of an image, least and greatest over cases; like the next None in models packed before it was kept"""
    maximum: tuple[float, float] | None = None


class ClassSummary(Part):
    """One class, over the cases of the data set."""

    name: str
    cases: int
    """in which it occurs"""
    share: float
    """0..1 of all labelled voxels of the data set"""


class DataSummary(Part):
    """The fingerprint in short. Shapes and spacings are (z, y, x), each axis by itself, over cases."""

    cases: int
    dimension: int
    shape: Shape3
    """median voxels"""
    smallest: Shape3
    largest: Shape3
    spacing: Spacing3
    """median mm; pictures have 1"""
    finest: Spacing3
    coarsest: Spacing3
    channels: tuple[ChannelSummary, ...]
    grey_pictures: bool = False
    """whether some pictures were grey, of a model of coloured ones"""
    classes: tuple[ClassSummary, ...]


class Score(Part):
    """One metric of one class in cross-validation."""

    name: str
    """of the class or region"""
    metric: str
    mean: float | None
    """over cases where it is defined"""
    interval: tuple[float, float] | None = None
    """95 %, by bootstrap over cases"""


class ScoreSummary(Part):
    """Cross-validation: the selected out-of-fold result."""

    cases: int
    unit: str
    """of distances"""
    mean_dice: float | None
    interval: tuple[float, float] | None = None
    scores: tuple[Score, ...]


class TrainingSummary(Part):
    """Training of the folds of one configuration."""

    configuration: ConfigurationName
    folds: tuple[int | None, ...]
    """None: trained on all cases"""
    cases: tuple[int, ...]
    """trained on, by fold"""
    steps: tuple[int, ...]
    seconds: float
    """of all folds"""
    parameters: int
    loss: str
    optimiser: str
    devices: tuple[str, ...]


class ModelCard(Part):
    """Facts about a model for those who use it; what is not known, as of an imported model, is None or empty."""

    licence: str = NO_LICENCE
    """of the weights, as stated by whoever distributes them"""
    data: DataSummary | None = None
    scores: ScoreSummary | None = None
    trainings: tuple[TrainingSummary, ...] = ()


class BundleMember(Part):
    """The weights of one network."""

    configuration: ConfigurationName
    fold: int | None = Field(ge=0)
    path: PlainPath
    """weights file relative to the bundle"""
    checksum: str
    """blake2b-128 of the file, hex"""


class ModelBundle(Record):
    """`model/bundle.json`: predicting needs this folder, or the `.autounet` file made of it, alone."""

    name: str
    layout: str
    image_pattern: str
    suffix: str
    file_kind: str
    channels: tuple[Channel, ...]
    channel_patterns: dict[str, str] = {}
    channel_combinations: tuple[tuple[bool, ...], ...] = ()
    """which channels an image may have: the combinations that occurred in training; empty: all of them"""
    time_points: bool = False
    labels: Labels
    configurations: dict[ConfigurationName, Configuration]
    selection: Selection
    members: tuple[BundleMember, ...]
    mean_dice: float | None
    versions: dict[str, str]
    plugins: tuple[PluginUse, ...] = ()
    """that predicting needs"""
    details: dict[str, JsonValue] = {}
    card: ModelCard = ModelCard()
    card_checksum: str | None = None
    """blake2b-128 of `model_card.md`, hex; None until the bundle is sealed (`inference.archive.sealed`)"""
    checksum: str | None = None
    """digest of this record without this field, so that a changed bundle.json is noticed; None until it is sealed"""
