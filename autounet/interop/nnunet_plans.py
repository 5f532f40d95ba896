"""nnU-Net's plans.json in our words, and back: what a case goes through, and which network sees it.

`NnunetPlans` and `NnunetConfiguration` are what both directions go by: `convert_configuration` reads them into a
`Configuration`, `nnunet_configuration` and `nnunet_plans` make them of one.

Keys and defaults are those of nnU-Net 2.8.1 (`utilities/plans_handling/plans_handler.py`), which also reads the plans
of versions before 2.5, where the network's parts stood among the rest. What we do not do as nnU-Net does is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..schema.errors import ModelError
from ..schema.plan import ChannelNormalisation, Configuration, InferenceSpec, PreprocessSpec, Resampling
from .nnunet_network import network_spec, nnunet_architecture, with_architecture
from .nnunet_records import READERS

RESAMPLER, PREPROCESSOR, LABEL_MANAGER = "resample_data_or_seg_to_shape", "DefaultPreprocessor", "LabelManager"
TRAINER, PLANS_NAME = "nnUNetTrainer", "nnUNetPlans"
"""nnU-Net's own, which build the network that the plans describe"""
PREDICT = "Predict with nnU-Net"
EXPORT_OTHERWISE = "Export it as onnx or torch, or as a bundle"
SCHEMES = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "range",
    "RGBTo01Normalization": "unit",
    "NoNormalization": "none",
}
"""nnU-Net's normalisation -> `ChannelNormalisation.scheme`"""
COLOURS = (0.0, 255.0)
"""what `RGBTo01Normalization` maps to 0 and 1"""
UNLIMITED = 1e30
"""an intensity that no clipping reaches"""
LEAST_STD = 1e-8
SEPARATE_Z = {None: Resampling().separate_z_ratio, True: 0.5, False: 1e9}
"""nnU-Net's force_separate_z -> `Resampling.separate_z_ratio`; None goes by its own threshold;
no ratio is below 1"""


Length = Annotated[float, Field(ge=0, le=1e9)]
"""voxels"""


class NnunetRecord(BaseModel):
    """Part of a JSON file of nnU-Net's, of which only what predicting needs is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class NnunetResampling(NnunetRecord):
    """Arguments of its resampling function."""

    is_seg: bool = False
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False


class NnunetConfiguration(NnunetRecord):
    data_identifier: str = ""
    preprocessor_name: str = PREPROCESSOR
    patch_size: tuple[int, ...]
    batch_size: int
    spacing: tuple[float, ...]
    median_image_size_in_voxels: tuple[Length, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    batch_dice: bool = False
    resampling_fn_data: str = RESAMPLER
    resampling_fn_seg: str = RESAMPLER
    resampling_fn_probabilities: str = RESAMPLER
    resampling_fn_data_kwargs: NnunetResampling
    resampling_fn_seg_kwargs: NnunetResampling
    resampling_fn_probabilities_kwargs: NnunetResampling
    previous_stage: str | None = None
    next_stage: str | list[str] | None = None
    architecture: dict[str, Any]


class NnunetIntensities(NnunetRecord):
    """Statistics of a channel's foreground."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class NnunetPlans(NnunetRecord):
    dataset_name: str
    plans_name: str
    image_reader_writer: str
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, ...] = ()
    original_median_shape_after_transp: tuple[Length, ...]
    original_median_spacing_after_transp: tuple[float, ...] = ()
    configurations: dict[str, dict[str, Any]]
    experiment_planner_used: str = "ExperimentPlanner"
    label_manager: str = LABEL_MANAGER
    intensities: dict[str, NnunetIntensities] = Field(alias="foreground_intensity_properties_per_channel")


def read_plans(content: Mapping[str, Any], label: str) -> NnunetPlans:
    """Raises ModelError naming each key that is missing or wrong, and a reader or label manager that is not known."""
    old = "foreground_intensity_properties_by_modality"
    if old in content:
        content = {"foreground_intensity_properties_per_channel": content[old], **content}
    try:
        plans = NnunetPlans.model_validate(content)
    except ValidationError as error:
        raise ModelError(f"{label} is no plans.json of nnU-Net v2 ({_problems(error)})", "Export it again") from None
    for what, name, known in (
        ("image reader", plans.image_reader_writer, tuple(READERS)),
        ("label manager", plans.label_manager, (LABEL_MANAGER,)),
    ):
        _require(label, what, name, known)
    return plans


def read_configuration(plans: NnunetPlans, name: str, label: str) -> NnunetConfiguration:
    """With what it inherits. Raises ModelError for one that is not there, inherits from itself, or lacks something."""
    content: dict[str, Any] = {}
    seen: list[str] = []
    following: Any = name
    while following is not None:
        if following in seen or following not in plans.configurations:
            known = ", ".join(plans.configurations)
            raise ModelError(
                f"{label} has no configuration {following!r}, or one that inherits from itself; there are {known}",
                "Correct the plans",
            )
        seen.append(following)
        own = plans.configurations[following]
        content = {**own, **content}
        following = own.get("inherits_from")
    try:
        return NnunetConfiguration.model_validate(with_architecture(content, f"{label}: {name}"))
    except ValidationError as error:
        raise ModelError(f"{label}: {name} is incomplete ({_problems(error)})", "Export the model again") from None


