"""For how many sizes the backward pass of a convolution writes beyond its memory, and its result is wrong.

    LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_CHECK_=3 python benchmarks/convolution_memory.py

glibc's debugging allocator ends a process that frees a block whose end was overwritten; each size is tried in a process
of its own. Results in bf16 are compared with float32 on small inputs, where some are wrong. torch's convolutions stand
beside ours: the module `autounet/nets/convolution.py` is there because of what this finds.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from measuring import commit, machine, public_command, table, write_results
from torch import nn

from autounet.nets.convolution import Conv2d, Conv3d

CHANNELS = ((1, 16), (4, 8), (16, 16), (16, 32), (32, 32))
PLANES = (
    *((16, 16), (40, 40), (56, 40), (64, 64), (64, 128), (72, 112), (96, 160)),
    *((128, 64), (128, 128), (128, 256), (192, 48), (256, 224), (320, 320)),
)
DEPTHS = (1, 4)
BATCH = 2
MOST_VOXELS = 500_000
"""of a sample: larger ones only take longer (`--voxels`)"""


EDGES = (1, 2, 3, 4, 5, 7, 8)
"""of small inputs, along every axis"""
WRONG = 0.03
"""relative difference from float32 that rounding to bf16 does not explain"""


@dataclass(frozen=True)
class Trial:
    kind: type[nn.Module]
    kernel: tuple[int, ...]
    step: int = 1
    """stride along axes where the kernel is longer than 1, or all axes of a kernel of 1"""
    kernel_too: bool = True
    """whether the kernel's gradient is asked for"""
    precision: torch.dtype = torch.bfloat16

    @property
    def stride(self) -> tuple[int, ...]:
        pointwise = max(self.kernel) == 1
        return tuple(self.step if size > 1 or pointwise else 1 for size in self.kernel)

    def layer(self, inputs: int, outputs: int) -> nn.Module:
        return self.kind(inputs, outputs, self.kernel, self.stride, tuple(size // 2 for size in self.kernel))

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16)


def backward(trial: Trial, channels: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Forward and backward twice, then everything is freed."""
    torch.set_num_threads(1)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    module = trial.layer(*channels).to(memory_format=layout)
    module.requires_grad_(trial.kernel_too)
    x = torch.randn(shape).to(memory_format=layout).requires_grad_(True)
    for _ in range(2):
        with trial.autocast():
            y = module(x)
        y.float().square().mean().backward()
        module.zero_grad()
    del module, x, y
    gc.collect()


def damages(trial: Trial, channels: tuple[int, int], shape: tuple[int, ...]) -> bool:
    """Whether the allocator found an overwritten block, or the process crashed."""
    child = os.fork()  # before torch has started a thread
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        backward(trial, channels, shape)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def count_damage(trial: Trial, most_voxels: int = MOST_VOXELS) -> tuple[int, int]:
    """(damaging sizes, sizes tried)."""
    found = []
    for channels in CHANNELS:
        for plane in PLANES:
            for depth in DEPTHS:
                if depth * plane[0] * plane[1] > most_voxels:
                    continue
                flat = len(trial.kernel) == 2
                shape = (BATCH * depth, channels[0], *plane) if flat else (BATCH, channels[0], depth, *plane)
                found.append(damages(trial, channels, shape))
    return sum(found), len(found)


def count_wrong(trial: Trial) -> tuple[int, int]:
    """(shapes with a wrong result, shapes tried); in this process, after everything that forks."""
    torch.set_num_threads(1)
    found = []
    for channels in ((3, 4), (16, 16)):
        module = trial.layer(*channels)
        for size in product(EDGES, repeat=len(trial.kernel)):
            x = torch.randn(BATCH, channels[0], *size)
            with torch.no_grad():
                true = module(x)
                with torch.autocast("cpu", torch.bfloat16):
                    y = module(x).float()
            # not below the error of sums that nearly cancel
            scale = true.norm() + 0.1 * true.numel() ** 0.5
            found.append(not float((y - true).norm() / scale) < WRONG)
    return sum(found), len(found)


FULL = torch.float32
DAMAGE = {
    "torch, 3 x 3 x 3": Trial(nn.Conv3d, (3, 3, 3)),
    "torch, 3 x 3 x 3, gradient of the input alone": Trial(nn.Conv3d, (3, 3, 3), kernel_too=False),
    "torch, 3 x 3 x 3, stride 2": Trial(nn.Conv3d, (3, 3, 3), 2),
    "torch, 1 x 3 x 3": Trial(nn.Conv3d, (1, 3, 3)),
    "torch, 1 x 1 x 1": Trial(nn.Conv3d, (1, 1, 1)),
    "torch, 3 x 3 (planes)": Trial(nn.Conv2d, (3, 3)),
    "torch, 3 x 3 (planes), stride 2": Trial(nn.Conv2d, (3, 3), 2),
    "torch, 1 x 1 (planes), stride 2": Trial(nn.Conv2d, (1, 1), 2),
    "torch, 3 x 3 x 3, float32": Trial(nn.Conv3d, (3, 3, 3), precision=FULL),
    "torch, 1 x 3 x 3, float32": Trial(nn.Conv3d, (1, 3, 3), precision=FULL),
    "torch, 1 x 1 x 1, stride 2, float32": Trial(nn.Conv3d, (1, 1, 1), 2, precision=FULL),
    "torch, 1 x 1 (planes), stride 2, float32": Trial(nn.Conv2d, (1, 1), 2, precision=FULL),
    "ours, 3 x 3 x 3": Trial(Conv3d, (3, 3, 3)),
    "ours, 3 x 3 x 3, stride 2": Trial(Conv3d, (3, 3, 3), 2),
    "ours, 1 x 3 x 3": Trial(Conv3d, (1, 3, 3)),
    "ours, 1 x 1 x 1": Trial(Conv3d, (1, 1, 1)),
    "ours, 1 x 1 x 1, stride 2": Trial(Conv3d, (1, 1, 1), 2),
    "ours, 1 x 1 (planes), stride 2": Trial(Conv2d, (1, 1), 2),
    "ours, 1 x 1 (planes), stride 2, float32": Trial(Conv2d, (1, 1), 2, precision=FULL),
}
RESULTS = {
    f"{whose}, {' x '.join(map(str, kernel))}, stride {step}": Trial(kind, kernel, step)
    for whose, kind in (("torch", nn.Conv3d), ("ours", Conv3d))
    for kernel in ((3, 3, 3), (1, 3, 3))
    for step in (1, 2)
} | {"torch, 3 x 3 (planes), stride 2": Trial(nn.Conv2d, (3, 3), 2)}


def rows(trials: Mapping[str, Trial], count: Callable[[Trial], tuple[int, int]]) -> list[list[str]]:
    found = []
    for name, trial in trials.items():
        bad, tried = count(trial)
        sys.stderr.write(f"{name}: {bad} of {tried}\n")
        found.append([name, str(bad), str(tried)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    parser.add_argument("--only", default="", help="kinds of convolution whose name holds this text")
    parser.add_argument("--voxels", type=int, default=MOST_VOXELS, help="most voxels of a sample")
    given = parser.parse_args()
    if not os.environ.get("MALLOC_CHECK_") or "malloc_debug" not in os.environ.get("LD_PRELOAD", ""):
        sys.exit("Start it as described at the top: without the debugging allocator most damage goes unnoticed.")
    tried = [{name: trial for name, trial in kinds.items() if given.only in name} for kinds in (DAMAGE, RESULTS)]
    damage, wrong = rows(tried[0], partial(count_damage, most_voxels=given.voxels)), rows(tried[1], count_wrong)
    text = "\n".join(
        [
            "# Memory overwritten by convolutions, and wrong results\n",
            f"- command: `LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_CHECK_=3 python "
            f"{public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}; torch {torch.__version__}\n",
            table(["forward and backward, bf16 unless said", "damaging sizes", "tried"], damage),
            table(["result in bf16 on small inputs", "wrong", "tried"], wrong),
        ]
    )
    write_results("convolution_memory", text, given.results)
    sys.stdout.write(text)
    if any(int(row[1]) for row in [*damage, *wrong] if row[0].startswith("ours")):
        sys.exit(1)


if __name__ == "__main__":
    main()
