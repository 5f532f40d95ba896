"""The jobs after the plan: prepare per spec, train and validate per configuration and fold, select and pack."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from autounet.planning.time import CLOSING_SECONDS, FOLD_OVERHEAD_SECONDS
from autounet.running import case_work
from autounet.running.context import Context
from autounet.running.jobs import Job, move_aside, read_key, write_key
from autounet.running.progress import progress
from autounet.running.time_shaping import CLOSING_SECONDS_PER_CASE
from autounet.schema.plan import Configuration
from autounet.schema.record import digest
from autounet.schema.run import EpochLog, Metrics, Selection
from autounet.selection import select

log = logging.getLogger(__name__)

STAGE_VERSION = 1


def fold_name(fold: int | None) -> str:
    return "fold_all" if fold is None else f"fold_{fold}"


class FoldJobs:
    """Builds the jobs of one run and holds the functions they name."""

    def __init__(self, context: Context) -> None:
        self.context, self.out = context, context.out
        self.dataset, self.configurations = context.known.dataset, context.configurations
        self.functions: dict[str, Callable[..., None]] = {
            "prepare": self.prepare,
            "train": self.train,
            "validate": self.validate,
            "select": self.select,
        }
        labels = self.dataset.labels.digest()
        self.hashes = {facts.identifier: digest([facts.content_hash, labels]) for facts in context.known.facts}
        self.validation_seconds: dict[str, float] = {}
        self.overhead = FOLD_OVERHEAD_SECONDS
        self.pending: list[Job] = []

    # what there is to do

    def preprocess_jobs(self) -> list[Job]:
        jobs = {}
        for configuration in self.configurations.values():
            folder = self.out / "prepared" / configuration.prepared
            key = digest([STAGE_VERSION, configuration.preprocess.digest(), sorted(self.hashes.items())])
            jobs[configuration.prepared] = Job(
                f"prepare {configuration.prepared}", (), key, folder / "done.json", "prepare",
                {"configuration": configuration, "folder": folder},
            )  # fmt: skip
        return list(jobs.values())

    def train_jobs(self) -> list[Job]:
        jobs = []
        for name, configuration in self.configurations.items():
            for fold in self.context.folds:
                folder = self.out / "models" / name / fold_name(fold)
                cases, _ = self.context.cases(fold)
                content = [(case, self.hashes[case]) for case in cases]
                key = digest([STAGE_VERSION, configuration.key, self._training_key(), content])
                train = Job(
                    f"train {name} {fold_name(fold)}", (f"prepare {configuration.prepared}",), key,
                    folder / "done.json", "train", {"name": name, "fold": fold, "folder": folder, "key": key},
                )  # fmt: skip
                jobs.append(train)
                if fold is not None:
                    jobs.append(self._validate_job(train, name, fold))
        self.pending = [job for job in jobs if not job.is_done()]
        return jobs

    def _validate_job(self, train: Job, name: str, fold: int) -> Job:
        cases = [(case, self.hashes[case]) for case in self.context.cases(fold)[1]]
        inference = self.configurations[name].inference.digest()
        return Job(
            f"validate {name} fold_{fold}", (train.name,), digest([STAGE_VERSION, train.key, cases, inference]),
            self.out / "crossval" / name / f"fold_{fold}.done.json", "validate",
            {"name": name, "fold": fold, "weights": train.done.parent / "weights.safetensors"},
        )  # fmt: skip

    def select_job(self, before: list[Job]) -> Job:
        key = digest([STAGE_VERSION, [job.key for job in before]])
        return Job("select", tuple(job.name for job in before), key, self.out / "model" / "done.json", "select")

    def _training_key(self) -> list[object]:
        options = self.context.options
        asked = options.model_dump(mode="json", include={"seconds", "epochs", "iterations", "loss", "seed", "preset"})
        return [asked, self.context.profile.device]

    # how it is done

    def prepare(self, configuration: Configuration, folder: Path) -> None:
        dataset = self.dataset
        with progress("preprocessing", len(dataset.cases)) as meter:
            case_work.prepare_cases(
                dataset, self.hashes, configuration.preprocess, folder, self.context.workers,
                on_case=lambda _: meter.advance(),
            )  # fmt: skip

    def train(self, name: str, fold: int | None, folder: Path, key: str) -> None:
        from autounet.training import FoldTask, Horizon, train_fold

        started = time.monotonic()
        configuration = self.configurations[name]
        if read_key(folder / "started.json") != key:
            self._begin(folder, key)
        seconds = self._fold_seconds(name, folder)
        training, validation = self.context.cases(fold)
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
        )
        with progress(f"training {name} {fold_name(fold)}", 1.0) as meter:

            def on_log(entry: EpochLog) -> None:
                meter.update(entry.progress, f"loss {entry.loss:.3f}")
                self.context.deadline.save()

            record = train_fold(task, on_log)
        self._finished("train", name, time.monotonic() - started, record.seconds)

    def _begin(self, folder: Path, key: str) -> None:
        moved = move_aside(folder)
        if moved:
            log.warning("%s was trained with other options or data: moved to %s", folder.name, moved)
        write_key(folder / "started.json", key)

    def _fold_seconds(self, name: str, folder: Path) -> float | None:
        """This fold's share of what is left, what it has used already included."""
        remaining = self.context.deadline.remaining()
        if remaining is None:
            return None
        trainings = [job for job in self.pending if job.function == "train"]
        validations = [job for job in self.pending if job.function == "validate"]
        reserve = CLOSING_SECONDS + CLOSING_SECONDS_PER_CASE * len(self.dataset.cases)
        reserve += sum(self._validation_estimate(job.args["name"]) for job in validations)
        reserve += self.overhead * len(trainings)
        spent = _elapsed(folder / "log.jsonl")
        return max(1.0, (remaining - reserve + spent) / max(1, len(trainings)))

    def _validation_estimate(self, name: str) -> float:
        return self.validation_seconds.get(name, self.configurations[name].predicted_validation_seconds or 0.0)

    def validate(self, name: str, fold: int, weights: Path) -> None:
        from autounet.inference.loading import load_network

        started = time.monotonic()
        device = self.context.profile.device
        model = load_network(self.configurations[name], weights, device)
        cases = self.context.cases(fold)[1]
        with progress(f"validating {name} fold_{fold}", len(cases)) as meter:
            metrics = case_work.validate_cases(
                self.dataset, self.configurations[name], [model], self.out / "prepared", cases, fold,
                self.out / "crossval" / name, device, on_case=lambda _: meter.advance(),
            )  # fmt: skip
        metrics.save(self._fold_metrics(name, fold))
        log.info("%s fold_%d: mean Dice %s", name, fold, _number(metrics.mean_dice))
        self._finished("validate", name, time.monotonic() - started, 0.0)

    def _finished(self, function: str, name: str, seconds: float, counted: float) -> None:
        """Learn the true cost of what the time was shaped with."""
        if function == "validate":
            self.validation_seconds[name] = seconds
        else:
            self.overhead = max(0.0, seconds - counted)
        for job in self.pending:
            if job.function == function and job.args["name"] == name:
                self.pending.remove(job)
                break

    def _fold_metrics(self, name: str, fold: int) -> Path:
        return self.out / "crossval" / name / f"fold_{fold}.json"

    def select(self) -> None:
        """Compare configurations and pairs on all out-of-fold cases, choose, pack the bundle."""
        dataset, folds = self.dataset, [fold for fold in self.context.folds if fold is not None]
        metrics: dict[str, Metrics] = {}
        if folds:
            for name in self.configurations:
                cases = [case for fold in folds for case in Metrics.load(self._fold_metrics(name, fold)).cases]
                metrics[name] = case_work.summarise_cases(cases, dataset)
            metrics.update(self._ensembles(folds))
            selection = select(metrics)
            metrics["+".join(selection.chosen)].save(self.out / "metrics.json")
        else:
            selection = Selection(
                chosen=tuple(self.configurations), compared=(),
                reason="Trained on all cases: nothing was left to validate on, so nothing was compared.",
            )  # fmt: skip
            (self.out / "metrics.json").unlink(missing_ok=True)
        selection.save(self.out / "selection.json")
        chosen = metrics.get("+".join(selection.chosen))
        self._pack(selection, chosen.mean_dice if chosen else None)

    def _ensembles(self, folds: list[int]) -> dict[str, Metrics]:
        names = list(self.configurations)
        fold_of = {case: fold for fold in folds for case in self.context.cases(fold)[1]}
        found = {}
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                sources = {
                    name: (self.configurations[name], self.out / "crossval" / name / "scores")
                    for name in (first, second)
                }
                folder = self.out / "crossval" / f"{first}+{second}"
                found[f"{first}+{second}"] = case_work.ensemble_cases(
                    self.dataset, sources, self.out / "prepared", fold_of, folder
                )
        return found

    def _pack(self, selection: Selection, mean_dice: float | None) -> None:
        from autounet.inference.bundle import pack

        models = self.out / "models"
        weights = {
            name: {fold: models / name / fold_name(fold) / "weights.safetensors" for fold in self.context.folds}
            for name in selection.chosen
        }
        options = self.context.options.data
        pack(self.out / "model", self.dataset, options, self.configurations, selection, weights, mean_dice)


def _elapsed(log_file: Path) -> float:
    """Training seconds in the last whole line of log.jsonl."""
    try:
        return float(json.loads(log_file.read_text().splitlines()[-1])["seconds"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0.0


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
