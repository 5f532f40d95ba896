"""What the jobs of `graph.py` do: prepare, train, validate, hand over to the next stage, select and pack."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from ..crossval import validate as case_work
from ..crossval.cascade_labels import hand_over_cases
from ..crossval.select import Selecting, fold_metrics
from ..crossval.validate import ValidatedCases, validation_keys
from ..progress import progress
from ..schema.dataset import channel_combinations, partial_availability
from ..schema.metrics import Metrics
from ..schema.plan import Configuration
from ..schema.quantities import format_number
from ..schema.run import EpochLog, fold_name, read_log
from ..tracking import RunTracker
from .context import Context
from .fine_tuning import Starting
from .jobs import Job, JobGraph, move_aside, read_key, write_key
from .time_shares import TimeShares

log = logging.getLogger(__name__)


class FoldJobs:
    """Builds the jobs of one run and holds the functions they name."""

    def __init__(self, context: Context, tracked: RunTracker) -> None:
        self.context, self.out, self.tracked = context, context.out, tracked
        self.graph = JobGraph(context)
        self.starting = Starting(context)
        self.dataset, self.configurations = context.known.dataset, self.graph.configurations
        self.shares = self._shares([])
        self.functions: dict[str, Callable[..., None]] = {
            "prepare": self.prepare,
            "train": self.train,
            "validate": self.validate,
            "hand_over": self.hand_over,
            "select": self.select,
        }

    def preprocess_jobs(self) -> list[Job]:
        return self.graph.preprocess_jobs()

    def train_jobs(self) -> list[Job]:
        """Raises OptionError and DeadlineError for what is known to be impossible before anything is trained."""
        for name in self.context.left_out:
            log.warning("%s is left out: it needs every fold of its previous stage. Give --folds all, or name it", name)
        jobs = self.graph.train_jobs()
        self.shares = self._shares(jobs)
        self.shares.check()
        return jobs

    def select_job(self, before: list[Job]) -> Job:
        return self.graph.select_job(before)

    def _shares(self, jobs: list[Job]) -> TimeShares:
        return TimeShares(self.context.deadline, self.configurations, len(self.dataset.cases), jobs)

    # the functions of jobs

    def prepare(self, configuration: Configuration, folder: Path) -> None:
        dataset = self.dataset
        with progress("preprocessing", len(dataset.cases)) as meter:
            case_work.prepare_cases(
                dataset, self.graph.hashes, configuration.preprocess, folder, self.context.workers,
                on_case=lambda _: meter.advance(),
            )  # fmt: skip

    def train(self, name: str, fold: int | None, folder: Path, key: str) -> None:
        from ..training import FoldTask, Horizon, train_fold

        started = time.monotonic()
        configuration = self.configurations[name]
        if read_key(folder / "started.json") != key:
            self._begin(folder, key)
        spent = _elapsed(folder / "log.jsonl")
        seconds = self.shares.training_seconds(name, spent)
        training, validation = self.context.cases(fold)
        start, said = self.starting.of(name, fold)
        for sentence in said:
            log.info("%s %s: %s", name, fold_name(fold), sentence)
        task = FoldTask(
            configuration_name=name,
            configuration=configuration,
            labels=self.dataset.labels,
            options=self.context.train_options(configuration),
            prepared=self.out / "prepared" / configuration.prepared,
            train_cases=training,
            validation_cases=validation,
            fold=fold,
            folder=folder,
            horizon=Horizon(steps=self.context.steps, seconds=seconds),
            device=self.context.profile.device,
            workers=self.context.loader_workers,
            class_voxels=self.context.known.fingerprint.class_voxels,
            events=(*self.context.plan.events.get(name, ()), *said),
            annotated=self.graph.partial,
            present=partial_availability(self.dataset),
            channel_combinations=channel_combinations(self.dataset),
            previous=self.graph.handed_labels(name),
            start=start,
        )
        run = self.tracked.begin(name, fold_name(fold), key, configuration, task.options)
        with progress(f"training {name} {fold_name(fold)}", 1.0) as meter:

            def on_log(entry: EpochLog) -> None:
                meter.update(entry.progress, f"loss {entry.loss:.3f}")
                self.context.deadline.save()
                self.tracked.line(run, entry)

            record = train_fold(task, on_log)
        self.shares.finished("train", name, time.monotonic() - started, record.seconds - spent)

    def _begin(self, folder: Path, key: str) -> None:
        moved = move_aside(folder)
        if moved:
            log.warning("%s was trained with other options or data: moved to %s", folder.name, moved)
        write_key(folder / "started.json", key)

    def validate(self, name: str, fold: int, weights: Path) -> None:
        """Predict and evaluate the cases whose earlier results no longer hold."""
        from ..inference.bundle import load_network

        started = time.monotonic()
        configuration, previous = self.configurations[name], self.graph.handed_labels(name)
        device, folder, prepared = self.context.profile.device, self.out / "crossval" / name, self.out / "prepared"
        cases = self.context.cases(fold)[1]
        keys = validation_keys(
            self.dataset, configuration, fold, cases, weights, prepared / configuration.prepared, previous
        )
        earlier = ValidatedCases(self.dataset, folder, keys, keep_scores=True)
        found = earlier.kept()
        if changed := [case for case in cases if case not in found]:
            model = load_network(configuration, weights, device)
            with progress(f"validating {name} fold_{fold}", len(changed)) as meter:
                metrics = case_work.validate_cases(
                    self.dataset, configuration, [model], prepared, changed, fold, folder, device,
                    keep_scores=True, on_case=lambda _: meter.advance(), previous=previous,
                )  # fmt: skip
            earlier.keep(metrics.cases)
            found |= {each.case: each for each in metrics.cases}
        metrics = case_work.summarise_cases([found[case] for case in cases], self.dataset)
        metrics.save(fold_metrics(self.out, name, fold))
        self._track(name, fold, weights.parent, metrics)
        log.info("%s fold_%d: mean Dice %s", name, fold, format_number(metrics.mean_dice))
        self.shares.finished("validate", name, time.monotonic() - started)

    def _track(self, name: str, fold: int, folder: Path, metrics: Metrics) -> None:
        """The Dice of a fold, at the end of its curves."""
        lines = read_log(folder / "log.jsonl")
        run = self.tracked.run(f"{name} {fold_name(fold)}", read_key(folder / "started.json") or "")
        self.tracked.fold(run, metrics, lines[-1].step if lines else 0)

    def hand_over(self, name: str, fold: int, next_name: str, folder: Path) -> None:
        started = time.monotonic()
        grids = [self.out / "prepared" / self.configurations[each].prepared for each in (name, next_name)]
        cases = self.context.cases(fold)[1]
        with progress(f"handing {name} fold_{fold} to {next_name}", len(cases)) as meter:
            hand_over_cases(
                self.dataset, self.configurations[name], self.out / "crossval" / name / "scores", grids[0], grids[1],
                folder, cases, self.context.workers, on_case=lambda _: meter.advance(),
            )  # fmt: skip
        self.shares.finished("hand_over", name, time.monotonic() - started)

    def select(self) -> None:
        Selecting(self.context).run()


def _elapsed(log_file: Path) -> float:
    """Training seconds in the last whole line of log.jsonl."""
    try:
        return float(json.loads(log_file.read_text().splitlines()[-1])["seconds"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0.0
