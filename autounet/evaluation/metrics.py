"""The metrics by name, and those that count voxels: each a function of one pair of masks.

Definitions follow Maier-Hein et al., "Metrics reloaded", Nature Methods 2024. An undefined value is raised as
`Undefined` with its reason, never returned as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ..schema.errors import OptionError
from .structures import cl_dice, lesion_f1, panoptic_quality
from .surfaces import (
    EMPTY_IN_BOTH,
    EMPTY_IN_PREDICTION,
    EMPTY_IN_REFERENCE,
    MaskPair,
    Undefined,
    assd,
    boundary_iou,
    hd95,
    nsd,
    nsd_subvoxel,
)

__all__ = [
    "DEFAULT_METRICS",
    "EMPTY_IN_BOTH",
    "EMPTY_IN_PREDICTION",
    "EMPTY_IN_REFERENCE",
    "METRICS",
    "MaskPair",
    "Undefined",
    "chosen_metrics",
]

MM3_PER_ML: Final = 1000.0


def dice(pair: MaskPair) -> float:
    """2 |A and B| / (|A| + |B|), Dice 1945. Undefined when both are empty."""
    pair.require_any()
    return 2 * pair.common / (pair.predicted + pair.true)


def iou(pair: MaskPair) -> float:
    """|A and B| / |A or B|, Jaccard 1912. Undefined when both are empty."""
    pair.require_any()
    return pair.common / (pair.predicted + pair.true - pair.common)


def sensitivity(pair: MaskPair) -> float:
    """The share of the reference that was found: |A and B| / |B|, also recall. Undefined when the reference is empty.

    Yerushalmy 1947; "Metrics reloaded".
    """
    pair.require_any()
    if not pair.true:
        raise Undefined(EMPTY_IN_REFERENCE)
    return pair.common / pair.true


def precision(pair: MaskPair) -> float:
    """The share of the prediction that is right: |A and B| / |A|, also positive predictive value.

    "Metrics reloaded". Undefined when the prediction is empty.
    """
    pair.require_any()
    if not pair.predicted:
        raise Undefined(EMPTY_IN_PREDICTION)
    return pair.common / pair.predicted


def volume(pair: MaskPair) -> float:
    """Predicted volume: voxels times the volume of one, in ml; pixels for images without spacing. 0 when empty.

    "Metrics reloaded" takes the difference of two of them for the error of a volume.
    """
    return pair.predicted * _voxel_volume(pair)


def volume_difference(pair: MaskPair) -> float:
    """Predicted minus true volume: ml, or pixels for images without spacing. 0 when both are empty.

    The (signed) absolute volume difference of "Metrics reloaded".
    """
    return (pair.predicted - pair.true) * _voxel_volume(pair)


def _voxel_volume(pair: MaskPair) -> float:
    return float(np.prod(pair.spacing)) / MM3_PER_ML if pair.unit == "mm" else 1.0


METRICS: dict[str, Callable[[MaskPair], float]] = {
    "dice": dice,
    "iou": iou,
    "sensitivity": sensitivity,
    "precision": precision,
    "hd95": hd95,
    "nsd": nsd,
    "volume": volume,
    "volume_difference": volume_difference,
    "assd": assd,
    "nsd_subvoxel": nsd_subvoxel,
    "boundary_iou": boundary_iou,
    "lesion_f1": lesion_f1,
    "panoptic_quality": panoptic_quality,
    "cl_dice": cl_dice,
}
"""by the field of `ClassMetrics` that holds the value"""
DEFAULT_METRICS: Final = ("dice", "iou", "sensitivity", "precision", "hd95", "nsd", "volume", "volume_difference")
"""what is measured unless others are asked for"""


def chosen_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics in their order; `default` and `all` stand for several. Dice is always among them.

    Raises OptionError for an unknown name.
    """
    several = {"default": DEFAULT_METRICS, "all": tuple(METRICS)}
    wanted = {"dice"}.union(*(several.get(name, (name,)) for name in names))
    if unknown := sorted(wanted - set(METRICS)):
        raise OptionError(f"--metrics {unknown[0]} is unknown; choose some of {', '.join(METRICS)}, or default, or all")
    return tuple(name for name in METRICS if name in wanted)
