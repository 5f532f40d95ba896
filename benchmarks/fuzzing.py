"""What reads files of others, fed with files made to harm: no crash, hang, traceback, or memory without bound.

    python benchmarks/fuzzing.py --work DIR [--inputs 25000] [--seed 0] [--only 'NIfTI;NRRD']

Each parser gets so many inputs (some a share of them) in a process of its own, which is watched from here: an input may
take `LONGEST` seconds and `MOST_GROWTH` bytes. Input i of a parser depends on the seed, its name and i alone. What
fails is kept in DIR, and so is what is done: the same command goes on, also with fewer inputs. All parsers write
benchmarks/results/fuzzing.md; with --only nothing is written.
"""

from __future__ import annotations

import argparse
import json
import logging
import mmap
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from random import Random
from typing import NamedTuple

SCRIPT = Path(__file__).resolve()
RESULTS = SCRIPT.parent / "results" / "fuzzing.md"
LONGEST = 5.0
"""seconds for an input"""
START = 600.0
"""seconds until the first one: libraries are loaded, sound files written"""
MOST_GROWTH = 400 << 20
"""bytes by which the process may become larger at one input"""
ADDRESSES = 8 << 30
"""bytes of address space beyond what the libraries take: where the kernel ends the process is no place to find out"""
STATE = struct.Struct("<qqqqq")
"""index of the input, accepted, refused, largest growth in bytes, 1 while an input is read"""
KINDS = ("crash", "hang", "traceback", "memory", "message")


class Found(NamedTuple):
    """An input that did harm."""

    index: int
    kind: str
    what: str


