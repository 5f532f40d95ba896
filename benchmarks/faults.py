"""What an interrupted, starved or damaged run does, and whether the same command then ends as if nothing was.

    python benchmarks/faults.py --work DIR [--only TEXT]      every fault; writes benchmarks/results/faults.md
    python benchmarks/faults.py --work DIR --soak 200         so many interruptions at random moments

On a small synthetic set a run of two folds of a few steps (`--deterministic`) and a prediction are made undisturbed.
Then for each fault the commands run in a process of their own, forked from this one, with the fault in it; then once
more without. Weights, metrics and predictions have to be those of the undisturbed run. Linux only.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import locale
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from measuring import commit, machine

from autounet.cli.app import main as command
from autounet.datasets.synthetic import make_demo_dataset
from autounet.planning import fill_memory, plan_inputs
from autounet.training import loader, loop
from autounet.workflow import cluster

RESULTS = Path(__file__).parent / "results" / "faults.md"
STEPS, FOLDS = 6, 2
LONGEST = 180.0
"""seconds that a command may take before it counts as hanging"""


class Ended(NamedTuple):
    """A command that has ended: exit code (negative: the signal), seconds, seconds since the fault, what it printed."""

    code: int
    seconds: float
    noticed: float | None
    log: str


Hook = Callable[[Callable[[], None]], Any]
"""Called in the process of the command, with what has to be called when the fault strikes."""


@dataclass(frozen=True)
class Fault:
    stage: str
    name: str
    hook: Hook | None = None
    """what goes wrong while the command runs"""
    damage: Callable[[Path], None] | None = None
    """what has happened to a finished output folder before the command"""
    options: tuple[str, ...] = ()
    fine: bool = False
    """whether the command is to end well nevertheless"""


@dataclass(frozen=True)
class Place:
    data: Path
    out: Path

    def commands(self, options: Sequence[str] = ()) -> list[list[str]]:
        run = ["run", self.data, "--out", self.out, "--iterations", STEPS, "--deterministic", "--folds", "0,1"]
        run += ["--device", "cpu", "--workers", 0, "--configurations", "3d_fullres", "--memory", "600MB", *options]
        predict = ["predict", self.out / "model", self.data / "imagesTr", "--out", self.out / "predicted"]
        return [list(map(str, each)) for each in (run, [*predict, "--device", "cpu", "--no-mirror"])]


def narrow() -> list[Any]:
    """Patches under which networks have 8 features and nothing is tried before the first fold."""
    return [
        mock.patch.object(plan_inputs, "WIDTH", 8),
        mock.patch.object(fill_memory, "WIDTH", 8),
        mock.patch.object(fill_memory, "MOST_WIDTH", 8),
        mock.patch.object(cluster, "try_configurations", return_value=None),
    ]


def in_a_process(arguments: Sequence[str], log: Path, hook: Hook | None, steps: Path, after: float | None) -> Ended:
    """A command in a forked process; `after` so many seconds it is killed by a signal that `hook` does not send."""
    struck = log.with_suffix(".struck")
    struck.unlink(missing_ok=True)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_command(arguments, log, hook, steps, struck))
    status = None
    while status is None:
        pid, code = os.waitpid(child, os.WNOHANG)
        if pid:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() - began > (LONGEST if after is None else after):
            os.kill(child, signal.SIGKILL if after is None else random.choice(SIGNALS))
            after = LONGEST
        else:
            time.sleep(0.01)
    noticed = time.time() - struck.stat().st_mtime if struck.exists() else None
    return Ended(status, time.monotonic() - began, noticed, log.read_text(errors="replace") if log.exists() else "")


def _command(arguments: Sequence[str], log: Path, hook: Hook | None, steps: Path, struck: Path) -> int:
    """In the forked process; returns the exit code."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(number, 1)
    os.dup2(number, 2)
    advance = loop.advance

    def counted(*given: Any) -> Any:
        with steps.open("a") as file:
            file.write("step\n")
        return advance(*given)

    loop.advance = counted
    for each in narrow():
        each.start()
    sys.argv = ["autounet", *arguments]
    try:
        if hook is not None:
            hook(struck.touch)
        command()
    except SystemExit as ended:
        return int(ended.code or 0) if isinstance(ended.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def when_written(pattern: str, act: Callable[[], None]) -> Hook:
    """Where a file of that name is about to be renamed to it, once."""

    def hook(struck: Callable[[], None]) -> None:
        replace, left = os.replace, [1]

        def watched(source: Any, target: Any, **others: Any) -> None:
            if left and fnmatch(str(target), pattern):
                left.clear()
                struck()
                act()
            replace(source, target, **others)

        os.replace = watched

    return hook


def at_step(number: int, act: Callable[[], None]) -> Hook:
    def hook(struck: Callable[[], None]) -> None:
        advance, seen = loop.advance, []

        def watched(*given: Any) -> Any:
            seen.append(1)
            if len(seen) == number:
                struck()
                act()
            return advance(*given)

        loop.advance = watched

    return hook


def sent(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def raised(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def limited(kind: int, amount: int) -> Hook:
    def hook(struck: Callable[[], None]) -> None:
        struck()
        resource.setrlimit(kind, (amount, amount))

    return hook


def limited_at_step(kind: int, more: Callable[[], int]) -> Hook:
    return at_step(3, lambda: resource.setrlimit(kind, (more(), more())))


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def clock_jumps(seconds: float) -> Hook:
    def jump() -> None:
        now = time.time
        time.time = lambda: now() + seconds

    return at_step(3, jump)


def commas(struck: Callable[[], None]) -> None:
    struck()
    for name in ("de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"):
        try:
            locale.setlocale(locale.LC_ALL, name)
            return
        except locale.Error:
            continue
    os.environ["LC_ALL"] = "de_DE.UTF-8"


def worker_killed(struck: Callable[[], None]) -> None:
    import psutil

    def kill() -> None:
        for each in psutil.Process().children():
            if "spawn_main" in " ".join(each.cmdline()):
                each.kill()
                return

    at_step(3, kill)(struck)


def small_shared_memory(struck: Callable[[], None]) -> None:
    struck()
    loader.shared_memory_free = lambda: 64 * 1024


def not_finite(first: int, last: int) -> Hook:
    def hook(struck: Callable[[], None]) -> None:
        advance, seen = loop.advance, []

        def faulty(state: Any, loss: Any, *others: Any) -> Any:
            seen.append(1)
            if first <= len(seen) <= last:
                struck()
                return advance(state, lambda outputs, batch: loss(outputs, batch) * float("nan"), *others)
            return advance(state, loss, *others)

        loop.advance = faulty

    return hook


def found(out: Path, pattern: str) -> Path:
    return sorted(path for path in out.glob(pattern) if path.is_file())[0]


def flipped(pattern: str) -> Callable[[Path], None]:
    def damage(out: Path) -> None:
        path = found(out, pattern)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)

    return damage


def cut(pattern: str, share: float) -> Callable[[Path], None]:
    def damage(out: Path) -> None:
        path = found(out, pattern)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return damage


def swapped(pattern: str) -> Callable[[Path], None]:
    def damage(out: Path) -> None:
        one, other = sorted(path for path in out.glob(pattern) if path.is_file())[:2]
        first = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(first)

    return damage


def gone(pattern: str) -> Callable[[Path], None]:
    return lambda out: found(out, pattern).unlink()


WRITTEN = (
    ("check", "*/findings.json"), ("fingerprint", "*/fingerprint.json"), ("plan", "*/plan.json"),
    ("preprocess", "*/prepared/*.json"), ("train", "*/record.json"), ("validate", "*/crossval/*.nii.gz"),
    ("select", "*/selection.json"), ("pack", "*/bundle.json"), ("report", "*/report.html"),
    ("predict", "*/predicted/demo_001*"),
)  # fmt: skip
KEPT = (
    ("preprocess", "prepared/**/*.b2nd"), ("preprocess", "prepared/**/*.json"),
    ("train", "models/*/fold_0/weights.safetensors"), ("train", "models/*/fold_0/record.json"),
    ("validate", "crossval/*/*.nii.gz"), ("select", "selection.json"), ("select", "metrics.json"),
    ("plan", "plan.json"), ("fingerprint", "fingerprint.json"), ("pack", "model/bundle.json"),
    ("pack", "model/**/*.safetensors"),
)  # fmt: skip


def faults() -> list[Fault]:
    table = [
        Fault(stage, f"power cut before {pattern[2:]} is renamed", when_written(pattern, sent(signal.SIGKILL)))
        for stage, pattern in WRITTEN
    ]
    table += [
        Fault(stage, f"full disk where {pattern[2:]} is written", when_written(pattern, raised(FULL)))
        for stage, pattern in WRITTEN
    ]
    table += [
        Fault("train", f"{signal.Signals(number).name} at step 3", at_step(3, sent(number))) for number in SIGNALS
    ]
    table += [
        Fault("train", "read-only file system", when_written("*/record.json", raised(READ_ONLY))),
        Fault("train", "memory runs out (ulimit -v)", limited_at_step(resource.RLIMIT_AS, virtual_bytes)),
        Fault("train", "MemoryError", at_step(3, raised(MemoryError()))),
        Fault("train", "clock an hour back", clock_jumps(-3600), fine=True),
        Fault("train", "clock a day ahead", clock_jumps(86400), fine=True),
        Fault("train", "a worker process is killed", worker_killed, options=("--workers", "2"), fine=True),
        Fault("train", "64 KB of /dev/shm", small_shared_memory, options=("--workers", "2"), fine=True),
        Fault("train", "exception of a mistake", at_step(3, raised(KeyError("a mistake")))),
        Fault("train", "two steps of NaN", not_finite(2, 3)),
        Fault("train", "steps of NaN for ever", not_finite(1, 999)),
        Fault("all", "locale with commas", commas, fine=True),
        Fault("all", "ulimit -t 3", limited(resource.RLIMIT_CPU, 3)),
        Fault("all", "no file over 20 KB (ulimit -f)", limited(resource.RLIMIT_FSIZE, 20_000)),
    ]
    for stage, pattern in KEPT:
        table.append(Fault(stage, f"a flipped bit in {pattern}", damage=flipped(pattern), fine=True))
        table.append(Fault(stage, f"{pattern} cut in half", damage=cut(pattern, 0.5), fine=True))
    table += [
        Fault("train", "empty weights of a fold", damage=cut(KEPT[2][1], 0), fine=True),
        Fault("select", "empty selection.json", damage=cut("selection.json", 0), fine=True),
        Fault("preprocess", "two prepared cases swapped", damage=swapped("prepared/**/*.b2nd"), fine=True),
        Fault("validate", "two segmentations swapped", damage=swapped("crossval/*/*.nii.gz"), fine=True),
        Fault("preprocess", "a prepared case is gone", damage=gone("prepared/**/*.b2nd"), fine=True),
        Fault("pack", "bundle.json is gone", damage=gone("model/bundle.json"), fine=True),
    ]
    return table


# ---- what came of it ------------------------------------------------------------------------------------------------


def outcome(out: Path) -> dict[str, str]:
    """Digests of weights, of the measures and of what was predicted."""
    files = [*out.glob("models/*/fold_[01]/weights.safetensors"), *out.glob("predicted/[!.]*.nii.gz")]
    digests = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    metrics = out / "metrics.json"
    if metrics.exists():
        digests["mean_dice"] = repr(json.loads(metrics.read_text()).get("mean_dice"))
    return digests


def run_all(place: Place, log: Path, steps: Path, fault: Fault | None = None, after: float | None = None) -> Ended:
    """run and predict; what ends the first ends both."""
    options, hook = (fault.options, fault.hook) if fault else ((), None)
    ended = Ended(0, 0.0, None, "")
    for arguments in place.commands(options):
        at = Ended(*ended)
        ended = in_a_process(arguments, log, hook, steps, after)
        ended = Ended(ended.code, at.seconds + ended.seconds, ended.noticed or at.noticed, at.log + ended.log)
        if ended.code:
            return ended
    return ended


def count(steps: Path) -> int:
    return len(steps.read_text().splitlines()) if steps.exists() else 0


def row(fault: Fault, work: Path, expected: dict[str, str]) -> tuple[str, bool]:
    """A line of the table, and whether all went as it should."""
    place = Place(work / "data", work / "out")
    shutil.rmtree(place.out, ignore_errors=True)
    done = "finished" if fault.damage else DONE_BEFORE.get(fault.stage, "trained")
    if done:
        shutil.copytree(work / done, place.out)
    steps = work / "steps"
    steps.unlink(missing_ok=True)
    if fault.damage:
        fault.damage(place.out)
    first = run_all(place, work / "log", steps, fault)
    made = count(steps)
    second = run_all(place, work / "log", steps)
    again = outcome(place.out)
    same = again == expected
    traced = "Traceback (most recent call last)" in first.log and "a mistake" not in first.log
    lost = count(steps) - (0 if done in ("trained", "finished") else FOLDS * STEPS)
    wrong = [
        "a traceback" if traced else "",
        f"the same command ended with {second.code}" if second.code else "",
        "" if same else "other results: " + ", ".join(k for k in expected if again.get(k) != expected[k])[:80],
        f"exit code {first.code}" if fault.fine and first.code else "",
        "it hung" if first.seconds > LONGEST else "",
    ]
    said = [each for each in first.log.splitlines() if each.strip()]
    last = said[-1].replace("|", "/")[:140] if said and first.code else ""
    ended = "went on" if first.code == 0 else f"exit code {first.code}: {last}"
    noticed = "" if first.noticed is None or not first.code else f"{first.noticed:.1f} s"
    problems = "; ".join(each for each in wrong if each)
    line = f"| {fault.stage} | {fault.name} | {ended} | {noticed} | {max(0, lost)} steps | {problems or 'yes'} |"
    print(f"{line} ({made} steps at first, {first.seconds + second.seconds:.0f} s)", flush=True)
    return line, not problems


HEAD = """# Faults, and what came of them

`benchmarks/faults.py` on four small synthetic cases: two folds of 6 steps, then a prediction. "The same
command" is the same one again without the fault; "yes" means that it ended with exit code 0, and that
weights, mean Dice and predictions are those, bit for bit, of a run that was not disturbed. Work lost counts
training steps made more than once. The time is from the fault to the end of the command; a fault in a file is
there before the command begins. Files of a finished run were damaged where a file is named.

"""
COLUMNS = """| stage | fault | what happened | time to notice | work lost | the same command goes on |
|---|---|---|---|---|---|
"""


DONE_BEFORE = {
    "check": "",
    "fingerprint": "",
    "plan": "",
    "preprocess": "planned",
    "train": "planned",
    "all": "planned",
}
"""stage -> the output folder in which its faults strike; those of later stages in one whose folds are trained"""


def undisturbed(work: Path) -> dict[str, str]:
    """Data in `work`, output folders that are planned for, trained and finished, and what is to come out."""
    data = make_demo_dataset(work / "data", cases=4)
    begun = time.monotonic()
    for stage, name in (("plan", "planned"), ("train", "trained"), ("run", "finished")):
        place = Place(data, work / "out")
        ended = in_a_process([stage, *place.commands()[0][1:]], work / "log", None, work / "steps", None)
        assert ended.code == 0, ended.log
        if stage == "run":
            ended = run_all(place, work / "log", work / "steps")
            assert ended.code == 0, ended.log
        shutil.copytree(place.out, work / name)
    print(f"undisturbed: {time.monotonic() - begun:.0f} s", flush=True)
    return outcome(work / "finished")


def soak(work: Path, interruptions: int, seed: int) -> bool:
    """Interrupt at random moments by random signals until so many have struck. Whether all runs ended alike."""
    expected = undisturbed(work)
    random.seed(seed)
    place, struck, runs, fine = Place(work / "data", work / "out"), 0, 0, True
    typical = 25.0
    while struck < interruptions:
        shutil.rmtree(place.out, ignore_errors=True)
        ended = Ended(-1, 0, None, "")
        while ended.code and struck < interruptions:
            ended = run_all(place, work / "log", work / "steps", after=random.uniform(0.1, typical))
            struck += ended.code != 0
        ended = run_all(place, work / "log", work / "steps")
        runs += 1
        same = ended.code == 0 and outcome(place.out) == expected
        fine = fine and same
        print(f"{struck} interruptions, {runs} runs: {'the same' if same else 'NOT the same'}", flush=True)
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="faults whose name holds this text; nothing is written")
    parser.add_argument(
        "--part", default="0/1", help="every n-th fault from the k-th on, as k/n; the last one joins all"
    )
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}
    if given.soak:
        return 0 if soak(given.work, given.soak, given.seed) else 1
    expected = undisturbed(given.work)
    first, parts = map(int, given.part.split("/"))
    chosen = [(number, fault) for number, fault in enumerate(faults()) if given.only in fault.name]
    fine = True
    for number, fault in chosen[first::parts]:
        line, good = row(fault, given.work, expected)
        fine = fine and good
        if not given.only:
            (given.work / f"row_{number:03}").write_text(f"{int(good)}{line}")
    if not given.only:
        write_table(sorted(given.work.parent.glob("*/row_*"), key=lambda path: path.name))
    return 0 if fine else 1


def write_table(rows: Sequence[Path]) -> None:
    """Rows of all parts, whose working folders lie side by side."""
    found = [path.read_text() for path in rows]
    lines = "\n".join(each[1:] for each in found)
    good = sum(each.startswith("1") for each in found)
    text = f"{len(found)} of {len(faults())} faults have been run; {good} of them went as they should."
    where = f"- machine: {machine()}\n- commit: {commit()}\n"
    RESULTS.write_text(f"{HEAD}{where}\n{COLUMNS}{lines}\n\n{text}\n")


if __name__ == "__main__":
    sys.exit(main())
