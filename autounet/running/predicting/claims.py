"""Claim files: which process works on which case, where several processes or machines share an output folder."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

BEAT_SECONDS = 20.0
"""between two signs of life of a claim: its time of modification is renewed"""
STALE_SECONDS = 300.0
"""without a sign of life after which a claim counts as abandoned: a suspended process or a slow file server may miss
a few beats, and a wrong guess costs no more than one case predicted twice"""
EMPTY_SECONDS = 10.0
"""the same for a claim without content, whose owner ended between making and filling it"""


class Claims:
    """Claims `<name>.claim` in a folder; a context that gives back at its end what it holds.

    A claim is made with O_EXCL, which one process only can do, also over NFS (version 3 and later). It is stale when
    its owner ran on this host and is gone, or when it has given no sign of life for `STALE_SECONDS` by the clock of the
    file system. Two processes that break the same stale claim at the same moment may both get it: they then write the
    same files, each whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._held: set[Path] = set()
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pulse.join()
        for path in list(self._held):
            self._drop(path)

    def take(self, name: str) -> bool:
        """Whether the case is this process's now. Another's claim that is stale is broken by `broken` first."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with self._guard:
            self._held.add(path)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"host": _host(), "pid": os.getpid()}, file)
        return True

    def break_stale(self, name: str) -> int | None:
        """Remove the claim if it is stale; the process number of its dead owner, 0 where unknown. None: it lives."""
        path = self._path(name)
        try:
            silent = self._now() - path.stat().st_mtime
            owner = json.loads(path.read_text(encoding="utf-8") or "{}")
        except (FileNotFoundError, ValueError):  # given back, or being written at this moment
            return None
        pid = int(owner.get("pid", 0))
        gone = owner.get("host") == _host() and not _is_alive(pid)
        if gone or silent > (STALE_SECONDS if owner else EMPTY_SECONDS):
            path.unlink(missing_ok=True)
            return pid
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

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
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
