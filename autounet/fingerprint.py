"""The data set's fingerprint for the planner, and everything that is wrong with the data set.

`examine` and `examine_case` come from `datasets`: the facts of each case, from one reading of its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .datasets.checks.case_checks import annotation_findings
from .datasets.checks.examine import CaseTask, examine, examine_case
from .datasets.checks.set_checks import grey_findings, set_findings
from .datasets.checks.symmetry import pair_findings, unlike_pairs
from .datasets.labels import label_findings
from .imageio import VOLUME_KINDS
from .ops.orient import IDENTITY_AXES, canonical_axes, permute
from .ops.statistics import quantiles_of_samples, weighted_quantiles
from .schema.dataset import CaseFacts, Channel, Dataset, Finding, IntensitySample, Severity, partly_annotated
from .schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from .schema.geometry import Geometry

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
    partial, everything = partly_annotated(dataset), (True,) * dataset.labels.count
    cases = tuple(
        _case_fingerprint(fact, dataset, orientation, partial.get(fact.identifier, everything)) for fact in facts
    )
    return Fingerprint(
        dimension=2 if all(case.shape[0] == 1 for case in cases) else 3,
        orientation=orientation,
        oriented=all(_is_oriented(fact.geometry) for fact in facts),
        unlike=unlike_pairs(dataset.labels, facts),
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
    if orientation == "canonical":
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


def check(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Every finding: of each case, then of the cases beside each other, then of the data set as a whole."""
    findings = [finding for fact in facts for finding in fact.findings]
    readable = [fact for fact in facts if fact.samples]
    grey = grey_findings(dataset, readable)
    spoilt = {finding.case for finding in grey}
    findings += grey + label_findings(dataset, [fact for fact in readable if fact.identifier not in spoilt])
    findings += set_findings(dataset, readable) + annotation_findings(dataset, readable)
    findings += pair_findings(dataset, readable)
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
        message = f"there is 1 {what}, which cannot be split for a cross-validation"
        remedy = "One model is trained on it and nothing is validated; add cases to know how good it is"
        return [Finding(code="too-few-cases", severity=Severity.warning, message=message, remedy=remedy)]
    if len(groups) < FOLDS:
        message = f"{len(groups)} {what}s are too few for {FOLDS} folds"
        remedy = f"{len(groups)} folds are made; add cases for a validation worth more"
        return [Finding(code="too-few-cases", severity=Severity.warning, message=message, remedy=remedy)]
    return []
