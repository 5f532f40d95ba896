"""How well the length of a run that `autounet plan` promises fits what the run then needs.

    python benchmarks/whole_run.py --data DATA ... [--iterations 300] [--folds 0] [options of autounet run]

Plans every DATA without a limit of time, then lets the same output folder run to its report: preprocessing, training,
validation, selection. The seconds of that second command are compared with the plan's. On a busy machine both sides
are disturbed: run it when nothing else does.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from measuring import CommandFailed, commit, machine, public_command, run, seconds_text, table, write_results
from run_length import LARGEST_ERROR, PROGRAM
from run_length_trainer import schedule_of

from autounet.schema.fingerprint import Fingerprint
from autounet.schema.options import RunOptions
from autounet.store.run_folder import RunFolder
from autounet.time_budget.run_length import total_length, work_of
from autounet.workers import available_cores

log = logging.getLogger("benchmark")


def predicted(out: Path) -> tuple[float, str]:
    """Seconds that the plan in OUT promises, and what of it is trained, in words."""
    folder = RunFolder(out)
    schedule, given = schedule_of(folder), RunOptions.load(folder.options).workers
    trained = [(each, len(schedule.folds_of(name))) for name, each in schedule.configurations.items()]
    workers = available_cores() if given is None else given
    seconds = total_length(trained, work_of(Fingerprint.load(folder.fingerprint), workers))
    if seconds is None:
        sys.exit(f"{out / 'plan.json'} holds no times")
    what = ", ".join(
        f"{name} {'x'.join(map(str, each.patch_size))} batch {each.batch_size}, {each.predicted_steps} steps"
        for name, each in schedule.configurations.items()
    )
    return seconds, what


def compare(data: Path, out: Path, more: list[str]) -> list[str | float]:
    """What was run, predicted and real seconds. Raises CommandFailed."""
    for stage in ("plan", "run"):
        log.info("%s: autounet %s", data.name, stage)
        measured = run([PROGRAM, stage, data, "--out", out, *more], out.with_name(f"{out.name}_{stage}.log"))
        if stage == "plan":
            promised, what = predicted(out)
    return [f"{data.name}: {what}", promised, measured.seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="may be given several times")
    parser.add_argument("--iterations", type=int, default=300, help="steps of a fold")
    parser.add_argument("--out", type=Path, help="default: a temporary folder that is removed")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given, more = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        out = (given.out or Path(temporary)).resolve()
        for data in given.data:
            try:
                found.append(compare(data.resolve(), out / data.name, ["--iterations", str(given.iterations), *more]))
            except CommandFailed as error:
                log.error("%s", error)
    good = sum(abs(promised - real) <= LARGEST_ERROR * real for _, promised, real in found)
    text = "\n".join(
        [
            "# Predicted and real length of whole runs\n",
            f"- command: `python {public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            "",
            table(
                ["run", "predicted", "real", "predicted / real"],
                [[what, seconds_text(a), seconds_text(b), f"{a / b:.2f}"] for what, a, b in found],
            ),
            f"Within {LARGEST_ERROR:.0%}: {good} of {len(given.data)}.",
            "",
        ]
    )
    write_results("whole_run", text, given.results)
    sys.stdout.write(text)
    if good < len(given.data):
        sys.exit(1)


if __name__ == "__main__":
    main()