@dataclass
class Tally:
    """What came of one parser's inputs."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    growth: int = 0
    seconds: float = 0.0
    found: list[Found] = field(default_factory=list)


# ---- in the process that reads ----------------------------------------------------------------------------


def read_inputs(name: str, folder: Path, seed: int, first: int, last: int) -> None:
    """Inputs `first` to `last` of a parser; where it is stands in `folder`/state, what it finds in `folder`/found."""
    from fuzzing_parsers import PARSERS

    from autounet.schema.errors import AutoUNetError

    warnings.simplefilter("ignore")
    logging.disable()
    tempfile.tempdir = str(folder)
    place = folder / "sound"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    seeds = PARSERS[name].make(place)
    whole = {each.file: each.file.read_bytes() for each in seeds}
    sound = set()
    for each in seeds:
        try:
            each.read()
            sound.add(each.file)
        except AutoUNetError as error:  # colours are no labels, for example
            told = error
    if len(sound) < len(whole):
        raise told
    soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    with open(folder / "state", "r+b") as file, mmap.mmap(file.fileno(), STATE.size) as state:
        counts, memory = [0, 0, 0], Memory()
        for index in range(first, last):
            rng = Random(f"{seed}/{name}/{index}")
            chosen = rng.choice(seeds)
            content = rng.choice(chosen.changes)(rng, whole[chosen.file])
            chosen.file.write_bytes(content)
            STATE.pack_into(state, 0, index, *counts, 1)
            before = memory.begin()
            found = outcome(chosen.read)
            growth = memory.read(b"VmHWM:") - before
            counts = [counts[0] + (found is None), counts[1] + (found == ""), max(counts[2], growth)]
            STATE.pack_into(state, 0, index, *counts, 0)
            if growth > MOST_GROWTH:
                found = f"memory: {growth >> 20} MB at once"
            if found:
                keep(folder, Found(index, *found.split(": ", 1)), content, chosen.file)
            chosen.file.write_bytes(whole[chosen.file])
        STATE.pack_into(state, 0, last, *counts, 0)


class Memory:
    """Resident bytes of this process, and their peak. Unlike `ru_maxrss`, it does not begin with that of the parent."""

    def __init__(self) -> None:
        self.status = os.open("/proc/self/status", os.O_RDONLY)
        self.reset = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def begin(self) -> int:
        """The bytes now, from which on the peak is counted."""
        os.write(self.reset, b"5")
        return self.read(b"VmRSS:")

    def read(self, what: bytes) -> int:
        return 1024 * int(os.pread(self.status, 4096, 0).split(what, 1)[1].split(None, 1)[0])


def outcome(read: object) -> str | None:
    """None: accepted; "": refused as it should be; else a kind and what happened."""
    from autounet.schema.errors import AutoUNetError

    try:
        read()  # type: ignore[operator]
    except AutoUNetError as error:
        text = str(error)
        return "message: of more than 20,000 letters" if len(text) > 20_000 else ""
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        own = [each for each in where if "/autounet/" in each.filename] or where[-1:]
        last = own[-1]
        return f"traceback: {type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:100]!a}"
    return None


def keep(folder: Path, found: Found, content: bytes, file: Path) -> None:
    """The input, and a line that says what it did."""
    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    (kept / f"{found.index}_{found.kind}_{file.name}").write_bytes(content)
    with open(folder / "found", "a", encoding="utf-8") as lines:
        lines.write(json.dumps(found) + "\n")


# ---- in the process that watches --------------------------------------------------------------------------


def attack(name: str, folder: Path, seed: int, inputs: int) -> Tally:
    """All inputs of a parser, in as many processes as it takes."""
    folder.mkdir(parents=True)
    tally, began = Tally(name), time.monotonic()
    first, again = 0, -1
    while first < inputs:
        (folder / "state").write_bytes(STATE.pack(first, 0, 0, 0, 0))
        code, late = _watched([name, folder, seed, first, inputs], folder)
        index, accepted, refused, growth, reading = STATE.unpack((folder / "state").read_bytes())
        tally.accepted, tally.refused = tally.accepted + accepted, tally.refused + refused
        tally.growth = max(tally.growth, growth)
        if code == 0:
            break
        if not reading:
            raise SystemExit(f"{name}: the process failed at the sound files:\n{(folder / 'log').read_text()[-3000:]}")
        if late and again != index:  # a busy machine is no hang
            first = again = index
            continue
        _keep_stopped(folder, Found(index, "hang" if late else "crash", f"exit {code}"))
        first = index + 1
    lines = (folder / "found").read_text(encoding="utf-8").splitlines() if (folder / "found").exists() else ()
    tally.found = [Found(*json.loads(line)) for line in lines]
    tally.inputs, tally.seconds = inputs, time.monotonic() - began
    shutil.rmtree(folder / "sound", ignore_errors=True)
    return tally


def _watched(words: Sequence[object], folder: Path) -> tuple[int, bool]:
    """Exit code of a process that reads, and whether it was ended because it took too long."""
    command = list(map(str, (sys.executable, SCRIPT, "--read", *words)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    seen, since = b"", time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        state = (folder / "state").read_bytes()
        if state != seen:
            seen, since = state, time.monotonic()
        reading = STATE.unpack(state)[-1]
        if time.monotonic() - since > (LONGEST if reading else START):
            process.kill()
            process.wait()
            return process.returncode, bool(reading)
    return process.returncode, False


def _keep_stopped(folder: Path, found: Found) -> None:
    """What stopped a process lies where that process has written it; nobody restored it."""
    files = (path for path in (folder / "sound").rglob("*") if path.is_file())
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    keep(folder, found, newest.read_bytes(), newest)


def table(tallies: Sequence[Tally], seed: int) -> str:
    from measuring import commit, machine

    total = sum(each.inputs for each in tallies)
    lines = [
        f"# Fuzzing, {date.today()}\n",
        f"{total:,} inputs, seed {seed}, {sum(each.seconds for each in tallies) / 60:.0f} minutes on one core; "
        f"`benchmarks/fuzzing.py`, {commit()}, {machine()}.",
        f"An input may take {LONGEST:g} s, and {MOST_GROWTH >> 20} MB more than the process had. Accepted are files "
        "that are still valid, refused those that end with an error of ours.\n",
        "| parser | inputs | accepted | refused | most memory at once | inputs/s | " + " | ".join(KINDS) + " |",
        "|---" * (6 + len(KINDS)) + "|",
    ]
    for each in tallies:
        kinds = Counter(found.kind for found in each.found)
        cells = [each.name, f"{each.inputs:,}", f"{each.accepted:,}", f"{each.refused:,}", f"{each.growth >> 20} MB",
                 f"{each.inputs / each.seconds:.0f}", *(str(kinds[kind]) for kind in KINDS)]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps the inputs that did harm, and what is done")
    parser.add_argument("--inputs", type=int, default=25_000, help="for each quick parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names of parsers, separated by semicolons, that are fed once more")
    parser.add_argument("--read", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        name, folder, *numbers = given.read
        return read_inputs(name, Path(folder), *map(int, numbers))
    from fuzzing_parsers import PARSERS

    work = given.work or Path(tempfile.mkdtemp(prefix="fuzzing-"))
    only = given.only.split(";") if given.only else []
    tallies = []
    for name in only or PARSERS:
        folder = work / "".join(each if each.isalnum() else "_" for each in name)
        inputs, done = max(1, int(given.inputs * PARSERS[name].share)), folder / "done.json"
        tally = None if only or not done.exists() else _read_tally(done)
        if tally is None or tally.inputs < inputs:
            shutil.rmtree(folder, ignore_errors=True)
            tally = attack(name, folder, given.seed, inputs)
            done.write_text(json.dumps(asdict(tally)))
        tallies.append(tally)
        sys.stdout.write(table([tally], given.seed).splitlines()[-1] + "\n")
        for (kind, what), count in Counter((each.kind, each.what.split(": ")[0]) for each in tally.found).items():
            sys.stdout.write(f"    {count} x {kind}: {what}\n")
        sys.stdout.flush()
        if not only:
            RESULTS.write_text(table(tallies, given.seed))
    sys.exit(any(each.found for each in tallies))


def _read_tally(file: Path) -> Tally:
    content = json.loads(file.read_text())
    return Tally(**{**content, "found": [Found(*each) for each in content["found"]]})


if __name__ == "__main__":
    main()
