"""How the seconds that are left are dealt out to the trainings still to come."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from ..schema.errors import DeadlineError
from ..schema.plan import Configuration
from ..schema.quantities import format_time
from ..time_budget.deadline import Deadline
from ..time_budget.shape import CLOSING_SECONDS, FOLD_OVERHEAD_SECONDS, LEAST_STEPS
from .jobs import Job
from .time_shaping import CLOSING_SECONDS_PER_CASE

log = logging.getLogger(__name__)

AFTERCARE = 0.25
"""of the time of validation: judging postprocessing and calibration reads each case again and predicts nothing;
weighing configurations does so once more"""


class TimeShares:
    """The jobs that are not done, and what they are expected to cost; costs are learnt as jobs finish."""

    def __init__(
        self, deadline: Deadline, configurations: Mapping[str, Configuration], cases: int, jobs: Iterable[Job]
    ) -> None:
        self.deadline, self.configurations, self.cases = deadline, configurations, cases
        self.pending = [(job.function, job.configuration) for job in jobs if not job.is_done()]
        self.overhead = FOLD_OVERHEAD_SECONDS
        self.measured: dict[tuple[str, str], float] = {}
        """seconds of the last job by function and configuration"""

    def check(self) -> None:
        """A resumed command whose time is used up says so before anything is trained for too short."""
        deadline, left = self.deadline, self.deadline.remaining()
        trainings = self._pending("train")
        if left is None or not deadline.resumed or not trainings:
            return
        least = self.reserve() + sum(self._least_seconds(name) for name in trainings)
        if left < least:
            raise DeadlineError(
                f"{format_time(left)} of the promised {format_time(deadline.promised or 0)} are left, and "
                f"{len(trainings)} folds need at least {format_time(least)}. Give more --time; finished folds with "
                "the same --time are kept, others are trained again",
                deadline.spent() + least,
            )

    def training_seconds(self, name: str, spent: float) -> float | None:
        """The next training's share of what is left, `spent` seconds that it has used already included."""
        remaining = self.deadline.remaining()
        if remaining is None:
            return None
        share = (remaining - self.reserve() + spent) / max(1, len(self._pending("train")))
        least = self._least_seconds(name)
        if share < least:
            log.warning("the machine was slower than measured: the promised time is overrun to train at all")
        return max(share, least)

    def reserve(self) -> float:
        """Seconds of everything still to do but the trainings themselves."""
        validations = sum(self._estimate("validate", name) for name in self._pending("validate"))
        averaged = validations * (len(self.configurations) - 1) / 2  # of pairs
        judged = AFTERCARE * (2 if len(self.configurations) > 1 else 1)
        averaged += validations * (judged + (len(self.configurations) > 2) / 2)
        handed = sum(self._estimate("cascade_labels", name) for name in self._pending("cascade_labels"))
        closing = CLOSING_SECONDS + CLOSING_SECONDS_PER_CASE * self.cases
        return closing + validations + averaged + handed + self.overhead * len(self._pending("train"))

    def finished(self, function: str, name: str, seconds: float, counted: float = 0.0) -> None:
        """Learn the true cost of a job; `counted` seconds of a training were its own share."""
        if function == "train":
            self.overhead = max(0.0, seconds - counted)
        else:
            self.measured[function, name] = seconds
        if (function, name) in self.pending:
            self.pending.remove((function, name))

    def _pending(self, function: str) -> list[str]:
        """The configuration of each job still to do."""
        return [name for kind, name in self.pending if kind == function]

    def _estimate(self, function: str, name: str) -> float:
        """Of a job on the cases of one fold. Before one was measured, handing over is taken for a validation's half:
        both interpolate all scores, and a validation runs the network besides."""
        predicted = self.configurations[name].predicted_validation_seconds or 0.0
        return self.measured.get((function, name), predicted if function == "validate" else predicted / 2)

    def _least_seconds(self, name: str) -> float:
        return LEAST_STEPS * (self.configurations[name].predicted_step_seconds or 0.1)
