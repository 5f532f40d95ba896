"""Where the samples of a training and of its monitoring come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from ..losses import BORDER_WEIGHTED
from ..nets import FAMILIES
from ..ops.device import free_memory
from ..ops.surfaces import balance_weights, border_weight
from ..schema.plan import TrainedConfiguration, swapped_classes
from ..schema.stage_inputs import MONITORED_CASES, TrainingInputs, TrainingPlace
from ..time_budget.cost_model import CASE_MEMORY
from .augment import Augmentation, ClassSwap
from .cases import CaseStore, ChannelDropout
from .monitor import ClassPatches
from .samples import SampleSource

CASE_MEMORY_SHARE = 0.25
"""of the machine's free memory that decompressed cases may take; `CASE_MEMORY` at most"""


def train_source(inputs: TrainingInputs, place: TrainingPlace) -> SampleSource:
    configuration, options, cases = inputs.configuration, inputs.options, inputs.cases
    names = tuple(case.identifier for case in cases)
    memory = min(CASE_MEMORY, int(CASE_MEMORY_SHARE * free_memory(torch.device("cpu"))))
    return SampleSource(
        cases=CaseStore(place.prepared, names, memory // max(1, place.workers), place.previous),
        patch=configuration.patch_size,
        batch_size=configuration.batch_size,
        seed=options.seed,
        fold=inputs.fold_number,
        foreground_fraction=options.foreground_fraction,
        augmentation=Augmentation(
            options.augmentation,
            configuration.patch_size,
            configuration.mirror_axes,
            inputs.previous_classes,
            class_swap(inputs),
            options.elastic,
            options.augmented_by,
        ),
        sparse=inputs.labels.ignore is not None,
        annotated=annotated_cases(inputs),
        weigh=voxel_weight(inputs),
        dropout=ChannelDropout(
            inputs.channel_combinations, {case.identifier: case.present for case in cases if case.present is not None}
        ),
        output=smaller_output(configuration),
    )


def validation_source(inputs: TrainingInputs, place: TrainingPlace) -> SampleSource | None:
    """Patches as they are, each with foreground; None without validation cases.

    Its cases are read where they are cut: they are looked at seldom, and the training's fill the memory.
    """
    if not place.validation_cases:
        return None
    cases = CaseStore(place.prepared, place.validation_cases[:MONITORED_CASES], memory=0, previous=place.previous)
    return plain_source(inputs, cases, place.annotated)


def plain_source(inputs: TrainingInputs, cases: CaseStore, annotated: Mapping[str, tuple[bool, ...]]) -> SampleSource:
    """Patches of `cases` as they are, each with foreground. `annotated`: those in which some classes were not."""
    configuration = inputs.configuration
    return SampleSource(
        cases=cases,
        patch=configuration.patch_size,
        batch_size=min(configuration.batch_size, MONITORED_CASES),
        seed=inputs.options.seed,
        fold=inputs.fold_number,
        foreground_fraction=1.0,
        augmentation=Augmentation("none", configuration.patch_size, (), inputs.previous_classes),
        sparse=inputs.labels.ignore is not None,
        annotated=annotated,
        output=smaller_output(configuration),
    )


def class_patches(inputs: TrainingInputs, place: TrainingPlace) -> ClassPatches | None:
    """Patches of the training cases as they are, which show the rarest classes; None where no case has a class."""
    cases = CaseStore(place.prepared, [case.identifier for case in inputs.cases], memory=0, previous=place.previous)
    return ClassPatches.of(plain_source(inputs, cases, annotated_cases(inputs)))


def annotated_cases(inputs: TrainingInputs) -> dict[str, tuple[bool, ...]]:
    """(K) which classes were annotated, of the training cases in which some were not."""
    return {case.identifier: case.annotated for case in inputs.cases if case.annotated is not None}


def class_swap(inputs: TrainingInputs) -> ClassSwap | None:
    """What left and right exchange where samples are mirrored."""
    axis = inputs.configuration.swap_axis
    return None if axis is None else ClassSwap(axis, swapped_classes(inputs.labels))


def smaller_output(configuration: TrainedConfiguration) -> tuple[int, ...] | None:
    """Size of the network's output in the middle of a patch; None where it is the whole patch."""
    network, patch = configuration.network, configuration.patch_size
    output = FAMILIES[network.family].output_size(network, patch)
    return None if output == tuple(patch) else output


def voxel_weight(inputs: TrainingInputs) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes the weight map of a sample's labels, for losses that need one.

    Distances count in voxels of the finest axis of the patch. Classes are balanced over the whole data set.
    """
    if inputs.options.loss not in BORDER_WEIGHTED:
        return None
    spacing = np.array(inputs.configuration.network_spacing[-len(inputs.configuration.patch_size) :])
    balance = balance_weights(inputs.class_voxels) if inputs.class_voxels else None
    return partial(border_weight, spacing=tuple(spacing / spacing.min()), balance=balance)
