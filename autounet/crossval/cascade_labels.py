"""What one stage of a cascade hands to the next, case by case: a case whose scores and grids are as before is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..datasets.file_hashes import FileHashes
from ..inference.decisions import Decision, decision_for
from ..inference.export import labels_for_next_stage
from ..schema.dataset import Dataset
from ..schema.labels import overlapping_targets
from ..schema.plan import Configuration
from ..schema.record import digest
from ..store import read_properties, read_scores, scores_file, stage_labels_file, write_stage_labels
from ..workers import map_parallel
from ..workflow.jobs import read_key, write_key

STAGE_VERSION = 1
"""raised whenever the same scores would be handed over differently"""


class _Task(NamedTuple):
    identifier: str
    scores: Path
    grid: Path
    next_grid: Path
    folder: Path
    decision: Decision
    depends: str
    """digest of how scores become classes"""


def hand_over_cases(
    dataset: Dataset,
    configuration: Configuration,
    scores: Path,
    grid: Path,
    next_grid: Path,
    folder: Path,
    cases: Sequence[str],
    workers: int,
    on_case: Callable[[str], None] | None = None,
) -> None:
    """Kept out-of-fold scores by `configuration` on its grid to labels on the next stage's, into `folder`, in parallel.

    `grid` and `next_grid` are the folders of the cases as prepared for the two stages. A case is left as it is where
    `folder/keys/<case>.json` says that its labels came from the same scores, grids and classes.
    """
    targets = [each.members for each in overlapping_targets(dataset.labels)]
    depends = digest([STAGE_VERSION, targets if configuration.targets == "regions" else None])
    decision = decision_for(dataset.labels, configuration.targets)
    tasks = [_Task(case, scores, grid, next_grid, folder, decision, depends) for case in cases]
    map_parallel(_hand_over_one, tasks, workers, on_case)


def _hand_over_one(task: _Task) -> str:
    name = task.identifier
    source, target = (read_properties(folder, name) for folder in (task.grid, task.next_grid))
    content = FileHashes().of(scores_file(task.scores, name))
    key = digest([task.depends, content, source.key, target.key])
    done = task.folder / "keys" / f"{name}.json"
    if read_key(done) != key or not stage_labels_file(task.folder, name).exists():
        done.unlink(missing_ok=True)  # until the end the case counts as not handed over
        labels = labels_for_next_stage(read_scores(task.scores, name), source, target, task.decision)
        write_stage_labels(task.folder, name, labels)
        write_key(done, key)
    return name
