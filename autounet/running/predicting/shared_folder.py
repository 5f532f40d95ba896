"""An output folder of `predict`: which cases are finished, and which are this process's to do.

OUT/.predicted/<case>.json    what was written for the case, by which model and options, from which files
OUT/.predicted/<case>.claim   while a process works on it
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from autounet.datasets import InputCase
from autounet.images import files_of
from autounet.running.predicting.claims import Claims
from autounet.schema.errors import RecordError
from autounet.schema.prediction import PredictedCase, PredictedFile
from autounet.schema.record import digest

log = logging.getLogger(__name__)

RECORDS = ".predicted"
WAIT_SECONDS = 0.5
"""between two looks at the cases that others work on"""


class SharedFolder:
    """A context: `claimed` gives cases to predict, each of which ends with `finished` or `failed`.

    `key` is of the model and the options, `run` of the command. A case is finished when its record has the same key,
    also of its image files by name, size and time of modification, and its files have the sizes of the record; with
    `overwrite`, when this command wrote it.
    """

    def __init__(self, out: Path, key: str, run: str | None = None, overwrite: bool = False) -> None:
        self.out, self.key = Path(out), key
        self.run = run or uuid.uuid4().hex
        self.overwrite = overwrite
        self.claims = Claims(self.out / RECORDS)
        self.postponed: list[InputCase] = []
        """of the last `claimed`: those that others work on"""
        self.kept = 0
        """cases that other commands have finished, before or meanwhile"""
        self._keys: dict[str, str] = {}
        """by case, of what is claimed: as its files were before they were read"""
        self._told = False

    def __enter__(self) -> Self:
        self.claims.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.claims.__exit__()

    def claimed(self, cases: Sequence[InputCase]) -> Iterator[InputCase]:
        """Those of `cases` that are still to be done and that no other process works on, claimed one by one."""
        self.postponed = []
        for case in cases:
            key = self._case_key(case)
            if self._is_settled(case, key):
                continue
            if not self._taken(case):
                self.postponed.append(case)
            elif self._is_settled(case, key):  # by another process, between the look and the claim
                self.claims.release(case.identifier)
            else:
                self._record(case).unlink(missing_ok=True)
                self._keys[case.identifier] = key
                yield case

    def wait(self) -> None:
        """Until it is worth to look again at what was postponed."""
        if not self._told:
            log.info("%d cases are being predicted by other processes; waiting for them", len(self.postponed))
            self._told = True
        time.sleep(WAIT_SECONDS)

    def finished(self, case: InputCase, paths: Sequence[Path]) -> None:
        """All files of the case are written."""
        files = tuple(
            PredictedFile(name=path.relative_to(self.out).as_posix(), bytes=path.stat().st_size) for path in paths
        )
        self._save(case, PredictedCase(key=self._keys.pop(case.identifier), run=self.run, files=files))

    def failed(self, case: InputCase, problem: str) -> None:
        self._save(case, PredictedCase(key=self._keys.pop(case.identifier), run=self.run, problem=problem))

    def _save(self, case: InputCase, record: PredictedCase) -> None:
        record.save(self._record(case))
        self.claims.release(case.identifier)

    def _record(self, case: InputCase) -> Path:
        return self.out / RECORDS / f"{case.identifier}.json"

    def _is_settled(self, case: InputCase, key: str) -> bool:
        path = self._record(case)
        if not path.exists():
            return False
        try:
            found = PredictedCase.load(path)
        except RecordError:  # of another version, or removed since: the case is predicted again
            return False
        if found.problem is not None or self.overwrite:
            settled = found.run == self.run
        else:
            settled = found.key == key and all(_is_there(self.out, file) for file in found.files)
        self.kept += settled and found.run != self.run
        return settled

    def _taken(self, case: InputCase) -> bool:
        name = case.identifier
        if self.claims.take(name):
            return True
        dead = self.claims.break_stale(name)
        if dead is None:
            return False
        log.info("case %s: an interrupted command had begun it", name)
        self._remove_leftovers(name, dead)
        return self.claims.take(name)

    def _remove_leftovers(self, name: str, pid: int) -> None:
        """Files that a dead process had begun under their temporary names (`atomic.replacing`)."""
        pattern = re.compile(rf"\.{re.escape(Path(name).name)}\..+\.{pid}(\.\D.*)?")
        for folder in (self.out / name, self.out / RECORDS / name):
            for path in folder.parent.iterdir():
                if pattern.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _case_key(self, case: InputCase) -> str:
        return digest([self.key, case.frame, case.present, [_state(image) for image in case.images]])


def _is_there(out: Path, file: PredictedFile) -> bool:
    try:
        return (out / file.name).stat().st_size == file.bytes
    except OSError:
        return False


def _state(image: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of modification of all files of an image; without those that are missing."""
    files = sorted(image.iterdir()) if image.is_dir() else files_of(image)
    found = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            found.append((file.name, status.st_size, status.st_mtime_ns))
    return found
