"""Which jobs come after the plan, what each depends on and what it leaves.

    prepare (per spec) -> train -> validate (per configuration and fold) -> select
                                      |
                                      +-> hand over -> train the next stage of a cascade

Out-of-fold results lie in `crossval/<configuration>/`, what is handed over in its `next/<next stage>/`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..crossval import validate as case_work
from ..crossval.final_steps import wanted_metrics
from ..crossval.select import fold_metrics
from ..evaluation import DEFAULT_METRICS
from ..schema.dataset import channel_combinations, partly_annotated
from ..schema.errors import OptionError
from ..schema.labels import overlapping_targets
from ..schema.plan import Configuration, swapped_classes
from ..schema.record import digest, write_text
from ..schema.run import fold_name
from ..store import scores_file, stage_labels_file
from .context import Context

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One unit of work that owns what it writes.

    `key` is a digest of all that the result depends on; `done` is the file written last, holding the key.
    A job whose done file holds its key, and whose `writes` are all there, is kept. `args` are records and paths.
    """

    name: str
    needs: tuple[str, ...]
    key: str
    done: Path
    function: str
    args: dict[str, Any] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    """jobs whose running makes this one run again, although no key says so: their results are new"""
    writes: tuple[Path, ...] = ()
    """files that must be there for the job to count as done"""

    def is_done(self) -> bool:
        return read_key(self.done) == self.key and all(path.exists() for path in self.writes)


class SequentialExecutor:
    """Runs jobs one after the other in this process, in the order given, which must respect `needs`."""

    def __init__(self, work: Callable[[Job], None], on_finished: Callable[[], None]) -> None:
        self.work, self.on_finished = work, on_finished

    def run(self, jobs: Sequence[Job]) -> None:
        seen: set[str] = set()
        ran: set[str] = set()
        for job in jobs:
            missing = set(job.needs) - seen
            if missing:
                raise ValueError(f"job {job.name} comes before what it needs: {sorted(missing)}")
            seen.add(job.name)
            if job.is_done() and not ran & set(job.follows):
                log.info("%s: already done", job.name)
                continue
            job.done.unlink(missing_ok=True)
            self.work(job)
            write_key(job.done, job.key)
            ran.add(job.name)
            self.on_finished()


