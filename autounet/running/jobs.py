"""Jobs and who runs them. A job is plain data; its function is a name in an explicit dict."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autounet.schema.record import write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One unit of work that owns what it writes.

    `key` is a digest of all that the result depends on; `done` is the file written last, holding the key.
    A job whose done file holds its key, and whose `writes` are all there, is kept. `args` are records and paths.
    """

    name: str
    needs: tuple[str, ...]
    key: str
    done: Path
    function: str
    args: dict[str, Any] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    """jobs whose running makes this one run again, although no key says so: their results are new"""
    writes: tuple[Path, ...] = ()
    """files that must be there for the job to count as done"""

    def is_done(self) -> bool:
        return read_key(self.done) == self.key and all(path.exists() for path in self.writes)


class SequentialExecutor:
    """Runs jobs one after the other in this process, in the order given, which must respect `needs`."""

    def __init__(self, work: Callable[[Job], None], on_finished: Callable[[], None]) -> None:
        self.work, self.on_finished = work, on_finished

    def run(self, jobs: Sequence[Job]) -> None:
        seen: set[str] = set()
        ran: set[str] = set()
        for job in jobs:
            missing = set(job.needs) - seen
            if missing:
                raise ValueError(f"job {job.name} comes before what it needs: {sorted(missing)}")
            seen.add(job.name)
            if job.is_done() and not ran & set(job.follows):
                log.info("%s: already done", job.name)
                continue
            job.done.unlink(missing_ok=True)
            self.work(job)
            write_key(job.done, job.key)
            ran.add(job.name)
            self.on_finished()


def read_key(done: Path) -> str | None:
    """The key in a done file; None when it is absent or damaged."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_key(done: Path, key: str) -> None:
    write_text(done, json.dumps({"key": key}) + "\n")


def move_aside(folder: Path) -> Path | None:
    """Rename a folder to the first free `<name>.old_<n>`; None when there is nothing to move."""
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.old_{number}")).exists():
        number += 1
    folder.rename(target)
    return target
