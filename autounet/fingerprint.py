"""The data set's fingerprint for the planner, and everything that is wrong with the data set.

`examine` and `examine_case` come from `datasets`: the facts of each case, from one reading of its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from autounet.datasets.examine import CaseTask, examine, examine_case
from autounet.datasets.labels import label_findings
from autounet.ops.orient import IDENTITY_AXES, canonical_axes, permute
from autounet.schema.dataset import CaseFacts, Channel, Dataset, Finding, IntensitySample, Severity
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint

__all__ = ["CaseTask", "build_fingerprint", "check", "examine", "examine_case", "weighted_quantiles"]

FOLDS = 5
"""folds of a cross-validation when there are cases enough"""


def build_fingerprint(
    dataset: Dataset, facts: Sequence[CaseFacts], orientation: Literal["canonical", "as_stored"]
) -> Fingerprint:
    """What the planner knows: shapes, spacings and voxel counts per case, foreground intensities per channel.

    The data set's labels must be complete. Each case counts equally in the intensity statistics, whatever its size, as
    in nnU-Net, which draws the same number of foreground voxels from every case (Isensee et al. 2021, supplement).
    """
    facts = sorted(facts, key=lambda fact: fact.identifier)
    cases = tuple(_case_fingerprint(fact, dataset, orientation) for fact in facts)
    return Fingerprint(
        dimension=2 if all(case.shape[0] == 1 for case in cases) else 3,
        orientation=orientation,
        channels=tuple(
            _channel_fingerprint(channel, [fact.samples[index] for fact in facts])
            for index, channel in enumerate(dataset.channels)
        ),
        cases=cases,
    )


def _case_fingerprint(fact: CaseFacts, dataset: Dataset, orientation: str) -> CaseFingerprint:
    geometry = fact.geometry
    axes = IDENTITY_AXES
    if orientation == "canonical":
        axes, _ = canonical_axes(geometry.direction, geometry.dimension)
    return CaseFingerprint(
        identifier=fact.identifier,
        content_hash=fact.content_hash,
        shape=permute(geometry.shape, axes),
        cropped_shape=permute(fact.cropped_shape, axes),
        spacing=permute(geometry.spacing, axes),
        voxels=tuple(fact.value_counts.get(value, 0) for value in dataset.labels.values),
    )


def _channel_fingerprint(channel: Channel, samples: Sequence[IntensitySample]) -> ChannelFingerprint:
    used = [sample for sample in samples if sample.values]
    if not used:
        return ChannelFingerprint(name=channel.name, kind=channel.kind)
    values = np.concatenate([np.asarray(sample.values, np.float64) for sample in used])
    weights = np.concatenate([np.full(len(sample.values), 1 / len(sample.values)) for sample in used]) / len(used)
    mean = float(np.average(values, weights=weights))
    low, middle, high = weighted_quantiles(values, weights, (0.005, 0.5, 0.995))
    return ChannelFingerprint(
        name=channel.name,
        kind=channel.kind,
        mean=mean,
        std=float(np.sqrt(np.average((values - mean) ** 2, weights=weights))),
        median=middle,
        minimum=min(sample.minimum for sample in used if sample.minimum is not None),
        maximum=max(sample.maximum for sample in used if sample.maximum is not None),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, quantiles: Sequence[float]) -> list[float]:
    """Quantiles of a weighted sample (weights sum to 1); with equal weights those of `np.quantile`."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    position = np.cumsum(weights) - weights
    last = position[-1]
    return [float(np.interp(quantile * last, position, values)) for quantile in quantiles]


def check(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Every finding: of each case, then of the data set as a whole."""
    findings = [finding for fact in facts for finding in fact.findings]
    readable = [fact for fact in facts if fact.samples]
    findings += label_findings(dataset, readable)
    flat = {fact.geometry.dimension for fact in readable}
    if len(flat) > 1:
        example = {fact.geometry.dimension: fact.identifier for fact in readable}
        findings.append(
            Finding(
                code="mixed-dimensions",
                message=f"{example[2]} is a 2-D image and {example[3]} a volume",
                remedy="Keep images and volumes in separate data sets",
            )
        )
    return findings + _count_findings(dataset)


def _count_findings(dataset: Dataset) -> list[Finding]:
    groups = {case.group or case.identifier for case in dataset.cases}
    grouped = any(case.group for case in dataset.cases)
    what = "group" if grouped else "case"
    if len(groups) == 1:
        message = f"there is 1 {what}, and cross-validation needs 2"
        remedy = "Add cases; --folds full trains one model without validation"
        return [Finding(code="too-few-cases", severity=Severity.warning, message=message, remedy=remedy)]
    if len(groups) < FOLDS:
        message = f"{len(groups)} {what}s are too few for {FOLDS} folds"
        remedy = f"{len(groups)} folds are made; add cases for a validation worth more"
        return [Finding(code="too-few-cases", severity=Severity.warning, message=message, remedy=remedy)]
    return []
