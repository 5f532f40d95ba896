"""Predicted beside measured peak memory of training steps: families, 2-D and 3-D, precisions, optimisers, two sizes.

    python benchmarks/planning.py [--device cpu|cuda] [--only PART]

Each measurement is a process of its own. On a CPU: resident peak less what the process held after imports, against the
traced bytes with the usual holes of the heap (the default fraction of a CPU's margin) and the code that is loaded only
during a step (`CODE_BYTES`). On a GPU: `torch.cuda.max_memory_allocated` against the traced bytes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from measuring import commit, machine, median, memory_text, public_command, table, write_results

from autounet.memory_model import Margin, TrainingMemory
from autounet.nets import FAMILIES
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import TrainOptions
from autounet.schema.plan import NetworkSpec

log = logging.getLogger("benchmark")

GOALS = {"cpu": (0.10, None), "cuda": (0.03, 0.08)}
"""median and largest error that the issue asks for"""


@dataclass(frozen=True)
class Combination:
    family: str
    patch: tuple[int, ...]
    batch: int
    stages: int
    features: int
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    optimiser: Literal["sgd", "adamw"]
    classes: int = 3

    @property
    def name(self) -> str:
        order = " channels-last" if self.channels_last else ""
        size = "x".join(map(str, self.patch))
        return (
            f"{self.family} {size}, batch {self.batch}, {self.stages} stages from {self.features}, "
            f"{self.precision}{order}, {self.optimiser}"
        )

    @property
    def possible(self) -> bool:
        """Some families are for volumes only."""
        import torch

        try:
            with torch.device("meta"):
                return FAMILIES[self.family].build(self.spec) is not None
        except ValueError:
            return False

    @property
    def spec(self) -> NetworkSpec:
        dims = len(self.patch)
        strides = [(1,) * dims, *[(2,) * dims] * (self.stages - 1)]
        kernels = [(3,) * dims] * self.stages
        return FAMILIES[self.family].propose(dims, 1, self.classes, strides, kernels, self.features)


def combinations() -> list[Combination]:
    """Two sizes in 3-D and 2-D of the plain U-Net, each in fp32 and bf16, optimisers in turn; two of other families."""
    found = [
        Combination("plain", (48, 48, 48), 2, 4, 24, "fp32", False, "sgd"),
        Combination("plain", (48, 48, 48), 2, 4, 24, "bf16", True, "adamw"),
        Combination("plain", (64, 64, 64), 2, 5, 24, "fp32", True, "adamw"),
        Combination("plain", (80, 64, 80), 2, 4, 32, "bf16", True, "sgd"),
        Combination("plain", (192, 192), 4, 5, 32, "fp32", False, "adamw"),
        Combination("plain", (192, 192), 6, 5, 32, "bf16", True, "sgd"),
        Combination("plain", (256, 320), 4, 6, 32, "fp32", True, "sgd", classes=5),
        Combination("plain", (384, 384), 4, 6, 32, "bf16", True, "adamw"),
    ]
    for family in FAMILIES:
        if family != "plain":
            found.append(Combination(family, (48, 48, 48), 2, 4, 16, "bf16", True, "adamw"))
            found.append(Combination(family, (192, 192), 2, 5, 32, "fp32", False, "sgd"))
    return [each for each in found if each.possible]


def compare(combination: Combination, device: str) -> tuple[int, int]:
    """(predicted, measured) bytes."""
    from autounet.memory_model.measured_steps import MemoryProbe, StepSetting, measure
    from autounet.memory_model.peak import CODE_BYTES, DEFAULTS
    from autounet.step import Precision

    names = ("background", *(f"class {index}" for index in range(1, combination.classes)))
    labels = Labels(classes=tuple(LabelClass(name=name, value=value) for value, name in enumerate(names)))
    options = TrainOptions(optimiser=combination.optimiser)
    kind = device.partition(":")[0]
    expected = Margin(CODE_BYTES, DEFAULTS["cpu"].fraction) if kind == "cpu" else Margin(0, 0.0)
    memory = TrainingMemory(labels, options, combination.precision, combination.channels_last, kind, expected)
    spec = combination.spec
    patch = FAMILIES[spec.family].valid_size(spec, combination.patch)
    predicted = memory(spec, patch, combination.batch)
    precision = Precision(combination.precision, combination.channels_last)
    setting = StepSetting(labels, options, precision, kind)
    probe = MemoryProbe(spec, patch, combination.batch, setting, device)
    return predicted, measure(probe).peak


def report(rows: list[tuple[Combination, int, int]], device: str) -> str:
    errors = [predicted / measured - 1 for _, predicted, measured in rows]
    middle, largest = median([abs(error) for error in errors]), max(errors, key=abs)
    goal, most = GOALS[device.partition(":")[0]]
    reached = middle <= goal and (most is None or abs(largest) <= most)
    asked = f"a median of at most {goal:.0%}" + (f" and no error above {most:.0%}" if most else "")
    lines = [
        [combination.name, memory_text(predicted), memory_text(measured), f"{error:+.1%}"]
        for (combination, predicted, measured), error in zip(rows, errors, strict=True)
    ]
    return "\n".join(
        [
            "# Predicted and measured peak memory of training steps\n",
            f"- command: `python {public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            f"- device: {device}",
            f"- median error {middle:.1%}, largest {largest:+.1%} over {len(rows)} combinations; "
            f"asked: {asked}: {'reached' if reached else 'not reached'}\n",
            table(["training step", "predicted", "measured", "error"], lines),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="combinations whose name contains this")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    rows = []
    for combination in combinations():
        if given.only not in combination.name:
            continue
        predicted, measured = compare(combination, given.device)
        rows.append((combination, predicted, measured))
        log.info("%s: predicted %s, measured %s", combination.name, memory_text(predicted), memory_text(measured))
        path = write_results(f"planning_{given.device.partition(':')[0]}", report(rows, given.device), given.results)
    sys.stdout.write(path.read_text())


if __name__ == "__main__":
    main()
