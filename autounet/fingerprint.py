"""The data set's fingerprint: what the planner knows of its cases and channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .datasets.checks.left_right import asymmetric_pairs
from .imageio import VOLUME_KINDS
from .ops.orient import IDENTITY_AXES, canonical_axes, permute
from .ops.statistics import quantiles_of_samples
from .schema.dataset import CaseFacts, Channel, Dataset, IntensitySample, partly_annotated
from .schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from .schema.geometry import Geometry


def build_fingerprint(
    dataset: Dataset, facts: Sequence[CaseFacts], orientation: Literal["ras", "as_stored"]
) -> Fingerprint:
    """What the planner knows: shapes, spacings and voxel counts per case, foreground intensities per channel.

    The data set's labels must be complete. Each case counts equally in the intensity statistics, whatever its size, as
    in nnU-Net, which draws the same number of foreground voxels from every case (Isensee et al. 2021, supplement).
    """
    facts = sorted(facts, key=lambda fact: fact.identifier)
    partial, everything = partly_annotated(dataset), (True,) * dataset.labels.count
    cases = tuple(
        _case_fingerprint(fact, dataset, orientation, partial.get(fact.identifier, everything)) for fact in facts
    )
    return Fingerprint(
        dimension=2 if all(case.shape[0] == 1 for case in cases) else 3,
        orientation=orientation,
        oriented=all(_is_oriented(fact.geometry) for fact in facts),
        unlike=asymmetric_pairs(dataset.labels, facts),
        channels=tuple(
            _channel_fingerprint(channel, [fact.samples[index] for fact in facts])
            for index, channel in enumerate(dataset.channels)
        ),
        cases=cases,
    )


def _case_fingerprint(
    fact: CaseFacts, dataset: Dataset, orientation: str, annotated: Sequence[bool]
) -> CaseFingerprint:
    geometry = fact.geometry
    axes = IDENTITY_AXES
    if orientation != "as_stored":
        axes, _ = canonical_axes(geometry.direction, geometry.dimension)
    return CaseFingerprint(
        identifier=fact.identifier,
        content_hash=fact.content_hash,
        shape=permute(geometry.shape, axes),
        cropped_shape=permute(fact.cropped_shape, axes),
        spacing=permute(geometry.spacing, axes),
        voxels=tuple(
            fact.value_counts.get(value, 0) if known else 0
            for value, known in zip(dataset.labels.values, annotated, strict=True)
        ),
    )


def _is_oriented(geometry: Geometry) -> bool:
    """An image that is 2-D by its format has no patient axes."""
    return geometry.kind in VOLUME_KINDS and geometry.dimension == 3


def _channel_fingerprint(channel: Channel, samples: Sequence[IntensitySample]) -> ChannelFingerprint:
    used = [sample for sample in samples if sample.minimum is not None]
    if not used:
        return ChannelFingerprint(name=channel.name, kind=channel.kind)
    values = [np.array(sample.values, np.float32) for sample in used]
    mean = float(np.mean([each.mean(dtype=np.float64) for each in values]))
    variance = float(np.mean([np.square(each.astype(np.float64) - mean).mean() for each in values]))
    low, middle, high = quantiles_of_samples(values, (0.005, 0.5, 0.995))
    return ChannelFingerprint(
        name=channel.name,
        kind=channel.kind,
        mean=mean,
        std=float(np.sqrt(variance)),
        median=middle,
        minimum=min(sample.minimum for sample in used if sample.minimum is not None),
        maximum=max(sample.maximum for sample in used if sample.maximum is not None),
        percentile_00_5=low,
        percentile_99_5=high,
    )
