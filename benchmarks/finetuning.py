"""Whether starting from a trained model helps: few cases and few steps, from scratch and from a model of other cases.

    python benchmarks/finetuning.py --data DATA/Task04_Hippocampus

A small model is trained on cases of Task04 that nobody sees again. Then a few other cases are trained on with equal
steps, once from scratch with the same network, batch and patch, and from the model (`--init`), whose network the
planner takes over; at each highest learning rate that is asked for. All are judged on the same further cases.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring import CommandFailed, commit, machine, public_command, run, seconds_text, table, write_results

log = logging.getLogger("benchmark")

CONFIGURATION = "3d_fullres"
WITH_RATE = (
    "import sys; from autounet.workflow import defaults; defaults.TRANSFERRED_RATE = float(sys.argv.pop(1)); "
    "from autounet.cli.app import main; main()"
)
"""the command line with another highest learning rate for transferred weights"""


@dataclass(frozen=True)
class Row:
    start: str
    rate: str
    dice: float
    per_class: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Work:
    folder: Path
    width: int
    """features of the first stage"""
    batch: int

    def small_plan(self, data: Path, out: Path, options: Sequence[str]) -> None:
        """A plan with the planner's patch and depth, fewer features and a small batch, as a person would edit it."""
        self.command("plan", data, out, options)
        file = out / "plan.json"
        plan = json.loads(file.read_text())
        edited = plan["configurations"][CONFIGURATION]
        stages = len(edited["network"]["features"])
        edited["network"]["features"] = [self.width * 2**stage for stage in range(stages)]
        edited["batch_size"] = self.batch
        file.write_text(json.dumps(plan, indent=1))

    def command(self, stage: str, data: Path, out: Path, options: Sequence[str], rate: float | None = None) -> float:
        """Seconds of one command of the command line."""
        program = ["-m", "autounet"] if rate is None else ["-c", WITH_RATE, f"{rate}"]
        words = [sys.executable, *program, stage, data, "--out", out, "--configurations", CONFIGURATION, *options]
        return run(words, self.folder / "logs" / f"{out.name}_{stage}.log").seconds


def subset(source: Path, target: Path, entries: Sequence[dict[str, str]]) -> None:
    """A data set in the Decathlon's layout of some of its cases."""
    shutil.rmtree(target, ignore_errors=True)
    for entry in entries:
        for file in (entry["image"], entry["label"]):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target / file)
    content = json.loads((source / "dataset.json").read_text())
    content |= {"training": list(entries), "numTraining": len(entries), "test": [], "numTest": 0}
    (target / "dataset.json").write_text(json.dumps(content))


def case(entry: dict[str, str]) -> str:
    return Path(entry["image"]).name.removesuffix(".nii.gz")


def measure(work: Work, given: argparse.Namespace) -> list[Row]:
    entries = sorted(
        json.loads((given.data / "dataset.json").read_text())["training"], key=lambda entry: entry["image"]
    )
    tests, few = entries[: given.tests], entries[given.tests : given.tests + given.cases]
    other = entries[len(tests) + len(few) :][: given.source_cases]
    for name, part in (("many", other), ("few", [*tests, *few])):
        subset(given.data, work.folder / name, part)
    splits = work.folder / "splits.json"
    splits.write_text(json.dumps({"folds": [[case(each) for each in part] for part in (tests, few)]}))

    fixed = ["--device", "cpu", "--seed", str(given.seed)]
    full = [*fixed, "--folds", "full", "--iterations", str(given.source_steps)]
    source = work.folder / "source"
    work.small_plan(work.folder / "many", source, full)
    seconds = work.command("select", work.folder / "many", source, full)
    log.info("the model to start from: %s", seconds_text(seconds))

    data = work.folder / "few"
    folds = [*fixed, "--folds", "0", "--splits", str(splits), "--iterations", str(given.steps)]
    scratch = work.folder / "scratch"
    work.small_plan(data, scratch, folds)
    rows = [row("from scratch", "0.003", scratch, work.command("select", data, scratch, folds))]
    for rate in given.rates:
        out = work.folder / f"init_{rate:g}"
        words = [*folds, "--init", str(source / "model")]
        rows.append(row("from the model", f"{rate:g}", out, work.command("select", data, out, words, rate)))
        here, there = (
            json.loads((each / "plan.json").read_text())["configurations"][CONFIGURATION] for each in (out, scratch)
        )
        compared = [(key, here[key], there[key]) for key in ("network", "patch_size", "batch_size")]
        if different := [f"{key} {mine} and {theirs}" for key, mine, theirs in compared if mine != theirs]:
            log.warning("the plans differ: %s", "; ".join(different))
    return rows


def row(start: str, rate: str, out: Path, seconds: float) -> Row:
    metrics = json.loads((out / "metrics.json").read_text())
    per_class = {name: each["dice"] for name, each in metrics["per_class"].items()}
    log.info("%s, %s: Dice %.4f", start, rate, metrics["mean_dice"])
    return Row(start, rate, metrics["mean_dice"], per_class, seconds)


def report(rows: Sequence[Row], given: argparse.Namespace, command: Sequence[str]) -> str:
    """The markdown page."""
    classes = list(rows[0].per_class)
    header = ["start", "learning rate", "mean Dice", *classes, "command"]
    lines = [
        [
            each.start, each.rate, f"{each.dice:.4f}", *(f"{each.per_class[name]:.4f}" for name in classes),
            seconds_text(each.seconds),
        ]
        for each in rows
    ]  # fmt: skip
    return "\n".join(
        [
            "# Starting from a model\n",
            f"- command: `python {public_command(command)}`",
            f"- machine: {machine()}; other work beside it, so equal steps and not equal time",
            f"- commit: {commit()}",
            f"- the model: {given.source_steps} steps on {given.source_cases} cases of Task04 that occur nowhere else",
            f"- each row: {given.steps} steps on {given.cases} cases, the same network ({CONFIGURATION}, {given.width} "
            f"features in the first stage), batch {given.batch}, AdamW, warm-up and cosine decay, seed {given.seed}",
            f"- Dice over {given.tests} further cases\n",
            table(header, lines),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder Task04_Hippocampus")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "autounet-finetuning")
    parser.add_argument("--source-cases", type=int, default=60)
    parser.add_argument("--source-steps", type=int, default=400)
    parser.add_argument("--cases", type=int, default=6, help="that are trained on")
    parser.add_argument("--tests", type=int, default=24, help="that are judged by")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rates", type=lambda text: [float(part) for part in text.split(",")], default=[1e-3, 3e-3],
        help="highest learning rates from the model; the usual one of a short training is 0.003",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    given.data, folder = given.data.resolve(), given.work.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        rows = measure(Work(folder, given.width, given.batch), given)
    except CommandFailed as error:
        sys.exit(str(error))
    text = report(rows, given, [f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    write_results("finetuning", text, given.results)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
