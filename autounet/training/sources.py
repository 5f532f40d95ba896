"""Where a task's samples come from."""

from __future__ import annotations

import torch

from autounet.training.augment import Augmentation
from autounet.training.cases import CaseStore
from autounet.training.memory import free_memory
from autounet.training.samples import SampleSource
from autounet.training.task import FoldTask

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
        cases=CaseStore(task.prepared, task.train_cases, memory // max(1, task.workers)),
        patch=configuration.patch_size,
        batch_size=configuration.batch_size,
        seed=options.seed,
        fold=task.fold_number,
        foreground_fraction=options.foreground_fraction,
        augmentation=Augmentation(options.augmentation, configuration.patch_size, configuration.mirror_axes),
        sparse=task.labels.ignore is not None,
    )


def validation_source(task: FoldTask) -> SampleSource | None:
    """Patches as they are, each with foreground; None without validation cases.

    Its cases are read where they are cut: they are looked at seldom, and the training's fill the memory.
    """
    if not task.validation_cases:
        return None
    configuration = task.configuration
    return SampleSource(
        cases=CaseStore(task.prepared, task.validation_cases[:MONITORED_CASES], memory=0),
        patch=configuration.patch_size,
        batch_size=min(configuration.batch_size, MONITORED_CASES),
        seed=task.options.seed,
        fold=task.fold_number,
        foreground_fraction=1.0,
        augmentation=Augmentation("none", configuration.patch_size, ()),
        sparse=task.labels.ignore is not None,
    )
