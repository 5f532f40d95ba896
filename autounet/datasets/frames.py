"""What the fourth axis of 4-D files is: channels, or time points of which each is a case.

The rule, for a data set whose first case is one 4-D file with n entries along its fourth axis:

1. `--frames channels` or `--frames time` decides.
2. Otherwise, a label file with n entries along a fourth axis too: time points.
3. Otherwise, n channels named in dataset.json: channels.
4. Otherwise, or where 2 and 3 both hold, it is an error that says which option to give.

The components of colours and vectors are always channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autounet.images import read_frames, read_header
from autounet.schema.dataset import Case
from autounet.schema.errors import DataError
from autounet.schema.options import DataOptions


def split_frames(
    root: Path, cases: Sequence[Case], named: Sequence[str] | None, options: DataOptions
) -> tuple[list[Case], bool]:
    """The cases, each time point one of its own where the fourth axis is time, and whether it is.

    A time point is called `<case>_t<number from 0>`, and those of one file are a group unless a group is given.
    `named` are the channels' names as far as known. Raises DataError by point 4 of the rule.
    """
    first = _first_readable(root, cases)
    if first is None:
        return list(cases), False
    case, frames = first
    in_label = _frames(root / case.label) if case.label else 1
    if frames == 1:
        if options.frames == "time":
            raise DataError(f"--frames time: case {case.identifier} has no fourth axis. Leave the option out")
        return list(cases), False
    if options.frames is None:
        _require_clear(root, case, frames, in_label, named)
    if options.frames == "channels" or (options.frames is None and in_label != frames):
        return list(cases), False
    return [frame for each in cases for frame in _time_points(root, each)], True


def _first_readable(root: Path, cases: Sequence[Case]) -> tuple[Case, int] | None:
    for case in cases:
        try:
            return case, max(read_frames(root / path) for path in case.images)
        except DataError:  # told when the case is examined
            continue
    return None


def _frames(path: Path) -> int:
    """1 for what cannot be read: told when the case is examined."""
    try:
        return read_frames(path)
    except DataError:
        return 1


def _require_clear(root: Path, case: Case, frames: int, in_label: int, named: Sequence[str] | None) -> None:
    channels = sum(read_header(root / path)[1] for path in case.images)
    as_channels, as_time = named is not None and len(named) == channels, in_label == frames
    if as_channels != as_time:
        return
    told = (
        f"its label has {in_label} too, and {frames} channels are named"
        if as_time
        else f"its label has {'none' if in_label == 1 else in_label}, and "
        + (f"{len(named)} channel{'s are' if len(named) > 1 else ' is'} named" if named else "no channels are named")
    )
    raise DataError(
        f"case {case.identifier}: {case.images[0]} has {frames} entries along a fourth axis; {told}. Say what they "
        f"are: --frames channels, or {frames} names in dataset.json under channel_names; or --frames time, with a "
        f"label of {frames} time points"
    )


def _time_points(root: Path, case: Case) -> list[Case]:
    """Raises DataError when the files of the case have different numbers of time points."""
    files = [*case.images, *([case.label] if case.label else [])]
    counts = [read_frames(root / path) for path in files]
    if len(set(counts)) > 1:
        told = ", ".join(f"{path} {count}" for path, count in zip(files, counts, strict=True))
        raise DataError(
            f"case {case.identifier}: its files have different numbers of time points ({told}). "
            "Give a label for every time point, or store each labelled time point as an image of its own"
        )
    return [
        case.model_copy(
            update={
                "identifier": frame_name(case.identifier, frame, counts[0]),
                "frame": frame,
                "group": case.group or case.identifier,
            }
        )
        for frame in range(counts[0])
    ]


def frame_name(identifier: str, frame: int, count: int) -> str:
    """With as many digits as the last one needs, so that names sort by time."""
    return f"{identifier}_t{frame:0{len(str(max(0, count - 1)))}}"
