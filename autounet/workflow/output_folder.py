"""The output folder: one that nothing of the user's can be lost in, and one command at a time in it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ..schema.dataset import Dataset
from ..schema.disk import TEMPORARY
from ..schema.errors import OptionError, RecordError
from ..schema.names import printable
from ..schema.options import DataOptions, RunOptions
from ..schema.record import require_folder
from ..store.run_folder import OWN_NAMES, RunFolder


def require_output_folder(out: Path, data: Path, options: DataOptions) -> None:
    """Make the folder.

    Raises OptionError for a file, for the data folder or one of its folders with images or labels, and for one with
    another dataset.json; DataError where `out` exists, or lies in the data, and these cannot be read.
    """
    require_folder(out)
    if out.resolve() == data.expanduser().resolve():
        raise OptionError(f"--out {out} is the data folder itself", f"Give another, for example {out / 'autounet'}")
    if not RunFolder(out).options.exists() and _is_foreign(RunFolder(out).dataset):
        raise OptionError(f"--out {out} holds a dataset.json that is not AutoUNet's", "Give a new or empty folder")
    require_own_folder(RunFolder(out))
    _require_no_data(out, data, options)
    out.mkdir(parents=True, exist_ok=True)


def _require_no_data(out: Path, data: Path, options: DataOptions) -> None:
    """Raises OptionError where images or labels lie in the folder, or in a folder that it lies in.

    The data folder itself may lie in it, and it may lie directly in the data folder.
    """
    from ..datasets import scan  # these take longer to load than `status` to answer
    from ..datasets.layouts.files import existing_folder, is_output_folder
    from ..imageio import split_address, suffix

    if is_output_folder(out):
        return
    root, place = existing_folder(data).resolve(), out.resolve()
    filled = out.is_dir() and any(out.iterdir())
    if not (filled or place.is_relative_to(root)):
        return
    dataset = scan(data, options, [])
    for case in dataset.cases:
        for file in (*case.images, *case.label_files):
            path = (root / file).resolve()
            folder = path if path.is_dir() and not suffix(path) else split_address(path)[0].parent  # of a DICOM series
            holds = folder.is_relative_to(place) and not root.is_relative_to(place)
            if holds or (place.is_relative_to(folder) and not root.is_relative_to(folder)):
                what = "holds" if holds else "lies in a folder with"
                raise OptionError(
                    f"--out {out} {what} files of the data set, such as {file}",
                    f"Give another, for example {existing_folder(data) / 'autounet'}",
                )


def require_own_folder(folder: RunFolder) -> None:
    """Raises OptionError where other things lie under names of a run's, or links among its files."""
    if folder.path.is_dir() and not folder.is_of_a_run() and (others := folder.taken_names()):
        what = f"{', '.join(others[:5])}, which no run has written, and which results would be mixed with"
        raise OptionError(f"--out {folder.path} holds {what}", "Give a new or empty folder")
    for name in (".lock", "tracking", *OWN_NAMES):
        top = folder.path / name
        places = [top, *(Path(root, each) for root, inner, files in os.walk(top) for each in (*inner, *files))]
        for place in places:
            if place.is_symlink():
                where = printable(f"{place} is a link to {os.readlink(place)}")
                remedy = "Remove it, and give an --out on the disk that it leads to, or mount that disk in its place"
                raise OptionError(f"{where}, and results are written into no links", remedy)


def _is_foreign(file: Path) -> bool:
    try:
        Dataset.load(file)
    except RecordError:
        return file.exists()
    return False


_running: list[bool] = []
"""of each run of this process whether it is deterministic"""
_counting = threading.Lock()


@contextmanager
def sole_in_process(deterministic: bool) -> Iterator[None]:
    """Several runs may go on in one process, but a deterministic one alone: random numbers of torch are one stream.

    Raises OptionError.
    """
    with _counting:
        if _running and (deterministic or any(_running)):
            raise OptionError(
                "a deterministic run and another one are in the same process, where each changes the other",
                "Wait for the one that runs, or start each in a process of its own",
            )
        _running.append(deterministic)
    try:
        yield
    finally:
        with _counting:
            _running.remove(deterministic)


def remove_temporary(folder: Path) -> None:
    """Remove what processes of this machine that are no more had begun to write into a locked output folder."""
    own = [folder / name for name in OWN_NAMES if (folder / name).is_dir()]
    for path in [*folder.glob(".*"), *(path for each in own for path in each.rglob(".*"))]:
        named = TEMPORARY.fullmatch(path.name)
        if named is None or psutil.pid_exists(int(named["process"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def with_stored(given: RunOptions, file: Path) -> RunOptions:
    """The options given, and for each that was omitted its value in `file`, options.json.

    Raises RecordError where the file cannot be read.
    """
    values = given.model_dump(exclude_none=True, exclude_defaults=True)
    if file.exists():
        try:
            stored = RunOptions.load(file).model_dump()
        except RecordError as error:
            raise RecordError(error.message, "To go on, delete it and give all options again") from None
        values = {**stored, **values, "data": {**stored["data"], **values.get("data", {})}}
    options = RunOptions.model_validate(values)
    return options.model_copy(update={"start": None}) if options.starts_from == "none" else options
