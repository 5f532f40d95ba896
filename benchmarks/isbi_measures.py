"""The ISBI 2012 challenge's measures of a finished run: V_Rand and V_Info of its out-of-fold slices, borders thinned.

    python benchmarks/isbi_measures.py OUT [--border 0] [--configuration 2d]

OUT is an output folder of `autounet run` on 2-D images. Each segmentation in its crossval folder comes from a network
that did not see the slice, and is compared with the label; pixels with the value of --border are membrane, all others
lie inside a cell. The challenge scores held-back slices and takes the best of several thresholds on probabilities;
here the segmentation is taken as decided. The measures: `autounet/evaluation/membrane_scores.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from measuring import commit, public_command, table, write_results

from autounet.evaluation.membrane_scores import SegmentOverlap, overlap, pooled
from autounet.imageio import output_suffix, read_labels
from autounet.schema.dataset import Dataset
from autounet.schema.selection import Selection

COLUMNS = ("V_Rand", "split", "merge", "V_Info", "split", "merge")
ALPHAS = (0.5, 0.0, 1.0)


def compared(out: Path, configuration: str, border: int) -> Iterator[tuple[str, SegmentOverlap]]:
    """Each slice of which both a label and an out-of-fold segmentation exist, in the order of their names."""
    dataset = Dataset.load(out / "dataset.json")
    for case in sorted(dataset.cases, key=lambda case: (len(case.identifier), case.identifier)):
        file = out / "crossval" / configuration / f"{case.identifier}{output_suffix(dataset.suffix)}"
        if case.label is None or not file.exists():
            continue
        prediction, reference = (one_slice(path) != border for path in (file, Path(dataset.root) / case.label))
        yield case.identifier, overlap(prediction, reference)


def one_slice(path: Path) -> np.ndarray:
    """Values (Y, X). Exits when the file holds several slices."""
    values, _ = read_labels(path)
    if len(values) != 1:
        sys.exit(f"{path.name} holds {len(values)} slices; the measures are of 2-D images")
    return values[0]


def scores(found: SegmentOverlap) -> list[float]:
    """In the order of `COLUMNS`."""
    return [score(alpha) for score in (found.rand_score, found.information_score) for alpha in ALPHAS]


def page(found: Sequence[tuple[str, SegmentOverlap]], command: Sequence[str]) -> str:
    values = [scores(each) for _, each in found]
    rows = [(case, numbers) for (case, _), numbers in zip(found, values, strict=True)]
    rows.append(("mean of the slices", [fmean(column) for column in zip(*values, strict=True)]))
    rows.append(("all slices as one image", scores(pooled([each for _, each in found]))))
    lines = [
        "# The measures of the ISBI 2012 challenge\n",
        f"- command: `python {public_command(command)}`",
        f"- commit: {commit()}",
        f"- {len(found)} out-of-fold slices, the predicted borders thinned, no choice of a threshold\n",
        table(["slice", *COLUMNS], [[name, *(f"{value:.4f}" for value in numbers)] for name, numbers in rows]),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="output folder of a finished run")
    parser.add_argument("--border", type=int, default=0, help="value of membrane pixels in the files")
    parser.add_argument("--configuration", help="default: the one that was selected")
    parser.add_argument("--results", type=Path, help="folder for a dated copy of the table")
    given = parser.parse_args()
    out = given.out.resolve()
    name = given.configuration or Selection.load(out / "selection.json").chosen[0]
    found = list(compared(out, name, given.border))
    if not found:
        sys.exit(f"{out} holds no out-of-fold segmentation of {name}")
    text = page(found, [f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    if given.results:
        write_results("isbi_measures", text, given.results)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
