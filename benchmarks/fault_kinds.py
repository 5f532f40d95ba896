"""What may go wrong with a command or with the files it finds, as a table: `faults`. See `faults.py`."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import psutil
from forked_commands import Hook, Place

from autounet.training import loop

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
MOUNTS_OF_ITS_OWN = 0x00020000
"""CLONE_NEWNS of linux/sched.h: what a process mounts from then on is there for it alone, and goes with it"""
WORKERS = ("--workers", "2")
DISKS = (("check", 0), ("check", 65536), ("preprocess", 65536), ("train", 262144), ("select", 8192))
"""stage, and bytes that are left on the disk"""
DISKS = (("check", 0), ("check", 65536), ("preprocess", 65536), ("train", 262144), ("select", 8192))
"""stage, and bytes that are left on the disk"""


@dataclass(frozen=True)
class Fault:
    stage: str
    name: str
    hook: Hook
    """what goes wrong while the command runs"""
    options: tuple[str, ...] = ()
    fine: bool = False
    """whether the command is to end well nevertheless"""
    differs: bool = False
    """whether other weights are right: steps are skipped. The same command again has to change nothing then"""
    says: str = ""
    """what has to be said"""
    worthless: bool = False
    """whether what was done before is worth nothing: no step was kept"""
    beside: bool = False
    """whether the same command is given once more while this one is held up"""
    undo: Callable[[Place], None] = lambda place: None
    """before the same command is given again"""


# ---- when ------------------------------------------------------------------------------------------------------------


def at_once(act: Callable[[Place], object]) -> Hook:
    def hook(place: Place, struck: Callable[[], None]) -> None:
        struck()
        act(place)

    return hook


def when_written(pattern: str, act: Callable[[Place], object]) -> Hook:
    """Where a file of that name is about to be renamed to it, once."""

    def hook(place: Place, struck: Callable[[], None]) -> None:
        replace, left = os.replace, [1]

        def watched(source: str, target: str) -> None:
            if left and fnmatch(str(target), pattern):
                left.clear()
                struck()
                act(place)
            replace(source, target)

        os.replace = watched  # type: ignore[assignment]

    return hook


def at_step(number: int, act: Callable[[Place], object]) -> Hook:
    def hook(place: Place, struck: Callable[[], None]) -> None:
        advance, seen = loop.advance, []

        def watched(*given: object) -> object:
            seen.append(1)
            if len(seen) == number:
                struck()
                act(place)
            return advance(*given)  # type: ignore[arg-type]

        loop.advance = watched  # type: ignore[assignment]

    return hook


def at_a_worker(act: Callable[[Place], object], once: str = "") -> Hook:
    """As soon as a process has been started that works for the command, `once` there is such a file."""

    def hook(place: Place, struck: Callable[[], None]) -> None:
        def watch() -> None:
            while not (any(place.out.glob(once or "*")) and workers()):
                time.sleep(0.25)  # looking through all processes takes a while
            struck()
            act(place)

        threading.Thread(target=watch, daemon=True).start()

    return hook


# ---- what ------------------------------------------------------------------------------------------------------------


def sent(number: int) -> Callable[[Place], None]:
    return lambda _: os.kill(os.getpid(), number)


def raised(error: BaseException) -> Callable[[Place], None]:
    def act(_: Place) -> None:
        raise error

    return act


def limited(kind: int, amount: Callable[[], int]) -> Callable[[Place], None]:
    return lambda _: resource.setrlimit(kind, (amount(), amount()))


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def mounted(*options: str, on: str = "") -> Callable[[Place], None]:
    """For this process alone, over the output folder or the folder `on`."""

    def act(place: Place) -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(MOUNTS_OF_ITS_OWN):
            raise OSError(ctypes.get_errno(), "no mounts of its own")
        subprocess.run(["mount", *(each.format(out=place.out) for each in options), on or place.out], check=True)

    return act


def read_only(place: Place) -> None:
    mounted("--bind", "{out}")(place)
    subprocess.run(["mount", "-o", "remount,bind,ro", place.out], check=True)


def disk(more: int | None) -> Callable[[Place], None]:
    """The file system of the output folder has so many bytes left; None: enough again."""

    def act(place: Place) -> None:
        found = os.statvfs(place.out)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        size = 512 * 2**20 if more is None else max(4096, used + more)  # 0 would be no limit
        subprocess.run(["mount", "-o", f"remount,size={size}", place.out], check=True)

    return act


def clock_jumps(seconds: float) -> Callable[[Place], None]:
    def act(_: Place) -> None:
        now = time.time
        time.time = lambda: now() + seconds

    return act


def commas(place: Place) -> None:
    """A locale whose numbers have commas, made here: few machines have one."""
    import locale

    folder = place.work / "locales"
    if not folder.exists():
        folder.mkdir()
        subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", folder / "de_DE.UTF-8"], check=True)
    os.environ |= {"LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8"}
    locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    assert locale.localeconv()["decimal_point"] == ","


def workers() -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(each.cmdline())]


def worker_killed(_: Place) -> None:
    workers()[0].kill()


def moved_away(name: str) -> Callable[[Place], None]:
    return lambda place: (place.work / name).rename(place.work / "away")


def moved_back(name: str) -> Callable[[Place], None]:
    return lambda place: (place.work / "away").rename(place.work / name)


def removed(pattern: str) -> Callable[[Place], None]:
    def act(place: Place) -> None:
        for path in place.out.glob(pattern):
            path.unlink()

    return act


def held_up(place: Place) -> None:
    while not (place.work / "go").exists():
        time.sleep(0.01)


def let_go(place: Place) -> None:
    (place.work / "go").unlink(missing_ok=True)


def stale_lock(place: Place) -> None:
    (place.out / ".lock").write_text("1\n")
    (place.out / ".lock_holder").write_text(f"{os.uname().nodename} 999999\n")


def not_finite(first: int, last: int) -> Hook:
    def hook(_: Place, struck: Callable[[], None]) -> None:
        advance, seen = loop.advance, []

        def faulty(state, loss, *others):  # type: ignore[no-untyped-def]
            seen.append(1)
            if first <= len(seen) <= last:
                struck()
                return advance(state, lambda outputs, batch: loss(outputs, batch) * float("nan"), *others)
            return advance(state, loss, *others)

        loop.advance = faulty

    return hook


WRITTEN = (
    ("check", "*/findings.json"), ("fingerprint", "*/fingerprint.json"), ("plan", "*/plan.json"),
    ("preprocess", "*/prepared/*.json"), ("train", "*/state.pt"), ("train", "*/record.json"),
    ("validate", "*/crossval/*.nii.gz"), ("select", "*/selection.json"), ("pack", "*/bundle.json"),
    ("report", "*/report.html"), ("predict", "*/predicted/demo_001*"),
)  # fmt: skip


def faults() -> list[Fault]:
    return [
        *(
            Fault(stage, f"power cut before {pattern[2:]} is renamed", when_written(pattern, sent(signal.SIGKILL)))
            for stage, pattern in WRITTEN
        ),
        *(
            Fault(stage, f"full disk (ENOSPC) where {pattern[2:]} is written", when_written(pattern, raised(FULL)))
            for stage, pattern in WRITTEN
        ),
        *(
            Fault(stage, f"{each // 1024} KB left on the disk", at_once(disk(each)), undo=disk(None))
            for stage, each in DISKS
        ),
        *(
            Fault(stage, f"{number.name} {when}", hook(sent(number)))
            for stage, when, hook in (
                ("preprocess", "as prepared/*.json is written", lambda act: when_written("*/prepared/*.json", act)),
                ("train", "at step 3", lambda act: at_step(3, act)),
                ("predict", "as demo_001 is written", lambda act: when_written("*/predicted/demo_001*", act)),
            )
            for number in SIGNALS
            if stage == "train" or number not in (signal.SIGKILL, signal.SIGUSR1)
        ),
        *process_faults(),
        *number_faults(),
    ]  # fmt: skip


def process_faults() -> list[Fault]:
    """Of what the system gives to a command, and of its processes."""
    cpu, file = resource.RLIMIT_CPU, resource.RLIMIT_FSIZE
    images, prepared = "data/imagesTr", "prepared/*/demo_00*.image.b2nd"
    return [
        Fault("train", "the output folder becomes read-only at step 3", at_step(3, read_only)),
        Fault("all", "the output folder is read-only", at_once(read_only)),
        Fault("check", "images disappear after they were listed", when_written("*/findings.json", moved_away(images)),
              undo=moved_back(images)),
        Fault("predict", "images disappear while they are predicted",
              when_written("*/predicted/demo_001*", moved_away(images)), undo=moved_back(images)),
        Fault("train", "prepared cases disappear at step 3", at_step(3, removed(prepared))),
        Fault("train", "exception in a worker: its case is gone",
              at_a_worker(removed(prepared), once="prepared/*.done.json"), options=WORKERS),
        Fault("train", "a worker process is killed", at_a_worker(worker_killed, once="prepared/*.done.json"),
              options=WORKERS, fine=True, says="killed by SIGKILL"),
        Fault("check", "a worker process is killed", at_a_worker(worker_killed), options=WORKERS, fine=True,
              says="killed by SIGKILL"),
        Fault("train", "64 MB of /dev/shm", at_once(mounted("-t", "tmpfs", "-o", "size=64m", "shm", on="/dev/shm")),
              options=WORKERS, fine=True),
        Fault("train", "64 KB of /dev/shm", at_once(mounted("-t", "tmpfs", "-o", "size=64k", "shm", on="/dev/shm")),
              options=WORKERS, fine=True, says="/dev/shm has"),
        Fault("train", "memory runs out (ulimit -v)", at_step(3, limited(resource.RLIMIT_AS, virtual_bytes)),
              says="memory"),
        Fault("select", "memory runs out (ulimit -v)",
              when_written("*/selection.json", limited(resource.RLIMIT_AS, virtual_bytes)), says="memory"),
        Fault("predict", "memory runs out (ulimit -v)",
              when_written("*/predicted/demo_001*", limited(resource.RLIMIT_AS, virtual_bytes)), says="memory"),
        Fault("train", "MemoryError", at_step(3, raised(MemoryError())), says="memory ran out"),
        Fault("train", "exception of a mistake", at_step(3, raised(KeyError("a mistake")))),
        Fault("train", "clock an hour back", at_step(3, clock_jumps(-3600)), fine=True),
        Fault("train", "clock a day ahead", at_step(3, clock_jumps(86400)), fine=True),
        Fault("check", "clock at 1970", at_once(clock_jumps(-time.time())), fine=True),
        Fault("all", "locale with commas", at_once(commas), fine=True),
        Fault("check", "ulimit -t 1", at_once(limited(cpu, lambda: 1))),
        Fault("train", "ulimit -t 1", at_once(limited(cpu, lambda: 1))),
        Fault("all", "no file over 20 KB (ulimit -f)", at_once(limited(file, lambda: 20_000))),
        Fault("train", "the same command twice at once", at_step(3, held_up), fine=True, beside=True, undo=let_go),
        Fault("train", "a lock left behind", at_once(stale_lock), fine=True),
    ]  # fmt: skip


def number_faults() -> list[Fault]:
    """Losses that are not finite."""
    longer = ("--iterations", "16")
    return [
        Fault("train", "two steps of NaN", not_finite(2, 3), differs=True, fine=True,
              says="not finite in step 2 of demo"),
        Fault("train", "ten steps of NaN in a row", not_finite(3, 12), options=longer, differs=True, fine=True,
              says="went back to step"),
        Fault("train", "steps of NaN for ever", not_finite(1, 999), worthless=True, says="no step changed the network"),
        Fault("train", "steps of NaN for ever, of 16", not_finite(1, 999), options=longer, worthless=True,
              says="happened before"),
    ]  # fmt: skip
