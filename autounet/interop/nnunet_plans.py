"""nnU-Net's plans.json in our words: what a case goes through, and which network sees it.

Keys and defaults are those of nnU-Net 2.8.1 (`utilities/plans_handling/plans_handler.py`), which also reads the plans
of versions before 2.5, where the network's parts stood among the rest. What we do not do as nnU-Net does is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..schema.errors import ModelError
from ..schema.plan import ChannelNormalisation, Configuration, InferenceSpec, PreprocessSpec, Resampling
from .nnunet_network import network_spec, with_architecture

RESAMPLER, PREPROCESSOR, LABEL_MANAGER = "resample_data_or_seg_to_shape", "DefaultPreprocessor", "LabelManager"
READERS = {
    "SimpleITKIO": "as_stored",
    "NibabelIO": "as_stored",
    "Tiff3DIO": "as_stored",
    "NaturalImage2DIO": "as_stored",
    "SimpleITKIOWithReorient": "ras",
    "NibabelIOWithReorient": "ras",
}
"""nnU-Net's readers -> the orientation in which its networks see what they read"""
PREDICT = "Predict with nnU-Net"
ALWAYS, NEVER = 0.0, 1e9
"""`Resampling.separate_z_ratio` for nnU-Net's force_separate_z true and false"""


class NnunetRecord(BaseModel):
    """Part of a JSON file of nnU-Net's, of which only what predicting needs is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class NnunetResampling(NnunetRecord):
    """Arguments of its resampling function."""

    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False


class NnunetConfiguration(NnunetRecord):
    preprocessor_name: str = PREPROCESSOR
    patch_size: tuple[int, ...]
    batch_size: int
    spacing: tuple[float, ...]
    median_image_size_in_voxels: tuple[float, ...]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    batch_dice: bool = False
    resampling_fn_data: str
    resampling_fn_seg: str
    resampling_fn_probabilities: str
    resampling_fn_data_kwargs: NnunetResampling
    resampling_fn_seg_kwargs: NnunetResampling
    resampling_fn_probabilities_kwargs: NnunetResampling
    previous_stage: str | None = None
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
    original_median_shape_after_transp: tuple[float, ...]
    configurations: dict[str, dict[str, Any]]
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
    return Configuration(
        preprocess=PreprocessSpec(
            orientation=READERS[plans.image_reader_writer],  # type: ignore[arg-type]
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
            overlap=0.5, weighting="gaussian", mirror_axes=tuple(mirror_axes), handover="file" if cascade else "grid"
        ),
        median_shape=_median_shape(plans, theirs),
        predicted_memory_bytes=0,
    )


def _median_shape(plans: NnunetPlans, theirs: NnunetConfiguration) -> tuple[int, ...]:
    """Three entries; in 2-D nothing is resampled through the planes."""
    through = plans.original_median_shape_after_transp[:1] if len(theirs.patch_size) == 2 else ()
    return tuple(math.ceil(length) for length in (*through, *theirs.median_image_size_in_voxels))


def _normalisation(plans: NnunetPlans, theirs: NnunetConfiguration, where: str) -> tuple[ChannelNormalisation, ...]:
    schemes = zip(theirs.normalization_schemes, theirs.use_mask_for_norm, strict=False)
    return tuple(_channel(plans, index, scheme, mask, where) for index, (scheme, mask) in enumerate(schemes))


def _channel(plans: NnunetPlans, index: int, scheme: str, mask: bool, where: str) -> ChannelNormalisation:
    if scheme == "CTNormalization":
        if (known := plans.intensities.get(str(index))) is None:
            raise ModelError(
                f"{where}: the intensities of channel {index}, by which it is normalised, are missing",
                "Export it again",
            )
        return ChannelNormalisation(
            scheme="ct",
            mean=known.mean,
            std=max(known.std, 1e-8),
            lower=known.percentile_00_5,
            upper=known.percentile_99_5,
        )
    if scheme == "ZScoreNormalization":
        return ChannelNormalisation(scheme="zscore", nonzero_only=mask)
    if scheme == "RescaleTo01Normalization":
        return ChannelNormalisation(scheme="range")
    if scheme == "RGBTo01Normalization":
        return ChannelNormalisation(scheme="unit", lower=0, upper=255)
    known_schemes = ("CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")
    _require(where, "normalisation", scheme, (*known_schemes, "NoNormalization"))
    return ChannelNormalisation(scheme="none")


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
    ratio = {None: Resampling().separate_z_ratio, True: ALWAYS, False: NEVER}[image.force_separate_z]
    return Resampling(
        image_order=image.order,
        label_order=labels.order,
        score_order=scores.order,
        z_order=image.order_z,
        separate_z_ratio=ratio,
    )


def _require(where: str, what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ModelError(f"{where}: the {what} {name} cannot be imported; known are {', '.join(known)}", PREDICT)


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
