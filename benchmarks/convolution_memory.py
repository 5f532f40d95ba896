"""For how many sizes the backward pass of a bf16 convolution writes beyond its memory, with torch's and with ours.

    LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_CHECK_=3 python benchmarks/convolution_memory.py

glibc's debugging allocator ends a process that frees a block whose end was overwritten; each size is tried in a process
of its own. The module `autounet/nets/convolution.py` is there because of what this finds.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measuring import commit, machine, public_command, table, write_results
from torch import nn

from autounet.nets.convolution import Conv3d

CHANNELS = ((1, 16), (16, 16), (16, 32), (32, 32))
PLANES = (
    *((16, 16), (40, 40), (56, 40), (64, 64), (64, 128), (72, 112), (96, 160)),
    *((128, 64), (128, 128), (128, 256), (192, 48), (256, 224), (320, 320)),
)
DEPTHS = (1, 4)
BATCH = 2
MOST_VOXELS = 500_000
"""of a sample: larger ones only take longer"""


def backward(layer: Callable[[], nn.Module], shape: tuple[int, ...], kernel_too: bool) -> None:
    """Forward and backward twice, then everything is freed."""
    torch.set_num_threads(1)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    module = layer().to(memory_format=layout)
    module.requires_grad_(kernel_too)
    x = torch.randn(shape).to(memory_format=layout).requires_grad_(True)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        y.float().square().mean().backward()
        module.zero_grad()
    del module, x, y
    gc.collect()


def damages(layer: Callable[[], nn.Module], shape: tuple[int, ...], kernel_too: bool) -> bool:
    """Whether the allocator found an overwritten block, or the process crashed."""
    child = os.fork()  # before torch has started a thread
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        backward(layer, shape, kernel_too)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def count(kind: type[nn.Module], kernel: tuple[int, ...], step: int, kernel_too: bool) -> tuple[int, int]:
    """(damaging sizes, sizes tried)."""
    found = []
    for inputs, outputs in CHANNELS:
        for plane in PLANES:
            for depth in DEPTHS:
                if depth * plane[0] * plane[1] > MOST_VOXELS:
                    continue
                stride = tuple(step if size > 1 else 1 for size in kernel)
                layer = partial(kind, inputs, outputs, kernel, stride, tuple(size // 2 for size in kernel))
                shape = (BATCH, inputs, depth, *plane) if len(kernel) == 3 else (BATCH * depth, inputs, *plane)
                found.append(damages(layer, shape, kernel_too))
    return sum(found), len(found)


TRIALS: dict[str, tuple[type[nn.Module], tuple[int, ...], int, bool]] = {
    "torch, 3 x 3 x 3": (nn.Conv3d, (3, 3, 3), 1, True),
    "torch, 3 x 3 x 3, gradient of the input alone": (nn.Conv3d, (3, 3, 3), 1, False),
    "torch, 3 x 3 x 3, stride 2": (nn.Conv3d, (3, 3, 3), 2, True),
    "torch, 1 x 3 x 3": (nn.Conv3d, (1, 3, 3), 1, True),
    "torch, 1 x 1 x 1": (nn.Conv3d, (1, 1, 1), 1, True),
    "torch, 3 x 3 (planes)": (nn.Conv2d, (3, 3), 1, True),
    "torch, 3 x 3 (planes), stride 2": (nn.Conv2d, (3, 3), 2, True),
    "ours, 3 x 3 x 3": (Conv3d, (3, 3, 3), 1, True),
    "ours, 3 x 3 x 3, stride 2": (Conv3d, (3, 3, 3), 2, True),
    "ours, 1 x 3 x 3": (Conv3d, (1, 3, 3), 1, True),
    "ours, 1 x 1 x 1": (Conv3d, (1, 1, 1), 1, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    if not os.environ.get("MALLOC_CHECK_") or "malloc_debug" not in os.environ.get("LD_PRELOAD", ""):
        sys.exit("Start it as described at the top: without the debugging allocator most damage goes unnoticed.")
    rows = []
    for name, trial in TRIALS.items():
        bad, tried = count(*trial)
        rows.append([name, str(bad), str(tried)])
        sys.stderr.write(f"{name}: {bad} of {tried}\n")
    text = "\n".join(
        [
            "# Memory overwritten by the backward pass of bf16 convolutions\n",
            f"- command: `LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_CHECK_=3 python "
            f"{public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}; torch {torch.__version__}\n",
            table(["convolution", "damaging sizes", "tried"], rows),
        ]
    )
    write_results("convolution_memory", text, given.results)
    sys.stdout.write(text)
    if any(int(row[1]) for row in rows if row[0].startswith("ours")):
        sys.exit(1)


if __name__ == "__main__":
    main()
