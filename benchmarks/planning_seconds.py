"""Seconds that planning needs: for any data set, its traces of training steps included, or by the command.

    python benchmarks/planning_seconds.py [--count 60] [--seed 1] [--memory 8GB]
    python benchmarks/planning_seconds.py --data Task04_Hippocampus [--repeat 3]

With `--data`: `autounet plan` of that folder, in three states of its output folder (new, with the fingerprint alone,
and `--replan` with everything there), by default and with the preset nnunet. Wall time and, for machines that are busy
with other work, processor time, children included.

Without: plans the data sets of `planning_questions.py` (known, awkward and random ones), each for a CPU and for a GPU,
from their fingerprints alone, as `autounet plan` does without a promised time. The first includes loading torch. Ends
with exit code 1 where one takes longer than LONGEST_SECONDS; a data set that is refused with a reason counts by its
time.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from measuring import commit, machine, median, public_command, run, seconds_text, table, write_results
from planning_parity import our_fingerprint, our_labels
from planning_questions import Question, questions

from autounet.memory_model import training_memory
from autounet.planning import plan
from autounet.schema.errors import PlanError
from autounet.schema.options import PlannerOptions, TrainOptions
from autounet.schema.quantities import parse_size
from autounet.schema.run import DeviceProfile

LONGEST_SECONDS = 10.0
DEVICES = ("cpu", "cuda")
SLOWEST_SHOWN = 12
REFUSED = "refused: "
CALLS = {
    "autounet plan": (),
    "autounet plan --preset nnunet": (
        "--preset", "nnunet", "--memory", "8GB", "--splits", "nnunet", "--epochs", "1000",
    ),
}  # fmt: skip
STATES = {"a new output folder": (), "the fingerprint is there": (), "--replan": ("--replan",)}


def seconds_of(question: Question, device: str, memory: int) -> tuple[float, str]:
    """How long planning took, and what came out in words."""
    labels = our_labels(question)
    fingerprint = our_fingerprint(question).model_copy(update={"orientation": "canonical"})
    profile = DeviceProfile(
        device=device, name="as given", cores=2, memory_bytes=memory, precision="bf16", channels_last=device == "cpu"
    )
    options = TrainOptions()
    started = time.perf_counter()
    try:
        traced = training_memory(labels, options, profile)
        made = plan(fingerprint, labels, PlannerOptions(memory_bytes=memory), options, profile, traced)
        answer = ", ".join(made.configurations)
    except PlanError as error:
        answer = f"{REFUSED}{error}"
    return time.perf_counter() - started, answer


def shapes(question: Question) -> str:
    first = question["cases"][0]
    count = sum(case["times"] for case in question["cases"])
    return f"{count} x {'x'.join(map(str, first['cropped']))}, {' x '.join(map(str, first['spacing']))} mm"


def command_seconds(data: Path, repeat: int) -> list[list[str]]:
    """A row for each call and state: medians of wall and processor seconds."""
    rows = []
    for call, options in CALLS.items():
        taken: dict[str, list[tuple[float, float]]] = {state: [] for state in STATES}
        for _ in range(repeat):
            with tempfile.TemporaryDirectory() as work:
                for state, more in STATES.items():
                    out = Path(work) / ("known" if state == "the fingerprint is there" else "new")
                    if out.name == "known":
                        autounet(Path(work), "fingerprint", data, "--out", out, *options)
                    taken[state].append(autounet(Path(work), "plan", data, "--out", out, *options, *more))
        rows += [
            [call, state, *(seconds_text(median(each)) for each in zip(*seconds, strict=True))]
            for state, seconds in taken.items()
        ]
    return rows


def autounet(work: Path, *words: str | Path) -> tuple[float, float]:
    """Wall and processor seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = run([sys.executable, "-m", "autounet", *words, "--device", "cpu"], work / "log")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return measured.seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def header() -> list[str]:
    command = public_command([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    return [
        "# Seconds of planning\n",
        f"- command: `python {command}`",
        f"- machine: {machine()}",
        f"- commit: {commit()}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="data sets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", default="8GB")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--data", type=Path, help="time the command on this folder instead")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each command")
    given = parser.parse_args()
    if given.data:
        rows = command_seconds(given.data.resolve(), given.repeat)
        load = f"- load of the machine by other work: {os.getloadavg()[2]:.1f}; medians of {given.repeat}\n"
        text = "\n".join([*header(), load, table(["command", "output folder", "wall", "processor"], rows)])
        sys.stdout.write(text)
        write_results("planning_seconds", text, given.results)
        return 0

    memory, rows = parse_size(given.memory), []
    for question in questions(given.count, given.seed):
        for device in DEVICES:
            seconds, answer = seconds_of(question, device, memory)
            rows.append((seconds, shapes(question), device, answer))
    every = [seconds for seconds, *_ in rows]
    refused = sum(row[-1].startswith(REFUSED) for row in rows)
    rows.sort(reverse=True)
    text = "\n".join(
        [
            *header(),
            f"- {len(rows)} plans: median {median(every):.1f} s, longest {max(every):.1f} s, allowed "
            f"{LONGEST_SECONDS:.0f} s; {refused} refused; the slowest follow\n",
            table(
                ["seconds", "first of the cases", "device", "configurations"],
                [[f"{row[0]:.1f}", *row[1:]] for row in rows[:SLOWEST_SHOWN]],
            ),
            "",
        ]
    )
    sys.stdout.write(text)
    write_results("planning_seconds", text, given.results)
    return int(max(every) > LONGEST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
