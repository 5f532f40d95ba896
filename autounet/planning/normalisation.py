"""How each channel is normalised."""

from __future__ import annotations

import numpy as np

from ..schema.dataset import ChannelKind
from ..schema.errors import PlanError
from ..schema.fingerprint import ChannelFingerprint, Fingerprint
from ..schema.plan import ChannelNormalisation, Reason

CROPPED_ENOUGH = 3 / 4
"""z-score looks at non-zero voxels only when the crop leaves less than this share of the median image (nnU-Net)"""
SMALLEST_STD = 1e-8
UNIT_MAXIMA = (1.0, 255.0, 65535.0)
"""largest values of photographs: already scaled, 8 bits, 16 bits"""
NNUNET_NAMES = {"ct": "ct", "nonorm": "none", "zscore": "zscore", "rescale_to_0_1": "rescale", "rgb_to_0_1": "unit"}
"""nnU-Net decides by the channel's whole name; any other name is z-scored"""
KINDS = {ChannelKind.ct: "ct", ChannelKind.photo: "unit", ChannelKind.mri: "zscore", ChannelKind.other: "zscore"}


def find_normalisation(
    fingerprint: Fingerprint, as_nnunet: bool
) -> tuple[tuple[ChannelNormalisation, ...], tuple[Reason, ...]]:
    """One scheme and one reason per channel. With `as_nnunet` the channel's name decides, as there; else its kind."""
    cropped = remaining_share(fingerprint) < CROPPED_ENOUGH
    schemes, reasons = [], []
    for channel in fingerprint.channels:
        wanted = NNUNET_NAMES.get(channel.name.casefold(), "zscore") if as_nnunet else KINDS[channel.kind]
        scheme, reason = _scheme(channel, wanted, cropped, as_nnunet)
        schemes.append(scheme)
        reasons.append(Reason(configuration=None, topic="normalisation", text=f"channel {channel.name}: {reason}"))
    return tuple(schemes), tuple(reasons)


def remaining_share(fingerprint: Fingerprint) -> float:
    """Median over the cases of the share of voxels that the crop to non-zero leaves."""
    return float(np.median([np.prod(case.cropped_shape) / np.prod(case.shape) for case in fingerprint.cases]))


def _scheme(
    channel: ChannelFingerprint, wanted: str, cropped: bool, as_nnunet: bool
) -> tuple[ChannelNormalisation, str]:
    if wanted == "ct" and (scheme := _ct(channel)) is not None:
        return scheme, (
            f"CT, so clipped to the foreground's 0.5th and 99.5th percentile ({scheme.lower:.4g} to "
            f"{scheme.upper:.4g}) and scaled by its mean {scheme.mean:.4g} and deviation {scheme.std:.4g}"
        )
    if wanted == "rescale":
        raise PlanError(
            f"channel {channel.name}: nnU-Net's rescale_to_0_1 is not supported",
            "Name the channel zscore or rgb_to_0_1 in dataset.json, or leave out --preset nnunet",
        )
    if wanted == "unit":
        largest = UNIT_MAXIMA[1] if as_nnunet else _unit_maximum(channel)
        return ChannelNormalisation(scheme="unit", lower=0.0, upper=largest), (
            f"a photograph, so divided by {largest:g}"
        )
    if wanted == "none":
        return ChannelNormalisation(scheme="none"), "not normalised, as its name says"
    lack = "CT without foreground statistics, so " if wanted == "ct" else ""
    where = (
        f"over non-zero voxels only, as the crop leaves less than {CROPPED_ENOUGH:.0%} of the images"
        if cropped
        else "over the whole image"
    )
    return ChannelNormalisation(scheme="zscore", nonzero_only=cropped), f"{lack}z-scored per case, {where}"


def _ct(channel: ChannelFingerprint) -> ChannelNormalisation | None:
    """None when no case has foreground."""
    mean, std, lower, upper = channel.mean, channel.std, channel.percentile_00_5, channel.percentile_99_5
    if mean is None or std is None or lower is None or upper is None:
        return None
    return ChannelNormalisation(scheme="ct", mean=mean, std=max(std, SMALLEST_STD), lower=lower, upper=upper)


def _unit_maximum(channel: ChannelFingerprint) -> float:
    """The smallest usual range that holds the foreground."""
    maximum = channel.maximum if channel.maximum is not None else UNIT_MAXIMA[1]
    return next((limit for limit in UNIT_MAXIMA if maximum <= limit), maximum)
