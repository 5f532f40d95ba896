"""The plan of one output folder: made, tried on the data, edited by a person, planned again smaller, described."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..planning.explain import explain, explanation, with_double_memory
from ..progress import stop_if_cancelled
from ..schema.dataset import Splits
from ..schema.errors import BudgetExceeded, DeadlineError, PlanError, RecordError
from ..schema.labels import overlapping_targets
from ..schema.options import PlannerOptions, RunOptions
from ..schema.plan import Configuration, Plan, Reason, swapped_classes
from ..schema.quantities import format_number, format_size, format_time
from ..schema.record import digest
from ..schema.run import DeviceProfile
from ..store.run_folder import RunFolder
from ..time_budget.expected_error import LEARNING, learning_factor
from ..time_budget.run_length import RunWork, length_lines, preprocessing_seconds, run_length, with_step_times, work_of
from ..time_budget.shape import coverage
from .cache import mark_done, stored_key
from .dataset_stage import DataRecords
from .defaults import FULL_STEPS, parse_folds, planner_options, step_limit
from .fine_tuning import network_source
from .jobs import JobGraph
from .make_plan import TRIAL, PlanMaker
from .training_schedule import TrainingSchedule, training_schedule
from .trial_steps import corrected

log = logging.getLogger(__name__)

TRIED_FROM = 300.0
"""seconds of a run from which on a trial pays"""
TRIAL_SHARE, MOST_TRIAL_SECONDS = 0.04, 90.0
"""of the run's time that the training of a trial takes, and at most"""
TRIAL_PREPARATION = 0.02
"""of the run's time that preparing its cases may take"""
TRIAL_CASES, LEAST_TRIAL_CASES = (32, 8), (4, 2)
"""that a trial trains on and validates, at most and at least"""
OWN_WEIGHT, TELLING_STEPS = 0.8, 100
"""of the trial's factor beside that of other data sets, in logarithms, from so many steps on; less with fewer. Task04
showed 1.01 and 0.67 after 92 and 103 steps and 0.52 and 0.55 after 190, where later trainings have 0.66, ACDC 2.4 and
2.2 after 75 (2.1 later), but 30 classes 2.4 and 2.2 after 25 (0.73 later): nothing is found yet"""


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


def tried(folder: RunFolder, maker: PlanMaker, file: PlanFile, plan: Plan) -> tuple[PlanMaker, Plan]:
    """The plan made again by how hard its data set is to learn, where the grid depends on that and time allows a trial.

    A few cases are prepared, trained on for a short time and validated, on the grid that such a time asks for. A plan
    that was tried before, that a person edited, or by which something was trained, is kept.
    """
    maker = replace(maker, learning=plan.learning)
    wanted = plan.undecided and (maker.seconds or 0.0) >= TRIED_FROM and step_limit(maker.options) is None
    name = plan.chosen[0] if plan.chosen else ""
    begun = any(folder.models(name).glob("fold_*/started.json"))
    if not wanted or begun or maker.deadline.resumed or file.is_edited(plan):
        return maker, plan
    cases = _trial_cases(maker)
    if cases is None:
        log.info("no trial of how hard the data are to learn: too few cases, or preparing them would take too long")
        return maker, plan
    try:
        factor, told = _trial(RunFolder(folder.learning_trial), maker, name, cases)
    except (BudgetExceeded, DeadlineError) as error:
        log.info("no trial of how hard the data are to learn: %s", error.message)
        return maker, plan
    maker = replace(maker, learning=factor)
    again = maker.new()
    if (chosen := again.chosen[0]) != name:
        told = f"{told} (it was one of {name})"
    again = again.model_copy(
        update={"reasons": (*again.reasons, Reason(configuration=chosen, topic="time", text=told))}
    )
    log.info("%s", told)
    maker.check(again, edited=False)
    file.save_changed(again)
    return maker, again


