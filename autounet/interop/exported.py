"""What lies beside exported networks: all that their logits depend on before and after them."""

from __future__ import annotations

from pydantic import Field

from autounet.schema.aftercare import PostprocessStep
from autounet.schema.dataset import Channel
from autounet.schema.labels import Labels
from autounet.schema.plan import InferenceSpec, PreprocessSpec
from autounet.schema.record import Part, Record
from autounet.schema.targets import TargetKind

RECORD = "preprocessing.json"


class SizeRule(Part):
    """Sizes n along one axis that a network takes: n = step x k + rest for whole k, from `least` to `most`."""

    step: int
    rest: int
    least: int
    most: int | None = None
    """None: any; the same as `least` where the file is for one size alone, which is then the patch"""


class ExportedNetwork(Part):
    path: str
    """relative to the record"""
    fold: int | None
    largest_difference: float
    """from torch's logits, where both were run"""
    largest_logit: float
    """beside which that is to be seen"""


class ExportedOutput(Part):
    """One channel of the logits."""

    name: str
    values: tuple[int, ...]
    """label values, as in files, whose union it stands for"""
    paints: int
    """value that is written where it wins (classes), or where its probability exceeds 0.5 (regions, in their order)"""


class ExportedSwap(Part):
    """What a view mirrored along spatial axis `axis` exchanges: the channel whose place each one takes, before the
    network in the image and after it in the logits."""

    axis: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class ExportedConfiguration(Part):
    """What surrounds the networks of one configuration; `docs/exchange.md` tells it step by step."""

    preprocess: PreprocessSpec
    patch_size: tuple[int, ...]
    sizes: tuple[SizeRule, ...]
    """one per axis"""
    inference: InferenceSpec
    targets: TargetKind
    """classes: softmax, and the channel of the highest probability wins; regions: a sigmoid for each"""
    outputs: tuple[ExportedOutput, ...]
    swap: ExportedSwap | None
    """None: mirrored views exchange nothing"""
    previous_stage: str | None
    """the configuration whose segmentation, one-hot without the background, follows the image's channels"""
    networks: tuple[ExportedNetwork, ...] = Field(min_length=1)
    """of which the mean is taken as `inference.average` says"""


class ExportedModel(Record):
    """`preprocessing.json`."""

    name: str
    form: str
    channels: tuple[Channel, ...]
    labels: Labels
    chosen: tuple[str, ...]
    """configurations whose probabilities are averaged on the image's own grid"""
    weights: tuple[float, ...] = ()
    """of these, summing to 1; empty: equal"""
    channel_combinations: tuple[tuple[bool, ...], ...]
    """which channels an image may have, where some may be missing: those are 0 after normalisation; empty: all"""
    postprocessing: tuple[PostprocessStep, ...]
    """of the segmentation in the image's own voxels, in this order"""
    temperature: float
    """that logits are divided by where probabilities are told; it changes no segmentation of classes"""
    configurations: dict[str, ExportedConfiguration]
    versions: dict[str, str]
