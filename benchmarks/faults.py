"""What an interrupted, starved or damaged run does, and whether the same command then ends as if nothing was.

    python benchmarks/faults.py --work DIR                every fault; writes benchmarks/results/faults.md as it goes on
    python benchmarks/faults.py --work DIR --only TEXT    those whose name holds it; nothing is written
    python benchmarks/faults.py --work DIR --soak 200     so many interruptions at random moments

A run of two folds of a few steps (`--deterministic`) and a prediction are made undisturbed. Then for each fault the
commands run with it in processes of their own (`forked_commands.py`), and once more without. Weights, metrics and
segmentations have to be those of the undisturbed run. The same command again goes on where an earlier one was ended,
`--again TEXT` repeats faults that are done. Linux only, where a user may make mounts of its own (`unshare`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_kinds import SIGNALS, Fault, faults
from forked_commands import FOLDS, LONGEST, STEPS, Ended, Forks, emptied, outcome, prepare
from measuring import commit, machine

RESULTS = Path(__file__).parent / "results" / "faults.md"
DAMAGES = ("flip", "cut", "empty", "swap")
MOST_LOST = 1
"""training steps made more than once, where every step ends with a checkpoint"""
DONE_BEFORE = {
    "check": "", "fingerprint": "", "plan": "", "preprocess": "planned", "train": "planned", "validate": "planned",
    "all": "planned",
}  # fmt: skip
"""stage -> the output folder in which its faults strike; those of later stages in one whose folds are trained"""


def begin(work: Path, before: str) -> None:
    """An output folder on a file system of its own, as it was `before`; empty where that is nothing."""
    subprocess.run(["umount", "-q", "-l", work / "out"], check=False)
    emptied(work / "out")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "faults", work / "out"], check=True)
    if before:
        shutil.copytree(work / before, work / "out", dirs_exist_ok=True)
    for name in ("steps", "go"):
        (work / name).unlink(missing_ok=True)


def count(steps: Path) -> int:
    return len(steps.read_text().splitlines()) if steps.exists() else 0


ORPHAN = re.compile(
    r"Traceback \(most recent call last\):\n(?:  .*\n)*  .*spawn_main(?:.*\n)*?EOFError: Ran out of input"
)
"""what multiprocessing itself prints in a process whose parent was killed before it said what there is to do"""


def traced(log: str) -> str:
    log = ORPHAN.sub("", log)
    return "a traceback" if "Traceback (most recent call last)" in log and "a mistake" not in log else ""


def shown(ended: Ended) -> str:
    said = ended.said.replace("|", "/")
    said = said if len(said) < 220 else said[:216] + " ..."
    if ended.code < 0:
        return f"killed by {signal.Signals(-ended.code).name}"
    return (f"exit code {ended.code}: {said}" if ended.code else f"went on: {said}").rstrip(": ")


def struck(fault: Fault, forks: Forks, expected: dict[str, str]) -> dict[str, Any]:
    """A line of the table of faults, and what was wrong."""
    place = forks.place
    done = DONE_BEFORE.get(fault.stage, "trained")
    begin(place.work, done)
    beside: list[Ended] = []

    def meanwhile() -> None:
        beside.append(forks.run(place.command("run")))
        (place.work / "go").touch()

    options = fault.options if fault.differs else ()
    first_command = 0 if fault.stage == "check" else 1
    first = forks.all(fault.hook, fault.options, meanwhile if fault.beside else None, first_command)
    made, after_first = count(place.steps), outcome(place.out)
    fault.undo(place)
    second = forks.all(options=options, first=first_command)
    again = outcome(place.out)
    right = after_first if fault.differs else expected
    lost = count(place.steps) - (0 if done == "trained" else FOLDS * STEPS)
    lost = made - count(place.steps) if fault.differs else max(0, lost)
    told = first.log + "".join(each.log for each in beside)
    wrong = [
        traced(told + second.log),
        f"the same command ended with {second.code}: {second.said[:100]}" if second.code else "",
        "" if again == right else "other results: " + ", ".join(k for k in right if again.get(k) != right[k])[:80],
        f"exit code {first.code}" if fault.fine and first.code else "",
        "" if first.struck else "it did not strike",
        f"not said: {fault.says}" if fault.says and fault.says not in told else "",
        "it hung" if max(first.seconds, second.seconds) > LONGEST else "",
        f"{lost} steps are lost" if lost > MOST_LOST and not fault.worthless else "",
        "two at once" if fault.beside and [each.code for each in beside] != [1] else "",
    ]
    what = shown(first) + "".join(f"; the other one: {shown(each)}" for each in beside)
    what = what.replace(f"{place.work}/", "")
    noticed = "" if first.noticed is None else f"{first.noticed:.1f} s"
    problems = "; ".join(each for each in wrong if each)
    line = f"| {fault.stage} | {fault.name} | {what} | {noticed} | {lost} | {problems or 'yes'} |"
    return {"line": line, "wrong": problems}


def kinds_of_files(out: Path) -> dict[str, list[Path]]:
    """Pattern -> the files of a finished output folder that differ from each other by case or fold alone."""
    found: dict[str, list[Path]] = {}
    for path in sorted(each for each in out.rglob("*") if each.is_file() and each.name != ".lock"):
        kind = re.sub(r"demo_\d+", "CASE", re.sub(r"fold_\d+", "FOLD", path.relative_to(out).as_posix()))
        found.setdefault(kind, []).append(path)
    return found


def damage(files: list[Path], kind: str) -> Path | None:
    """Damage the first of them; returns it, None where there is nothing to swap it with."""
    path = files[0]
    content = path.read_bytes()
    if kind == "swap":
        if len(files) < 2 or content == files[1].read_bytes():
            return None
        path.write_bytes(files[1].read_bytes())
        files[1].write_bytes(content)
        return path
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 0x10
    path.write_bytes({"flip": bytes(flipped), "cut": content[: len(content) // 2], "empty": b""}[kind])
    return path


def removed_as_told(out: Path, said: str) -> bool:
    """Do what an error asks for: remove the file of the output folder that it names. Whether it names one."""
    for path in sorted(out.rglob("*"), key=lambda each: -len(str(each))):
        if path.is_file() and (str(path) in said or re.search(rf"\b{re.escape(path.name)}\b", said)):
            path.unlink()
            return True
    return False


def damaged(kind: str, way: str, forks: Forks, expected: dict[str, str]) -> dict[str, Any]:
    """A cell of the table of files: what a damaged file leads to, and what was wrong."""
    place = forks.place
    begin(place.work, "finished")
    file = damage(kinds_of_files(place.out)[kind], way)
    if file is None:
        return {"line": "", "wrong": ""}
    first, told, wrong = forks.all(first=1), "", []
    if first.code:
        wrong.append("" if file.name in first.said else f"exit code {first.code} without its name: {first.said[:150]}")
        told = "told"
        if not removed_as_told(place.out, first.said):
            wrong.append("no remedy")
    second = forks.all(first=1) if first.code else first
    steps = count(place.steps)
    wrong += [
        traced(first.log + second.log),
        f"the same command ended with {second.code}: {second.said[:150]}" if second.code else "",
        "" if outcome(place.out) == expected else "other results",
        "it hung" if max(first.seconds, second.seconds) > LONGEST else "",
    ]
    problems = "; ".join(each for each in wrong if each)
    line = told or ("noticed" if first.said else "no matter")
    said = first.said.replace(f"{place.work}/", "")
    return {"line": line + (f", {steps} steps" if steps else ""), "wrong": problems, "said": said}


HEAD = f"""# Faults, and what came of them

