"""Out-of-fold labels of one stage of a cascade on the grid of the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..inference.decisions import Decision, decision_for
from ..inference.export import labels_for_next_stage
from ..schema.labels import Labels, TargetKind
from ..store import read_properties, read_scores, write_stage_labels
from ..workers import map_parallel


class _CascadeTask(NamedTuple):
    identifier: str
    scores: Path
    grid: Path
    next_grid: Path
    folder: Path
    decision: Decision


def write_cascade_labels(
    cases: Sequence[str],
    labels: Labels,
    targets: TargetKind,
    scores: Path,
    grid: Path,
    next_grid: Path,
    folder: Path,
    workers: int,
    on_case: Callable[[str], None],
) -> None:
    """Kept out-of-fold scores on their grid to labels on the next stage's, into `folder`, in parallel.

    `grid` and `next_grid` are the folders of the cases as prepared for the two stages. `on_case` is called with each
    case when its labels are written.
    """
    decision = decision_for(labels, targets)
    tasks = [_CascadeTask(case, scores, grid, next_grid, folder, decision) for case in cases]
    map_parallel(_write_one, tasks, workers, on_case)


def _write_one(task: _CascadeTask) -> str:
    name = task.identifier
    source, target = (read_properties(folder, name) for folder in (task.grid, task.next_grid))
    labels = labels_for_next_stage(read_scores(task.scores, name), source, target, task.decision)
    write_stage_labels(task.folder, name, labels)
    return name
