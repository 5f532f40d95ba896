"""AutoUNet and nnU-Net 2.8.1 side by side: alternating on one machine, with the same data, plan, folds and weights.

    python benchmarks/vs_nnunet.py --data DATA/Task04_Hippocampus [--repeat 3] [--only PART ...]

nnU-Net gets an environment of its own (made when missing) and the data in its raw layout; AutoUNet reads the Decathlon
folder as it is, with `--preset nnunet --memory 8GB --splits nnunet`. It stops when the plans or the folds differ.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autounet_program import AutoUNet
from measuring import (
    MEMORY_NOTE,
    CommandFailed,
    Measured,
    commit,
    machine,
    median,
    memory_text,
    public_command,
    seconds_text,
    table,
    write_results,
)
from nnunet_program import NnUNet

log = logging.getLogger("benchmark")

PREPARATION = ("fingerprint", "plan", "preprocess")
Program = AutoUNet | NnUNet


@dataclass(frozen=True)
class Part:
    """One row of the table. `measure(program, comparison)` runs it once for one program."""

    title: str
    note: str
    measure: Callable[[Program, Comparison], Measured]
    aim: float | None = None
    """how many times faster we want to be"""
    needs_weights: bool = False


@dataclass
class Comparison:
    ours: AutoUNet
    theirs: NnUNet
    work: Path
    repeat: int
    steps: int
    cases: int
    samples: dict[tuple[str, str], list[Measured]] = field(default_factory=dict)
    """(part, program) -> one measurement a repetition"""
    remarks: list[str] = field(default_factory=list)

    def measure(self, name: str) -> None:
        """Alternate the two programs; who begins alternates too."""
        pair: tuple[Program, Program] = (self.ours, self.theirs)
        for repetition in range(self.repeat):
            for program in pair if repetition % 2 == 0 else pair[::-1]:
                measured = PARTS[name].measure(program, self)
                self.samples.setdefault((name, program.name), []).append(measured)
                log.info("%s, %s: %s", name, program.name, seconds_text(measured.seconds))

    def seconds(self, name: str, program: Program) -> float:
        return median([measured.seconds for measured in self.samples[name, program.name]])

    def peak(self, name: str, program: Program) -> int:
        return max(measured.peak_bytes for measured in self.samples[name, program.name])

    def images(self, program: Program) -> Path:
        """The same images, named as each program wants them."""
        folder = self.work / f"images_{self.cases}" / type(program).__name__
        if not folder.exists():
            folder.mkdir(parents=True)
            ending = "_0000.nii.gz" if isinstance(program, NnUNet) else ".nii.gz"
            found = sorted(path for path in (self.ours.data / "imagesTr").glob("*.nii.gz") if path.name[0] != ".")
            for image in found[: self.cases]:
                shutil.copyfile(image, folder / (image.name.removesuffix(".nii.gz") + ending))
        return folder


def one_step(batches: str) -> Callable[[Program, Comparison], Measured]:
    """The median step of one process, and that process's peak memory."""

    def measure(program: Program, comparison: Comparison) -> Measured:
        steps, process = program.steps(batches, comparison.steps)
        return Measured(median(steps["seconds"]), process.peak_bytes)

    return measure


STEP_NOTE = (
    "one training step of the preset nnunet's 3d_fullres plan (batch 9, patch 40x56x40, features 32-64-128-256), "
    "measured inside a process with each program's own network, loss and optimiser, the first step left out"
)
PARTS = {
    "help": Part(
        "`--help`", "`autounet --help` and `nnUNetv2_plan_and_preprocess --help`", lambda program, _: program.help()
    ),
    "fingerprint": Part(
        "check + fingerprint",
        "`autounet fingerprint` (which checks) and `nnUNetv2_extract_fingerprint --verify_dataset_integrity`",
        lambda program, _: program.fingerprint(),
    ),
    "plan": Part(
        "plan",
        "both plan 2d and 3d_fullres; ours includes the probe of the device, once per output folder",
        lambda program, _: program.plan(),
    ),
    "preprocess": Part("preprocess", "3d_fullres", lambda program, _: program.preprocess()),
    "prepare": Part(
        "the last three by one command",
        "from raw data to prepared cases of 3d_fullres: `autounet preprocess` and "
        "`nnUNetv2_plan_and_preprocess --verify_dataset_integrity --clean -c 3d_fullres`",
        lambda program, _: program.prepare(),
        aim=2.0,
    ),
    "step": Part(
        "training step",
        f"{STEP_NOTE}: forward, loss, backward, clipping, optimiser on one fixed random batch",
        one_step("fixed"),
        aim=2.5,
    ),
    "step-augmented": Part(
        "training step with its data",
        "the same with each program's own reading and full augmentation of fold 0, in the same process for both "
        "(nnU-Net's worker processes hang on a CPU), data time included",
        one_step("augmented"),
    ),
    "predict": Part(
        "predict {cases} cases, 5 folds, mirroring",
        "whole command on files, the same untrained weights in both programs",
        lambda program, comparison: program.predict(comparison.images(program)),
        aim=1.5,
        needs_weights=True,
    ),
}


