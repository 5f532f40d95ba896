"""Imported nnU-Net models beside nnU-Net itself: both predict the same files, and nearly every voxel must be equal.

    python benchmarks/import_parity.py --data DATA/Task04_Hippocampus --nnunet NNUNET-ENV/bin/python

nnU-Net 2.8.1, in an environment of its own, trains each model for a few iterations (`nnunet_models.py`), once: what is
in the work folder is kept. Then `autounet import` and `autounet predict` on one side, and nnU-Net's own predictor on
the other. Exit code 1 when fewer than 99.9 % of the voxels of any model agree, or one was trained so little that it
finds nothing, of which agreement tells nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from import_parity_jobs import (
    HEARTS,
    HIPPOCAMPUS,
    LABELS,
    Model,
    heart_models,
    jobs,
    make_hearts,
    make_hippocampus,
    make_shapes,
    models,
)
from measuring import CommandFailed, commit, machine, public_command, run, seconds_text, table, write_results

from autounet.imageio import read_labels

log = logging.getLogger("benchmark")

LEAST = 0.999
"""share of equal voxels"""
DRIVER = Path(__file__).with_name("nnunet_models.py")


@dataclass(frozen=True)
class Agreement:
    """Over all predicted cases of one model."""

    equal: float
    """share of voxels"""
    worst: float
    """of the case with the smallest share"""
    foreground: float
    """share of equal voxels among those where either program finds a class"""
    found: float
    """share of these voxels; where it is 0 the rest says nothing"""
    cases: int


@dataclass(frozen=True)
class Row:
    model: Model
    agreement: Agreement
    seconds: float
    their_seconds: float


def prepare(work: Path, folders: Mapping[str, Path], nnunet: Path, trained: Sequence[Model], cases: int) -> None:
    """Data sets, trainings; what is there is kept. `folders` are those of real data sets."""
    made = {HIPPOCAMPUS: make_hippocampus, HEARTS: make_hearts}
    for dataset in (*folders, *LABELS):
        raw, tests = work / "raw" / dataset, work / "tests" / dataset
        if (raw / "dataset.json").exists():
            continue
        if dataset in folders:
            made[dataset](raw, tests, folders[dataset], cases)
        else:
            make_shapes(raw, tests, cases)
    for job in jobs(trained):
        number = f"{job['dataset']}_{job['plans']}"
        file = work / f"job_{number}.json"
        file.write_text(json.dumps(job, indent=1))
        log.info("training: data set %s, %s", job["dataset"], job["plans"])
        run([nnunet, DRIVER, "train", work, file], work / "logs" / f"train_{number}.log")


def compared(work: Path, nnunet: Path, model: Model) -> Row:
    """Import, predict on both sides, compare."""
    name = f"{model.dataset}_{model.architecture}_{model.configuration}"
    folder, images, logs = model.folder(work / "results"), work / "tests" / model.dataset, work / "logs"
    bundle, ours, theirs = (work / part / name for part in ("imported", "ours", "theirs"))
    for old in (bundle, ours, theirs):
        shutil.rmtree(old, ignore_errors=True)
    autounet = [sys.executable, "-m", "autounet"]
    run([*autounet, "import", folder, "--out", bundle], logs / f"import_{name}.log")
    mine = run([*autounet, "predict", bundle, images, "--out", ours, "--device", "cpu"], logs / f"ours_{name}.log")
    command = [nnunet, DRIVER, "predict", folder, images, theirs, "--folds", *map(str, model.folds)]
    if model.previous:
        stage = f"{model.dataset}_{model.architecture}_{model.previous}"
        command += ["--previous", work / "theirs" / stage]
    other = run(command, logs / f"theirs_{name}.log")
    return Row(model, agreement(ours, theirs), mine.seconds, other.seconds)


def agreement(first: Path, second: Path) -> Agreement:
    """Of the label files of the same names in two folders. Raises CommandFailed when the names differ."""
    names = sorted(path.name for path in first.glob("*.nii.gz"))
    if names != sorted(path.name for path in second.glob("*.nii.gz")) or not names:
        raise CommandFailed(f"{first} and {second} do not hold predictions of the same cases")
    return agreement_of((read_labels(first / name)[0], read_labels(second / name)[0]) for name in names)


def agreement_of(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Agreement:
    """Of two segmentations of each case."""
    shares, equal, total, same, found = [], 0, 0, 0, 0
    for a, b in pairs:
        alike, either = a == b, (a > 0) | (b > 0)
        shares.append(float(alike.mean()))
        equal, total = equal + int(alike.sum()), total + a.size
        same, found = same + int(np.count_nonzero(alike & either)), found + int(np.count_nonzero(either))
    return Agreement(equal / total, min(shares), same / max(1, found), found / total, len(shares))


def report(rows: Sequence[Row], command: Sequence[str]) -> str:
    """The markdown page."""
    header = ["data set", "architecture", "configuration", "folds", "iterations", "cases", "equal voxels", "worst case",
              "a class found", "equal where either finds a class", "predicting", "nnU-Net"]  # fmt: skip
    lines = [
        [
            row.model.dataset,
            row.model.architecture,
            row.model.configuration,
            str(len(row.model.folds)),
            str(row.model.iterations),
            str(row.agreement.cases),
            f"{row.agreement.equal:.4%}",
            f"{row.agreement.worst:.4%}",
            f"{row.agreement.found:.1%}",
            f"{row.agreement.foreground:.4%}",
            seconds_text(row.seconds),
            seconds_text(row.their_seconds),
        ]
        for row in rows
    ]
    return "\n".join(
        [
            "# Imported nnU-Net models beside nnU-Net 2.8.1\n",
            f"- command: `python {public_command(command)}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            "- weights: nnU-Net's own short trainings\n",
            table(header, lines),
            f"Both predict whole files. At least {LEAST:.1%} of the voxels of each model have to be equal.\n",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder Task04_Hippocampus")
    parser.add_argument(
        "--acdc", type=Path, help="the folder Dataset027_ACDC, in nnU-Net's raw layout; may be left out"
    )
    parser.add_argument("--nnunet", type=Path, required=True, help="interpreter of an environment with nnU-Net 2.8.1")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "autounet-import-parity")
    parser.add_argument("--iterations", type=int, default=100, help="of each training")
    parser.add_argument("--cases", type=int, default=10, help="cases predicted of each data set")
    parser.add_argument("--only", help="data set, architecture or configuration")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work, nnunet = given.work.resolve(), given.nnunet.absolute()
    folders = {HIPPOCAMPUS: given.data.resolve()} | ({HEARTS: given.acdc.resolve()} if given.acdc else {})
    trained = (*models(given.iterations), *(heart_models(given.iterations) if given.acdc else ()))
    chosen = [each for each in trained if given.only in (None, each.dataset, each.architecture, each.configuration)]
    rows = []
    try:
        prepare(work, folders, nnunet, trained, given.cases)
        for model in chosen:
            rows.append(compared(work, nnunet, model))
            log.info("%s %s: %.4f %% equal", model.dataset, model.configuration, 100 * rows[-1].agreement.equal)
    except CommandFailed as error:
        sys.exit(str(error))
    text = report(rows, [f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    write_results("import_parity", text, given.results)
    sys.stdout.write(text)
    return 0 if all(row.agreement.equal >= LEAST and row.agreement.found > 0 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
