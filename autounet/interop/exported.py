"""What lies beside exported networks: all that their logits depend on before and after them."""

from __future__ import annotations

from pydantic import Field

from autounet.schema.dataset import Channel
from autounet.schema.labels import Labels
from autounet.schema.plan import InferenceSpec, PreprocessSpec
from autounet.schema.record import Part, Record
from autounet.schema.targets import TargetKind

RECORD = "preprocessing.json"


class SizeRule(Part):
    """Sizes n along one axis that a network takes: n = step x k + rest for whole k, and at least `least`."""

    step: int
    rest: int
    least: int


class ExportedNetwork(Part):
    path: str
    """relative to the record"""
    fold: int | None
    largest_difference: float
    """from torch's logits, where both were run"""
    largest_logit: float
    """beside which that is to be seen"""


class ExportedConfiguration(Part):
    """What surrounds the networks of one configuration: see the fields' own records for their meaning."""

    preprocess: PreprocessSpec
    patch_size: tuple[int, ...]
    sizes: tuple[SizeRule, ...]
    """one per axis"""
    inference: InferenceSpec
    targets: TargetKind
    previous_stage: str | None
    """the configuration whose segmentation, one-hot without the background, follows the image's channels"""
    networks: tuple[ExportedNetwork, ...] = Field(min_length=1)
    """of which the logits are averaged"""


class ExportedModel(Record):
    """`preprocessing.json`."""

    name: str
    form: str
    channels: tuple[Channel, ...]
    labels: Labels
    chosen: tuple[str, ...]
    """configurations whose probabilities are averaged on the image's own grid"""
    configurations: dict[str, ExportedConfiguration]
    versions: dict[str, str]
