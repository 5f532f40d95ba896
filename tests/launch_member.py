"""What a process of a launch does in `test_torchrun`; loaded once, by the process that forks the members."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from training_cases import BOTH, OPTIONS, task

from autounet.processes import launched
from autounet.progress import ends_when_asked, stop_if_cancelled
from autounet.schema.errors import DataError
from autounet.training import Horizon, torchrun, train_fold

CASES = tuple("abcdefgh")


def fails(*_: object) -> None:
    raise DataError("the disk of this machine is full", "Make room")


def member(root: Path, steps: int, what: str, variables: dict[str, str], said: Path) -> None:
    """One training in `root` of so many steps, or cases where there are none; `said` gets what it writes to stderr."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(variables)
    launch = launched()
    assert launch is not None
    torchrun.SILENT_SECONDS, torchrun.BEAT_SECONDS = 4, 0.5

    def take_part(work: object, device: str, cases: Sequence[str], on_case: Callable[[], None]) -> None:
        assert (work, device) == ("some work", "cpu")
        for case in cases:
            (root / f"{case}.{launch.rank}").touch()
            while len({path.suffix for path in root.iterdir()}) < 2:  # until both have one
                time.sleep(0.01)
            if what == "the first fails" and not launch.rank:
                fails()
            if what == "the first fails":
                time.sleep(1)
            if launch.rank and what == "leaves":
                os._exit(1)
            if launch.rank and what == "fails at a case":
                fails()
            on_case()

    if launch.rank:
        if what == "fails":
            torchrun.follow = fails
        torchrun.serve(launch, take_part)
    elif steps == 0:
        with torchrun.leading():
            torchrun.together("some work", "cpu", list(CASES), lambda: print("done", file=sys.stderr), take_part)
    else:
        with torchrun.leading(), ends_when_asked():
            for _ in range(2 if what == "twice" else 1):
                given = task(root, Horizon(steps=steps), options=OPTIONS, devices=BOTH)
                train_fold(*given, on_step=lambda progress: stop_if_cancelled())
                if what == "twice" and not (root / "first").exists():
                    (root / "models").rename(root / "first")
