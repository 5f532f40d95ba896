"""Tables of the trainings of `recipes.py`, and the model of Dice fitted to them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

import numpy as np
from measuring import table

ZERO = 0.01
"""Dice below which a class counts as not found"""
SHAPE = {"configuration", "width", "batch", "patch", "grid", "loss", "mirror"}
"""fields of the variants that the model of Dice is fitted to"""


def fitted(lines: list[dict]) -> str:
    """The exponents of `autounet.time_budget.expected_error.learning_error`, by least squares over the logarithms.

    Of trainings of all lengths that have the loss of the short recipe and differ in `SHAPE` alone. Each data set, in
    two and in three dimensions, mirrored and not, has a factor of its own.
    """
    lines = [line for line in lines if line["options"].keys() <= SHAPE and short_loss(line["options"]) == "log_dice_ce"]
    rows, targets = [], []

    def kind_of(line: dict) -> str:
        return f"{line['set']} {line['dims']}-D" + (" mirrored" if line["options"].get("mirror") else "")

    kinds = sorted(set(map(kind_of, lines)))
    for line in lines:
        learnt = math.sqrt(max((1 - line["mean"]) ** 2 - (1 - line["kept"]) ** 2, 1e-4))
        own = [float(kind == kind_of(line)) for kind in kinds]
        rows.append([-math.log(line["steps"]), -math.log(line["coverage"]), -math.log(line["features"] / 16), *own])
        targets.append(math.log(learnt))
    matrix, wanted = np.array(rows), np.array(targets)
    found = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    left = wanted - matrix @ found
    text = f"{len(lines)} trainings: steps {found[0]:.2f}, coverage {found[1]:.2f}, width {found[2]:.2f}; "
    text += f"what is left of the logarithm: {left.std():.2f}\n"
    factors = ", ".join(f"{kind} {math.exp(value):.2f}" for kind, value in zip(kinds, found[3:], strict=True))
    return f"{text}factors: {factors}\n"


SHORT_NAMES = {"dice+ce": "dice_ce", "log+ce": "log_dice_ce"}
WORDS = {
    "optimiser": lambda value: value.upper(),
    "learning_rate": lambda value: f"rate {value:g}",
    "augmentation": lambda value: f"augmentation: {value}",
    "mirror": lambda value: "mirrored" if value else "",
    "schedule": lambda value: value.replace("_", ", "),
    "foreground_fraction": lambda value: f"foreground in {value:.0%}",
    "batch_dice": lambda value: "batch Dice" if value else "",
}
"""fields of a variant in words"""


def short_loss(options: dict) -> str:
    """Its name in autounet where it has one."""
    loss = options.get("loss", "log_dice_ce")
    return SHORT_NAMES.get(loss, loss)


def factor_of(line: dict) -> float:
    """How hard the data set is to learn, as a trial of a run would take it from this training."""
    from autounet.time_budget.expected_error import learning_factor

    return learning_factor(line["mean"], line["kept"], line["steps"], line["coverage"], line["features"])


def every_training(lines: list[dict]) -> str:
    """A table with a row for each training."""
    rows = []
    for line in lines:
        options, dice = line["options"], list(line["dice"].values())
        name = options.get("configuration", "2d" if line["dims"] == 2 else "3d_fullres")
        said = [WORDS[field](value) for field, value in options.items() if field in WORDS]
        seconds = line["seconds"] / line["steps"]
        zero = sum(value < ZERO for value in dice)
        rows.append(
            [line["set"], f"{name}, {options.get('grid', 1.0):g}",
             f"{line['batch']} x {' x '.join(map(str, line['patch']))}, {line['features']}",
             short_loss(options), ", ".join(filter(None, said)) or "-", f"{line['seed']}",
             f"{line['mean']:.3f}", f"{min(dice):.3f}", f"{zero} of {len(dice)}", f"{line['kept']:.3f}",
             f"{line['steps']}", f"{seconds:.3f}", f"{factor_of(line):.2f}"]
        )  # fmt: skip
    header = (
        "set", "configuration, grid", "input, features", "loss", "else", "seed", "mean Dice", "worst class",
        "classes at 0", "kept by the grid", "steps", "s/step", "factor",
    )  # fmt: skip
    return table(header, sorted(rows))


def summary(lines: list[dict], seconds: float, order: list[str]) -> str:
    """A table of the trainings of so many seconds, and one of the ratios to the first variant."""
    found: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for line in lines:
        if line["limit"] == seconds and line["variant"] in order:
            found[line["set"], line["variant"]].append(line)
    rows = []
    for (name, variant), each in sorted(found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))):
        means = [line["mean"] for line in each]
        classes = [statistics.fmean(values) for values in zip(*(line["dice"].values() for line in each), strict=True)]
        spread = f" ± {statistics.stdev(means):.4f}" if len(means) > 1 else ""
        zero = statistics.fmean(sum(value < ZERO for value in line["dice"].values()) for line in each)
        steps, took = (statistics.fmean(line[field] for line in each) for field in ("steps", "seconds"))
        patch = " x ".join(map(str, each[0]["patch"]))
        shape = f"{each[0]['batch']} x {patch}, {each[0]['features']}"
        rows.append(
            [f"{name}: {variant}", f"{statistics.fmean(means):.4f}{spread}", f"{min(classes):.3f}", f"{zero:g}",
             f"{len(each)}", f"{steps:.0f}", f"{took / steps:.3f}", shape]
        )  # fmt: skip
    header = ("set: variant", "mean Dice", "worst class", "classes at 0", "seeds", "steps", "s/step", "input, features")
    text = f"{seconds:.0f} s of training\n\n{table(header, rows)}\n"
    sets = sorted({name for name, variant in found if variant == order[0]})
    rows = []
    for variant in order[1:]:
        shared = [name for name in sets if (name, variant) in found]
        ratios = {}
        for name in shared:
            seeds = {line["seed"] for line in found[name, order[0]]} & {line["seed"] for line in found[name, variant]}
            pair = [
                statistics.fmean(line["mean"] for line in found[name, each] if line["seed"] in seeds)
                for each in (variant, order[0])
            ] if seeds else []  # fmt: skip
            if pair:
                ratios[name] = pair[0] / max(pair[1], ZERO)
        if ratios:
            mean = math.exp(statistics.fmean(math.log(max(ratio, ZERO)) for ratio in ratios.values()))
            rows.append([variant, f"{mean:.3f}", *(f"{ratios[name]:.3f}" if name in ratios else "-" for name in sets)])
    if rows:
        text += f"Ratio to {order[0]}\n\n" + table(("variant", "geometric mean", *sets), rows)
    return text
