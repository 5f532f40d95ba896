"""The training of one fold as a run of an output folder would do it, for benchmarks that train by themselves."""

from __future__ import annotations

from pathlib import Path

from autounet.losses import BORDER_WEIGHTED
from autounet.schema.dataset import (
    Dataset,
    Splits,
    annotated_classes,
    channel_availability,
    channel_combinations,
    partly_annotated,
)
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.options import TrainOptions
from autounet.schema.plan import Configuration
from autounet.schema.stage_inputs import TrainingCase, TrainingInputs, TrainingPlace
from autounet.store.run_folder import RunFolder
from autounet.training import Horizon


def fold_training(
    run: RunFolder,
    name: str,
    configuration: Configuration,
    options: TrainOptions,
    folder: Path,
    horizon: Horizon,
    fold: int = 0,
    device: str = "cpu",
    workers: int = 0,
) -> tuple[TrainingInputs, TrainingPlace, Horizon]:
    """What `train_fold` takes, for prepared cases of an output folder; results go into `folder`."""
    dataset, splits = Dataset.load(run.dataset), Splits.load(run.splits)
    partial, validated = partly_annotated(dataset), splits.validation(fold)
    cases = tuple(
        TrainingCase(
            identifier=case,
            prepared="",
            annotated=annotated_classes(dataset.case(case), dataset.labels),
            present=channel_availability(dataset.case(case), len(dataset.channels)),
        )
        for case in splits.training(fold)
    )
    balanced = options.loss in BORDER_WEIGHTED
    inputs = TrainingInputs(
        configuration=configuration.trained,
        options=options,
        fold=fold,
        labels=dataset.labels.nameless,
        cases=cases,
        class_voxels=Fingerprint.load(run.fingerprint).class_voxels if balanced else (),
        channel_combinations=channel_combinations(dataset),
        steps=horizon.steps,
        promised_seconds=horizon.seconds,
    )
    place = TrainingPlace(
        configuration_name=name,
        folder=folder,
        prepared=run.prepared(configuration.prepared),
        labels=dataset.labels,
        validation_cases=validated,
        annotated={case: partial[case] for case in validated if case in partial},
        device=device,
        workers=workers,
    )
    return inputs, place, horizon