def _trial_cases(maker: PlanMaker) -> tuple[Sequence[str], Sequence[str]] | None:
    """To train on and to validate, of different folds; None where preparing them takes too long, or there are too few.

    The first folds are validated, as many as have enough cases.
    """
    data, promised = maker.data, maker.seconds or 0.0
    work = work_of(data.fingerprint, maker.workers)
    each = preprocessing_seconds(work) / max(1, work.cases)
    share = min(1.0, TRIAL_PREPARATION * promised / (each * sum(TRIAL_CASES)))
    known: tuple[list[str], list[str]] = ([], [])
    for fold in data.splits.folds:
        known[len(known[1]) < LEAST_TRIAL_CASES[1]].extend(fold)
    counts = [min(len(cases), math.floor(share * most)) for cases, most in zip(known, TRIAL_CASES, strict=True)]
    if any(count < least for count, least in zip(counts, LEAST_TRIAL_CASES, strict=True)):
        return None
    training, validation = (
        [cases[index * len(cases) // count] for index in range(count)]
        for cases, count in zip(known, counts, strict=True)
    )
    return training, validation


def _trial(
    place: RunFolder, maker: PlanMaker, name: str, cases: tuple[Sequence[str], Sequence[str]]
) -> tuple[float, str]:
    """The factor that a training of a few cases shows, drawn a little to that of other data sets, and how it came.

    Raises DeadlineError where nothing can be learnt in so little time.
    """
    seconds = min(MOST_TRIAL_SECONDS, TRIAL_SHARE * (maker.seconds or 0.0))
    log.info("trying for %s how hard the data are to learn", format_time(seconds))
    plan, kept = maker.for_trial(name, seconds)
    try:
        dice, steps = _trained(place, maker, plan, seconds, cases)
    finally:
        shutil.rmtree(place.path, ignore_errors=True)
    planned = plan.configurations[TRIAL]
    shown = learning_factor(dice, kept, steps, coverage(planned), planned.network.features[0])
    weight = OWN_WEIGHT * min(1.0, steps / TELLING_STEPS)
    factor = round(shown**weight * LEARNING ** (1 - weight), 2)
    than = "harder to learn than" if factor > LEARNING else "easier to learn than" if factor < LEARNING else "like"
    told = (
        f"a trial of {format_time(seconds)} on {len(cases[0])} cases had a mean Dice of {format_number(dice)} after "
        f"{steps} steps: the data are {than} others (factor {factor:g}; on average {LEARNING:g})"
    )
    return factor, told


def _trained(
    place: RunFolder, maker: PlanMaker, plan: Plan, seconds: float, cases: tuple[Sequence[str], Sequence[str]]
) -> tuple[float, int]:
    """Mean Dice and steps of one training of a few cases, which is done as that of a run, in a folder of its own."""
    # with all that trains and validates, which planning does without
    from .stages import FUNCTIONS

    shutil.rmtree(place.path, ignore_errors=True)
    training, validation = cases
    data, profile = maker.data, maker.profile
    chosen = {*training, *validation}
    dataset = data.dataset.model_copy(
        update={"cases": tuple(case for case in data.dataset.cases if case.identifier in chosen)}
    )
    splits = Splits(source="automatic", folds=(tuple(validation), tuple(training)))
    options = maker.options.model_copy(update={"folds": "0", "configurations": None})
    dimension = data.fingerprint.dimension
    schedule = training_schedule(plan, options, dataset, splits, dimension, seconds, profile.augmented_by)
    graph = JobGraph(
        folder=place, dataset=dataset, content={facts.identifier: facts.content_hash for facts in data.facts},
        class_voxels=data.fingerprint.class_voxels, schedule=schedule, device=profile.device, workers=maker.workers,
        loader_workers=0, compile="off", initial=lambda *_: None, events={},
    )  # fmt: skip
    results: dict[str, Any] = {}
    for job in (*graph.preparation(), *graph.training()):
        stop_if_cancelled()
        more = {"seconds": seconds, "on_log": lambda line: None} if job.function == "train" else {}
        results[job.function] = FUNCTIONS[job.function](**job.args, **more)
    return results["validate"].mean_dice or 0.0, results["train"].steps


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

    Only a plan of our own: a preset is nnU-Net's, and an edited plan a person's; then the error is raised. Raises
    PlanError when nothing smaller can be planned.
    """
    if plan.options.preset or file.is_edited(plan):
        raise error
    name, before = error.configuration, plan.configurations[error.configuration]
    maker = maker.with_profile(corrected(maker.profile, before, error))
    again = maker.new()
    after = again.configurations.get(name)
    if after is None or after.key == before.key:
        raise PlanError(
            f"{name}: {error.message}, and nothing smaller can be planned", "Give more --memory, or another --family"
        ) from None
    raised = f"{maker.profile.memory_correction - 1:.0%}"
    text = f"planned again: {error.message}; predictions of memory are raised by {raised}"
    reason = Reason(configuration=name, topic="replanned", text=text)
    log.warning("%s", reason)
    log.warning("%s: %s instead of %s", name, _size(after), _size(before))
    # other configurations keep what they were trained with, and the reasons for it
    kept = [each for each in plan.reasons if each.configuration != name or each.topic == "replanned"]
    changes = {
        "configurations": {**plan.configurations, name: after},
        "reasons": (*kept, reason, *(each for each in again.reasons if each.configuration == name)),
        "events": {**plan.events, name: (*plan.events.get(name, ()), text)},
    }
    plan = plan.model_copy(update=changes)
    file.save_changed(plan)
    return maker, plan


def _size(configuration: Configuration) -> str:
    patch = " x ".join(map(str, configuration.patch_size))
    memory = format_size(configuration.predicted_memory_bytes)
    features = configuration.network.features[0]
    return f"patch {patch}, batch {configuration.batch_size}, {features} features ({memory} predicted)"


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
