"""Peak memory from the blocks of a traced step, and what comes on top of it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..schema.run import DeviceProfile

MIB = 1024**2
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


class Margin(NamedTuple):
    """bytes + fraction x traced comes on top of what was traced."""

    bytes: int
    fraction: float

    def on(self, traced: int) -> int:
        return round(traced * (1 + self.fraction)) + self.bytes


CODE_BYTES = 106 * MIB
"""what a process on a CPU loads and makes during its first training step, whatever the network: pages of torch's
libraries, oneDNN's kernels. Measured with torch 2.13 on a network of 200 kB"""

DEFAULTS = {"cpu": Margin(400 * MIB, 0.5), "cuda": Margin(1024 * MIB, 0.08)}
"""Where nothing was calibrated.

cpu: an interpreter with torch and this package holds 230 to 290 MiB before the first step, and `CODE_BYTES` after it.
The fraction is the price of `autounet.allocator`, which keeps freed memory: small blocks that stay split the holes of
large ones, so that the heap grows to 1.3 to 1.8 times what is alive, by another amount in each run (23 networks of all
families, benchmarks/planning.py; `autounet calibrate` found 394 MiB and 0.46 on the same machine). With blocks mapped
one by one the same steps took 1.03 to 1.11 times what is alive: that much is oneDNN's.

cuda: chosen, not measured here. The context of a process takes about 300 MB and grows with the kernels that it loads
(pytorch#107667; all at once they were above 1000 MB). cuBLAS has a work space of 8 MiB, 32 MiB on compute capability 9,
for forward and backward each. cuDNN's algorithms take work spaces of unknown size; torch's allocator takes
memory from the driver in pieces of 2 and 20 MiB and does not join their rests, so that it reserves more than it has
allocated. `autounet calibrate` measures all of it on the GPU at hand.
"""


def memory_margin(profile: DeviceProfile) -> Margin:
    """As calibrated, else the default of the kind of device; other kinds than cpu count as GPUs."""
    kind = profile.device.partition(":")[0]
    default = DEFAULTS.get(kind, DEFAULTS["cuda"])
    if profile.memory_margin_bytes is None:
        return default
    return Margin(profile.memory_margin_bytes, profile.memory_margin_fraction)
