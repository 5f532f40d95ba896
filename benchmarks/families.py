"""Every network family at equal time and equal memory budget: which one to choose.

    python benchmarks/families.py --data DATA [--seconds 900] [--memory 8GB] [--families plain,swin] [--only isbi]

DATA holds ISBI2012_membrane (2-D) and Task04_Hippocampus (3-D). Each family gets the same command, `autounet run
--family NAME --folds 0 --time SECONDS --memory SIZE`, in a process of its own, one after the other: the planner fits
width, patch and batch to the time and the memory, as it does for a user. What the table holds is read from the records
of that run. So the seconds are those of the whole command: reading, planning, preprocessing and the validation of
fold 0 are part of them, for each family anew, and a family that plans or predicts slowly has less of them to train.
Options not listed here are handed to `autounet run`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from main_job import JOBS, PROGRAM, Job, load, number
from measuring import (
    CommandFailed,
    Measured,
    commit,
    machine,
    median,
    memory_text,
    public_command,
    run,
    seconds_text,
    table,
    write_results,
)

from autounet.nets import FAMILIES

log = logging.getLogger("benchmark")

DIMENSIONS = {"isbi": 2, "task04": 3}
"""of the data sets among `JOBS`"""
GOOD_SHARE = 0.90
"""of the best family's Dice, which every family should reach"""
MEMORY_NOTE = (
    "Measured memory is the most that the process held until the end of the training. On a CPU these are resident "
    "bytes: the interpreter, which the prediction counts as well, and the networks that the planner timed before, "
    "some of them wider, which it does not; `planning.py` compares the two step by step. On a GPU: bytes allocated."
)


@dataclass(frozen=True)
class Trained:
    """One family on one data set: what its run left behind."""

    name: str
    """of the configuration"""
    planned: dict[str, Any]
    """the configuration of plan.json"""
    record: dict[str, Any]
    """of fold 0"""
    metrics: dict[str, Any]
    measured: Measured
    """of the whole command"""

    def dice(self, job: Job) -> float | None:
        """What the families are compared by: the job's class, or the mean of the foreground classes."""
        if job.goal_class:
            return self.metrics["per_class"][job.goal_class]["dice"]
        return self.metrics["mean_dice"]

    @property
    def step_seconds(self) -> float:
        return median([line["step_seconds"] for line in self.record["curve"]])


Result = Trained | str
"""a string: why there is no training"""


def train(name: str, family: str, data: Path, out: Path, options: Sequence[str]) -> Result:
    """Run `family` on the data set `name` into OUT/NAME/FAMILY; a failure is a result as well."""
    job, folder = JOBS[name], out / name / family
    if DIMENSIONS[name] not in FAMILIES[family].dims:
        return f"does not exist in {DIMENSIONS[name]}-D"
    command = ["run", data / job.data, "--out", folder, *job.options, "--family", family, "--folds", "0", *options]
    log.info("%s: autounet %s", name, public_command(command))
    log_file = out / "logs" / f"{name}_{family}.log"
    try:
        measured = run([PROGRAM, *command], log_file)
        configuration = load(folder / "selection.json")["chosen"][0]
        return Trained(
            configuration,
            load(folder / "plan.json")["configurations"][configuration],
            load(folder / "models" / configuration / "fold_0" / "record.json"),
            load(folder / "metrics.json"),
            measured,
        )
    except (CommandFailed, OSError) as error:
        log.error("%s", error)
        return f"failed: {reason(log_file)}"


def reason(log_file: Path) -> str:
    """The error that the log ends with, on one line and without the table's separator."""
    lines = [line.strip() for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if line.lower().startswith("error")]
    told = lines[starts[-1] :] if starts else lines[-1:]
    return " ".join(told).replace("|", "/") or "no output"


def shares(results: dict[str, Result], job: Job) -> dict[str, float]:
    """Dice as a share of the best family's, for each that has one."""
    found = {family: each.dice(job) for family, each in results.items() if isinstance(each, Trained)}
    known = {family: value for family, value in found.items() if value is not None}
    best = max(known.values(), default=0.0)
    return {family: value / best if best else 0.0 for family, value in known.items()}


