"""All cases of a data set onto the grid of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..datasets import load_case
from ..schema.dataset import Dataset, channel_availability
from ..schema.plan import PreprocessSpec
from ..store import write_prepared
from ..workers import map_parallel
from .prepare import prepare_case


class _PrepareTask(NamedTuple):
    dataset: Dataset
    """of this case alone"""
    key: str
    spec: PreprocessSpec
    folder: Path


def prepare_cases(
    dataset: Dataset,
    spec: PreprocessSpec,
    folder: Path,
    keys: Mapping[str, str],
    workers: int,
    on_case: Callable[[str], None],
) -> None:
    """Read and preprocess the cases that `keys` names into `folder`, in parallel, each with its key.

    Raises DataError naming the case.
    """
    tasks = [_PrepareTask(dataset.only(case), key, spec, folder) for case, key in keys.items()]
    map_parallel(_prepare_one, tasks, workers, on_case)


def _prepare_one(task: _PrepareTask) -> str:
    case = task.dataset.cases[0]
    loaded = load_case(task.dataset, case.identifier)
    present = channel_availability(case, len(task.dataset.channels))
    prepared = prepare_case(case.identifier, task.key, loaded.image, loaded.labels, loaded.geometry, task.spec, present)
    write_prepared(task.folder, *prepared)
    return case.identifier
