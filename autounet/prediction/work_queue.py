"""The work queue of `predict` in its output folder: which cases are finished, and which this process predicts.

Its files are those of `schema/run.py`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from ..datasets import InputCase
from ..imageio import files_of, suffix
from ..schema.errors import OptionError, RecordError
from ..schema.record import digest
from ..schema.run import RECORDS, PredictedCase, PredictedFile, record_of, written_names

RENEW_SECONDS = 20.0
"""after which the time of modification of a claim is renewed"""
STALE_SECONDS = 300.0
"""without renewal after which a claim counts as abandoned: a suspended process or a slow file server may miss a few
renewals, and a wrong guess costs no more than one case predicted twice"""
EMPTY_SECONDS = 10.0
"""the same for a claim without content, whose owner ended between making and filling it"""


class Claims:
    """Claims `<name>.claim` in a folder; a context that releases at its end what it holds.

    A claim is made with O_EXCL, which one process only can do, also over NFS (version 3 and later). It is stale when
    its owner ran on this host and is gone, or when it was not renewed for `STALE_SECONDS` by the clock of the file
    system. Two processes that break the same stale claim at the same moment may both get it: they then write the
    same files, each whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._held: set[Path] = set()
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="claims", daemon=True)

    def __enter__(self) -> Self:
        if self.folder.is_symlink():
            raise OptionError(f"{self.folder} is a link, and nothing is written into it", "Remove it")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._renewal.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewal.join()
        for path in list(self._held):
            self._drop(path)

    def take(self, name: str, files: Iterable[str] = ()) -> bool:
        """Claim the case, unless another process has; returns whether it is this process's now.

        `files` are the names that are or will be AutoUNet's from now on, whatever happens.
        """
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with self._guard:
            self._held.add(path)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"host": _host(), "pid": os.getpid(), "files": sorted(files)}, file)
        return True

    def break_stale(self, name: str) -> int | None:
        """Remove a stale claim; returns the process number of its dead owner, 0 if unknown, None if it lives."""
        path = self._path(name)
        if path.is_symlink():  # no claim of ours; where it leads to nothing, nobody would ever release it
            path.unlink(missing_ok=True)
            return 0
        try:
            silent = self._now() - path.stat().st_mtime
            owner = json.loads(path.read_text(encoding="utf-8") or "{}")
        except FileNotFoundError:  # released at this moment
            return None
        except (ValueError, RecursionError):  # being written, or damaged: nobody's
            owner = {}
        pid = owner.get("pid", 0) if isinstance(owner, dict) else 0
        known = isinstance(pid, int) and 0 < pid < 2**31
        gone = known and owner.get("host") == _host() and not _is_alive(pid)
        if gone or silent > (STALE_SECONDS if known else EMPTY_SECONDS):
            path.unlink(missing_ok=True)
            return pid if known else 0
        return None

    def release(self, name: str) -> None:
        self._drop(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def _drop(self, path: Path) -> None:
        with self._guard:
            self._held.discard(path)
        with suppress(OSError):  # a claim that stays behind is stale as soon as this process ends
            path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with self._guard:
                held = list(self._held)
            for path in held:
                with suppress(OSError):
                    os.utime(path)

    def _now(self) -> float:
        """By the clock that stamps the claims, which on a file server is not this machine's."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return os.fstat(file.fileno()).st_mtime


def _host() -> str:
    """Machine and, on Linux, namespace of process numbers: containers of one machine may share its name."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace}"


def _is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this host; on Windows, where asking is not harmless, always True."""
    if sys.platform == "win32" or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


log = logging.getLogger(__name__)

WAIT_SECONDS = 0.5
"""between two checks of the cases that others work on"""


class SharedFolder:
    """A context in which `claimed` yields cases to predict, each of which ends with `finished` or `failed`.

    `key` is of the model and the options, `run` of the command. A case is finished when its record has the same key,
    also of its image files by name, size and time of modification, and its files have the sizes of the record; with
    `overwrite`, when this command wrote it.
    """

    def __init__(
        self,
        out: Path,
        key: str,
        run: str | None = None,
        overwrite: bool = False,
        may_write: Mapping[str, Collection[Path]] | None = None,
    ) -> None:
        """`may_write`: by case, the files that may be written for it."""
        self.out, self.key, self.may_write = Path(out), key, may_write or {}
        self.run = run or uuid.uuid4().hex
        self.overwrite = overwrite
        self.claims = Claims(self.out / RECORDS)
        self.postponed: list[InputCase] = []
        """cases of the last `claimed` that other processes work on"""
        self.kept = 0
        """cases that other commands have finished, before or meanwhile"""
        self._keys: dict[str, str] = {}
        """of claimed cases, with the state of their files before they were read"""
        self._names: dict[str, frozenset[str]] = {}
        """of claimed cases: what was written for them before, and may be now"""
        self._announced = False

    def __enter__(self) -> Self:
        self.claims.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for case in list(self._keys):  # begun and not finished: what is there of them stays AutoUNet's
            if there := self._earlier(case):
                PredictedCase(key="", run=self.run, earlier=tuple(sorted(there))).save(record_of(self.out, case))
        self.claims.__exit__()

    def claimed(self, cases: Sequence[InputCase]) -> Iterator[InputCase]:
        """Those of `cases` that are still to be done and that no other process works on, claimed one by one."""
        self.postponed = []
        for case in cases:
            key = self._case_key(case)
            if self._is_settled(case, key):
                self.claims.break_stale(case.identifier)  # of a command killed between its record and this
                continue
            if not self._taken(case):
                self.postponed.append(case)
            elif self._is_settled(case, key):  # by another process, between the look and the claim
                self.claims.release(case.identifier)
            else:
                record_of(self.out, case.identifier).unlink(missing_ok=True)
                self._keys[case.identifier] = key
                yield case

    def wait(self) -> None:
        """Wait before checking the postponed cases again."""
        if not self._announced:
            log.info("%d cases are being predicted by other processes; waiting for them", len(self.postponed))
            self._announced = True
        time.sleep(WAIT_SECONDS)

    def finished(self, case: InputCase, paths: Sequence[Path]) -> None:
        """Record that all files of the case are written."""
        files = tuple(
            PredictedFile(name=path.relative_to(self.out).as_posix(), bytes=path.stat().st_size) for path in paths
        )
        self._save(case.identifier, files)

    def failed(self, case: InputCase, problem: str) -> None:
        self._save(case.identifier, (), problem)

    def _save(self, case: str, files: tuple[PredictedFile, ...], problem: str | None = None) -> None:
        earlier = self._earlier(case) - {file.name for file in files}
        key = self._keys.pop(case)
        record = PredictedCase(key=key, run=self.run, files=files, earlier=tuple(sorted(earlier)), problem=problem)
        record.save(record_of(self.out, case))
        self.claims.release(case)

    def _earlier(self, case: str) -> frozenset[str]:
        """Those of the names of a claimed case that are there."""
        return frozenset(name for name in self._names[case] if (self.out / name).exists())

    def _is_settled(self, case: InputCase, key: str) -> bool:
        path = record_of(self.out, case.identifier)
        if not path.exists():
            return False
        try:
            record = PredictedCase.load(path)
        except RecordError:  # of another version, or removed since: the case is predicted again
            return False
        if record.problem is not None or self.overwrite:
            settled = record.run == self.run
        else:
            settled = record.key == key and all(_is_there(self.out, file) for file in record.files)
        self.kept += settled and record.run != self.run
        return settled

    def _taken(self, case: InputCase) -> bool:
        name = case.identifier
        planned = {path.relative_to(self.out).as_posix() for path in self.may_write.get(name, ())}
        self._names[name] = written_names(self.out, name) | planned
        if self.claims.take(name, self._names[name]):
            return True
        dead = self.claims.break_stale(name)
        if dead is None:
            return False
        log.info("case %s: an interrupted command had begun it", name)
        self._remove_leftovers(name, dead)
        return self.claims.take(name, self._names[name])

    def _remove_leftovers(self, name: str, pid: int) -> None:
        """Remove files that a dead process had begun under their temporary names (`schema.record.replacing`)."""
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
    files = sorted(image.iterdir()) if image.is_dir() and not suffix(image) else files_of(image)
    states = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            states.append((file.name, status.st_size, status.st_mtime_ns))
    return states
