"""Instance norm on a CPU: torch's group norm beside batch norm of each sample, of channels-last images.

    python benchmarks/norms.py [--rounds N]

Both are the same function with one channel a group; `autounet.nets.blocks` takes the quicker one by a rule. One thread;
the two run in turns, and the least of the rounds counts, since other work on the machine only ever adds time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import commit, machine, public_command, table, write_results

from autounet.nets.blocks import CHANNELS_LAST, EPS, by_batch_norm, by_group_norm, is_slow
from autounet.workers import keep_freed_memory

SHAPES = (
    (2, 8, 10, 128, 112), (2, 8, 32, 32), (2, 12, 16, 32, 32), (2, 16, 24, 36, 24), (2, 16, 40, 80, 80),
    (2, 24, 16, 32, 32), (2, 32, 20, 40, 40), (2, 32, 8, 12, 8), (2, 64, 10, 20, 20), (2, 64, 8, 8),
    (2, 128, 5, 10, 10), (2, 256, 5, 5, 5), (2, 320, 8, 8, 8),
)  # fmt: skip


def milliseconds(works: list[Callable[[], object]], rounds: int) -> list[float]:
    """The least of each over rounds in which they take turns."""
    least = [float("inf")] * len(works)
    for _ in range(rounds):
        for index, work in enumerate(works):
            began = time.perf_counter()
            work()
            least[index] = min(least[index], 1e3 * (time.perf_counter() - began))
    return least


def row(shape: tuple[int, ...], number: torch.dtype, rounds: int) -> list[str]:
    x = torch.randn(shape).to(number, memory_format=CHANNELS_LAST[len(shape) - 2])
    weight, bias = torch.ones(shape[1]), torch.zeros(shape[1])
    group, batch = milliseconds(
        [lambda: by_group_norm(x, weight, bias, EPS), lambda: by_batch_norm(x, weight, bias, EPS)], rounds
    )
    taken = "batch norm" if is_slow(x) else "group norm"
    name = str(number).removeprefix("torch.")
    return [name, " x ".join(map(str, shape)), f"{group:.2f}", f"{batch:.2f}", f"{group / batch:.1f}", taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [row(shape, number, given.rounds) for number in (torch.bfloat16, torch.float32) for shape in SHAPES]
    columns = ["numbers", "image (samples x channels x voxels)", "group norm, ms", "batch norm, ms", "ratio", "taken"]
    text = "\n".join(
        [
            "# Instance norm on a CPU\n",
            f"- command: `python {public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}; one thread",
            f"- commit: {commit()}\n",
            table(columns, rows),
        ]
    )
    write_results("norms", text, given.results)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
