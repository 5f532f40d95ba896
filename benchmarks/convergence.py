"""When trainings by nnU-Net would have ended by the rule of `autounet.training.schedule`, and at what cost of Dice.

    git clone https://github.com/automl/AutoNNUnet
    python benchmarks/convergence.py AutoNNUnet/results_zipped

Replays the pseudo-Dice of each of 1000 epochs of 150 trainings: the ten sets of the Medical Segmentation Decathlon,
five folds, three networks (Becktepe et al. 2025). What the cool-down would have gained is not in these curves, so what
is given away is an upper limit. Prints a table and stores it.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
from measuring import commit, machine, public_command, table, write_results

from autounet.training.schedule import EPOCH, CoolDown, has_converged

NETWORKS = ("ConvolutionalEncoder", "ResidualEncoderM", "ResidualEncoderL")
LAST = 50
"""epochs whose mean is the final Dice"""
AROUND = 8
"""the Dice at an epoch is the mean of the eighth of as many epochs around it"""


def ended(dice: np.ndarray) -> int:
    """Epoch after which a training with this Dice (N,) of each epoch would end; N where it goes to its last."""
    steps = EPOCH * np.arange(1, len(dice) + 1)
    for epoch in range(1, len(dice) + 1):
        end = CoolDown.after(0, EPOCH * epoch).end
        if end > steps[-1]:
            break
        if has_converged(steps[:epoch], dice[:epoch], steps[-1]):
            return -(-end // EPOCH)
    return len(dice)


def read_curves(folder: Path, network: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name of a data set, and pseudo-Dice (N,) of each epoch of one of its folds."""
    for path in sorted((folder / f"baseline_{network}").glob("Dataset*.zip")):
        with zipfile.ZipFile(path) as packed:
            for name in sorted(packed.namelist()):
                if name.endswith("progress.csv"):
                    rows = csv.DictReader(io.TextIOWrapper(packed.open(name)))
                    title = re.sub(r"Dataset\d+_", "", path.stem)
                    yield title, np.array([float(row["mean_fg_dice"]) for row in rows])


def given_away(dice: np.ndarray, end: int) -> float:
    """Final Dice less that at the end; 0 for a training that went to its last epoch."""
    if end == len(dice):
        return 0.0
    half = max(1, end // AROUND // 2)
    return float(dice[-LAST:].mean() - dice[end - 1 - half : end + half].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path, help="results_zipped of a checkout of automl/AutoNNUnet")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    rows, ends = [], []
    for network in NETWORKS:
        found = defaultdict(list)
        for title, dice in read_curves(given.curves, network):
            end = ended(dice)
            found[title].append((end, given_away(dice, end), dice[-LAST:].mean()))
        for title, folds in found.items():
            each, lost, final = zip(*folds, strict=True)
            ends += each
            row = [", ".join(map(str, each)), f"{fmean(final):.4f}", f"{fmean(lost):+.4f}", f"{max(lost):+.4f}"]
            rows.append([f"{title}, {network}", *row])
    head = ["data set, network", "epochs of the folds", "final Dice", "given away: mean", "of one fold"]
    command = public_command([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    notes = [
        "# When nnU-Net's trainings would have ended\n",
        f"- command: `python {command}`",
        f"- machine: {machine()}; nothing is timed",
        f"- commit: {commit()}",
        "- curves: automl/AutoNNUnet, `results_zipped`, pseudo-Dice of 1000 epochs",
        f"- {sum(end < 1000 for end in ends)} of {len(ends)} trainings end early; all take {fmean(ends) / 10:.0f} % of "
        "the epochs",
        f"- given away: mean Dice of the last {LAST} epochs less that of the epochs around the end. Negative: gained\n",
    ]
    text = "\n".join([*notes, table(head, rows)])
    write_results("convergence", text, given.results)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
