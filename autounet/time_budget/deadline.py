"""The promised time: one clock for the whole command, kept across interruptions, and how it is allotted to trainings.

Seconds are kept back for validation, selection and report; trainings share the rest equally.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from ..schema.errors import DeadlineError, RecordError
from ..schema.plan import Configuration
from ..schema.quantities import format_time
from ..schema.record import Record
from .run_length import CLOSING_SECONDS, CLOSING_SECONDS_PER_CASE, FOLD_OVERHEAD_SECONDS
from .shape import LEAST_STEPS

log = logging.getLogger(__name__)

POSTPROCESSING_SHARE = 0.25
"""of the time of validation: choosing postprocessing and calibration reads each case again and predicts nothing;
fitting ensemble weights does so once more"""


MOST_LANES = 5
"""trainings side by side on fewer cores than that: the folds of a cross-validation then end together, and no core is
left without work, as it would be where two cores train five folds one by one or in pairs"""


@dataclass(frozen=True)
class Lanes:
    """Jobs that go on at the same time on one machine: on its cores, or one on each GPU."""

    count: int = 1
    threads: int | None = None
    """of each; None: as many as the libraries take"""
    share: float = 1.0
    """of a second of the whole run that a second of one of them, alone on the machine, is"""
    devices: tuple[str, ...] = ()
    """of each; none: that of the plan for all of them"""

    @classmethod
    def of(cls, trainings: int, cores: int, most: int | None = None) -> Lanes:
        """For so many trainings, and at most `most` at the same time.

        One thread is better used than the second of two, which has little to do in small patches: trainings share the
        cores before a training gets several. With more trainings than lanes they come in rounds of about equal size.
        """
        limit = min(max(cores, MOST_LANES), most or trainings)
        count = _even(trainings, limit) if cores > 1 else 1
        if count < 2:
            return cls()
        threads = max(1, cores // count)
        rounds = math.ceil(trainings / count)
        return cls(count, threads, rounds / trainings * max(1.0, count * threads / cores))

    @classmethod
    def elsewhere(cls, trainings: int, workers: int, cores: int) -> Lanes:
        """On a cluster, where each has `cores` of its own."""
        count = max(1, _even(trainings, workers))
        return cls(count, cores, math.ceil(trainings / count) / trainings if trainings else 1.0)

    @classmethod
    def on(cls, devices: Sequence[str], trainings: int, cores: int) -> Lanes:
        """One on each of some GPUs."""
        count = _even(trainings, len(devices))
        if count < 2:
            return cls()
        rounds = math.ceil(trainings / count)
        return cls(count, max(1, cores // count), rounds / trainings, tuple(devices[:count]))


def _even(trainings: int, most: int) -> int:
    """How many at the same time, so that as few rounds as possible are of about equal size."""
    return math.ceil(trainings / math.ceil(trainings / max(1, most))) if trainings else 0


class Clock(Record):
    """`clock.json`: time used so far under one promise."""

    promised_seconds: float | None = Field(gt=0)
    spent_seconds: float = Field(ge=0)


class Deadline:
    """Seconds left of `--time`.

    The time spent is kept in a file while a command runs. An interrupted command leaves it there, so that the same
    command given again spends what is left; one that ends removes it, and the next starts anew.
    """

    def __init__(self, promised: float | None, file: Path) -> None:
        self.file = file
        self.started = time.monotonic()
        self.promise(promised)

    def promise(self, seconds: float | None) -> None:
        """Set the promised seconds; time spent earlier under the same promise counts."""
        self.promised, self.before = seconds, 0.0
        try:
            clock = Clock.load(self.file)
        except RecordError:
            return
        if clock.promised_seconds == seconds:
            self.before = clock.spent_seconds

    def spent(self) -> float:
        return self.before + time.monotonic() - self.started

    def remaining(self) -> float | None:
        """Seconds left, never negative; None without a promise."""
        return None if self.promised is None else max(0.0, self.promised - self.spent())

    def not_counted(self, seconds: float) -> None:
        """Of the time just spent: jobs that queue in a cluster take none of the promise."""
        self.started += seconds

    def save(self) -> None:
        Clock(promised_seconds=self.promised, spent_seconds=self.spent()).save(self.file)

    @property
    def resumed(self) -> bool:
        """Whether an interrupted command has spent part of the promise."""
        return self.before > 0

    def end(self) -> None:
        """The command succeeded or failed; the next one starts anew."""
        self.file.unlink(missing_ok=True)


class TimeAllotment:
    """Seconds for each training still to come; the costs of jobs are learnt as they finish.

    `pending` holds the function and the configuration of each job that is not done. Seconds that plans predict are
    those of the whole run, `Lanes.share` of what a job beside others takes.
    """

    def __init__(
        self,
        deadline: Deadline,
        configurations: Mapping[str, Configuration],
        cases: int,
        pending: Iterable[tuple[str, str]],
        lanes: Lanes | None = None,
    ) -> None:
        self.deadline, self.configurations, self.cases = deadline, configurations, cases
        self.pending = list(pending)
        self.lanes = lanes or Lanes()
        self.training = 0
        """trainings that have begun and not ended"""
        self.overhead = FOLD_OVERHEAD_SECONDS
        self.measured: dict[tuple[str, str], float] = {}
        """seconds of the last job by function and configuration"""

    def check(self) -> None:
        """Raises DeadlineError where too little time is left for a resumed command to train what is missing."""
        deadline, left = self.deadline, self.deadline.remaining()
        trainings = self._pending("train")
        if left is None or not deadline.resumed or not trainings:
            return
        least = self.reserve() + sum(self._least_seconds(name) for name in trainings)
        if left < least:
            raise DeadlineError(
                f"{format_time(left)} of the promised {format_time(deadline.promised or 0)} are left, and "
                f"{len(trainings)} folds need at least {format_time(least)}",
                deadline.spent() + least,
                "Give more --time; finished folds are kept with the same --time and trained again with another",
            )

    def training_seconds(self, name: str, spent: float) -> float | None:
        """The next training's share of what is left, `spent` seconds that it has used already included."""
        to_come = len(self._pending("train")) - self.training
        self.training += 1
        remaining = self.deadline.remaining()
        if remaining is None:
            return None
        rounds = max(1, math.ceil(to_come / self.lanes.count))
        share = (remaining - self.reserve() + spent) / rounds
        least = self._least_seconds(name) / self.lanes.share
        if share < least:
            log.warning("the machine was slower than measured: the promised time is overrun to train at all")
        return max(share, least)

    def reserve(self) -> float:
        """Seconds of everything still to do but the trainings themselves."""
        validations = sum(self._estimate("validate", name) for name in self._pending("validate"))
        averaged = validations * (len(self.configurations) - 1) / 2  # of pairs
        postprocessing = POSTPROCESSING_SHARE * (2 if len(self.configurations) > 1 else 1)
        averaged += validations * (postprocessing + (len(self.configurations) > 2) / 2)
        cascades = sum(self._estimate("cascade_labels", name) for name in self._pending("cascade_labels"))
        closing = CLOSING_SECONDS + CLOSING_SECONDS_PER_CASE * self.cases
        trainings = math.ceil(len(self._pending("train")) / self.lanes.count)
        return closing + validations + averaged + cascades + self.overhead * trainings

    def finished(self, function: str, name: str, seconds: float, counted: float = 0.0) -> None:
        """Learn the true cost of a job; `counted` seconds of a training were its own share."""
        if function == "train":
            self.training -= 1
            self.overhead = max(0.0, seconds - counted)
        else:
            self.measured[function, name] = seconds * self.lanes.share
        if (function, name) in self.pending:
            self.pending.remove((function, name))

    def given_back(self) -> None:
        """A training that had begun begins again."""
        self.training -= 1

    def _pending(self, function: str) -> list[str]:
        """The configuration of each job still to do."""
        return [configuration for kind, configuration in self.pending if kind == function]

    def _estimate(self, function: str, name: str) -> float:
        """Of a job on the cases of one fold. Before one was measured, cascade labels are assumed to take half of a
        validation: both interpolate all scores, and a validation runs the network besides."""
        predicted = self.configurations[name].predicted_validation_seconds or 0.0
        return self.measured.get((function, name), predicted if function == "validate" else predicted / 2)

    def _least_seconds(self, name: str) -> float:
        return LEAST_STEPS * (self.configurations[name].predicted_step_seconds or 0.1)
