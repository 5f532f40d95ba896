"""What `predict` records of each case in its output folder: what is finished, and which files are AutoUNet's.

One command at a time works in the folder (`store/folder_lock.py`), and one of its processes on a case. The files are
those of `schema/run.py`.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from ..datasets import InputCase
from ..imageio import files_of, is_container, is_image, read_image, suffix
from ..schema.disk import TEMPORARY
from ..schema.errors import FileError, OptionError, RecordError
from ..schema.record import digest
from ..schema.run import PredictedCase, PredictedFile, read_record, record_of, written_names
from ..store.file_hashes import FileHashes

log = logging.getLogger(__name__)

FileState = Literal["ours", "changed", "damaged", "missing"]
KEPT: frozenset[FileState] = frozenset(("ours", "changed"))


class OutputOptions(NamedTuple):
    """What is written of each case."""

    form: str | None = None
    """None: the image's own format; dicom-seg, or bids"""
    probabilities: bool = False
    uncertainty: bool = False
    gate_maps: bool = False

    @property
    def maps(self) -> bool:
        return self.probabilities or self.uncertainty or self.gate_maps


class Work(NamedTuple):
    """What all processes of a command are to know."""

    out: Path
    outputs: OutputOptions
    key: str
    """of the model and the options"""
    run: str
    """identifies the command"""
    overwrite: bool
    force: bool


class Outcome(NamedTuple):
    """What a command has predicted."""

    predicted: int
    kept: int
    """finished before, with the same model and options"""
    failures: list[str]
    """a message for each case that could not be predicted"""

    def log_counts(self) -> None:
        counts = (self.predicted, self.kept, len(self.failures))
        log.info("%d cases predicted, %d predicted already and kept, %d not predicted", *counts)


