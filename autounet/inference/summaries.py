"""What a model card says of data, scores and trainings, from their records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..schema.bundle import (
    ChannelSummary,
    ClassSummary,
    DataSummary,
    ModelCard,
    Score,
    ScoreSummary,
    TrainingSummary,
)
from ..schema.dataset import CaseFacts, ChannelFacts
from ..schema.fingerprint import Fingerprint
from ..schema.labels import Labels
from ..schema.metrics import Metrics
from ..schema.run import RunRecord

METRICS = ("dice", "hd95", "nsd")
"""on the card; all that were measured are in metrics.json"""
OF_OBJECTS = ("ap50", "panoptic_quality", "count_error")
"""on the card as well, where objects are told apart"""


def describe(
    fingerprint: Fingerprint | None,
    metrics: Metrics | None,
    records: Sequence[RunRecord],
    labels: Labels,
    facts: Sequence[CaseFacts] = (),
) -> ModelCard:
    """The record of a model card; `facts` are those of the cases of `fingerprint`.

    What is None is left out, and so are trainings that happened elsewhere, whose records hold no steps.
    """
    by_name: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.steps:
            by_name.setdefault(record.configuration_name, []).append(record)
    return ModelCard(
        data=None if fingerprint is None else summarise_data(fingerprint, labels, facts),
        scores=None if metrics is None else summarise_scores(metrics),
        trainings=tuple(_training(name, own) for name, own in by_name.items()),
    )


def summarise_data(fingerprint: Fingerprint, labels: Labels, facts: Sequence[CaseFacts] = ()) -> DataSummary:
    """Medians and extremes over cases, axis by axis."""
    shapes = np.array([case.shape for case in fingerprint.cases])
    spacings = np.array([case.spacing for case in fingerprint.cases])
    voxels = np.array([case.voxels for case in fingerprint.cases], dtype=np.float64)
    foreground = voxels[:, 1:].sum()
    return DataSummary(
        cases=len(fingerprint.cases),
        dimension=fingerprint.dimension,
        shape=_whole(np.median(shapes, axis=0)),
        smallest=_whole(shapes.min(axis=0)),
        largest=_whole(shapes.max(axis=0)),
        spacing=_three(np.median(spacings, axis=0)),
        finest=_three(spacings.min(axis=0)),
        coarsest=_three(spacings.max(axis=0)),
        channels=tuple(
            ChannelSummary(
                name=channel.name,
                kind=str(channel.kind.value),
                median=channel.median,
                percentile_00_5=channel.percentile_00_5,
                percentile_99_5=channel.percentile_99_5,
                minimum=_extremes(each.channels[index].minimum for each in facts if each.channels),
                maximum=_extremes(each.channels[index].maximum for each in facts if each.channels),
            )
            for index, channel in enumerate(fingerprint.channels)
        ),
        grey_pictures=any(_is_grey(each.channels) for each in facts),
        classes=tuple(
            ClassSummary(
                name=name,
                cases=int((own > 0).sum()),
                share=float(own.sum() / foreground) if foreground else 0.0,
            )
            for name, own in _voxels_of(labels, voxels)
        ),
    )


def _voxels_of(labels: Labels, voxels: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Each class of the foreground with its voxels (cases); of objects that are told apart all of them."""
    if labels.objects is not None:
        return [(labels.objects, voxels[:, 1:].sum(axis=1))]
    return [(each.name, voxels[:, index]) for index, each in enumerate(labels.classes) if index]


def _is_grey(channels: Sequence[ChannelFacts]) -> bool:
    """Whether red, green and blue are the same, as far as is known."""
    return len(channels) == 3 and len(set(channels)) == 1 and channels[0].minimum is not None


def _extremes(values: Iterable[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def summarise_scores(metrics: Metrics) -> ScoreSummary:
    return ScoreSummary(
        cases=len(metrics.cases),
        unit=metrics.unit,
        mean_dice=metrics.mean_dice,
        interval=metrics.mean_dice_interval,
        scores=tuple(
            Score(
                name=name,
                metric=metric,
                mean=getattr(values, metric),
                interval=metrics.intervals.get(name, {}).get(metric),
            )
            for name, values in metrics.per_class.items()
            for metric in (*METRICS, *(OF_OBJECTS if values.ap50 is not None else ()))
        ),
    )


def _training(name: str, records: Sequence[RunRecord]) -> TrainingSummary:
    first = records[0]
    return TrainingSummary(
        configuration=name,
        folds=tuple(record.fold for record in records),
        cases=tuple(len(record.train_cases) for record in records),
        steps=tuple(record.steps for record in records),
        seconds=sum(record.seconds for record in records),
        parameters=first.parameters,
        loss=first.options.loss,
        optimiser=first.options.optimiser,
        devices=tuple(sorted({record.device for record in records})),
    )


def _whole(values: np.ndarray) -> tuple[int, int, int]:
    z, y, x = (round(float(value)) for value in values)
    return z, y, x


def _three(values: np.ndarray) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x