def read_key(done: Path) -> str | None:
    """The key in a done file; None when it is absent or damaged."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_key(done: Path, key: str) -> None:
    write_text(done, json.dumps({"key": key}) + "\n")


def move_aside(folder: Path) -> Path | None:
    """Rename a folder to the first free `<name>.old_<n>`; None when there is nothing to move."""
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.old_{number}")).exists():
        number += 1
    folder.rename(target)
    return target


STAGE_VERSION = 1
SELECTION_VERSION = 3
"""raised whenever selection or packing would come out differently"""


class JobGraph:
    """Builds the jobs of one run; nothing is run or written here."""

    def __init__(self, context: Context) -> None:
        self.context, self.out, self.dataset = context, context.out, context.known.dataset
        self.configurations = context.configurations
        labels = self.dataset.labels
        encoded = [labels.values, labels.ignore]  # names change nothing that is prepared or trained
        self.partial = partly_annotated(self.dataset)
        self.hashes = {facts.identifier: digest([facts.content_hash, encoded]) for facts in context.known.facts}

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
        """Trainings and validations, and what one stage of a cascade hands to the next.

        Raises OptionError where a next stage needs folds that are neither asked for nor there.
        """
        jobs: list[Job] = []
        handed: dict[str, list[Job]] = {name: [] for name in self.configurations}  # by who receives
        for name, configuration in self.configurations.items():
            for fold in self.context.folds_of(name):
                train = self._train_job(name, fold, handed[name])
                jobs.append(train)
                if fold is None:
                    continue
                validate = self._validate_job(train, name, fold, handed[name])
                jobs.append(validate)
                for next_name, following in self.configurations.items():
                    if following.previous_stage == name:
                        handed[next_name].append(self._hand_over_job(train, validate, name, fold, next_name))
                        jobs.append(handed[next_name][-1])
            if configuration.previous_stage:
                self._require_every_fold(name, configuration.previous_stage, jobs)
        return jobs

    def select_job(self, before: list[Job]) -> Job:
        described = [self.dataset.labels.digest(), *(each.digest() for each in self.configurations.values())]
        wanted = wanted_metrics(self.context.options)
        others = [] if wanted == DEFAULT_METRICS else [wanted]
        key = digest([STAGE_VERSION, SELECTION_VERSION, described, [job.key for job in before], *others])
        names = tuple(job.name for job in before)
        follows = tuple(job.name for job in before if job.function != "prepare")
        files = ["selection.json", "model/bundle.json", *([] if self.context.folds == (None,) else ["metrics.json"])]
        writes = tuple(self.out / file for file in files)
        return Job("select", names, key, self.out / "model" / "done.json", "select", follows=follows, writes=writes)

    def handed_labels(self, name: str) -> Path | None:
        """Folder of the labels that a configuration gets from its previous stage."""
        previous = self.configurations[name].previous_stage
        return None if previous is None else self.out / "crossval" / previous / "next" / name

    def _train_job(self, name: str, fold: int | None, handed: list[Job]) -> Job:
        """A next stage does not follow the jobs that hand to it: weights reached from equal keys stay good."""
        configuration = self.configurations[name]
        folder = self.out / "models" / name / fold_name(fold)
        cases = self.context.cases(fold)[0]
        content = [(case, self.hashes[case]) for case in cases]
        depends = [STAGE_VERSION, self._training_key(configuration), content, *self._annotated(cases)]
        key = digest([*depends, [job.key for job in handed]] if handed else depends)
        return Job(
            f"train {name} {fold_name(fold)}",
            (f"prepare {configuration.prepared}", *(job.name for job in handed)), key, folder / "done.json",
            "train", {"name": name, "fold": fold, "folder": folder, "key": key},
            writes=(folder / "weights.safetensors", folder / "record.json"),
        )  # fmt: skip

    def _validate_job(self, train: Job, name: str, fold: int, handed: list[Job]) -> Job:
        folder = self.out / "crossval" / name
        cases = self.context.cases(fold)[1]
        files = [folder / case_work.segmentation_name(self.dataset.case(case)) for case in cases]
        files += [scores_file(folder / "scores", case) for case in cases]
        labels = self.dataset.labels.digest()
        return Job(
            f"validate {name} fold_{fold}", (train.name,),
            digest([STAGE_VERSION, *self._predicted_from(train, name, fold), labels, *self._annotated(cases)]),
            folder / f"fold_{fold}.done.json", "validate",
            {"name": name, "fold": fold, "weights": train.done.parent / "weights.safetensors"},
            follows=(train.name, *(job.name for job in handed)),
            writes=(fold_metrics(self.out, name, fold), *files),
        )  # fmt: skip

    def _hand_over_job(self, train: Job, validate: Job, name: str, fold: int, next_name: str) -> Job:
        """Not keyed by the validation, whose key holds the names of classes: they change no segmentation."""
        following = self.configurations[next_name]
        folder = self.out / "crossval" / name / "next" / next_name
        depends = [STAGE_VERSION, *self._predicted_from(train, name, fold), following.preprocess.digest()]
        return Job(
            f"hand {name} fold_{fold} to {next_name}", (validate.name, f"prepare {following.prepared}"),
            digest(depends), folder / f"fold_{fold}.done.json", "hand_over",
            {"name": name, "fold": fold, "next_name": next_name, "folder": folder}, follows=(validate.name,),
            writes=tuple(stage_labels_file(folder, case) for case in self.context.cases(fold)[1]),
        )  # fmt: skip

    def _predicted_from(self, train: Job, name: str, fold: int) -> list[object]:
        """What the out-of-fold scores of a fold depend on."""
        cases = [(case, self.hashes[case]) for case in self.context.cases(fold)[1]]
        return [train.key, cases, self.configurations[name].inference.digest()]

    def _training_key(self, configuration: Configuration) -> list[object]:
        """What a training depends on beside its cases."""
        options = self.context.train_options(configuration).digest()
        depends: list[object] = [configuration.key, options, self.context.steps, self.context.deadline.promised]
        if configuration.targets == "regions":
            depends.append([target.members for target in overlapping_targets(self.dataset.labels)])
        if configuration.swap_axis is not None:
            depends.append(swapped_classes(self.dataset.labels))
        depends += channel_combinations(self.dataset)
        return depends

    def _annotated(self, cases: Sequence[str]) -> list[object]:
        """Which of their classes were annotated; nothing where all were, as in most data sets."""
        found = [(case, self.partial[case]) for case in cases if case in self.partial]
        return [found] if found else []

    def _require_every_fold(self, name: str, previous: str, jobs: list[Job]) -> None:
        """Folds that were not asked for are not trained behind a person's back; `full` asks for what it needs."""
        asked = self.context.folds
        if len(self.context.known.splits.folds) < 2:
            raise OptionError(
                f"{name} learns from segmentations by {previous} of cases that it was not trained on, and one case or "
                f"group cannot be split. Give more cases, or --configurations without {name}"
            )
        missing = [
            job.args["fold"]
            for job in jobs
            if job.function == "validate" and job.args["name"] == previous and job.args["fold"] not in asked
            if not job.is_done()
        ]
        if missing and asked != (None,):
            raise OptionError(
                f"{name} learns from out-of-fold segmentations of every case by {previous}, and fold "
                f"{', '.join(map(str, missing))} of {previous} is neither asked for nor trained. "
                f"Give --folds all, or --configurations without {name}"
            )
