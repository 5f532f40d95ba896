"""The plan: everything that prepared data, the shapes of weights, memory and prediction depend on.

A plan holds one or more configurations (2d, 3d_fullres, ...). A configuration says how a case becomes an array
(`PreprocessSpec`), what network sees it (`NetworkSpec`) in which patch and batch, and how whole volumes are
predicted (`InferenceSpec`). How the weights are reached is not here: see `TrainOptions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, JsonValue, computed_field, model_validator

from .errors import PlanError
from .labels import Labels, TargetKind, targets_of
from .options import PlannerOptions
from .record import ConfigurationName, FolderName, Part, Record

Spacing = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
"""mm, at most a kilometre"""
Length = Annotated[int, Field(le=2**14)]
"""voxels of a patch along an axis. This and the next keep records from elsewhere from asking for work without end; what
is sensible is far below, and said by `planning.validation`"""
Features = Annotated[int, Field(ge=1, le=2**14)]
Blocks = Annotated[int, Field(ge=0, le=100)]
Stride = Annotated[int, Field(ge=1, le=2**8)]
Kernel = Annotated[int, Field(ge=1, le=2**6)]
MOST_STAGES, MOST_SAMPLES = 16, 2**16


class ChannelNormalisation(Part):
    """How one channel is normalised, with the values used.

    ct: clip to [lower, upper], subtract mean, divide by std (all from the data set's foreground).
    zscore: subtract the case's mean, divide by its std; over non-zero voxels only when `nonzero_only`.
    unit: divide by `upper` - `lower` after subtracting `lower` (colour images to 0..1).
    range: the case's own minimum to maximum become 0..1.
    none: unchanged.
    """

    scheme: Literal["ct", "zscore", "unit", "range", "none"]
    mean: float = Field(default=0.0, allow_inf_nan=False)
    std: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    lower: float = Field(default=0.0, allow_inf_nan=False)
    upper: float = Field(default=1.0, allow_inf_nan=False)
    nonzero_only: bool = False


class Resampling(Part):
    """Spline orders; `z_order` is used through the plane when the spacing ratio exceeds `separate_z_ratio`."""

    image_order: int = Field(default=3, ge=0, le=3)
    label_order: int = Field(default=1, ge=0, le=1)
    score_order: int = Field(default=1, ge=0, le=1)
    z_order: int = Field(default=0, ge=0, le=1)
    separate_z_ratio: float = Field(default=3.0, gt=0)


class PreprocessSpec(Part):
    """Orient, transpose, crop, normalise, resample: in this order."""

    orientation: Literal["canonical", "as_stored", "ras"] = "canonical"
    """ras, in new plans: axes run right, front, up, as nnU-Net's turning readers have it; canonical: left, back, up"""
    transpose: tuple[int, int, int] = (0, 1, 2)
    """network axis i is oriented file axis transpose[i]"""
    spacing: tuple[Spacing | None, Spacing, Spacing]
    """target spacing in network axis order (after transposition); null: no resampling along that axis"""
    normalisation: tuple[ChannelNormalisation, ...]
    """one per channel"""
    resampling: Resampling = Resampling()


PREDICTION_OPTIONS = frozenset({"prune"})
"""options of network families that choose what is evaluated, not what is trained: a trained network keeps its key"""


class NetworkSpec(Part):
    """A network of one family. Sizes per stage, encoder order, highest resolution first."""

    family: str = "plain"
    dims: Literal[2, 3]
    in_channels: int = Field(gt=0, le=2**14)
    out_channels: int = Field(gt=0, le=2**15)
    """classes with the background, or one for each overlapping target"""
    features: tuple[Features, ...] = Field(min_length=1, max_length=MOST_STAGES)
    strides: tuple[tuple[Stride, ...], ...]
    """per stage and axis; the first stage has stride 1"""
    kernel_sizes: tuple[tuple[Kernel, ...], ...]
    encoder_blocks: tuple[Blocks, ...]
    """convolutions (or residual blocks) per encoder stage"""
    decoder_blocks: tuple[Blocks, ...]
    """per decoder stage; one fewer than the encoder has"""
    deep_supervision: bool = True
    options: dict[str, JsonValue] = {}
    """validated by the family's own model"""

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSpec:
        stages = len(self.features)
        for name in ("strides", "kernel_sizes", "encoder_blocks"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {stages} stages")
        if len(self.decoder_blocks) != stages - 1:
            raise ValueError(f"decoder_blocks needs {stages - 1} entries")
        if any(len(entry) != self.dims for entry in self.strides + self.kernel_sizes):
            raise ValueError(f"strides and kernel_sizes need {self.dims} entries per stage")
        return self

    @property
    def divisor(self) -> tuple[int, ...]:
        """The product of all strides per axis: what a patch must be divisible by."""
        product = [1] * self.dims
        for stride in self.strides:
            product = [total * step for total, step in zip(product, stride, strict=True)]
        return tuple(product)


Average = Literal["probabilities", "logits"]
"""Quantity that is averaged over views, folds and tiles"""


class InferenceSpec(Part):
    """How whole images are predicted."""

    overlap: float = Field(default=0.5, ge=0, le=0.9)
    """fraction of the patch that neighbouring tiles share; the tile step is (1 - overlap) x patch"""
    weighting: Literal["gaussian", "uniform"] = "gaussian"
    mirror_axes: tuple[int, ...] = ()
    """spatial axes of the network (0-based) that are mirrored at test time"""
    handover: Literal["grid", "file"] = "grid"
    """how a previous stage's scores become labels on this one's grid when new images are predicted: interpolated
    straight to it, or decided on in the image's own voxels and resampled as labels, as between nnU-Net's commands"""
    average: Average = "logits"
    """logits: as nnU-Net does"""


Limit = Literal["memory", "image", "data", "time", "option", "search", "minimum"]
"""What keeps a patch, a batch or a width from growing: memory; image: it covers the median image; data: a batch covers
5 % of the data set's voxels; time: `--time`; option: a limit that was given; search: the largest that is considered;
minimum: the smallest allowed, although another limit is below it"""


class Limits(Part):
    """What limits a configuration, for people. None: not known, as in a plan written by hand."""

    patch: Limit | None = None
    batch: Limit | None = None
    width: Limit | None = None


class TrainedConfiguration(Part):
    """What weights depend on in a configuration."""

    preprocess: PreprocessSpec
    patch_size: tuple[Length, ...]
    """network axis order, as many entries as the network has dimensions"""
    batch_size: int = Field(ge=1, le=MOST_SAMPLES)
    network: NetworkSpec
    targets: TargetKind = "classes"
    """classes: a softmax over all of them; regions: a sigmoid for each of `schema.labels.overlapping_targets`"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    mirror_axes: tuple[int, ...] = ()
    """spatial axes mirrored by augmentation"""
    swap_axis: int | None = None
    """spatial axis along which a mirror exchanges the two classes of each pair, in training and prediction"""
    batch_dice: bool = False
    previous_stage: ConfigurationName | None = None
    """configuration whose segmentation, one-hot without the background, is appended to the channels (cascade)"""

    @property
    def network_spacing(self) -> tuple[float, ...]:
        """Spacing of the network's axes, mm."""
        return tuple(value for value in self.preprocess.spacing[-self.network.dims :] if value is not None)

    @property
    def key(self) -> str:
        """Digest that the weights of equal configurations share."""
        return self.trained.digest()

    @property
    def trained(self) -> TrainedConfiguration:
        """This part alone, without the options of the network that only prediction reads."""
        options = {name: value for name, value in self.network.options.items() if name not in PREDICTION_OPTIONS}
        content = {name: getattr(self, name) for name in TrainedConfiguration.model_fields}
        return TrainedConfiguration(**{**content, "network": self.network.model_copy(update={"options": options})})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.patch_size) != self.network.dims:
            raise ValueError(f"patch_size needs {self.network.dims} entries")
        return self


class Configuration(TrainedConfiguration):
    prepared: FolderName
    """name of the folder below prepared/; configurations with equal specs share one"""
    inference: InferenceSpec = InferenceSpec()
    median_shape: tuple[int, ...]
    """median image size on the prepared grid, network axis order (3 entries)"""
    limited_by: Limits = Limits()
    predicted_memory_bytes: int = Field(ge=0)
    """peak of a training step"""
    predicted_step_seconds: float | None = None
    predicted_steps: int | None = None
    """steps a fold is expected to get when the time is limited"""
    predicted_validation_seconds: float | None = None
    """of a fold"""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing of the network's axes, mm; written into plan.json for readers, its home is `preprocess`."""
        return self.network_spacing

    @model_validator(mode="before")
    @classmethod
    def _computed_is_not_input(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "spacing" not in content:
            return content
        content = dict(content)
        try:
            shown = [float(value) for value in content.pop("spacing")]
        except (TypeError, ValueError, OverflowError):
            raise ValueError("spacing should be a list of numbers, those of preprocess.spacing") from None
        preprocess = content.get("preprocess")
        home = preprocess.get("spacing") if isinstance(preprocess, dict) else getattr(preprocess, "spacing", None)
        if isinstance(home, list | tuple) and shown != list(home)[-len(shown) :]:
            raise ValueError("spacing differs from preprocess.spacing; edit preprocess.spacing and both stay equal")
        return content


Topic = Literal[
    "orientation", "targets", "spacing", "normalisation", "memory", "configurations", "patch", "batch", "network",
    "dice", "mirroring", "time", "prediction", "precision", "fine-tuning", "replanned",
]  # fmt: skip
"""what a reason is about"""


class Reason(Part):
    """Why one value of a plan is as it is."""

    configuration: ConfigurationName | None
    """name of the configuration; None: the reason holds for all"""
    topic: Topic
    text: str
    """a sentence without full stop that does not name the configuration"""

    def __str__(self) -> str:
        return self.text if self.configuration is None else f"{self.configuration}: {self.text}"


class Plan(Record):
    """`plan.json`."""

    configurations: dict[ConfigurationName, Configuration] = Field(min_length=1)
    options: PlannerOptions
    reasons: tuple[Reason, ...]
    """one for each decision"""
    events: dict[str, tuple[str, ...]] = {}
    """what changed a configuration after it was planned, by its name; also in the records of its folds"""
    chosen: tuple[ConfigurationName, ...] = ()
    """what is trained where the time is limited and no configuration is named; empty: 3d_fullres, or else the first"""
    learning: float | None = Field(default=None, gt=0)
    """how hard the data are to learn, by a trial; None: as others on average, and `undecided` the grids in question"""
    undecided: tuple[float, ...] = ()
    fingerprint: str
    """digest of the fingerprint the plan was made from"""


def with_previous_stages(names: Iterable[str], configurations: Mapping[str, Configuration]) -> tuple[str, ...]:
    """`names` and every previous stage they need, each once and after what it needs, else in the order given.

    Raises PlanError for a name or a previous stage that is not there, and for stages that need each other.
    """
    ordered: list[str] = []
    for name in names:
        chain = [name]
        while (previous := _configuration(chain, configurations).previous_stage) is not None:
            if previous in chain:
                raise PlanError(f"{previous} needs itself as its previous stage", "Correct previous_stage in the plan")
            chain.append(previous)
        ordered += [each for each in reversed(chain) if each not in ordered]
    return tuple(ordered)


def _configuration(chain: list[str], configurations: Mapping[str, Configuration]) -> Configuration:
    """The last of a chain of stages, of which each needs the next."""
    if chain[-1] in configurations:
        return configurations[chain[-1]]
    wanted = f" as the previous stage of {chain[-2]}" if len(chain) > 1 else ""
    names = ", ".join(configurations)
    raise PlanError(f"there is no configuration {chain[-1]}{wanted}", f"Choose one of {names}")


LEFT_RIGHT = 2
"""array axis (z, y, x) of the patient's orientation that runs from one side of the body to the other"""


class Swap(NamedTuple):
    """For each channel the one whose place it takes in a view mirrored along the spatial axis `axis` of a network."""

    axis: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def swapped_classes(labels: Labels) -> tuple[int, ...]:
    """(K) the dense class that each one becomes when left and right are exchanged; without pairs itself."""
    places = {each.name: index for index, each in enumerate(labels.classes)}
    swapped = list(range(labels.count))
    for left, right in labels.pairs:
        swapped[places[left]], swapped[places[right]] = places[right], places[left]
    return tuple(swapped)


def swapped_outputs(labels: Labels, kind: TargetKind) -> tuple[int, ...] | None:
    """The output channel that each one becomes when left and right are exchanged.

    None where there is no such channel: a region of which the mirror image is no target.
    """
    classes = swapped_classes(labels)
    members = [frozenset(target.members) for target in targets_of(labels, kind)]
    mirrored = [frozenset(classes[member] for member in each) for each in members]
    if mirrored == members:
        return tuple(range(len(members)))
    told_apart = set(mirrored) <= set(members) and len(set(members)) == len(members)
    return tuple(members.index(each) for each in mirrored) if told_apart else None


def prediction_swap(configuration: Configuration, labels: Labels) -> Swap | None:
    """The channels that the mirrored views of a prediction exchange; None where no view does.

    Inputs are the image's channels and, in a cascade, the previous stage's classes without the background. Raises
    PlanError where a region has no mirror image among the outputs: such an axis must not be mirrored.
    """
    axis = configuration.swap_axis
    if axis is None or axis not in configuration.inference.mirror_axes:
        return None
    outputs = swapped_outputs(labels, configuration.targets)
    if outputs is None:
        raise PlanError(
            f"inference.mirror_axes is {configuration.inference.mirror_axes}, where {axis} is the axis from left to "
            "right, and a region has no mirror image among the targets",
            f"Remove {axis} from inference.mirror_axes",
        )
    previous = swapped_classes(labels)[1:] if configuration.previous_stage is not None else ()
    first = configuration.network.in_channels - len(previous)
    inputs = (*range(first), *(first + index - 1 for index in previous))
    return Swap(axis, inputs, outputs)
