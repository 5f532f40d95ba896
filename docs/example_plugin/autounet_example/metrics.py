"""Volumetric similarity: Taha, Hanbury, "Metrics for evaluating 3D medical image segmentation", 2015."""

from __future__ import annotations

from autounet.evaluation import MaskPair, Undefined


def volume_similarity(pair: MaskPair) -> float:
    """1 - |P - T| / (P + T), P and T the voxels of prediction and reference. Undefined where both are empty."""
    if not pair.predicted + pair.true:
        raise Undefined("empty in both")
    return 1 - abs(pair.predicted - pair.true) / (pair.predicted + pair.true)
