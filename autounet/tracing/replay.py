"""From a record of blocks of memory to its peak, and to what the record would be at another size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROUNDING = 512
"""bytes to which torch's allocator on CUDA rounds every block (kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp); on
a CPU it is 64, which makes no difference that one could see"""


class Event(NamedTuple):
    """A block of memory begins, or ends (negative bytes)."""

    block: int
    size: int


def alive_peak(events: Iterable[Event], rounding: int = ROUNDING) -> int:
    """The most bytes alive at once, each block rounded up: what `torch.cuda.max_memory_allocated` counts."""
    now = peak = 0
    for _, size in events:
        rounded = -(-abs(size) // rounding) * rounding
        now += rounded if size > 0 else -rounded
        peak = max(peak, now)
    return peak


def correspond(one: Sequence[Event], two: Sequence[Event]) -> bool:
    """Whether the same blocks begin and end in the same order, whatever their sizes."""
    return [(event.block, event.size > 0) for event in one] == [(event.block, event.size > 0) for event in two]


def scaled(small: Sequence[Event], large: Sequence[Event], share: float) -> list[Event]:
    """Corresponding events, each size on the line through both: `share` 0 gives `small`, 1 gives `large`."""
    return [Event(a.block, round(a.size + share * (b.size - a.size))) for a, b in zip(small, large, strict=True)]
