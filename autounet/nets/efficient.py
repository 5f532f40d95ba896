"""A U-Net whose encoder is an EfficientNet (Tan & Le, ICML 2019, arXiv 1905.11946).

The encoder's seven stages of MBConv blocks, with squeeze-and-excitation, swish and batch norm, are those of Table 1;
variants B0 to B7 scale their width and depth together (Sec. 3.3). It works in 2-D and 3-D. The decoder is that of the
plain U-Net. In 2-D the encoder can start from pretrained weights.

Where the strides of a topology go. EfficientNet halves its resolution at five places: the stem and the MBConv stages
2, 3, 4 and 6. They take the topology's strides in this order; a topology with fewer leaves the remaining places
unstrided, so that every block of the encoder stays in use, at the resolution of the bottleneck; what a topology has
beyond five is left away. Stage 0 of `NetworkSpec` is the full resolution, where EfficientNet has nothing: a
convolution of the image, whose result is a skip alone, so that the stem sees the image as in pretraining.

Pretrained weights of the encoder have the names of timm (timm/models/efficientnet.py), which are those of our encoder:
conv_stem.weight, bn1.*, blocks.S.I.{conv_pw, bn1, conv_dw, bn2, se.conv_reduce, se.conv_expand, conv_pwl, bn3}.*
for MBConv stage S and block I, both from 0; in stage 0 blocks.0.I.{conv_dw, bn1, se.*, conv_pw, bn2}.*. Each norm has
weight, bias, running_mean, running_var, and perhaps num_batches_tracked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..schema.errors import ModelError, PlanError
from ..schema.plan import NetworkSpec
from ..schema.record import Part
from .family import Family, Stages, Steps, checked_options

if TYPE_CHECKING:
    from torch import Tensor, nn

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"]

SCALES: dict[Variant, tuple[float, float]] = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}
"""factors of width and depth (the authors' efficientnet_builder.py)"""
STEM_FEATURES = 32
"""of B0 (Table 1)"""
FULL_RESOLUTION_FEATURES = 16
"""at base_features 32, as the first MBConv stage of B0 has; chosen: full resolution is where features cost most"""
FEATURE_STEP = 8
"""features are rounded to multiples of it (the authors' round_filters)"""
LEVELS = ((0,), (1,), (2,), (3, 4), (5, 6))
"""MBConv stages at each resolution, counted from 0 (Table 1); the stem belongs to the first"""
DECODER_BLOCKS = 2
"""convolutions per decoder stage, as in the plain U-Net"""


@dataclass(frozen=True)
class MBStage:
    """A row of Table 1: blocks whose depthwise kernel has `kernel` voxels along an axis."""

    kernel: int
    expansion: int
    features: int
    blocks: int


BASELINE = (
    MBStage(3, 1, 16, 1),
    MBStage(3, 6, 24, 2),
    MBStage(5, 6, 40, 2),
    MBStage(3, 6, 80, 3),
    MBStage(5, 6, 112, 3),
    MBStage(5, 6, 192, 4),
    MBStage(3, 6, 320, 1),
)
"""EfficientNet-B0 (Table 1)"""


class EfficientOptions(Part):
    variant: Variant = "b0"
    width: float = Field(default=1.0, gt=0)
    """further factor of the width; pretrained weights need 1"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """rate of stochastic depth after the last block; 0.2 in the paper's trainings (Sec. 5.2)"""
    norm_epsilon: float = Field(default=1e-5, gt=0)
    """added to the variance: 1e-5 in timm's efficientnet_*, 1e-3 in the authors' code and timm's tf_efficientnet_*"""


def round_features(features: float, width: float) -> int:
    """`features` x `width` to the nearest multiple of 8, never below 8 nor by more than a tenth (round_filters)."""
    scaled = features * width
    rounded = max(FEATURE_STEP, int(scaled + FEATURE_STEP / 2) // FEATURE_STEP * FEATURE_STEP)
    return rounded + FEATURE_STEP if rounded < 0.9 * scaled else rounded


def scaled_stages(options: EfficientOptions) -> tuple[MBStage, ...]:
    """Table 1 with the width and depth of a variant; depths are rounded up (the authors' round_repeats)."""
    depth, width = SCALES[options.variant][1], total_width(options)
    return tuple(
        MBStage(
            kernel=stage.kernel,
            expansion=stage.expansion,
            features=round_features(stage.features, width),
            blocks=math.ceil(stage.blocks * depth),
        )
        for stage in BASELINE
    )


def total_width(options: EfficientOptions) -> float:
    return SCALES[options.variant][0] * options.width


def stage_rows(stages: int) -> tuple[tuple[int, ...], ...]:
    """Rows of Table 1 (from 0) for stages 1, 2, ... of a network of `stages`; the last one takes all that are left."""
    if stages < 2:
        return ()
    left = tuple(row for level in LEVELS[stages - 2 :] for row in level)
    return (*LEVELS[: stages - 2], left)


def stages(dims: int, strides: Steps, kernel_sizes: Steps, base_features: int, variant: Variant = "b0") -> Stages:
    """A variant, its width scaled by `base_features` / 32, on the first five strides of the topology."""
    options = EfficientOptions(variant=variant, width=base_features / STEM_FEATURES)
    features, blocks = layout(len(strides), options)
    return Stages(strides, kernel_sizes, features, blocks, (DECODER_BLOCKS,) * (len(strides) - 1), options)


def layout(stages: int, options: EfficientOptions) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Features and number of blocks of all encoder stages, as `NetworkSpec` has them."""
    rows, table = stage_rows(stages), scaled_stages(options)
    features = (round_features(FULL_RESOLUTION_FEATURES, options.width), *(table[row[-1]].features for row in rows))
    return features, (1, *(sum(table[index].blocks for index in row) for row in rows))


def problems(spec: NetworkSpec) -> tuple[str, ...]:
    """Where the spec is no EfficientNet: too many stages, or features or blocks that are not those of the variant."""
    options: EfficientOptions = checked_options(EfficientOptions, spec)
    stages = len(spec.features)
    if stages > len(LEVELS) + 1:
        return (f"the network has {stages} stages, and the family efficient at most {len(LEVELS) + 1}",)
    features, blocks = layout(stages, options)
    return tuple(
        f"network.{name} are {value} after the first, and EfficientNet-{options.variant.upper()} of width "
        f"{options.width:g} has {needed}. Use these, or another variant or width in network.options"
        for name, value, needed in (
            ("features", spec.features[1:], features[1:]),
            ("encoder_blocks", spec.encoder_blocks[1:], blocks[1:]),
        )
        if value != needed
    )


def efficient_network(spec: NetworkSpec, options: EfficientOptions) -> nn.Module:
    """Convolutions of the encoder as in the authors' code, the others by He.

    `spec.kernel_sizes` are those of the decoder; the encoder's kernels are those of Table 1 along the axes where they
    exceed 1, and 1 elsewhere. Raises PlanError for what `problems` finds.
    """
    if found := problems(spec):
        raise PlanError("\n".join(found))
    from .efficient_modules import EfficientUNet

    stem = round_features(STEM_FEATURES, total_width(options))
    return EfficientUNet(
        spec, stem, scaled_stages(options), stage_rows(len(spec.features)), options.norm_epsilon, options.drop_path
    )


EFFICIENT = Family(
    "efficient",
    efficient_network,
    options=EfficientOptions,
    stages=stages,
    max_stages=len(LEVELS) + 1,
    problems=problems,
)


UNUSED = ("conv_head.", "bn2.", "classifier.")
"""prefixes of timm's tensors after the last block, which a U-Net does not have"""
COUNTER = ".num_batches_tracked"
STEM_WEIGHT = "conv_stem.weight"
COLOURS = 3
"""channels of the images of pretraining: red, green, blue"""


def load_pretrained(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the encoder of `network`, as `EFFICIENT.build` gives it, to `weights`; see `encoder_weights`.

    Raises ModelError where they do not fit. Nothing is changed in that case.
    """
    fitting = encoder_weights(network, weights)
    network.encoder.load_state_dict(fitting, strict=False)  # type: ignore[union-attr]  # only counters may be left out


def encoder_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `weights` that belong to the encoder of `network`, which may be on the Meta device.

    For one input channel the stem's weights are summed over the colours, so that a grey image gives the same result;
    for other numbers the colours are repeated in turn and scaled by 3 / channels (timm's rule). Raises ModelError
    naming the first tensor that is missing, unknown or of another shape, and for a network that is not 2-D.
    """
    state = network.encoder.state_dict()  # type: ignore[union-attr]
    if state[STEM_WEIGHT].ndim != 4:
        raise ModelError("pretrained weights are two-dimensional, and this network is not", "Use a 2-D configuration")
    given = {name: tensor for name, tensor in weights.items() if not name.startswith(UNUSED)}
    missing = sorted(name for name in state.keys() - given.keys() if not name.endswith(COUNTER))
    remedy = "Use weights of timm's efficientnet with the variant of the plan, and 32 base features"
    if missing:
        raise ModelError(f"the pretrained weights lack {missing[0]}", remedy)
    unknown = sorted(given.keys() - state.keys())
    if unknown:
        raise ModelError(f"the pretrained weights hold {unknown[0]}, which the network does not have", remedy)
    given[STEM_WEIGHT] = for_channels(given[STEM_WEIGHT], state[STEM_WEIGHT].shape[1])
    for name, tensor in given.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(tensor.shape)}, and {tuple(state[name].shape)} in the network"
            raise ModelError(f"{name} is {shapes}", remedy)
    return given


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """The stem's weight (outputs, 3, *kernel) for images of `channels` channels."""
    if weight.ndim != 4 or weight.shape[1] != COLOURS or channels == COLOURS:
        return weight
    if channels == 1:
        return weight.float().sum(1, keepdim=True)
    turns = -(-channels // COLOURS)
    return weight.float().repeat(1, turns, 1, 1)[:, :channels] * (COLOURS / channels)