def differences(ours: object, theirs: object, where: str = "") -> list[str]:
    """Where two nested values differ, numbers compared to 1e-6."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = dict.fromkeys([*ours, *theirs])
        return [line for key in keys for line in differences(ours.get(key), theirs.get(key), f"{where}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for index, (a, b) in pairs for line in differences(a, b, f"{where}[{index}]")]
    if isinstance(ours, int | float) and isinstance(theirs, int | float) and abs(ours - theirs) < 1e-6:
        return []
    return [] if ours == theirs else [f"{where.lstrip('.')}: ours {ours}, nnU-Net's {theirs}"]


def require_same(ours: AutoUNet, theirs: NnUNet) -> str:
    """Ends the program when the plans or folds differ; returns the sentence that says what is equal."""
    found = differences(ours.planned(), theirs.planned())
    found += differences(ours.folds(), theirs.folds(), "fold")
    if found:
        sys.exit("the two programs do not do the same:\n" + "\n".join(found[:30]))
    plan = ours.planned()
    shapes = "; ".join(
        f"{name}: patch {'x'.join(map(str, values['patch_size']))}, batch {values['batch_size']}, "
        f"features {'-'.join(map(str, values['features']))}"
        for name, values in plan.items()
    )
    return (
        f"Checked: both programs have the same plan ({shapes}; spacing, strides and kernels too) and the same 5 folds."
    )


def report(comparison: Comparison, parts: Sequence[str], command: Sequence[str]) -> str:
    """The markdown page."""
    ours, theirs = comparison.ours, comparison.theirs
    rows = [
        row(comparison, [name], PARTS[name].title.format(cases=comparison.cases), PARTS[name].aim) for name in parts
    ]
    if set(PREPARATION) <= set(parts):
        rows.append(row(comparison, PREPARATION, "check + fingerprint + plan + preprocess", 2.0))
    header = ["part", ours.name, theirs.name, "times faster", "aim", f"peak {ours.name}", f"peak {theirs.name}"]
    notes = [f"- {PARTS[name].title.format(cases=comparison.cases)}: {PARTS[name].note}" for name in parts]
    return "\n".join(
        [
            "# AutoUNet and nnU-Net side by side\n",
            f"- command: `python {public_command(command)}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            f"- data: {comparison.ours.data.name}",
            f"- each number is the median of {comparison.repeat} alternating runs; fastest and slowest in brackets\n",
            table(header, rows),
            MEMORY_NOTE + " Of all runs the largest is shown.\n",
            *comparison.remarks,
            "",
            "What is measured (wall time of the whole command unless said otherwise):\n",
            *notes,
            "",
        ]
    )


def row(comparison: Comparison, names: Sequence[str], title: str, aim: float | None) -> list[str]:
    """One part, or the sum of several."""
    cells, peaks, totals = [], [], []
    for program in (comparison.ours, comparison.theirs):
        total = sum(comparison.seconds(name, program) for name in names)
        runs = [measured.seconds for measured in comparison.samples[names[0], program.name]]
        spread = f" ({min(runs):.2f}-{max(runs):.2f})" if len(names) == 1 and len(runs) > 1 else ""
        cells.append(seconds_text(total) + spread)
        peaks.append(memory_text(max(comparison.peak(name, program) for name in names)))
        totals.append(total)
    return [title, *cells, f"{totals[1] / totals[0]:.2f}", f"{aim:g}" if aim else "", *peaks]


def compare(comparison: Comparison, parts: Sequence[str]) -> None:
    """Set up what the parts need, then measure them."""
    ours, theirs = comparison.ours, comparison.theirs
    if set(parts) - {"help", "fingerprint"}:
        comparison.remarks.append(require_same(ours, theirs))
    if any(PARTS[name].needs_weights for name in parts):
        ours.need_model(theirs.need_weights())
    if set(parts) & {"step", "step-augmented", "predict"}:
        chosen = ours.precision()
        comparison.remarks.append(
            f"Training and predicting: AutoUNet's probe chose {chosen}; nnU-Net uses fp32 on a CPU."
        )
    for name in parts:
        comparison.measure(name)
        if name == "predict":
            agreed = ours.agreement(theirs.predictions)
            comparison.remarks.append(
                f"With the same weights both programs label {agreed['equal']:.2%} of the voxels of "
                f"{agreed['cases']} predicted cases alike."
            )


def main() -> None:
    temporary = Path(tempfile.gettempdir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder Task04_Hippocampus")
    parser.add_argument("--environment", type=Path, default=temporary / "nnunet-env", help="nnU-Net's own environment")
    parser.add_argument("--work", type=Path, default=temporary / "autounet-vs-nnunet", help="files made on the way")
    parser.add_argument("--fresh", action="store_true", help="empty the work folder first")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each program")
    parser.add_argument(
        "--steps", type=int, default=5, help="training steps in each run, after one that is not counted"
    )
    parser.add_argument("--cases", type=int, default=20, help="cases predicted")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="one part; may be given several times")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    parts = [name for name in PARTS if not given.only or name in given.only]
    work, data = given.work.resolve(), given.data.resolve()
    if given.fresh:
        shutil.rmtree(work, ignore_errors=True)
    try:
        theirs = NnUNet.installed(given.environment.resolve(), data, work)
        comparison = Comparison(AutoUNet(data, work), theirs, work, given.repeat, given.steps, given.cases)
        compare(comparison, parts)
    except CommandFailed as error:
        sys.exit(str(error))
    text = report(comparison, parts, [f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    name = "vs_nnunet" if not given.only else "vs_nnunet_" + "_".join(parts)
    write_results(name, text, given.results)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
