"""The main job on real data: the whole pipeline through the command line, with its quality and its time.

    python benchmarks/main_job.py --data DATA [--only NAME ...] [--out OUT]

DATA holds the folders named in JOBS, as their makers or their users lay them out; none gets a file written by
hand. Each job ends with out-of-fold Dice; DRIVE also predicts its 20 test images and evaluates them against the first
observer. Options not listed here are handed to `autounet run`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generated_set import many_classes
from known_sets import GENERATED, JOBS, Job
from measuring import (
    MEMORY_NOTE,
    CommandFailed,
    Measured,
    commit,
    machine,
    memory_text,
    public_command,
    run,
    seconds_text,
    table,
    write_results,
)

log = logging.getLogger("benchmark")

PROGRAM = Path(sys.executable).with_name("autounet")


@dataclass(frozen=True)
class Step:
    """One command of a job and what it took."""

    command: tuple[str | Path, ...]
    measured: Measured


@dataclass(frozen=True)
class Outcome:
    job: Job
    steps: tuple[Step, ...]
    validation: dict[str, Any]
    """metrics.json of the cross-validation"""
    test: dict[str, Any] | None
    complete: dict[str, Any] | None
    """the out-of-fold segmentations against complete labels"""
    plan: dict[str, Any]
    selection: dict[str, Any]
    dataset: dict[str, Any]
    splits: dict[str, Any]


def carry_out(name: str, data: Path, out: Path, time: str | None, more: Sequence[str]) -> Outcome:
    """Run one job into OUT/NAME. Raises CommandFailed when one of its commands fails."""
    job, folder, logs = JOBS[name], out / name, out / "logs"

    def step(*command: str | Path) -> Step:
        log.info("%s: autounet %s", name, public_command(command))
        measured = run([PROGRAM, *command], logs / f"{name}_{command[0]}.log")
        log.info("%s: %s took %s", name, command[0], seconds_text(measured.seconds))
        return Step(("autounet", *command), measured)

    source = many_classes(out / f"{name}_data") if job.data == GENERATED else data / job.data
    steps = [step("run", source, "--out", folder, *job.options, "--time", time or job.time, *more)]
    test = None
    if job.test:
        predictions, metrics, model = out / f"{name}_test", out / f"{name}_test.json", folder / "model"
        steps.append(step("predict", model, data / job.test.images, "--out", predictions))
        references = data / job.test.references
        steps.append(step("evaluate", predictions, references, "--model", model, "--out", metrics))
        test = load(metrics)
    complete = None
    if job.references:
        metrics, chosen = out / f"{name}_complete.json", load(folder / "selection.json")["chosen"]
        segmentations = folder / "crossval" / chosen[0]
        steps.append(
            step("evaluate", segmentations, data / job.references, "--model", folder / "model", "--out", metrics)
        )
        complete = load(metrics)
    records = [load(folder / f"{record}.json") for record in ("metrics", "plan", "selection", "dataset", "splits")]
    return Outcome(job, tuple(steps), records[0], test, complete, *records[1:])


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def reached(outcome: Outcome) -> tuple[float | None, bool]:
    """The value that the goal is about, and whether it is high enough (without a goal: whether there is one)."""
    metrics, name = outcome.test or outcome.validation, outcome.job.goal_class
    value = metrics["per_class"][name]["dice"] if name else metrics["mean_dice"]
    return value, value is not None and value >= (outcome.job.goal or 0)


def zeros(metrics: dict[str, Any]) -> int:
    """Classes that are not found at all."""
    return sum(not entry["dice"] for entry in metrics["per_class"].values())


def number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def quality_rows(metrics: dict[str, Any], what: str) -> list[list[str]]:
    """One line per class and one for the mean."""
    columns = ("dice", "iou", "hd95", "nsd")
    rows = [
        [f"{what}: {name}", *[number(values.get(column)) for column in columns]]
        for name, values in metrics["per_class"].items()
    ]
    return [*rows, [f"{what}: mean of the foreground classes", number(metrics["mean_dice"]), "", "", ""]]


def section(outcome: Outcome) -> str:
    """One job: goal, table of classes, table of commands, what was trained."""
    job, plan = outcome.job, outcome.plan
    value, good = reached(outcome)
    where = "test set" if job.test else "out-of-fold cases"
    about = f"Dice of {job.goal_class}" if job.goal_class else "mean Dice"
    quality = quality_rows(outcome.validation, f"{len(outcome.validation['cases'])} out-of-fold cases")
    if outcome.test:
        quality += quality_rows(outcome.test, f"{len(outcome.test['cases'])} test cases")
    if outcome.complete:
        quality += quality_rows(outcome.complete, "the same against the complete labels")
    commands = [
        [
            f"`{public_command(step.command)}`",
            seconds_text(step.measured.seconds),
            memory_text(step.measured.peak_bytes),
        ]
        for step in outcome.steps
    ]
    trained = [
        f"- {name}: patch {'x'.join(map(str, chosen['patch_size']))}, batch {chosen['batch_size']}, features "
        f"{'-'.join(map(str, chosen['network']['features']))}, expected steps a fold {chosen['predicted_steps']}"
        for name, chosen in plan["configurations"].items()
        if name in outcome.selection["chosen"]
    ]
    goal = "No goal was set" if job.goal is None else f"Goal: {about} over the {where} of at least {job.goal}"
    verdict = "" if job.goal is None else ": reached" if good else ": not reached"
    return "\n".join(
        [
            f"## {job.title}\n",
            f"{goal}. Got {number(value)}{verdict}. For comparison: {job.compared_with}.\n",
            table(["Dice and others", "Dice", "IoU", "HD95", "NSD"], quality),
            table(["command", "wall time", "peak memory"], commands),
            *trained,
            f"- classes at 0: {zeros(outcome.validation)} of {len(outcome.validation['per_class'])}",
            *understood(outcome),
            "",
        ]
    )


def understood(outcome: Outcome) -> list[str]:
    """What the program made of the folder: layout, pairs, groups and folds."""
    dataset, folds = outcome.dataset, outcome.splits["folds"]
    group_of = {case["identifier"]: case["group"] or case["identifier"] for case in dataset["cases"]}
    folds_of: dict[str, set[int]] = {}
    for index, fold in enumerate(folds):
        for case in fold:
            folds_of.setdefault(group_of[case], set()).add(index)
    split = sum(len(indices) > 1 for indices in folds_of.values())
    labels = dataset["labels"]
    return [
        f"- layout {dataset['layout']}; {len(group_of)} cases in {len(set(group_of.values()))} groups, {len(folds)} "
        f"folds, {split} groups in more than one fold",
        f"- left/right pairs: {labels['pairs'] or 'none'}; ignored value: {labels['ignore']}",
    ]


def head(command: Sequence[str]) -> str:
    lines = [
        "# The main job on real data\n",
        f"- command: `python {public_command(command)}`",
        f"- machine: {machine()}",
        f"- commit: {commit()}",
        f"- {MEMORY_NOTE}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "autounet-main-job")
    parser.add_argument("--only", action="append", choices=list(JOBS), help="one job; may be given several times")
    parser.add_argument("--time", help="another limit for every job, to rehearse")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given, more = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    names = [name for name in JOBS if not given.only or name in given.only]
    out = given.out.resolve()
    old = [name for name in names if (out / name).exists()]
    if old:
        sys.exit(f"{out} already holds {', '.join(old)}: a continued run would not show its time. Give another --out.")
    command = [f"benchmarks/{Path(__file__).name}", *sys.argv[1:]]
    result = "main_job" if not given.only else "main_job_" + "_".join(names)
    text, good = head(command), True
    for name in names:  # written after each job: the next may fail after an hour
        try:
            outcome = carry_out(name, given.data.resolve(), out, given.time, more)
        except CommandFailed as error:
            log.error("%s", error)
            text += f"\n## {JOBS[name].title}\n\nFailed: a command ended with an error.\n"
            good = False
        else:
            text += "\n" + section(outcome)
            good = good and reached(outcome)[1]
        write_results(result, text, given.results)
    sys.stdout.write(text)
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