def convert_configuration(
    plans: NnunetPlans,
    name: str,
    label: str,
    in_channels: int,
    out_channels: int,
    mirror_axes: Sequence[int],
    regions: bool,
) -> Configuration:
    """What a network `name` of these plans is predicted with, as nnU-Net predicts with it.

    `in_channels` are those of the network, with what a cascade appends. Tiles overlap by half, with Gaussian weights
    (nnU-Net's defaults); a cascade's second stage gets the first one's labels by way of the image's own voxels, as
    where nnU-Net's commands hand files on. fp16 is half precision on a GPU and float32 on a CPU: both programs predict
    so. Raises ModelError for what cannot be expressed.
    """
    theirs, where = read_configuration(plans, name, label), f"{label}: {name}"
    _require(where, "preprocessor", theirs.preprocessor_name, (PREPROCESSOR,))
    dims = len(theirs.patch_size)
    if dims not in (2, 3) or len(theirs.spacing) != dims:
        raise ModelError(
            f"{where}: patch {theirs.patch_size} and spacing {theirs.spacing} fit neither 2-D nor 3-D", PREDICT
        )
    if any(not 0 <= axis < dims for axis in mirror_axes):
        raise ModelError(f"{where}: its checkpoint mirrors the axes {tuple(mirror_axes)} of {dims}", PREDICT)
    first = theirs.spacing[0] if dims == 3 else None
    cascade = theirs.previous_stage is not None
    network = network_spec(theirs.architecture, dims, in_channels, out_channels, where)
    try:
        return Configuration(
            preprocess=PreprocessSpec(
                orientation=READERS[plans.image_reader_writer].orientation,
                transpose=plans.transpose_forward,
                spacing=(first, theirs.spacing[-2], theirs.spacing[-1]),
                normalisation=_normalisation(plans, theirs, where),
                resampling=_resampling(theirs, where),
            ),
            prepared=name,
            patch_size=theirs.patch_size,
            batch_size=theirs.batch_size,
            network=network,
            targets="regions" if regions else "classes",
            precision="fp16",
            mirror_axes=tuple(mirror_axes),
            batch_dice=theirs.batch_dice,
            previous_stage=theirs.previous_stage,
            inference=InferenceSpec(
                overlap=0.5,
                weighting="gaussian",
                mirror_axes=tuple(mirror_axes),
                handover="file" if cascade else "grid",
            ),
            median_shape=_median_shape(plans, theirs),
            predicted_memory_bytes=0,
        )
    except ValidationError as error:
        raise ModelError(f"{where}: a value is impossible ({_problems(error)})", "Export the model again") from None


def _median_shape(plans: NnunetPlans, theirs: NnunetConfiguration) -> tuple[int, ...]:
    """Three entries; in 2-D nothing is resampled through the planes."""
    through = plans.original_median_shape_after_transp[:1] if len(theirs.patch_size) == 2 else ()
    return tuple(math.ceil(length) for length in (*through, *theirs.median_image_size_in_voxels))


def _normalisation(plans: NnunetPlans, theirs: NnunetConfiguration, where: str) -> tuple[ChannelNormalisation, ...]:
    schemes = zip(theirs.normalization_schemes, theirs.use_mask_for_norm, strict=False)
    return tuple(_channel(plans, index, scheme, mask, where) for index, (scheme, mask) in enumerate(schemes))


def _channel(plans: NnunetPlans, index: int, name: str, mask: bool, where: str) -> ChannelNormalisation:
    _require(where, "normalisation", name, tuple(SCHEMES))
    scheme = SCHEMES[name]
    if scheme == "ct":
        if (known := plans.intensities.get(str(index))) is None:
            raise ModelError(
                f"{where}: the intensities of channel {index}, by which it is normalised, are missing",
                "Export it again",
            )
        return ChannelNormalisation(
            scheme="ct",
            mean=known.mean,
            std=max(known.std, LEAST_STD),
            lower=known.percentile_00_5,
            upper=known.percentile_99_5,
        )
    if scheme == "unit":
        return ChannelNormalisation(scheme="unit", lower=COLOURS[0], upper=COLOURS[1])
    return ChannelNormalisation(scheme=scheme, nonzero_only=scheme == "zscore" and mask)  # type: ignore[arg-type]


