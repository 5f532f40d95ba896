"""The jobs after the plan: prepare per spec, train and validate per configuration and fold, select and pack."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from autounet.planning.time import CLOSING_SECONDS, FOLD_OVERHEAD_SECONDS, LEAST_STEPS
from autounet.running import case_work
from autounet.running.context import Context
from autounet.running.jobs import Job, move_aside, read_key, write_key
from autounet.running.progress import progress
from autounet.running.selecting import Selecting, fold_metrics
from autounet.running.time_shaping import CLOSING_SECONDS_PER_CASE
from autounet.schema.errors import DeadlineError
from autounet.schema.plan import Configuration
from autounet.schema.quantities import format_number, format_time
from autounet.schema.record import digest
from autounet.schema.run import EpochLog, fold_name

log = logging.getLogger(__name__)

STAGE_VERSION = 1


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
        labels = self.dataset.labels
        encoded = [labels.values, labels.ignore]  # names change nothing that is prepared or trained
        self.hashes = {facts.identifier: digest([facts.content_hash, encoded]) for facts in context.known.facts}
        self.validation_seconds: dict[str, float] = {}
        self.overhead = FOLD_OVERHEAD_SECONDS
        self.pending: list[Job] = []

    # what there is to do

    def preprocess_jobs(self) -> list[Job]:
        jobs = {}
        for configuration in self.configurations.values():
            folder = self.out / "prepared" / configuration.prepared
            done = folder.with_name(f"{folder.name}.done.json")  # beside it: a case may be called done
            key = digest([STAGE_VERSION, configuration.preprocess.digest(), sorted(self.hashes.items())])
            jobs[configuration.prepared] = Job(
                f"prepare {configuration.prepared}", (), key, done, "prepare",
                {"configuration": configuration, "folder": folder},
                writes=tuple(folder / f"{case.identifier}.image.b2nd" for case in self.dataset.cases),
            )  # fmt: skip
        return list(jobs.values())

    def train_jobs(self) -> list[Job]:
        jobs = []
        for name, configuration in self.configurations.items():
            for fold in self.context.folds:
                folder = self.out / "models" / name / fold_name(fold)
                cases, _ = self.context.cases(fold)
                content = [(case, self.hashes[case]) for case in cases]
                key = digest([STAGE_VERSION, self._training_key(configuration), content])
                train = Job(
                    f"train {name} {fold_name(fold)}", (f"prepare {configuration.prepared}",), key,
                    folder / "done.json", "train", {"name": name, "fold": fold, "folder": folder, "key": key},
                    writes=(folder / "weights.safetensors", folder / "record.json"),
                )  # fmt: skip
                jobs.append(train)
                if fold is not None:
                    jobs.append(self._validate_job(train, name, fold))
        self.pending = [job for job in jobs if not job.is_done()]
        self._check_time()
        return jobs

    def _validate_job(self, train: Job, name: str, fold: int) -> Job:
        cases = [(case, self.hashes[case]) for case in self.context.cases(fold)[1]]
        inference, labels = self.configurations[name].inference.digest(), self.dataset.labels.digest()
        folder = self.out / "crossval" / name
        names = [case_work.segmentation_name(self.dataset.case(case)) for case, _ in cases]
        return Job(
            f"validate {name} fold_{fold}", (train.name,), digest([STAGE_VERSION, train.key, cases, inference, labels]),
            folder / f"fold_{fold}.done.json", "validate",
            {"name": name, "fold": fold, "weights": train.done.parent / "weights.safetensors"},
            follows=(train.name,),
            writes=(fold_metrics(self.out, name, fold), *(folder / each for each in names)),
        )  # fmt: skip

    def select_job(self, before: list[Job]) -> Job:
        described = [self.dataset.labels.digest(), *(each.digest() for each in self.configurations.values())]
        key = digest([STAGE_VERSION, described, [job.key for job in before]])
        names = tuple(job.name for job in before)
        follows = tuple(job.name for job in before if job.function != "prepare")
        files = ["selection.json", "model/bundle.json", *([] if self.context.folds == (None,) else ["metrics.json"])]
        writes = tuple(self.out / file for file in files)
        return Job("select", names, key, self.out / "model" / "done.json", "select", follows=follows, writes=writes)

    def _training_key(self, configuration: Configuration) -> list[object]:
        """What a training depends on beside its cases."""
        options = self.context.train_options(configuration).digest()
        return [configuration.key, options, self.context.steps, self.context.deadline.promised]

    def _check_time(self) -> None:
        """A resumed command whose time is used up says so before anything is trained for too short."""
        deadline, left = self.context.deadline, self.context.deadline.remaining()
        trainings = [job for job in self.pending if job.function == "train"]
        if left is None or not deadline.resumed or not trainings:
            return
        least = self._reserve() + sum(self._least_seconds(job.args["name"]) for job in trainings)
        if left < least:
            raise DeadlineError(
                f"{format_time(left)} of the promised {format_time(deadline.promised or 0)} are left, and "
                f"{len(trainings)} folds need at least {format_time(least)}. Give more --time; finished folds with "
                "the same --time are kept, others are trained again",
                deadline.spent() + least,
            )

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
        seconds, spent = self._fold_seconds(name, folder), _elapsed(folder / "log.jsonl")
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
        self._finished("train", name, time.monotonic() - started, record.seconds - spent)

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
        spent = _elapsed(folder / "log.jsonl")
        trainings = sum(job.function == "train" for job in self.pending)
        share = (remaining - self._reserve() + spent) / max(1, trainings)
        least = self._least_seconds(name)
        if share < least:
            log.warning("the machine was slower than measured: the promised time is overrun to train at all")
        return max(share, least)

    def _least_seconds(self, name: str) -> float:
        return LEAST_STEPS * (self.configurations[name].predicted_step_seconds or 0.1)

    def _reserve(self) -> float:
        """Seconds of everything still to do but the trainings themselves."""
        trainings = sum(job.function == "train" for job in self.pending)
        validations = [job.args["name"] for job in self.pending if job.function == "validate"]
        names, cases = len(self.configurations), len(self.dataset.cases)
        averaged = sum(self._validation_estimate(name) for name in validations) * (names - 1) / 2  # of pairs
        return (
            CLOSING_SECONDS
            + CLOSING_SECONDS_PER_CASE * cases
            + sum(self._validation_estimate(name) for name in validations)
            + averaged
            + self.overhead * trainings
        )

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
                self.out / "crossval" / name, device, keep_scores=len(self.configurations) > 1,
                on_case=lambda _: meter.advance(),
            )  # fmt: skip
        metrics.save(fold_metrics(self.out, name, fold))
        log.info("%s fold_%d: mean Dice %s", name, fold, format_number(metrics.mean_dice))
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

    def select(self) -> None:
        Selecting(self.context).run()


def _elapsed(log_file: Path) -> float:
    """Training seconds in the last whole line of log.jsonl."""
    try:
        return float(json.loads(log_file.read_text().splitlines()[-1])["seconds"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0.0
