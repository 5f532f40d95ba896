"""Where a task's samples come from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from ..losses import BORDER_WEIGHTED
from ..nets import FAMILIES
from ..ops.weight_map import balance_weights, border_weight
from ..schema.plan import Configuration, swapped_classes
from .augment import Augmentation, ClassSwap
from .cases import CaseStore
from .memory import free_memory
from .samples import ChannelDropout, SampleSource
from .task import FoldTask

MONITORED_CASES = 16
"""validation cases that the patches shown while training come from, at most"""


CASE_MEMORY = 2 * 1024**3
"""bytes of decompressed cases that a training keeps, at most"""
CASE_MEMORY_SHARE = 0.25
"""of the machine's free memory, likewise"""


def train_source(task: FoldTask) -> SampleSource:
    configuration, options = task.configuration, task.options
    memory = min(CASE_MEMORY, int(CASE_MEMORY_SHARE * free_memory(torch.device("cpu"))))
    return SampleSource(
        cases=CaseStore(task.prepared, task.train_cases, memory // max(1, task.workers), task.previous),
        patch=configuration.patch_size,
        batch_size=configuration.batch_size,
        seed=options.seed,
        fold=task.fold_number,
        foreground_fraction=options.foreground_fraction,
        augmentation=Augmentation(
            options.augmentation,
            configuration.patch_size,
            configuration.mirror_axes,
            task.previous_classes,
            class_swap(task),
            options.elastic,
        ),
        sparse=task.labels.ignore is not None,
        annotated=task.annotated,
        weigh=voxel_weight(task),
        dropout=ChannelDropout(task.channel_combinations, task.present),
        output=smaller_output(configuration),
    )


def validation_source(task: FoldTask) -> SampleSource | None:
    """Patches as they are, each with foreground; None without validation cases.

    Its cases are read where they are cut: they are looked at seldom, and the training's fill the memory.
    """
    if not task.validation_cases:
        return None
    configuration = task.configuration
    return SampleSource(
        cases=CaseStore(task.prepared, task.validation_cases[:MONITORED_CASES], memory=0, previous=task.previous),
        patch=configuration.patch_size,
        batch_size=min(configuration.batch_size, MONITORED_CASES),
        seed=task.options.seed,
        fold=task.fold_number,
        foreground_fraction=1.0,
        augmentation=Augmentation("none", configuration.patch_size, (), task.previous_classes),
        sparse=task.labels.ignore is not None,
        annotated=task.annotated,
        output=smaller_output(configuration),
    )


def class_swap(task: FoldTask) -> ClassSwap | None:
    """What left and right exchange where samples are mirrored."""
    axis = task.configuration.swap_axis
    return None if axis is None else ClassSwap(axis, swapped_classes(task.labels))


def smaller_output(configuration: Configuration) -> tuple[int, ...] | None:
    """Size of the network's output in the middle of a patch; None where it is the whole patch."""
    network, patch = configuration.network, configuration.patch_size
    output = FAMILIES[network.family].output_size(network, patch)
    return None if output == tuple(patch) else output


def voxel_weight(task: FoldTask) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes the weight map of a sample's labels, for losses that need one.

    Distances count in voxels of the finest axis of the patch. Classes are balanced over the whole data set.
    """
    if task.options.loss not in BORDER_WEIGHTED:
        return None
    spacing = np.array(task.configuration.spacing[-len(task.configuration.patch_size) :])
    balance = balance_weights(task.class_voxels) if task.class_voxels else None
    return partial(border_weight, spacing=tuple(spacing / spacing.min()), balance=balance)
