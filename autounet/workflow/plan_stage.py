"""The plan of one output folder: made, kept, edited by a person, planned again smaller, and described."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

from ..planning.explain import explain, explanation, with_double_memory
from ..schema.errors import BudgetExceeded, PlanError, RecordError
from ..schema.labels import overlapping_targets
from ..schema.options import PlannerOptions, RunOptions
from ..schema.plan import Plan, swapped_classes
from ..schema.quantities import format_size
from ..schema.record import digest
from ..schema.run import DeviceProfile
from ..store.run_folder import RunFolder
from ..time_budget.run_length import RunWork, length_lines, run_length, with_step_times
from .cache import mark_done, stored_key
from .dataset_stage import DataRecords
from .defaults import FULL_STEPS, TrainingSchedule, parse_folds, planner_options, step_limit
from .fine_tuning import network_source
from .make_plan import PlanMaker

log = logging.getLogger(__name__)


class PlanFile:
    """plan.json, which a person may edit between two commands, and the digest of what the program wrote."""

    def __init__(self, folder: RunFolder) -> None:
        self.path, self._key = folder.plan, folder.plan_key

    def load(self) -> Plan | None:
        """None where there is none, or what a crash or a full disk left of it. Raises RecordError for any other."""
        if not self.path.exists():
            return None
        try:
            return Plan.load(self.path)
        except RecordError as error:
            if self._is_cut_off():
                aside = self.path.replace(self.path.with_name(f"{self.path.name}.damaged"))
                log.warning("plan.json was cut off: it is now %s, and a plan is made again", aside.name)
                return None
            raise RecordError(error.message, "Correct it, or make a new plan with --replan") from None

    def _is_cut_off(self) -> bool:
        """Unlike a file that a person mistyped, it does not end as every record does."""
        return not self.path.read_bytes().rstrip(b"\0 \r\n\t").endswith(b"}")

    def save(self, plan: Plan, made_for: str) -> None:
        """`made_for` is the digest of the options and data that the plan was made for."""
        plan.save(self.path)
        mark_done(self._key, f"{plan.digest()}:{made_for}")

    def save_changed(self, plan: Plan) -> None:
        """Save the program's own plan, made for the same as before."""
        self.save(plan, self.made_for)

    def is_edited(self, plan: Plan) -> bool:
        """Whether it differs from the one that the program wrote."""
        return self._stored[0] != plan.digest()

    @property
    def made_for(self) -> str:
        return self._stored[1]

    @property
    def _stored(self) -> tuple[str, str]:
        """The digest of the plan that the program wrote, and of what it was made for."""
        plan, _, made_for = (stored_key(self._key) or "").partition(":")
        return plan, made_for


def plan_stage(maker: PlanMaker, file: PlanFile, replan: bool) -> Plan:
    """The plan of the output folder, fitted to the promised seconds.

    A plan.json that differs from the one written is a person's: validated and kept. A plan made from the same options
    is kept, also when data change and it is still valid; other options make a new one.
    """
    made_for = _made_for(maker.options, maker.data, maker.profile, maker.seconds)
    existing = None if replan else file.load()
    if existing:
        edited = file.is_edited(existing)
        if (edited or file.made_for == made_for) and (kept := _kept(maker, existing, edited)):
            return kept
    log.info("planning")
    plan = maker.new()
    maker.check(plan, edited=False)
    file.save(plan, made_for)
    return plan


def _made_for(options: RunOptions, data: DataRecords, profile: DeviceProfile, promised: float | None) -> str:
    """Digest of what a plan is made for; an option that only says the default changes nothing."""
    depends: list[object] = [planner_options(options, profile).digest(), profile.precision, promised]
    if promised:
        depends += [step_limit(options), parse_folds(options.folds, len(data.splits.folds))]
    labels = data.dataset.labels
    if labels.regions:
        depends.append([target.members for target in overlapping_targets(labels)])
    if labels.pairs:
        depends.append(swapped_classes(labels))
    if source := network_source(options):
        depends.append(f"init {source.checksum}")
    return digest(depends)


def _kept(maker: PlanMaker, plan: Plan, edited: bool) -> Plan | None:
    """The plan that is there; None when it no longer fits the data. Raises PlanError when a person edited it."""
    try:
        maker.check(plan, edited)
    except PlanError as error:
        if edited:
            raise PlanError(
                f"plan.json was edited, and {error.message}", "Correct it, or make a new plan with --replan"
            ) from None
        log.info("a new plan is made, since %s", error.message)
        return None
    if edited:
        log.info("plan.json was edited: validated and kept (--replan makes a new one)")
        return maker.traced(plan)
    if plan.fingerprint != maker.data.fingerprint.digest():
        log.info("the data changed and the plan is still valid: kept (--replan makes a new one)")
    return plan


def plan_smaller(maker: PlanMaker, file: PlanFile, plan: Plan, error: BudgetExceeded) -> tuple[PlanMaker, Plan]:
    """With the configuration that needed too much memory planned again, for the corrected profile of the device.

    Only a plan of our own: a preset is nnU-Net's, and an edited plan a person's; then the error is raised.
    """
    if plan.options.preset or file.is_edited(plan):
        raise error
    plan, profile = maker.smaller(plan, error)
    file.save_changed(plan)
    return maker.with_profile(profile), plan


def time_plan(maker: PlanMaker, file: PlanFile, plan: Plan, schedule: TrainingSchedule) -> Plan:
    """The plan with roughly how long steps and validation take, for people who decide on it; saved if it is ours."""
    ours, cases = not file.is_edited(plan), len(schedule.cases)
    timed = with_step_times(
        plan,
        tuple(schedule.configurations),
        lambda name, configuration: maker.timing(configuration, schedule.train_options[name], rough=True),
        schedule.steps or FULL_STEPS,
        0.0 if schedule.folds == (None,) else cases / len(schedule.splits.folds),
        maker.data.fingerprint,
    )
    if ours:
        file.save_changed(timed)
    return timed


def describe_plan(
    plan: Plan,
    schedule: TrainingSchedule,
    work: RunWork,
    make: Callable[[PlannerOptions], Plan],
    explained: bool,
) -> str:
    """What `plan` prints once the plan is made: the length of the run, and with `explained` the table before it.

    `make` plans the same data set for other planner options.
    """
    folds = {name: len(schedule.folds_of(name)) for name in schedule.configurations}
    text = "\n".join(length_lines(plan, folds, work, schedule.to_convergence)) + "\n"
    if schedule.to_convergence:
        text += "A training ends when it has converged; --time, --epochs or --iterations set its length\n"
    if not explained:
        return text
    count = len(schedule.folds)
    lengths = {name: run_length(each, work, folds.get(name, count)) for name, each in plan.configurations.items()}
    seconds = {name: length.total for name, length in lengths.items() if length is not None}
    rows = explain(plan, with_double_memory(plan, make), seconds)
    width = shutil.get_terminal_size(fallback=(80, 24)).columns
    return f"{explanation(rows, width, format_size(2 * plan.options.memory_bytes))}\n{text}"