def _resampling(theirs: NnunetConfiguration, where: str) -> Resampling:
    for name in (theirs.resampling_fn_data, theirs.resampling_fn_seg, theirs.resampling_fn_probabilities):
        _require(where, "resampling", name, (RESAMPLER,))
    image, labels, scores = (
        theirs.resampling_fn_data_kwargs,
        theirs.resampling_fn_seg_kwargs,
        theirs.resampling_fn_probabilities_kwargs,
    )
    if len({(each.order_z, each.force_separate_z) for each in (image, labels, scores)}) > 1:
        raise ModelError(
            f"{where}: images, labels and probabilities are resampled by different rules across slices", PREDICT
        )
    if image.order not in (0, 1, 3) or labels.order > 1 or scores.order > 1 or image.order_z > 1:
        orders = f"{image.order}, {labels.order}, {scores.order} and {image.order_z} across slices"
        raise ModelError(
            f"{where}: splines of the orders {orders}; known are 0, 1, 3 for images, else 0 and 1", PREDICT
        )
    return Resampling(
        image_order=image.order,
        label_order=labels.order,
        score_order=scores.order,
        z_order=image.order_z,
        separate_z_ratio=SEPARATE_Z[image.force_separate_z],
    )


# ---- written ---------------------------------------------------------------------------------------------------------


def nnunet_configuration(name: str, own: Configuration, where: str) -> NnunetConfiguration:
    """Inverse of `convert_configuration`. Raises ModelError naming what nnU-Net does not do."""
    preprocess, dims = own.preprocess, own.network.dims
    architecture = nnunet_architecture(own.network, where)
    rules = preprocess.resampling
    separate = [key for key, ratio in SEPARATE_Z.items() if ratio == rules.separate_z_ratio]
    problems = {
        "2-D networks see slices as they are, 3-D networks one spacing": (preprocess.spacing[0] is None) != (dims == 2),
        "tiles are weighted by a Gaussian": own.inference.weighting != "gaussian",
        f"a coarse axis is separate from a spacing ratio of {SEPARATE_Z[None]:g} on": not separate,
    }
    if wrong := [rule for rule, broken in problems.items() if broken]:
        raise ModelError(f"{where} is predicted otherwise than nnU-Net does: there {wrong[0]}", EXPORT_OTHERWISE)
    kwargs: dict[str, Any] = {"order_z": rules.z_order, "force_separate_z": separate[0]}
    return NnunetConfiguration(
        data_identifier=f"{PLANS_NAME}_{name}",
        patch_size=own.patch_size,
        batch_size=own.batch_size,
        spacing=own.network_spacing,
        median_image_size_in_voxels=own.median_shape[-dims:],
        normalization_schemes=tuple(_scheme(channel) for channel in preprocess.normalisation),
        use_mask_for_norm=tuple(channel.nonzero_only for channel in preprocess.normalisation),
        batch_dice=own.batch_dice,
        resampling_fn_data_kwargs=NnunetResampling(order=rules.image_order, **kwargs),
        resampling_fn_seg_kwargs=NnunetResampling(is_seg=True, order=rules.label_order, **kwargs),
        resampling_fn_probabilities_kwargs=NnunetResampling(order=rules.score_order, **kwargs),
        previous_stage=own.previous_stage,
        architecture=architecture,
    )


def _scheme(channel: ChannelNormalisation) -> str:
    """nnU-Net's name; another range than that of colours is clipping that reaches nothing, as `_intensities` has it."""
    coloured = channel.scheme == "unit" and (channel.lower, channel.upper) == COLOURS
    scheme = "ct" if channel.scheme == "unit" and not coloured else channel.scheme
    return next(name for name, each in SCHEMES.items() if each == scheme)


def _intensities(channel: ChannelNormalisation) -> NnunetIntensities:
    if channel.scheme == "unit":
        width = max(channel.upper - channel.lower, LEAST_STD)
        return NnunetIntensities(mean=channel.lower, std=width, percentile_00_5=-UNLIMITED, percentile_99_5=UNLIMITED)
    return NnunetIntensities(
        mean=channel.mean, std=channel.std, percentile_00_5=channel.lower, percentile_99_5=channel.upper
    )


def nnunet_plans(
    dataset: str, reader: str, stages: Mapping[str, Configuration], spacing: Sequence[float], label: str
) -> NnunetPlans:
    """Of a configuration, the last of `stages`, and the previous stages that it needs, which come before it.

    `spacing` is the images' own (z, y, x) as far as it is known, and only informs.
    """
    own = list(stages.values())[-1]
    forward = own.preprocess.transpose
    converted = {name: nnunet_configuration(name, each, f"{label}: {name}") for name, each in stages.items()}
    return NnunetPlans(
        dataset_name=dataset,
        plans_name=PLANS_NAME,
        image_reader_writer=reader,
        transpose_forward=forward,
        transpose_backward=tuple(forward.index(axis) for axis in range(3)),
        original_median_shape_after_transp=own.median_shape,
        original_median_spacing_after_transp=tuple(spacing[axis] for axis in forward),
        configurations={name: each.model_dump(mode="json") for name, each in converted.items()},
        foreground_intensity_properties_per_channel={
            str(index): _intensities(channel) for index, channel in enumerate(own.preprocess.normalisation)
        },
    )


def _require(where: str, what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ModelError(f"{where}: the {what} {name} cannot be imported; known are {', '.join(known)}", PREDICT)


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
