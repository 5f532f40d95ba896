"""How much memory there is and how much is free, limits of control groups respected; and whether it has run out.

psutil is loaded by the first question: every command starts with this file.
"""

from __future__ import annotations

import errno
import mmap
from pathlib import Path
from typing import NamedTuple

GIB = 2**30

MARKS = (
    "out of memory",  # CUDA's allocator and driver, MPS, XPU
    "can't allocate memory",  # torch's allocator on a CPU (c10/core/impl/alloc_cpu.cpp)
    "Cannot allocate memory",  # the system's word, also of libraries that hand on only that
    "not enough memory",  # the same on Windows
    "std::bad_alloc",
    "ALLOC_FAILED",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
)
NO_REASON = ("could not create a primitive", "could not create a memory", "could not execute a primitive")
"""oneDNN's words, which torch calls on a CPU, for a lack of memory as for anything else"""
SPARE_BYTES = 2**26
"""that reading a file needs beside what is in it: buffers, threads and the pieces of libraries"""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch raises a RuntimeError for that, as for much else, and only its text tells."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    return _says(error, MARKS) or (_says(error, NO_REASON) and _is_short(SPARE_BYTES))


def require_no_lack_of_memory(path: Path, error: Exception) -> None:
    """Raises MemoryError where `error` arose as the file `path` was read, and memory had run out: it is not damaged.

    Libraries that give no reason are not asked for one: whether so much more memory is to be had tells it.
    """
    told = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (told or is_out_of_memory(error) or _says(error, MARKS)):
        try:
            size = path.stat().st_size
        except OSError:  # there is nothing to read
            return
        if not _is_short(size + SPARE_BYTES):
            return
    raise MemoryError(f"as {path} was read") from None


def _says(error: BaseException, marks: tuple[str, ...]) -> bool:
    return any(mark in str(error) for mark in marks)


def _is_short(size: int) -> bool:
    """Whether so many bytes are not to be had now."""
    try:
        mmap.mmap(-1, size).close()
    except OSError as error:
        return error.errno == errno.ENOMEM
    return False


def available_memory() -> int:
    """Bytes of the machine that may be used now, limits of control groups respected."""
    import psutil

    found = [psutil.virtual_memory().available, *(group_available(group) for group in GROUPS)]
    return min(value for value in found if value is not None)


def memory_limit() -> tuple[int, str]:
    """Bytes that all processes here may use together, and what sets that limit."""
    import psutil

    found = [(psutil.virtual_memory().total, "the machine's memory")]
    for group in GROUPS:
        try:
            found.append((int((group.folder / group.limit).read_text()), "the limit of the container or job"))
        except (OSError, ValueError):
            continue
    return min(found)


def memory_sentence() -> str:
    """How much memory is free, and of how much, for messages about processes that were killed."""
    limit, source = memory_limit()
    free = available_memory()
    return f"{free / GIB:.1f} of {limit / GIB:.1f} GB ({source}) are free now"


class ControlGroup(NamedTuple):
    """Where one version of control groups says how much memory there is."""

    folder: Path
    limit: str
    used: str
    cached: tuple[str, ...]
    """lines of memory.stat that count file pages"""


GROUPS = (
    ControlGroup(Path("/sys/fs/cgroup"), "memory.max", "memory.current", ("inactive_file", "active_file")),
    ControlGroup(
        Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)  # fmt: skip
"""versions 2 and 1"""


def group_available(group: ControlGroup) -> int | None:
    """Limit less use; pages of files count as use, but the system gives them up when memory is asked for."""
    try:
        limit, used = (int((group.folder / name).read_text()) for name in (group.limit, group.used))
    except (OSError, ValueError):  # no such file, or "max"
        return None
    try:
        lines = (group.folder / "memory.stat").read_text().splitlines()
        cached = sum(int(value) for name, value in map(str.split, lines) if name in group.cached)
    except (OSError, ValueError):
        cached = 0
    return max(0, limit - max(0, used - cached))
