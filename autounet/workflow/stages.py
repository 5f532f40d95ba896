"""What the jobs of a run do, as functions of named values: prepare, train, validate, cascade labels, select."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..crossval.validate import write_cascade_labels
from ..preprocessing.prepare import prepare_cases
from ..progress import progress
from ..schema.dataset import Dataset
from ..schema.labels import Labels, TargetKind, overlapping_targets
from ..schema.metrics import Metrics
from ..schema.plan import PreprocessSpec
from ..schema.run import EpochLog, RunRecord, fold_name, read_log
from ..schema.stage_inputs import CascadeCaseInputs, TrainingInputs, TrainingPlace
from ..store import forget_damaged as forget_damaged_case
from ..store import is_prepared, read_properties, scores_file, stage_labels_file
from ..store.file_hashes import FileHashes
from ..store.run_folder import CascadeLabelsFolder, FoldFolder
from ..time_budget.deadline import Deadline, TimeAllotment
from ..tracking.run_tracking import RunTracker
from . import cache
from .jobs import Job
from .select_stage import select
from .validation import SideBySide, take_part, validate

log = logging.getLogger(__name__)


def prepare(dataset: Dataset, preprocess: PreprocessSpec, folder: Path, keys: Mapping[str, str], workers: int) -> None:
    """Every case that is not there with its key."""
    missing = {case: key for case, key in keys.items() if not is_prepared(folder, case, key)}
    with progress("preprocessing", len(keys)) as meter:
        meter.advance(len(keys) - len(missing))
        prepare_cases(dataset, preprocess, folder, missing, workers, lambda _: meter.advance())


def train(
    inputs: TrainingInputs,
    place: TrainingPlace,
    seconds: float | None,
    on_log: Callable[[EpochLog], None],
) -> RunRecord:
    """For the inputs' steps or for `seconds`, whichever ends first. Another training in the folder is moved aside."""
    from ..training import Horizon, train_fold

    folder = FoldFolder(place.folder)
    if cache.stored_key(folder.started) != inputs.key:
        moved = cache.move_aside(folder.path)
        if moved:
            log.warning("%s was trained with other options or data: moved to %s", folder.path.name, moved)
        cache.mark_done(folder.started, inputs.key)
    title = f"{place.configuration_name} {fold_name(inputs.fold)}"
    for warning in place.warnings:
        log.warning("%s: %s", title, warning)
    for event in place.events:
        log.info("%s: %s", title, event)
    with progress(f"training {title}", 1.0) as meter:

        def on_line(entry: EpochLog) -> None:
            meter.update(entry.progress, f"loss {entry.loss:.3f}")
            if entry.event:
                log.info("%s: %s", title, entry.event)
            on_log(entry)

        return train_fold(inputs, place, Horizon(steps=inputs.steps, seconds=seconds), on_line, meter.update)


def cascade_labels(
    labels: Labels,
    targets: TargetKind,
    cases: Sequence[str],
    scores: Path,
    grid: Path,
    next_grid: Path,
    folder: CascadeLabelsFolder,
    workers: int,
) -> None:
    """Labels of one stage on the next one's grid, of the cases whose scores or grids have changed."""
    hashes = FileHashes()
    members = tuple(each.members for each in overlapping_targets(labels)) if targets == "regions" else ()
    keys = {
        case: CascadeCaseInputs(
            scores=hashes.of(scores_file(scores, case)) or "",
            prepared=read_properties(grid, case).key,
            following=read_properties(next_grid, case).key,
            targets=targets,
            members=members,
        ).key
        for case in cases
    }
    changed = [
        case
        for case, key in keys.items()
        if not cache.is_done(folder.case_key(case), key, [stage_labels_file(folder.path, case)])
    ]
    for case in changed:
        cache.forget(folder.case_key(case))
    with progress(f"labels for {folder.path.name}", len(changed)) as meter:

        def on_case(case: str) -> None:
            cache.mark_done(folder.case_key(case), keys[case])
            meter.advance()

        write_cascade_labels(changed, labels, targets, scores, grid, next_grid, folder.path, workers, on_case)


