"""Running a command and measuring it; the machine and the commit in words. Standard library only.

The kernel hands a process's peak resident memory on to what it starts (Linux keeps the high-water mark over exec),
so the process that measures must stay small: it imports neither numpy nor torch.
"""

from __future__ import annotations

import logging
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

log = logging.getLogger("benchmark")

REPOSITORY = Path(__file__).resolve().parent.parent
MEMORY_NOTE = (
    "Peak memory is the resident memory of the largest single process of the command, its children included "
    "(`ru_maxrss` of `wait4`); processes are not added up."
)
CPU_FEATURES = (
    ("amx_bf16", "AMX bf16"),
    ("avx512_bf16", "AVX-512 bf16"),
    ("avx512f", "AVX-512"),
    ("avx2", "AVX2"),
)
CPU_MAKES = ("Xeon", "EPYC", "Ryzen", "Core", "Neoverse", "Graviton", "Apple")


class CommandFailed(RuntimeError):
    """A measured command ended with an exit code other than 0."""


@dataclass(frozen=True)
class Measured:
    seconds: float
    """wall time"""
    peak_bytes: int
    """resident memory of the largest process, children included"""
    cpu_seconds: float = 0.0
    """of all processes together: other work on the machine lengthens the wall time, and these hardly"""


def run(command: Sequence[str | Path], log_file: Path, environment: Mapping[str, str] | None = None) -> Measured:
    """Run `command` with its output in `log_file` and `environment` added to this process's own.

    Raises CommandFailed with the end of the output.
    """
    words = [str(word) for word in command]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-25:])
        raise CommandFailed(f"{' '.join(words)}\nended with exit code {process.returncode}:\n{tail}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Measured(seconds, usage.ru_maxrss * scale, usage.ru_utime + usage.ru_stime)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Class of CPU, cores and memory: enough to compare, nothing that names the machine."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.*)", text)
    make = next((name for name in CPU_MAKES if model and name in model[1]), "CPU")
    flags = set((re.search(r"flags\s*:\s*(.*)", text) or ["", ""])[1].split())
    feature = next((words for flag, words in CPU_FEATURES if flag in flags), None)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{make}{f' with {feature}' if feature else ''}, {cores()} cores, {memory:.0f} GiB memory, run on the CPU"


def commit() -> str:
    """Short hash of the checkout, and whether it differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with uncommitted changes" if changed else "")


def public_command(words: Sequence[str | Path]) -> str:
    """A command line as it may be published: absolute paths lose their folders, patterns get their quotes."""
    shown = []
    for word in map(str, words):
        option, equals, value = word.partition("=")
        if equals and Path(value).is_absolute():
            word = f"{option}={Path(value).name}"
        word = Path(word).name if Path(word).is_absolute() else word
        shown.append(f"'{word}'" if re.search(r"[*\s]", word) else word)
    return " ".join(shown)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def seconds_text(seconds: float) -> str:
    """Two decimals below 10 s, one below 100 s, minutes from 10 minutes on."""
    if seconds >= 600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def memory_text(size: float) -> str:
    return f"{size / 1024**3:.2f} GiB" if size >= 1024**3 else f"{size / 1024**2:.0f} MiB"


def write_results(name: str, text: str, folder: Path) -> Path:
    """`folder/NAME_DATE.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{date.today().isoformat()}.md"
    path.write_text(text, encoding="utf-8")
    return path
