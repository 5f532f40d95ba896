"""Seconds of one core for augmenting a sample, by batchgeneratorsv2 and in plain torch, in turns.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py [--settings 3] [--share 0.3] [--results FOLDER]

Both change the same patches by the same rotations and scalings. Processor time counts, and each sample is timed by both
one right after the other, so that other work on the machine slows both alike. Reading from the disk is not part of it.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measuring import commit, machine, public_command, table, write_results

from autounet.training.augment import Augmentation, Excerpt
from autounet.training.probe import labels_of_boxes
from autounet.workers import keep_freed_memory

log = logging.getLogger("benchmark")
LIBRARIES = ("batchgeneratorsv2", "torch")


class Setting(NamedTuple):
    kind: str
    channels: int
    patch: tuple[int, ...]
    samples: int
    """of which the mean is taken; the more voxels, the fewer"""


SETTINGS = (
    Setting("full", 1, (128, 128, 128), 50),
    Setting("full", 2, (40, 80, 80), 100),
    Setting("full", 1, (256, 256), 300),
    Setting("full", 4, (128, 128, 128), 20),
    Setting("full", 1, (16, 256, 256), 60),
    Setting("light", 1, (128, 128, 128), 60),
    Setting("light", 1, (40, 56, 40), 300),
    Setting("light", 1, (256, 256), 400),
)


def seconds_of(augmentation: Augmentation, seed: int, channels: int) -> float:
    spatial = augmentation.draw(np.random.default_rng(seed))
    image = torch.randn(channels, *spatial.source_size, generator=torch.Generator().manual_seed(seed))
    labels = labels_of_boxes(spatial.source_size)
    began = time.thread_time()
    augmentation.apply([Excerpt.of(spatial, image, labels)])
    return time.thread_time() - began


def measure(setting: Setting, count: int) -> list[str]:
    """A row of the table."""
    axes = tuple(range(len(setting.patch)))
    by = {each: Augmentation(setting.kind, setting.patch, axes, by=each) for each in LIBRARIES}  # type: ignore[arg-type]
    taken: dict[str, list[float]] = {each: [] for each in LIBRARIES}
    for seed in range(-2, count):  # the first two warm up
        for each in LIBRARIES if seed % 2 else LIBRARIES[::-1]:
            taken[each].append(seconds_of(by[each], seed % 2**31, setting.channels))
    theirs, ours = (np.array(taken[each][2:]) for each in LIBRARIES)
    generator = np.random.default_rng(0)
    picks = generator.integers(count, size=(1000, count))
    low, high = np.quantile(theirs[picks].sum(1) / ours[picks].sum(1), (0.025, 0.975))
    shape = " x ".join(map(str, (setting.channels, *setting.patch)))
    voxels = setting.channels * math.prod(setting.patch)
    return [
        setting.kind,
        shape,
        str(count),
        f"{1e3 * theirs.mean():.1f} ms",
        f"{1e3 * ours.mean():.1f} ms",
        f"{theirs.mean() / ours.mean():.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{voxels / ours.mean() / 1e6:.0f} million",
    ]


HEADER = (
    "augmentation", "channels x patch", "samples", "batchgeneratorsv2", "torch", "times quicker", "95 % interval",
    "torch: voxels a second",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="so many of them, from the first on")
    parser.add_argument("--share", type=float, default=1.0, help="of the samples of each")
    parser.add_argument("--results", type=Path, help="folder for the table")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    keep_freed_memory()  # as the training loop does
    rows = []
    for setting in SETTINGS[: given.settings]:
        rows.append(measure(setting, max(2, round(given.share * setting.samples))))
        log.info("%s", " | ".join(rows[-1]))
    text = "\n".join([
        "# Augmentation on one core",
        "",
        f"- command: `OMP_NUM_THREADS=1 python {public_command(['benchmarks/augmentation.py', *sys.argv[1:]])}`",
        f"- machine: {machine()}, one thread",
        f"- commit: {commit()}",
        f"- load of the machine by other work: {os.getloadavg()[2]:.1f}",
        "",
        "Mean processor time of one sample with labels of two classes, without reading. Each sample was made by both,",
        "one right after the other, with the same rotation and scaling; the interval is that of the ratio.",
        "",
        table(HEADER, rows),
    ])  # fmt: skip
    if given.results:
        write_results("augmentation", text, given.results)
    else:
        log.info("%s", text)


if __name__ == "__main__":
    main()
