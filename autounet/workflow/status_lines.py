"""What `autounet status` prints, and how it goes on with `--watch`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..schema.quantities import format_size, format_time
from ..schema.run import FoldStatus, RunStatus

WATCH_SECONDS = 5.0
"""between two looks"""


def status_lines(found: RunStatus) -> Iterator[str]:
    """For people."""
    yield _headline(found)
    for stage, done in found.stages.items():
        yield f"{stage}: {'done' if done else 'not done'}"
    if found.findings:
        yield f"warnings about the data: {found.findings} (findings.json, and in the report)"
    for fold in found.folds:
        yield _fold(fold)
    if found.mean_dice is not None:
        yield f"mean Dice: {found.mean_dice:.4f}"
    if found.memory_bytes is not None:
        yield f"memory of the process: {format_size(found.memory_bytes)}"
    if found.seconds_left:
        yield f"time left: about {format_time(found.seconds_left)}"


def _headline(found: RunStatus) -> str:
    if found.state == "running":
        return f"running: {found.now}"
    if found.state == "interrupted":
        return f"interrupted before {found.now} was done: the same command continues"
    return "finished" if found.state == "finished" else f"nothing runs; {found.now or 'report'} comes next"


def _fold(fold: FoldStatus) -> str:
    state = "trained, not validated yet" if fold.state == "done" and not fold.validated else fold.state
    told = [f"{fold.configuration} fold {fold.fold}: {state}", f"{fold.progress:.0%}"]
    if fold.dice is not None:
        told.append(f"mean Dice {fold.dice:.4f}")
    elif fold.patch_dice is not None:
        told.append(f"Dice on patches {fold.patch_dice:.3f}")
    if fold.seconds:
        told.append(format_time(fold.seconds))
    if fold.peak_memory_bytes is not None:
        planned = f" (planned: {format_size(fold.predicted_memory_bytes)})" if fold.predicted_memory_bytes else ""
        told.append(f"{format_size(fold.peak_memory_bytes)}{planned}")
    return ", ".join(told)


def watch(read: Callable[[Path], RunStatus], out: Path, seconds: float = WATCH_SECONDS) -> Iterator[RunStatus]:
    """What `read` says of a folder, again and again, the last time when nothing runs any more."""
    while True:
        found = read(out)
        yield found
        if found.state != "running":
            return
        time.sleep(seconds)


def show(looks: Iterator[RunStatus]) -> None:
    """Each in the place of the one before on a terminal; elsewhere those that say something new, below each other."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, before = Console(), None
    if sys.stdout.isatty():
        with Live(console=console, auto_refresh=False) as live:
            for found in looks:
                live.update(Text("\n".join(found.lines)), refresh=True)
        return
    for found in looks:
        if (told := "\n".join(found.lines)) != before:
            console.file.write(f"{told}\n\n")
            console.file.flush()
            before = told