`benchmarks/faults.py` on four small synthetic cases: two folds of {STEPS} steps, then a prediction, on one core. "The
same command" is the same one again without the fault; "yes" means that it ended with exit code 0, and that weights,
packed weights, metrics and segmentations are those, bit for bit, of a run that was not disturbed. Where steps of a
training were skipped other weights are right; there the same command has to change nothing. Work lost counts training
steps made more than once. Here a checkpoint follows each step; in a real run it follows a line of the log (250 steps at
most) after 15 s, or after 50 times as long as writing takes, but at most 4 minutes. The time is from the fault to the
line that says so, or else to the end of the command. Pictures of the report are left out, and no trial steps are made.

"""
COLUMNS = """| stage | fault | what happened | time to notice | work lost | the same command goes on |
|---|---|---|---|---|---|
"""
FILES = """
## Damaged files

Every kind of file in the output folder of a finished run (CASE, FOLD: the first of several) was damaged before the
same command: a bit in the middle flipped, cut in half, emptied, swapped with the next of its kind. "noticed": the
command says something and ends well, having made again what it needed; "no matter": it ends well and says nothing;
"told": it ends with exit code 1, names the file, and goes on once that is removed. Steps are those that were trained
again. Results are compared as above.

| file | flip | cut | empty | swap |
|---|---|---|---|---|
"""


def write_table(rows: dict[str, dict[str, Any]]) -> None:
    """Of all faults that have been run, whenever that was."""
    lines = [rows[name]["line"] for name in map(title, faults()) if name in rows]
    kinds = dict.fromkeys(name.split(": ", 2)[1] for name in rows if name.startswith("file: "))
    grid = []
    for kind in kinds:
        found = [rows.get(f"file: {kind}: {way}", {"wrong": "not run", "line": ""}) for way in DAMAGES]
        grid.append("| " + " | ".join([kind, *(each["wrong"] or each["line"] or "-" for each in found)]) + " |")
    run = [each for each in rows.values() if each["line"] and "soak" not in each]
    text = f"{len(lines)} faults of {len(faults())}, and {len(run) - len(lines)} damaged files; "
    text += f"{sum(not each['wrong'] for each in run)} of {len(run)} went as they should."
    soaked = [f"\n## Interruptions at random moments\n\n{each['line']}" for each in rows.values() if "soak" in each]
    where = f"- machine: {machine()}, other work beside it\n- commit: {commit()}\n"
    parts = [f"{HEAD}{where}\n{text}\n\n{COLUMNS}" + "\n".join(lines), FILES + "\n".join(grid), *soaked]
    RESULTS.write_text("\n".join(parts) + "\n")


def title(fault: Fault) -> str:
    return f"{fault.stage}: {fault.name}"


def soak(forks: Forks, expected: dict[str, str], interruptions: int, seed: int) -> dict[str, Any]:
    """Interrupt at random moments of what remains, by random signals, until so many have struck.

    Every run, check to predict, is interrupted until it ends by itself, and has to end as the undisturbed one.
    """
    chance, place, counts, runs = random.Random(seed), forks.place, dict.fromkeys(SIGNALS, 0), 0
    wrong: list[str] = []
    traces: list[str] = []
    emptied(place.out)
    whole = [forks.run(each).seconds for each in place.commands()]
    assert outcome(place.out) == expected
    while sum(counts.values()) < interruptions:
        emptied(place.out)
        runs += 1
        for arguments, typical in zip(place.commands(), whole, strict=True):
            spent, code = 0.0, -1
            while code:
                remains = max(0.1 * typical, typical - spent)
                number = chance.choice(SIGNALS)
                more = sum(counts.values()) < interruptions
                ended = forks.run(arguments, after=(chance.uniform(0, remains), number) if more else None)
                spent, code = spent + ended.seconds, ended.code
                if code in (-number, 128 + number):
                    counts[number] += 1
                elif code:
                    wrong.append(f"exit code {code} at {number.name}: {ended.said}")
                    print(ended.log, flush=True)
                    break
                if traced(ended.log):
                    traces.append(f"after {number.name}")
                    print(ended.log, flush=True)
        if (found := outcome(place.out)) != expected:
            differ = [name for name in expected if found.get(name) != expected[name]]
            wrong.append(f"other results in run {runs}: {', '.join(differ)}")
            shutil.copytree(place.out, place.work / f"wrong_{runs}", dirs_exist_ok=True)
        print(f"{sum(counts.values())} interruptions, {runs} runs: {'; '.join(wrong) or 'the same'}", flush=True)
    told = ", ".join(f"{number} {each.name}" for each, number in counts.items())
    line = (
        f"{sum(counts.values())} interruptions ({told}) at random moments of {runs} runs from check to predict: "
        f"{'; '.join(wrong) or 'all ended in the same weights, metrics and segmentations, bit for bit'} (seed {seed}). "
        f"Tracebacks on the way: {', '.join(traces) or 'none'}."
    )
    return {"line": line, "wrong": "; ".join([*wrong, *traces]), "soak": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", help="faults whose name holds this text; nothing is written")
    parser.add_argument("--again", help="faults whose name holds this text are run although they are done")
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="with --soak: no table is written, and nothing made for it"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}
    if not given.soak and "MOUNTS_OF_ITS_OWN" not in os.environ:
        os.environ["MOUNTS_OF_ITS_OWN"] = "1"
        os.execvp("unshare", ["unshare", "-Urm", sys.executable, *sys.orig_argv[1:]])
    forks, expected = prepare(given.work, folders=not given.quick)
    file = given.work / "rows.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    if given.soak:
        found = soak(forks, expected, given.soak, given.seed)
        rows["soak"] = found
        print(found["line"], flush=True)
        wrong = bool(found["wrong"])
        if not given.quick:
            file.write_text(json.dumps(rows))
            write_table(rows)
        return int(wrong)
    wrong = False
    for name, work in todo(forks, expected).items():
        if given.only is None and (name in rows and (given.again is None or given.again not in name)):
            continue
        if given.only is not None and given.only not in name:
            continue
        rows[name] = work()
        wrong = wrong or bool(rows[name]["wrong"])
        print(name, rows[name], flush=True)
        if given.only is None:
            file.write_text(json.dumps(rows))
            write_table(rows)
    return int(wrong)


def todo(forks: Forks, expected: dict[str, str]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> what makes a row or a cell."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for fault in faults():
        found[title(fault)] = lambda fault=fault: struck(fault, forks, expected)  # type: ignore[misc]
    for kind in kinds_of_files(forks.place.work / "finished"):
        for way in DAMAGES:
            found[f"file: {kind}: {way}"] = lambda kind=kind, way=way: damaged(kind, way, forks, expected)  # type: ignore[misc]
    return found


if __name__ == "__main__":
    sys.exit(main())