def row(family: str, trained: Trained, classes: Sequence[str], share: float | None) -> list[str]:
    planned, record, per_class = trained.planned, trained.record, trained.metrics["per_class"]
    features, peak = planned["network"]["features"], record["peak_memory_bytes"]
    return [
        family,
        f"{'x'.join(map(str, planned['patch_size']))}, batch {planned['batch_size']}, {features[0]}-{features[-1]}",
        f"{record['parameters'] / 1e6:.2f} M",
        memory_text(planned["predicted_memory_bytes"]),
        "not measured" if peak is None else memory_text(peak),
        f"{1000 * trained.step_seconds:.0f} ms",
        str(record["steps"]),
        seconds_text(record["seconds"]),
        seconds_text(trained.measured.seconds),
        *(number(per_class[name]["dice"]) for name in classes),
        number(trained.metrics["mean_dice"]),
        "undefined" if share is None else f"{share:.3f}",
    ]


def section(name: str, results: dict[str, Result]) -> str:
    job, share = JOBS[name], shares(results, JOBS[name])
    trained = {family: each for family, each in results.items() if isinstance(each, Trained)}
    classes = list(next(iter(trained.values())).metrics["per_class"]) if trained else []
    header = ["family", "patch, batch, features", "parameters", "predicted memory", "measured memory", "step", "steps"]
    header += ["training", "command", *(f"Dice {each}" for each in classes), "mean Dice", "share of the best"]
    rows = [row(family, each, classes, share.get(family)) for family, each in trained.items()]
    cases = {len(each.metrics["cases"]) for each in trained.values()}
    compared = f"Dice of {job.goal_class}" if job.goal_class else "mean Dice"
    lines = [
        f"## {job.data}, fold 0, {' or '.join(map(str, sorted(cases))) or 'no'} cases\n",
        f"The best is the one with the highest {compared}.\n",
        table(header, rows),
        *(f"- {family}: {each}" for family, each in results.items() if isinstance(each, str)),
        *(f"- {family}: below {GOOD_SHARE:.2f} of the best" for family, value in share.items() if value < GOOD_SHARE),
        "",
    ]
    return "\n".join(lines)


def good(name: str, results: dict[str, Result]) -> bool:
    """Whether every family that exists for this data set learned well enough."""
    wanted = {family for family in results if DIMENSIONS[name] in FAMILIES[family].dims}
    return wanted == {family for family, value in shares(results, JOBS[name]).items() if value >= GOOD_SHARE}


def head(command: Sequence[str], seconds: int, memory: str) -> str:
    lines = [
        "# The network families at equal time and memory\n",
        f"- command: `python {public_command(command)}`",
        f"- machine: {machine()}",
        f"- commit: {commit()}",
        f"- each family: the command within {seconds_text(seconds)} and {memory}; width, patch, batch as planned",
        f"- {MEMORY_NOTE}",
    ]
    return "\n".join(lines) + "\n"


def parse_families(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "autounet-families")
    parser.add_argument("--seconds", type=int, default=900, help="of the whole command, for each family")
    parser.add_argument("--memory", default="8GB", help="budget of each family")
    parser.add_argument("--families", type=parse_families, default=list(FAMILIES), help="names, separated by commas")
    parser.add_argument("--only", action="append", choices=list(DIMENSIONS), help="one data set")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given, more = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    names = [name for name in DIMENSIONS if not given.only or name in given.only]
    out = given.out.resolve()
    old = [f"{name}/{family}" for name in names for family in given.families if (out / name / family).exists()]
    if old:
        sys.exit(
            f"{out} already holds {', '.join(old)}: a continued run would not be compared fairly. Give another --out."
        )
    options = ["--time", f"{given.seconds}s", "--memory", given.memory, *more]
    beginning = head([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]], given.seconds, given.memory)
    results: dict[str, dict[str, Result]] = {name: {} for name in names}
    text = beginning
    for name in names:
        for family in given.families:
            results[name][family] = train(name, family, given.data.resolve(), out, options)
            text = "\n".join([beginning, *(section(each, found) for each, found in results.items() if found)])
            write_results("families" if not given.only else "families_" + "_".join(names), text, given.results)
    sys.stdout.write(text)
    if not all(good(name, found) for name, found in results.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
