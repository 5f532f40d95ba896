"""Which jobs come after the plan, what each depends on and what it leaves.

    prepare (per grid) -> train -> validate (per configuration and fold) -> select
                                      |
                                      +-> cascade labels -> train the next stage of a cascade

A job is plain data: its function is a name in `stages.FUNCTIONS`, its arguments are records and paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..crossval.validate import segmentation_name
from ..schema.dataset import Dataset, annotated_classes, channel_availability, channel_combinations, partly_annotated
from ..schema.errors import OptionError
from ..schema.fingerprint import Fingerprint
from ..schema.options import CompileSetting, DataOptions
from ..schema.plugins import plugins_used
from ..schema.run import fold_name
from ..schema.stage_inputs import (
    MONITORED_CASES,
    CascadeInputs,
    InitialWeights,
    PreparationInputs,
    PreparedCaseInputs,
    SelectionInputs,
    TrainingCase,
    TrainingInputs,
    TrainingPlace,
    ValidationInputs,
    plugins_of,
)
from ..store import scores_file, stage_labels_file
from ..store.run_folder import BUNDLE_FILE, RunFolder
from . import cache
from .training_schedule import TrainingSchedule, ensembles

CLASS_BALANCED = frozenset({"weighted_ce"})
"""losses whose weight map balances the classes over the whole data set; a test holds it equal to
`losses.BORDER_WEIGHTED`, which would load torch"""

LEAST_OF_A_SHARD = 8
"""cases; starting a job takes seconds"""


@dataclass(frozen=True)
class Job:
    """One unit of work that owns what it writes."""

    name: str
    needs: tuple[str, ...]
    """jobs that come before"""
    key: str
    """of the inputs that the result is a function of"""
    done: Path
    """written last, with the key"""
    function: str
    args: dict[str, Any] = field(default_factory=dict)
    configuration: str = ""
    """whose time it takes"""
    follows: tuple[str, ...] = ()
    """jobs whose running makes this one run again, although no key says so: their results are new"""
    writes: tuple[Path, ...] = ()
    """files that must be there for the job to count as done"""
    owns: tuple[Path, ...] = ()
    """folders of nothing but what it writes"""

    def is_done(self) -> bool:
        return cache.is_done(self.done, self.key, self.writes)

    def mark_done(self) -> None:
        cache.mark_done(self.done, self.key, self.written())

    def written(self) -> Iterator[Path]:
        """Files whose damage is to be noticed by the done file; prepared cases have checksums of their own."""
        if self.function != "prepare":
            yield from self.writes
        for folder in self.owns:
            yield from (path for path in folder.rglob("*") if path != self.done)


@dataclass(frozen=True)
class InitialFold:
    """What the training of one fold starts from, where that is not random numbers."""

    file: Path
    weights: InitialWeights
    events: tuple[str, ...] = ()
    """for its record"""


@dataclass(frozen=True)
class JobGraph:
    """Builds the jobs of one run; nothing is run or written here."""

    folder: RunFolder
    dataset: Dataset
    content: Mapping[str, str]
    """case -> hash of its files"""
    class_voxels: tuple[int, ...]
    """of the whole data set, per dense class"""
    schedule: TrainingSchedule
    device: str
    workers: int
    """processes that read and prepare cases"""
    loader_workers: int
    """processes that make batches beside a training"""
    compile: CompileSetting
    """whether trainings run compiled networks"""
    initial: Callable[[str, int | None], InitialFold | None]
    """of the training of a configuration and fold"""
    events: Mapping[str, tuple[str, ...]]
    """what happened to each configuration since it was planned"""
    unseen: Callable[[Sequence[str]], Sequence[int]] = lambda cases: ()
    """dense classes that occur in the data set, and in none of some cases"""
    devices: tuple[str, ...] = ()
    """that share each batch of a training, and the cases of a validation; none: `device` alone makes it"""
    shards: int = 1
    """of the cases of a grid, which are prepared on several machines"""

    @cached_property
    def prepared_keys(self) -> dict[str, dict[str, str]]:
        """Name of a folder of prepared cases -> case -> key of the case."""
        labels, channels = self.dataset.labels, len(self.dataset.channels)
        return {
            configuration.prepared: {
                case.identifier: PreparedCaseInputs(
                    preprocess=configuration.preprocess,
                    content=self.content[case.identifier],
                    values=labels.values,
                    ignore=labels.ignore,
                    present=channel_availability(case, channels),
                ).key
                for case in self.dataset.cases
            }
            for configuration in self.schedule.configurations.values()
        }

    def preparation(self) -> list[Job]:
        specs = {each.prepared: each.preprocess for each in self.schedule.configurations.values()}
        jobs = []
        for name, keys in self.prepared_keys.items():
            place = self.folder.prepared(name)
            args = {"dataset": self.dataset, "preprocess": specs[name], "folder": place, "keys": keys}
            job = Job(
                f"prepare {name}", (), PreparationInputs(cases=keys).key, self.folder.prepared_done(name),
                "prepare", {**args, "workers": self.workers},
                writes=tuple(place / f"{case}.image.b2nd" for case in keys),
            )  # fmt: skip
            shards = list(self._shards(job))
            jobs += [*shards, replace(job, needs=tuple(shard.name for shard in shards))]
        return jobs

    def _shards(self, whole: Job) -> Iterator[Job]:
        """Parts of a preparation; none where it is done or has few cases. `whole` then finds their cases prepared."""
        keys, count = list(whole.args["keys"].items()), min(self.shards, len(whole.args["keys"]) // LEAST_OF_A_SHARD)
        if count < 2 or whole.is_done():
            return
        bounds = [number * len(keys) // count for number in range(count + 1)]
        for first, last in pairwise(bounds):
            part, name = dict(keys[first:last]), f"{whole.name}, cases {first + 1} to {last}"
            done, args = self.folder.job(name).done, {**whole.args, "keys": part}
            key, files = PreparationInputs(cases=part).key, whole.writes[first:last]
            yield replace(whole, name=name, key=key, done=done, args=args, writes=files)

    def training(self) -> list[Job]:
        """Trainings and validations, and the labels of one stage of a cascade for the next.

        Raises OptionError where a next stage needs folds that are neither asked for nor there.
        """
        jobs: list[Job] = []
        received: dict[str, dict[int, Job]] = {name: {} for name in self.schedule.configurations}
        for name, configuration in self.schedule.configurations.items():
            previous = received[name]  # by fold, whose cases it is about
            for fold in self.schedule.folds_of(name):
                train = self._training(name, fold, previous)
                jobs.append(train)
                if fold is None:
                    continue
                validate, inputs = self._validation(name, fold, train, previous)
                jobs.append(validate)
                for following, other in self.schedule.configurations.items():
                    if other.previous_stage == name:
                        received[following][fold] = self._cascade_labels(name, fold, validate, inputs, following)
                        jobs.append(received[following][fold])
            if configuration.previous_stage:
                _require_every_fold(name, configuration.previous_stage, self.schedule.folds, jobs)
        return jobs

    def selection(self, before: Sequence[Job], data_options: DataOptions, fingerprint: Fingerprint,
                  metrics: tuple[str, ...]) -> Job:  # fmt: skip
        schedule, folder = self.schedule, self.folder
        inputs = SelectionInputs(
            labels=self.dataset.labels,
            configurations={name: each.trained for name, each in schedule.configurations.items()},
            inference={name: each.inference for name, each in schedule.configurations.items()},
            folds=schedule.folds,
            metrics=metrics,
            plugins=plugins_used(metrics=metrics),
            jobs={job.name: job.key for job in before},
        )
        args = {
            "folder": folder, "dataset": self.dataset, "schedule": schedule, "data_options": data_options,
            "fingerprint": fingerprint, "metrics": metrics, "workers": self.workers,
        }  # fmt: skip
        files = [folder.selection, folder.bundle / BUNDLE_FILE]
        single = [folder.crossval(name) for name in schedule.configurations]
        joined = [folder.crossval(*names) for names in ensembles(tuple(schedule.configurations))]
        return Job(
            "select", tuple(job.name for job in before), inputs.key, folder.bundle_done, "select", args,
            follows=tuple(job.name for job in before if job.function != "prepare"),
            writes=(*files, *([] if schedule.folds == (None,) else [folder.metrics])),
            owns=(
                folder.bundle, *(each for place in single for each in (place.postprocessed, place.objects)),
                *(place.path for place in joined),
            ),
        )  # fmt: skip

    def _cases(self, name: str, identifiers: Sequence[str], previous: Mapping[int, Job]) -> tuple[TrainingCase, ...]:
        keys = self.prepared_keys[self.schedule.configurations[name].prepared]
        received = {case: job.key for fold, job in previous.items() for case in self.schedule.validation_cases(fold)}
        return tuple(
            TrainingCase(
                identifier=each,
                prepared=keys[each],
                annotated=annotated_classes(self.dataset.case(each), self.dataset.labels),
                present=channel_availability(self.dataset.case(each), len(self.dataset.channels)),
                previous=received.get(each),
            )
            for each in identifiers
        )

    def _previous_folder(self, name: str) -> Path | None:
        """Of the labels that a configuration gets from its previous stage."""
        previous = self.schedule.configurations[name].previous_stage
        return None if previous is None else self.folder.crossval(previous).cascade_labels(name).path

    def _training(self, name: str, fold: int | None, previous: Mapping[int, Job]) -> Job:
        """A next stage does not follow the jobs that its labels come from: weights of equal keys stay good."""
        configuration, options = self.schedule.configurations[name], self.schedule.train_options[name]
        place, start = self.folder.fold(name, fold), self.initial(name, fold)
        validated, partial = self.schedule.validation_cases(fold), partly_annotated(self.dataset)
        shared = (f"each batch is shared by {', '.join(self.devices)}",) if self.devices else ()
        inputs = TrainingInputs(
            configuration=configuration.trained,
            options=options,
            fold=fold,
            labels=self.dataset.labels.nameless,
            cases=self._cases(name, self.schedule.training_cases(fold), previous),
            class_voxels=self.class_voxels if options.loss in CLASS_BALANCED else (),
            channel_combinations=channel_combinations(self.dataset),
            steps=self.schedule.steps,
            promised_seconds=self.schedule.promised_seconds,
            monitored=self._cases(name, validated[:MONITORED_CASES], previous) if self.schedule.to_convergence else (),
            initial=start.weights if start else None,
            plugins=plugins_of(configuration.network, options),
        )
        training = TrainingPlace(
            configuration_name=name,
            folder=place.path,
            prepared=self.folder.prepared(configuration.prepared),
            previous=self._previous_folder(name),
            initial=start.file if start else None,
            labels=self.dataset.labels,
            validation_cases=validated,
            annotated={case: partial[case] for case in validated if case in partial},
            device=self.device,
            devices=self.devices,
            workers=self.loader_workers,
            compile=self.compile,
            planned_bytes=configuration.predicted_memory_bytes,
            events=(*self.events.get(name, ()), *shared, *(start.events if start else ())),
            warnings=self._unseen_classes(fold),
        )
        needs = (f"prepare {configuration.prepared}", *(job.name for job in previous.values()))
        return Job(
            f"train {name} {fold_name(fold)}", needs, inputs.key, place.done, "train",
            {"inputs": inputs, "place": training}, name, writes=(place.weights, place.record),
        )  # fmt: skip

    def _unseen_classes(self, fold: int | None) -> tuple[str, ...]:
        """A sentence where no training case shows a class of the data set; a class that is nowhere is `check`'s."""
        cases = self.schedule.training_cases(fold)
        labels, missing = self.dataset.labels, self.unseen(cases)
        # small objects lack some of the levels of depth
        everything = [labels.objects] if labels.objects and len(missing) == labels.count - 1 else []
        names = everything if labels.objects else [labels.classes[index].name for index in missing]
        what = f"none of the {len(cases)} training cases shows {', '.join(names)}: this fold cannot learn it"
        return (f"{what}. What helps: more cases with it, other folds (--splits), or fewer classes",) if names else ()

    def _validation(
        self, name: str, fold: int, train: Job, previous: Mapping[int, Job]
    ) -> tuple[Job, ValidationInputs]:
        configuration, place = self.schedule.configurations[name], self.folder.crossval(name)
        cases = self.schedule.validation_cases(fold)
        inputs = ValidationInputs(
            training=train.key,
            fold=fold,
            inference=configuration.inference,
            labels=self.dataset.labels,
            cases=self._cases(name, cases, previous),
        )
        args = {
            "dataset": self.dataset, "configuration": configuration, "fold": fold, "cases": inputs.cases,
            "weights": self.folder.fold(name, fold).weights, "prepared": self.folder.prepared(configuration.prepared),
            "previous": self._previous_folder(name), "folder": place, "device": self.device, "devices": self.devices,
        }  # fmt: skip
        written = [place.path / segmentation_name(self.dataset.case(case)) for case in cases]
        job = Job(
            f"validate {name} fold_{fold}", (train.name,), inputs.key, place.done(fold), "validate", args, name,
            follows=(train.name, *(job.name for job in previous.values())),
            writes=(place.metrics(fold), *written, *(scores_file(place.scores, case) for case in cases)),
        )  # fmt: skip
        return job, inputs

    def _cascade_labels(self, name: str, fold: int, validate: Job, scores: ValidationInputs, following: str) -> Job:
        """Names of classes, which the validation depends on, change no label."""
        configuration, next_one = self.schedule.configurations[name], self.schedule.configurations[following]
        place, cases = self.folder.crossval(name).cascade_labels(following), self.schedule.validation_cases(fold)
        nameless = scores.model_copy(update={"labels": self.dataset.labels.nameless})
        inputs = CascadeInputs(validation=nameless.key, following=next_one.preprocess)
        args = {
            "labels": self.dataset.labels, "targets": configuration.targets, "cases": cases,
            "scores": self.folder.crossval(name).scores, "grid": self.folder.prepared(configuration.prepared),
            "next_grid": self.folder.prepared(next_one.prepared), "folder": place, "workers": self.workers,
        }  # fmt: skip
        return Job(
            f"cascade labels of {name} fold_{fold} for {following}",
            (validate.name, f"prepare {next_one.prepared}"), inputs.key, place.done(fold), "cascade_labels", args, name,
            follows=(validate.name,), writes=tuple(stage_labels_file(place.path, case) for case in cases),
        )  # fmt: skip


def _require_every_fold(name: str, previous: str, asked: Sequence[int | None], jobs: Sequence[Job]) -> None:
    """Folds that were not asked for are not trained behind a person's back; `full` asks for what it needs."""
    missing = [
        job.args["fold"]
        for job in jobs
        if job.function == "validate" and job.configuration == previous and job.args["fold"] not in asked
        if not job.is_done()
    ]
    if missing and tuple(asked) != (None,):
        raise OptionError(
            f"{name} learns from out-of-fold segmentations of every case by {previous}, and fold "
            f"{', '.join(map(str, missing))} of {previous} is neither asked for nor trained",
            f"Give --folds all, or --configurations without {name}",
        )
