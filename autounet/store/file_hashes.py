"""Hashes of files, made again only for files that may have changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from ..schema.errors import RecordError
from ..schema.record import Part, Record

SETTLED_NS = 10_000_000_000
"""A file may be written again within one tick of its clock, leaving size and time as they were: up to 2 s on FAT. So a
hash counts only when the file was older than this as it was read, which also covers clocks of file servers that are
some seconds off. Git calls younger files racily clean (Documentation/technical/racy-git) and looks into them again."""


class HashedFile(Part):
    """One file as it was when its hash was made; times in nanoseconds."""

    size: int
    modified: int
    changed: int
    """of the inode: also seen when a tool puts the time of modification back"""
    inode: int
    read: int
    """when reading began, by this computer's clock"""
    hash: str

    def holds(self, status: os.stat_result) -> bool:
        """Whether a file with this status is certain to have this hash."""
        same = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        settled = max(self.modified, self.changed) + SETTLED_NS < self.read
        return settled and same == (self.size, self.modified, self.changed, self.inode)


class FileHashRecord(Record):
    """`hashes.json` and `checked.json` in the output folder."""

    SEALED: ClassVar[bool] = True

    files: dict[str, HashedFile] = {}
    """by absolute path"""


class FileHashes:
    """Hashes by path, those of earlier commands kept where they still hold. Picklable."""

    def __init__(self, known: Mapping[str, HashedFile] | None = None) -> None:
        self._known = dict(known or {})
        self._used: dict[str, HashedFile] = {}
        self.made = 0
        """hashes made, not taken from those known"""

    @classmethod
    def load(cls, path: Path) -> FileHashes:
        """From a saved `FileHashRecord`; without one, or with a damaged one, all hashes are made again."""
        try:
            return cls(FileHashRecord.load(path).files)
        except RecordError:
            return cls()

    def save(self, path: Path) -> None:
        """Save the hashes that were used, if any differs from those loaded."""
        if self._used != self._known:
            FileHashRecord(files=self._used).save(path)

    def part(self, paths: Iterable[Path]) -> FileHashes:
        """The known hashes of some files, for another process."""
        known = {**self._known, **self._used}
        names = [str(path) for path in paths]
        return FileHashes({name: known[name] for name in names if name in known})

    def update(self, other: FileHashes) -> None:
        """Add the hashes that another process made."""
        self._used.update(other._used)
        self.made += other.made

    def of(self, path: Path) -> str | None:
        """32 hex digits over the bytes of a file; None when there is none."""
        name = str(path)
        try:
            status = os.stat(path)
            stamp = self._known.get(name)
            if stamp is None or not stamp.holds(status):
                stamp = self._stamp(path, status)
        except OSError:
            return None
        self._used[name] = stamp
        return stamp.hash

    def _stamp(self, path: Path, status: os.stat_result) -> HashedFile:
        began = time.time_ns()
        self.made += 1
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return HashedFile(
            size=status.st_size,
            modified=status.st_mtime_ns,
            changed=status.st_ctime_ns,
            inode=status.st_ino,
            read=began,
            hash=found,
        )
