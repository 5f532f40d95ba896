"""Jobs and who runs them. A job is plain data; its function is a name in an explicit dict."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autounet.schema.errors import OptionError
from autounet.schema.record import write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One unit of work that owns what it writes.

    `key` is a digest of all that the result depends on; `done` is the file written last, holding the key.
    A job whose done file holds its key is kept. `args` are records and paths.
    """

    name: str
    needs: tuple[str, ...]
    key: str
    done: Path
    function: str
    args: dict[str, Any] = field(default_factory=dict)

    def is_done(self) -> bool:
        return read_key(self.done) == self.key


class Executor(Protocol):
    def run(self, jobs: Sequence[Job]) -> None: ...


class SequentialExecutor:
    """Runs jobs one after the other in this process, in the order given, which must respect `needs`."""

    def __init__(self, work: Callable[[Job], None], on_finished: Callable[[], None]) -> None:
        self.work, self.on_finished = work, on_finished

    def run(self, jobs: Sequence[Job]) -> None:
        seen: set[str] = set()
        for job in jobs:
            missing = set(job.needs) - seen
            if missing:
                raise ValueError(f"job {job.name} comes before what it needs: {sorted(missing)}")
            if job.is_done():
                log.info("%s: already done", job.name)
            else:
                self.work(job)
                write_key(job.done, job.key)
                self.on_finished()
            seen.add(job.name)


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One command at a time works in an output folder. Raises OptionError while another does."""
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such lock on this system
            pass
        except OSError:
            raise OptionError(f"another autounet is working in {folder}. Wait for it, or give another --out") from None
        yield
