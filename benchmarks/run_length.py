"""How well the predicted seconds of a training step and of a validation case fit the real ones.

    python benchmarks/run_length.py [--data DATA ...] [--steps 100] [--cases 3] [--out OUT] [options of autounet plan]

Plans and preprocesses the synthetic demonstration data and every DATA through the command line, then trains one fold
of each planned configuration for some steps in the real loop, and predicts some of its validation cases as the
pipeline does. Options not listed here, such as --configurations 3d_fullres, are handed to `autounet`. On a busy machine
both sides are disturbed: run it when nothing else does.
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

from measuring import CommandFailed, commit, machine, public_command, run, seconds_text, table, write_results

log = logging.getLogger("benchmark")

PROGRAM = Path(sys.executable).with_name("autounet")
TRAINER = Path(__file__).with_name("run_length_trainer.py")
LARGEST_ERROR = 0.25
"""of the predicted seconds of a step, from the real ones"""


@dataclass(frozen=True)
class Compared:
    """Predicted and real seconds of one configuration."""

    data: str
    name: str
    what: str
    """patch, batch, features, precision"""
    step: tuple[float, float]
    """predicted, real: of a step, making its samples included"""
    case: tuple[float, float] | None
    """predicted, real: of one validation case; None where there is no validation"""


def compare(data: Path, out: Path, steps: int, cases: int, more: Sequence[str]) -> list[Compared]:
    """Plan and train in OUT. Raises CommandFailed when a command fails."""
    folder, logs = out / "run", out / "logs"
    run([PROGRAM, "preprocess", data, "--out", folder, *more], logs / "preprocess.log")
    run([PROGRAM, "plan", data, "--out", folder, *more], logs / "plan.log")
    plan = json.loads((folder / "plan.json").read_text())
    found = []
    for name, planned in plan["configurations"].items():
        if planned["predicted_step_seconds"] is None:
            log.info("%s: %s was not timed and is left out", data.name, name)
            continue
        result = out / f"{name}.json"
        words = [sys.executable, TRAINER, folder, name, result, str(steps), str(cases)]
        log.info("%s: training %d steps of %s", data.name, steps, name)
        run(words, logs / f"{name}.log")
        found.append(compared(data.name, name, planned, json.loads(result.read_text())))
    return found


def compared(data: str, name: str, planned: dict, real: dict) -> Compared:
    """`planned` is a configuration of plan.json, `real` what the trainer wrote."""
    features = planned["network"]["features"]
    what = (
        f"{'x'.join(map(str, planned['patch_size']))}, batch {planned['batch_size']}, "
        f"{features[0]}-{features[-1]} features, {planned['precision']}"
    )
    case = None
    if real["case_seconds"] is not None:
        case = (planned["predicted_validation_seconds"] / real["cases_per_fold"], real["case_seconds"])
    return Compared(data, name, what, (planned["predicted_step_seconds"], real["step_seconds"]), case)


def within(each: Compared) -> bool:
    """Whether the step, which decides on the length of a run, was predicted well enough."""
    predicted, real = each.step
    return abs(predicted - real) <= LARGEST_ERROR * real


def rows(found: Sequence[Compared]) -> list[list[str]]:
    """One line for the steps and one for the cases of each."""
    lines = []
    for each in found:
        for title, pair in (("step", each.step), ("validation case", each.case)):
            if pair is not None:
                predicted, real = pair
                lines.append(
                    [
                        f"{each.data} {each.name} ({each.what}): {title}",
                        milliseconds(predicted),
                        milliseconds(real),
                        f"{predicted / real:.2f}",
                    ]
                )
    return lines


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else seconds_text(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="a data set; may be given several times")
    parser.add_argument("--steps", type=int, default=100, help="of training per configuration")
    parser.add_argument("--cases", type=int, default=3, help="validation cases per configuration")
    parser.add_argument("--no-demo", action="store_true", help="without the synthetic data")
    parser.add_argument("--out", type=Path, help="default: a temporary folder that is removed")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given, more = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if not {"--time", "--epochs", "--iterations"} & set(more):
        more += ["--epochs", "1000"]  # without a limit of time a CPU would shape its plan to an hour
    found: list[Compared] = []
    with tempfile.TemporaryDirectory() as temporary:
        out = (given.out or Path(temporary)).resolve()
        data = [path.resolve() for path in given.data]
        if not given.no_demo:
            run([sys.executable, TRAINER, "--demo", out / "demo"], out / "logs" / "demo.log")
            data.insert(0, out / "demo")
        failed = False
        for path in data:
            try:
                found += compare(path, out / f"{path.name}_run", given.steps, given.cases, more)
            except CommandFailed as error:
                log.error("%s", error)
                failed = True
    command = public_command([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    text = "\n".join(
        [
            "# Predicted and real times\n",
            f"- command: `python {command}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            f"- real: mean of {given.steps} steps of the training loop, samples included, and of {given.cases} cases",
            "",
            table(["what", "predicted", "real", "predicted / real"], rows(found)),
            f"Steps within {LARGEST_ERROR:.0%}: {sum(map(within, found))} of {len(found)}.",
            "",
        ]
    )
    write_results("run_length", text, given.results)
    sys.stdout.write(text)
    if failed or not found or not all(map(within, found)):
        sys.exit(1)


if __name__ == "__main__":
    main()
