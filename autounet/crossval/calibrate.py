"""Temperature scaling, and how far probabilities are from frequencies, on voxels that no network was trained on.

Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017: one temperature, fitted by the
negative log-likelihood. It changes no segmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np

from ..inference.ensembling import Decision
from ..inference.export import EnsembleScores, ensemble_scores
from ..ops.masks import NO_LOSS, nonzero_box
from ..schema.dataset import Dataset
from ..schema.geometry import Box3
from ..schema.labels import TargetKind
from ..schema.plan import Configuration
from ..schema.record import utf8
from ..schema.selection import ReliabilityBin, Selection, TemperatureScaling
from ..store import read_scored, scores_file
from ..store.run_folder import RunFolder

BINS = 15
"""of equal width, as in Guo et al."""
LOWEST, HIGHEST = 0.05, 20.0
"""temperatures that are considered"""
PRECISION = 1e-3
"""of the logarithm of the temperature"""


class LogitSample(NamedTuple):
    """Voxels of one case. N voxels, C outputs."""

    logits: np.ndarray
    """(N, C) float32"""
    truth: np.ndarray
    """(N,) integers: the right output of exclusive classes; (N, C) bool: which of overlapping targets are on"""


class Judged(NamedTuple):
    """One or, of overlapping targets, C judgements a voxel."""

    confidence: np.ndarray
    """(M,) probability of what was decided"""
    right: np.ndarray
    """(M,) bool"""


def calibrate(samples: Mapping[str, LogitSample], groups: Mapping[str, int]) -> TemperatureScaling | None:
    """The temperature of samples by case, and what it does to cases that had no part in it.

    `groups` holds the fold (or group) of each case: the error after is that of each at the temperature of the others.
    The temperature is 1 where that error is no smaller. None with fewer than two groups or without voxels.
    """
    cases = [case for case, sample in samples.items() if len(sample.logits)]
    present = sorted({groups[case] for case in cases})
    if len(present) < 2:
        return None
    fitted = fit_temperature(_joined([samples[case] for case in cases]))
    before, after = [], []
    for group in present:
        held = _joined([samples[case] for case in cases if groups[case] == group])
        own = fit_temperature(_joined([samples[case] for case in cases if groups[case] != group]))
        before.append(judged(held, 1.0))
        after.append(judged(held, own))
    told, scaled = _together(before), _together(after)
    ece_before, ece_after = calibration_error(told), calibration_error(scaled)
    return TemperatureScaling(
        temperature=fitted if ece_after < ece_before else 1.0,
        fitted=fitted,
        ece_before=ece_before,
        ece_after=ece_after,
        cases=len(cases),
        voxels=sum(len(samples[case].logits) for case in cases),
        bins=BINS,
        reliability_before=reliability(told),
        reliability_after=reliability(scaled),
    )


def fit_temperature(sample: LogitSample) -> float:
    """That with the least negative log-likelihood, between LOWEST and HIGHEST."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda power: negative_log_likelihood(sample, float(np.exp(power))),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": PRECISION},
    )
    return float(np.exp(found.x))


def negative_log_likelihood(sample: LogitSample, temperature: float) -> float:
    """Mean over voxels, in nats; of overlapping targets also over these."""
    logits = sample.logits / np.float32(temperature)
    if sample.truth.ndim == 1:
        logits = logits - logits.max(axis=1, keepdims=True)
        own = np.take_along_axis(logits, sample.truth[:, None].astype(np.int64), axis=1)[:, 0]
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - own))
    return float(np.mean(np.logaddexp(0, np.where(sample.truth, -logits, logits))))


def judged(sample: LogitSample, temperature: float) -> Judged:
    """What is decided at each voxel, how surely, and whether rightly."""
    logits = sample.logits / np.float32(temperature)
    if sample.truth.ndim == 1:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return Judged(1 / powers.sum(axis=1), logits.argmax(axis=1) == sample.truth)
    return Judged((1 / (1 + np.exp(-np.abs(logits)))).ravel(), ((logits > 0) == sample.truth).ravel())


def calibration_error(found: Judged) -> float:
    """Expected calibration error, 0..1: |mean confidence - share right| of each bin, weighted by its judgements."""
    _, confidence, right = _binned(found)
    return float(np.abs(confidence - right).sum() / len(found.right))


def reliability(found: Judged) -> tuple[ReliabilityBin, ...]:
    """The bins that hold a judgement: the sum of share times |confidence - right| is the calibration error."""
    return tuple(
        ReliabilityBin(confidence=confidence / count, right=right / count, share=count / len(found.right))
        for count, confidence, right in zip(*_binned(found), strict=True)
        if count
    )