class CaseRecords:
    """`begun` yields cases to predict, each of which ends with `finished` or `failed`, and the last with `close`.

    A case is finished when its record has the key of the work and of its image files by name, size and time of
    modification, and its files have the content of the record, or other content that somebody has written since. With
    `overwrite`, and where it could not be predicted, the record must be of this command as well.
    """

    def __init__(self, work: Work, paths: Callable[[InputCase], Sequence[Path]]) -> None:
        """`paths` gives the files that may be written for a case."""
        self.work, self.out, self.paths = work, work.out, paths
        self._keys: dict[InputCase, str] = {}
        """with the state of their files before they were read"""
        self._begun: dict[str, frozenset[str]] = {}
        """case -> names that are, or will be, AutoUNet's"""

    def close(self) -> None:
        """What is there of cases that were begun and not finished stays AutoUNet's."""
        for case in self._begun:
            record = record_of(self.out, case)
            if there := self._earlier(case):
                PredictedCase(case=case, key="", run=self.work.run, earlier=there).save(record)
            else:
                record.unlink(missing_ok=True)

    def case_key(self, case: InputCase) -> str:
        if case not in self._keys:
            self._keys[case] = digest([self.work.key, case.frame, case.present, [*map(_state, case.images)]])
        return self._keys[case]

    def is_finished(self, case: InputCase) -> bool:
        """Also where this command has found that it cannot be predicted."""
        record = self._read(case.identifier)
        return record is not None and self._holds(record, case) and KEPT.issuperset(map(self._state_of, record.files))

    def _holds(self, record: PredictedCase, case: InputCase) -> bool:
        """Whether nothing has to be predicted where the files are there."""
        if record.key != self.case_key(case):
            return False
        return record.run == self.work.run or not (self.work.overwrite or record.problem is not None)

    def unfinished(self, cases: Iterable[InputCase]) -> list[InputCase]:
        """Says which files somebody has changed, which are kept, and which are damaged.

        Raises OptionError for changed ones of cases that are not finished, but with `overwrite`.
        """
        found, in_the_way = [], []
        for case in cases:
            record = self._read(case.identifier)
            states = {} if record is None else {file.name: self._state_of(file) for file in record.files}
            finished = record is not None and self._holds(record, case) and KEPT.issuperset(states.values())
            found += [] if finished else [case]
            if self.work.overwrite:
                continue
            if changed := [name for name, state in states.items() if state == "changed"]:
                if finished:
                    log.warning("%s: changed since it was predicted, and kept", ", ".join(changed))
                in_the_way += [] if finished else changed
            if damaged := [name for name, state in states.items() if state == "damaged"]:
                log.warning("%s: damaged, and predicted again", ", ".join(damaged))
        if in_the_way:
            what = "was changed since it was predicted, and would be replaced"
            raise OptionError(f"{', '.join(in_the_way)} {what}", "Give another --out, or --overwrite to replace it")
        return found

    def outcome(self, cases: int, given: Sequence[InputCase]) -> Outcome:
        """Of so many cases, after those that were not finished before were `given` to be predicted."""
        records = [read_record(self.out, case.identifier) for case in given]
        failures = [record.problem for record in records if record.problem is not None]
        return Outcome(len(given) - len(failures), cases - len(given), failures)

    def begun(self, cases: Iterable[InputCase]) -> Iterator[InputCase]:
        """Those that are not finished, each recorded as begun."""
        for case in cases:
            if self.is_finished(case):
                continue
            name, before = case.identifier, self._read(case.identifier)
            paths = self.paths(case)
            names = written_names(self.out, name) | {path.relative_to(self.out).as_posix() for path in paths}
            if before is not None and not before.key:  # a process that began it was killed
                for path in paths:
                    remove_leftovers(path.parent.glob(f".{glob.escape(path.name)}.*"))
            begun = PredictedCase(case=name, key="", run=self.work.run, earlier=tuple(sorted(names)))
            begun.save(record_of(self.out, name))
            self._begun[name] = names
            yield case

    def finished(self, case: InputCase, paths: Sequence[Path]) -> None:
        """All files of the case are written."""
        self._save(case, [_described(self.out, path) for path in paths])

    def failed(self, case: InputCase, problem: str) -> None:
        self._save(case, [], problem)

    def _save(self, case: InputCase, files: Sequence[PredictedFile], problem: str | None = None) -> None:
        name, own = case.identifier, {each.name for each in files}
        earlier = tuple(each for each in self._earlier(name) if each not in own)
        record = PredictedCase(
            case=name, key=self.case_key(case), run=self.work.run, files=tuple(files), earlier=earlier, problem=problem
        )
        record.save(record_of(self.out, name))
        del self._begun[name]

    def _state_of(self, file: PredictedFile) -> FileState:
        """Changed by somebody is what was written later than ours and, where it is an image, can be read."""
        path = self.out / file.name
        try:
            found = _described(self.out, path)
        except OSError:
            return "missing"
        if (found.bytes, found.checksum) == (file.bytes, file.checksum):
            return "ours"
        return "changed" if found.modified != file.modified and _is_whole(path) else "damaged"

    def _earlier(self, case: str) -> tuple[str, ...]:
        """Those of the names of a begun case that are there."""
        return tuple(sorted(name for name in self._begun[case] if (self.out / name).exists()))

    def _read(self, case: str) -> PredictedCase | None:
        """None where there is no record, or one that is damaged, of another version or another case's."""
        with suppress(RecordError):
            return read_record(self.out, case)
        return None


def _described(out: Path, path: Path) -> PredictedFile:
    status = path.stat()
    return PredictedFile(
        name=path.relative_to(out).as_posix(),
        bytes=status.st_size,
        modified=status.st_mtime_ns,
        checksum=FileHashes().of(path) if path.is_file() else None,
    )


def _is_whole(path: Path) -> bool:
    """Of a table, or anything else that is no image, only whether it holds something."""
    if not is_image(path):
        return path.stat().st_size > 0
    try:
        read_image(path)
    except FileError:
        return False
    return True


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Those of the paths that a process which was killed had begun to write."""
    for path in paths:
        if TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def _state(image: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of modification of all files of an image; without those that are missing."""
    files = (
        sorted(image.iterdir()) if image.is_dir() and not (suffix(image) or is_container(image)) else files_of(image)
    )
    states = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            states.append((file.name, status.st_size, status.st_mtime_ns))
    return states
