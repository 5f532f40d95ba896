"""What the trial of a run decides on known data sets: how hard each is to learn, and the grid without and with it.

    python benchmarks/trials.py --data DATA [--sets task04,acdc] [--time 10m] [--folds 0]

Plans a run of the given time, makes its trial (`autounet.workflow.plan_stage.tried`), and trains nothing else. Beside
the factor stands the one that longer trainings of fold 0 have shown (results/recipes_2026-11-30.md), where there are
any.
"""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generated_set import many_classes
from known_sets import GENERATED, JOBS
from measuring import commit, machine, public_command, table, write_results

SETS = ("task04", "acdc", "openkbp", "classes30", "brats")
LONGER = {"task04": "0.66", "acdc": "2.1", "openkbp": "1.5", "classes30": "0.7"}
"""factors that trainings of 2 and 8 minutes of a core have shown, by `recipes.py --fit`"""
HEADER = (
    "set", "chosen without, grid", "grids in question", "trial", "factor", "of longer trainings", "chosen with, grid",
    "seconds of the trial and planning",
)  # fmt: skip
TOLD = re.compile(r"a trial of (.+) on (\d+) cases had a mean Dice of (\S+) after (\d+) steps")


def row(name: str, data: Path, out: Path, given: str, folds: str) -> list[str]:
    from autounet.schema.option_table import run_options
    from autounet.store.run_folder import RunFolder
    from autounet.workflow.pipeline import run_pipeline
    from autounet.workflow.plan_stage import PlanFile, tried

    source = data / JOBS[name].data
    if JOBS[name].data == GENERATED:
        many_classes(source := out / "data")
    words = ["plan", str(source), "--out", str(out / "out"), "--time", given, "--folds", folds, *JOBS[name].options]
    subprocess.run([sys.executable, "-m", "autounet", "--quiet", *words], check=True, stdout=subprocess.DEVNULL)
    outcome = run_pipeline(source, out / "out", run_options(()), until="plan")
    folder, began = RunFolder(out / "out"), time.monotonic()
    maker, plan = tried(folder, outcome.maker, PlanFile(folder), outcome.plan)
    seconds = time.monotonic() - began
    told = next((match for reason in plan.reasons if (match := TOLD.search(reason.text))), None)
    return [
        name, chosen(outcome.plan), " to ".join(f"{each:g}" for each in outcome.plan.undecided) or "-",
        f"{told[1]}, {told[2]} cases: {told[3]} after {told[4]} steps" if told else "-",
        f"{maker.learning:g}" if maker.learning else "-", LONGER.get(name, "-"), chosen(plan), f"{seconds:.0f}",
    ]  # fmt: skip


def chosen(plan: object) -> str:
    """The configuration that is trained, and how much coarser its grid is than that of the whole plan."""
    name = plan.chosen[0]
    told = [re.search(r"the grid is (\S+) times", each.text) for each in plan.reasons if each.configuration == name]
    return f"{name}, {next((match[1] for match in told if match), '1')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--time", default="10m")
    parser.add_argument("--folds", default="all", help="that the time is for")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    rows = []
    for name in arguments.sets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, arguments.data, Path(folder), arguments.time, arguments.folds))
        sys.stdout.write(f"{' | '.join(rows[-1])}\n")
        sys.stdout.flush()
    command = public_command([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    text = f"""# What the trial of a run of {arguments.time} decides (folds: {arguments.folds})

- command: `python {command}`
- machine: {machine()}
- commit: {commit()}

{table(HEADER, rows)}"""
    write_results("trials", text, arguments.results)


if __name__ == "__main__":
    main()