def _binned(found: Judged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of the BINS bins: judgements, the sum of their confidence, the number that is right."""
    index = np.minimum((found.confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    return counts, np.bincount(index, found.confidence, BINS), np.bincount(index, found.right, BINS)


def _joined(samples: Sequence[LogitSample]) -> LogitSample:
    return LogitSample(
        np.concatenate([each.logits for each in samples]), np.concatenate([each.truth for each in samples])
    )


def _together(parts: Sequence[Judged]) -> Judged:
    return Judged(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def relative_entropy(logits: np.ndarray, decision: Decision, targets: TargetKind, temperature: float) -> np.ndarray:
    """(N,) 0..1 of logits (N, C): the entropy of the probabilities as a share of the greatest that C outputs can have.

    That is log(C) of exclusive classes, C log(2) of overlapping targets.
    """
    channels = logits.shape[1]
    greatest = np.log(channels) if targets == "classes" else channels * np.log(2)
    found = decision.entropy(decision.probabilities(logits / np.float32(temperature)))
    return np.clip(found / greatest, 0, 1).astype(np.float32)


MARGIN = 8
"""voxels around the structures, referenced or predicted: farther out nothing is uncertain"""


class SampledVoxels(NamedTuple):
    """N voxels, sorted by slice."""

    inside: np.ndarray
    """(N, 3) indices (z, y, x), counted from the crop's first voxel"""
    classes: np.ndarray
    """(N,) dense classes of the reference"""

    def logits(self, pooled: EnsembleScores) -> np.ndarray:
        """(N, C) float32."""
        found = np.empty((len(self.inside), pooled.channels), np.float32)
        for z in np.unique(self.inside[:, 0]):
            rows = self.inside[:, 0] == z
            found[rows] = pooled.logits_at(int(z), self.inside[rows, 1], self.inside[rows, 2])
        return found


def sample_voxels(identifier: str, dense: np.ndarray, structures: np.ndarray, crop: Box3, most: int) -> SampledVoxels:
    """Up to `most` voxels of a case, the same for the same name; those without a label are left out.

    `dense` (Z, Y, X) is the reference as dense classes, `structures` (Z, Y, X) bool where it or the segmentation is
    something else than background, both in the file's voxels, of which `crop` was predicted.
    """
    box = _around(structures, crop)
    starts, sizes = [start for start, _ in box], [stop - start for start, stop in box]
    chosen = np.random.default_rng(crc32(utf8(identifier))).integers(0, np.prod(sizes), most)
    found = np.stack(np.unravel_index(np.unique(chosen), sizes), axis=1) + starts
    classes = dense[tuple(found.T)]
    found, classes = found[classes != NO_LOSS], classes[classes != NO_LOSS]
    return SampledVoxels(found - [start for start, _ in crop], classes)


def _around(structures: np.ndarray, crop: Box3) -> Box3:
    """The part of the crop within `MARGIN` of the structures; the whole crop where there are none in it."""
    near = [
        (max(first, start - MARGIN), min(last, stop + MARGIN))
        for (start, stop), (first, last) in zip(nonzero_box(structures[None]), crop, strict=True)
    ]
    return crop if any(start >= stop for start, stop in near) else (near[0], near[1], near[2])


class OutOfFoldEntropy:
    """Of any voxels of a case, from the kept scores; the case asked for last is held."""

    def __init__(
        self,
        folder: RunFolder,
        dataset: Dataset,
        configurations: Mapping[str, Configuration],
        selection: Selection,
    ) -> None:
        self._dataset, self._temperature, self._weights = dataset, 1.0, selection.weights or None
        if selection.calibration:
            self._temperature = selection.calibration.temperature
        self._targets = configurations[selection.chosen[0]].targets
        self._sources = [
            (folder.crossval(name).scores, folder.prepared(configurations[name].prepared)) for name in selection.chosen
        ]
        self._held: tuple[str, EnsembleScores] | None = None

    def __call__(self, identifier: str, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray | None:
        """(len(z), len(y), len(x)) float32 0..1 at these indices of the file's array; None where no scores are kept.

        0 outside the crop, where background was taken for sure. Raises RecordError for a damaged file.
        """
        if not all(scores_file(scores, identifier).exists() for scores, _ in self._sources):
            return None
        pooled = self._pooled(identifier)
        result = np.zeros((len(z), len(y), len(x)), np.float32)
        inside = [
            (np.flatnonzero((index >= start) & (index < stop)), start)
            for index, (start, stop) in zip((z, y, x), pooled.box, strict=True)
        ]
        (planes, first), (rows, top), (columns, left) = inside
        own_y, own_x = (own.ravel() for own in np.meshgrid(y[rows] - top, x[columns] - left, indexing="ij"))
        for plane in planes:
            logits = pooled.logits_at(int(z[plane] - first), own_y, own_x)
            found = relative_entropy(logits, pooled.decision, self._targets, self._temperature)
            result[plane, rows[:, None], columns] = found.reshape(len(rows), len(columns))
        return result

    def _pooled(self, identifier: str) -> EnsembleScores:
        if self._held is None or self._held[0] != identifier:
            self._held = None  # before the next is read
            sources = [read_scored(scores, prepared, identifier, np.float16) for scores, prepared in self._sources]
            self._held = identifier, ensemble_scores(sources, self._dataset.labels, self._weights, self._targets)
        return self._held[1]
