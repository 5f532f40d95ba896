"""What `autounet status` says of an output folder."""

from __future__ import annotations

from typing import Literal

from autounet.schema.record import Part

RunState = Literal["empty", "running", "interrupted", "stopped", "finished"]
"""interrupted: a command ended before its time, and the same one continues; stopped: it ended with an error, or was
asked for an earlier stage"""
FoldState = Literal["waiting", "running", "interrupted", "done"]


class FoldStatus(Part):
    """The training of one configuration on one fold, and the validation after it."""

    configuration: str
    fold: int | Literal["all"]
    state: FoldState
    """of the training"""
    progress: float
    """of the training, 0..1"""
    dice: float | None
    """mean Dice of its validation cases; None before they are validated"""
    patch_dice: float | None = None
    """mean Dice on a few validation patches, as last measured in training"""
    validated: bool = False
    """also where there is nothing to validate"""
    seconds: float = 0.0
    """of training so far"""
    peak_memory_bytes: int | None = None
    """of the training so far: allocated on a GPU, resident on a CPU"""
    predicted_memory_bytes: int | None = None


class RunStatus(Part):
    """The keys of `autounet status --json`."""

    state: RunState
    now: str | None = None
    """what runs, or where nothing does, the stage that comes next; None: everything is done"""
    stages: dict[str, bool]
    """stage -> whether it is done"""
    folds: tuple[FoldStatus, ...] = ()
    mean_dice: float | None = None
    seconds_left: float | None = None
    """until the run ends: by the promise of `--time`, or less where the folds will be done sooner; None: not known.
    Of a run that was interrupted, from when it continues"""
    memory_bytes: int | None = None
    """that the running process holds now, beside a GPU's; None: it does not run on this machine"""
    findings: int | None = None
    """warnings about the data; None before the check, and while there are fatal ones"""
    lines: tuple[str, ...] = ()
    """the same for people"""