def forget_damaged(jobs: Sequence[Job], root: Path, hashes: FileHashes) -> None:
    """Remove files that are not as finished jobs wrote them, and say so: these jobs then make them again.

    Trained weights are no such files: their fold is moved aside and trained again.
    """
    for job in jobs:
        if cache.stored_key(job.done) != job.key:
            continue
        if job.function == "prepare":
            cases = [case for case in job.args["keys"] if forget_damaged_case(job.args["folder"], case, hashes.of)]
            if cases:
                log.warning("%s: damaged, and prepared again: %s", job.name, _listed(cases))
                cache.forget(job.done)
            continue
        changed, missing = cache.damage(job.done, job.written(), hashes)
        names = _listed([path.relative_to(root).as_posix() for path in changed])
        if changed and job.function == "train":
            aside = cache.move_aside(job.done.parent)
            log.warning("%s: damaged: %s. The fold is trained again; its files are now in %s", job.name, names, aside)
        elif changed or missing:
            log.warning("%s: damaged or missing, and made again: %s", job.name, names or _listed(missing))
            for path in changed:
                path.unlink()
            if job.function != "train":  # of which only files that are gone concern its own folder
                cache.forget(job.done)


SHOWN = 5
"""files named in one message"""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "prepare": prepare,
    "train": train,
    "validate": validate,
    "take_part": take_part,
    "cascade_labels": cascade_labels,
    "select": select,
}
"""what a job's function names"""


class JobRunner:
    """Gives jobs their share of the time before they are done, here or elsewhere, and learns what they have cost."""

    def __init__(
        self, shares: TimeAllotment, tracker: RunTracker, deadline: Deadline, side_by_side: SideBySide | None = None
    ) -> None:
        """`side_by_side` is for validations by several devices."""
        self.shares, self.tracker, self.deadline, self.side_by_side = shares, tracker, deadline, side_by_side
        self.spent: dict[str, float] = {}
        """seconds that the trainings that have begun took before"""

    def __call__(self, job: Job) -> None:
        """The whole job, in this process."""
        values, began = self.begin(job), time.monotonic()
        if job.function == "train":
            values["on_log"] = partial(self.said, job)
        elif job.function == "validate":
            values["side_by_side"] = self.side_by_side
        self.ended(job, FUNCTIONS[job.function](**values), time.monotonic() - began)

    def begin(self, job: Job) -> dict[str, Any]:
        """What the job's function is to be called with; but a training's `on_log`."""
        if job.function == "select":
            return {**job.args, "seconds_left": self.deadline.remaining()}
        if job.function != "train":
            return dict(job.args)
        lines = read_log(FoldFolder(job.args["place"].folder).log) if _continues(job) else []
        spent = self.spent[job.name] = lines[-1].seconds if lines else 0.0
        inputs, place = job.args["inputs"], job.args["place"]
        self.tracker.begin(
            place.configuration_name, fold_name(inputs.fold), job.key, inputs.configuration, inputs.options
        )
        return {**job.args, "seconds": self.shares.training_seconds(job.configuration, spent)}

    def said(self, job: Job, entry: EpochLog) -> None:
        """A line of the log of a training."""
        self.deadline.save()
        inputs, place = job.args["inputs"], job.args["place"]
        name = f"{place.configuration_name} {fold_name(inputs.fold)}"
        self.tracker.line(self.tracker.run(name, job.key), entry)

    def queued(self, seconds: float) -> None:
        """All jobs waited for a machine."""
        self.deadline.not_counted(seconds)

    def wanted(self, job: Job) -> None:
        """What a job is given that asks: those of a run have all that they need."""

    def given_back(self, job: Job) -> None:
        """What had begun begins again."""
        if job.function == "train":
            self.shares.given_back()

    def ended(self, job: Job, result: object, seconds: float) -> None:
        """After `seconds` with its result."""
        counted = 0.0
        if isinstance(result, RunRecord):
            counted = result.seconds - self.spent[job.name]
        elif isinstance(result, Metrics):  # the Dice of a fold, at the end of its curves
            folder = FoldFolder(job.args["weights"].parent)
            lines = read_log(folder.log)
            run = self.tracker.run(
                f"{job.configuration} {fold_name(job.args['fold'])}", cache.stored_key(folder.started) or ""
            )
            self.tracker.fold(run, result, lines[-1].step if lines else 0)
        if job.configuration:
            self.shares.finished(job.function, job.configuration, seconds, counted)


def _continues(job: Job) -> bool:
    """Whether the folder holds an unfinished training by the same inputs."""
    return cache.stored_key(FoldFolder(job.args["place"].folder).started) == job.key
