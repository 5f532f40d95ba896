"""Which recipe reaches the best Dice in equal time: fold 0 of data sets of every kind, several variants, several seeds.

    python benchmarks/recipes.py --data DATA --work WORK --sets task04,acdc --seconds 120 --seeds 0,1,2 \
        --variant 'base:' --variant 'dice:loss=dice' --variant 'flat:configuration=2d,loss=dice'

A variant is NAME: and a comma-separated list of `configuration`, `width`, `batch`, `patch` (voxels at most), `grid`
(times the finest axis of the target spacing), `mirror` (true: samples are) and fields of TrainOptions; what it does not
name is as in the short recipe of a run, with light augmentation. With `first_grid` (a coarser one) or `first_patch`
(2: half of the patch along each axis that its network can halve) a first training of the same network, at its highest
learning rate from the rise on, has `first_share` of the seconds (0.5), and lends its averaged weights to a second one,
with a rise and fall of its own. A loss may be written as a sum, `loss=dice+0.3*ce`;
`optimiser=muon` is torch's Muon for kernels of convolutions and AdamW for the rest, `schedule=warmup_linear` falls
evenly to 0.
The data are prepared once for each set; a variant trains fold 0 for the given seconds and segments validation cases.
Seconds are those of a processor, on one thread: what else the machine does changes little. Every training is a line of
WORK/results.jsonl, and is not repeated; several of these commands may share WORK. `--table` prints what is there:
without a variant every training, else the variants beside the first one, with the geometric mean over the sets of the
ratio of mean Dice.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from generated_set import many_classes
from known_sets import JOBS
from recipe_tables import every_training, fitted, summary

SETS = ("task04", "acdc", "openkbp", "isbi", "drive", "brats", "classes30")


class Sum:
    """Dice and cross-entropy by their weights; each class counts by its voxels in the batch to the power 1 - `balance`
    in the second. A loss of one output, as those of `autounet.losses`, in two passes."""

    def __init__(self, dice: Any, ce: Any, dice_weight: float, ce_weight: float, balance: float) -> None:
        self.dice, self.ce, self.balance = dice, ce, balance
        self.dice_weight, self.ce_weight = dice_weight, ce_weight

    def __call__(self, logits: Any, labels: Any, weight: Any = None, annotated: Any = None) -> Any:
        total = logits.new_zeros(())
        if self.dice_weight:
            total = total + self.dice_weight * self.dice(logits, labels, weight, annotated)
        if self.ce_weight:
            counts = labels.clamp(min=0).flatten().long().bincount(minlength=logits.shape[1]).to(logits.dtype)
            by_class = (counts / counts.sum()).clamp(min=1e-6) ** -self.balance
            by_voxel = by_class[labels.clamp(min=0).long()] * (1.0 if weight is None else weight)
            total = total + self.ce_weight * self.ce(logits, labels, by_voxel, annotated)
        return total


def register_loss(text: str) -> None:
    """A sum such as dice+0.3*ce becomes a loss of that name.

    `log` is the logarithm of Dice of what occurs, `ce^A` weighs a class by its voxels to the power of -A.
    """
    from autounet.losses import LOSSES
    from autounet.losses.dice_ce import DiceCrossEntropy

    if text in LOSSES:
        return
    weights, balance = {"dice": 0.0, "log": 0.0, "ce": 0.0}, 0.0
    for part in text.split("+"):
        factor, star, name = part.rpartition("*")
        name, _, power = name.partition("^")
        weights[name] += float(factor) if star else 1.0
        balance = float(power) if power else balance
    overlap, logarithm = weights["dice"] + weights["log"], weights["log"] > 0

    def make(setting: Any) -> Any:
        if not balance:
            return DiceCrossEntropy(setting.batch_dice, overlap, weights["ce"], setting.ignores, logarithm)
        dice = DiceCrossEntropy(setting.batch_dice, 1.0, 0.0, setting.ignores, logarithm)
        return Sum(dice, LOSSES["ce"](setting), overlap, weights["ce"], balance)

    LOSSES[text] = make


def register_schedule() -> None:
    """A linear rise and fall, a rise that stays, and their highest points."""
    from autounet.training import schedule

    rise = schedule.WARMUP
    schedule.SCHEDULES["warmup_linear"] = lambda done: done / rise if done < rise else (1 - done) / (1 - rise)
    schedule.SCHEDULES["warmup_flat"] = lambda done: min(1.0, done / rise)
    schedule.RISING["warmup_linear"] = schedule.RISING["warmup_flat"] = rise


def register_muon() -> None:
    """In place of AdamW: kernels as matrices, a row for each output channel, by Muon, which lends AdamW's rate."""
    import torch

    from autounet.training import state

    class KernelMuon(torch.optim.Optimizer):
        def __init__(self, parameters: list, rate: float, decay: float) -> None:
            kernels = [each for each in parameters if each.ndim > 3 and min(each.shape[:2]) > 1]
            known = {id(each) for each in kernels}
            rest = [each for each in parameters if id(each) not in known]
            self.pairs = [(kernel, torch.nn.Parameter(self.matrix(kernel.detach()))) for kernel in kernels]
            matrices = [matrix for _, matrix in self.pairs]
            self.parts = (
                torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
                torch.optim.AdamW(rest, lr=rate, weight_decay=decay, fused=True),
            )
            super().__init__(parameters, {"lr": rate})
            self.param_groups = [group for part in self.parts for group in part.param_groups]

        @staticmethod
        def matrix(kernel: Any) -> Any:
            """A view: `view` raises where the memory does not allow one."""
            last = kernel.movedim(1, -1)
            return (last if last.is_contiguous() else kernel).view(len(kernel), -1)

        def step(self) -> None:
            for kernel, matrix in self.pairs:
                matrix.grad = None
                if kernel.grad is not None:  # as that of an output that the loss leaves out
                    last = kernel.movedim(1, -1).is_contiguous()
                    layout = kernel.grad.movedim(1, -1) if last else kernel.grad
                    matrix.grad = layout.reshape(len(kernel), -1)
            for part in self.parts:
                part.step()

    plain = state.build_optimiser

    def build(options: Any, parameters: Any) -> Any:
        if options.optimiser != "muon":
            return plain(options, parameters)
        return KernelMuon(list(parameters), options.learning_rate, options.weight_decay)

    state.build_optimiser = build


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """NAME:a=1,b=x as a name and a dict; numbers where they read as numbers, `off` as None."""
    title, _, fields = text.partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, fields.split(",")):
        name, _, value = part.partition("=")
        try:
            values[name] = None if value == "off" else float(value) if "." in value or "e-" in value else int(value)
        except ValueError:
            values[name] = {"true": True, "false": False}.get(value, value)
    return title, values


def prepare(name: str, data: Path, work: Path) -> Any:
    """A run up to the prepared cases of `2d` and, for volumes, `3d_fullres`, planned without a limit of time."""
    from autounet.schema.option_table import run_options
    from autounet.workflow.pipeline import run_pipeline

    out = work / name
    if name == "classes30":
        source, options = work / "classes30_data", ()
        if not (source / "dataset.json").exists():
            many_classes(source)
    else:
        source, options = data / JOBS[name].data, JOBS[name].options
    flat = name in ("isbi", "drive")
    names = "2d" if flat else "2d,3d_fullres"
    if not (out / "prepared_by_recipes").exists():
        command = ["preprocess", source, "--out", out, "--configurations", names, "--iterations", 1, *options]
        _autounet(command)
        (out / "prepared_by_recipes").touch()
    return run_pipeline(source, out, run_options(()), until="plan")


def _autounet(words: list[object]) -> None:
    import subprocess

    subprocess.run([sys.executable, "-m", "autounet", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def coarser(run: Any, planned: Any, scale: float) -> Any:
    """The configuration with cases of its own, prepared on a coarser grid."""
    from autounet.schema.dataset import Dataset
    from autounet.workflow.stages import prepare

    planned = planned.model_copy(update={"prepared": f"{planned.prepared}_{scale:g}"})
    dataset = Dataset.load(run.dataset)
    keys = {case.identifier: f"{scale:g}" for case in dataset.cases}
    prepare(dataset, planned.preprocess, run.prepared(planned.prepared), keys, 1)
    return planned


class ProcessorClock:
    """In place of the module `time` in the training loop."""

    monotonic = staticmethod(time.process_time)


def simpler(
    run: Any, planned: Any, outcome: Any, changed: dict, name: str, first_grid: float = 0, first_patch: int = 1
) -> Any:
    """The same network on a coarser grid, or with a smaller patch."""
    sizes = zip(planned.patch_size, planned.network.divisor, strict=True)
    patch = tuple(each // first_patch if each % (first_patch * by) == 0 else each for each, by in sizes)
    if not first_grid:
        return planned.model_copy(update={"patch_size": patch})
    options = outcome.plan.options.model_copy(update={**changed, "spacing_scale": first_grid})
    coarse = outcome.maker.with_options(options).configurations[name]
    grid = planned.model_copy(update={"preprocess": coarse.preprocess, "prepared": coarse.prepared})
    return coarser(run, grid, first_grid).model_copy(update={"patch_size": patch})


def trained(
    run: Any, name: str, planned: Any, options: Any, folder: Path, seconds: float, start: tuple[Path, Any] | None = None
) -> Any:
    """The record of a training of fold 0. `start`: weights to begin with, and the configuration they are of."""
    from trainings import fold_training

    from autounet.schema.stage_inputs import InitialWeights
    from autounet.training import Horizon, train_fold

    inputs, place, horizon = fold_training(run, name, planned, options, folder, Horizon(seconds=seconds))
    if start is not None:
        initial = InitialWeights(trained=start[1].network)
        inputs = inputs.model_copy(update={"initial": initial})
        place = place.model_copy(update={"initial": start[0]})
    return train_fold(inputs, place, horizon)


def train_variant(outcome: Any, folder: Path, values: dict[str, Any], seconds: float, seed: int, cases: int) -> dict:
    """Train fold 0 and segment `cases` of its validation cases. Returns the line of results.jsonl."""
    import torch

    from autounet.crossval.validate import summarise_cases, validate_cases
    from autounet.inference.bundle import load_network
    from autounet.schema.dataset import Dataset, Splits
    from autounet.store.run_folder import CrossvalFolder, FoldFolder, RunFolder
    from autounet.training import loop
    from autounet.workflow.dataset_stage import KeptLabels
    from autounet.workflow.defaults import train_options

    run, names = RunFolder(folder), list(outcome.plan.configurations)
    name = values.pop("configuration", "3d_fullres" if "3d_fullres" in names else names[0])
    changed = {
        "base_features": values.pop("width", 16),
        "batch_limit": values.pop("batch", 2),
        "patch_limit": values.pop("patch", None),
        "spacing_scale": (scale := values.pop("grid", 1.0)),
        "mirror_samples": values.pop("mirror", False),
    }
    whole = outcome.plan.configurations[name]
    planned = outcome.maker.with_options(outcome.plan.options.model_copy(update=changed)).configurations[name]
    planned = planned.model_copy(update={"inference": planned.inference.model_copy(update={"mirror_axes": ()})})
    first = {field: values.pop(field) for field in ("first_grid", "first_patch", "first_share") if field in values}
    if scale != 1:
        planned = coarser(run, planned, scale)
    configured = {field: values.pop(field) for field in ("batch_dice",) if field in values}
    planned = planned.model_copy(update=configured)
    if "loss" in values:
        register_loss(values["loss"])
    expected = values.pop("expected_steps", 1000)
    maker = outcome.maker
    options = train_options(
        maker.options, expected, len(planned.patch_size), augmented_by=maker.profile.augmented_by
    ).model_copy(update={**values, "seed": seed})
    place = FoldFolder(folder / "variants" / f"{os.getpid()}_{time.monotonic_ns()}")
    torch.set_num_threads(1)
    register_schedule()
    if options.optimiser == "muon":
        register_muon()
    loop.time = ProcessorClock
    share = first.pop("first_share", 0.5 if first else 0.0)
    start, begun = None, 0
    if first:
        before = simpler(run, planned, outcome, changed, name, **first)
        flat = options.model_copy(update={"schedule": "warmup_flat"})
        begun = trained(run, name, before, flat, place.path / "first", share * seconds).steps
        start = (place.path / "first" / "weights.safetensors", before)
    record = trained(run, name, planned, options, place.path, (1 - share) * seconds, start)
    dataset = Dataset.load(run.dataset)
    model = load_network(planned, place.weights, "cpu")
    validation = Splits.load(run.splits).validation(0)
    validation = validation[:: max(1, len(validation) // cases)][:cases]
    results = validate_cases(
        dataset, planned, [model], run.prepared(planned.prepared), validation, 0,
        CrossvalFolder(place.path / "predicted"), "cpu", keep_scores=False,
    )  # fmt: skip
    metrics = summarise_cases(results, dataset)
    dims = len(planned.patch_size)
    coverage = math.prod(planned.patch_size) / math.prod(planned.median_shape[-dims:])
    dice = {name: each.dice or 0.0 for name, each in metrics.per_class.items()}
    return {
        "dice": dice, "mean": statistics.fmean(dice.values()), "steps": begun + record.steps, "seconds": record.seconds,
        "patch": planned.patch_size, "batch": planned.batch_size, "features": planned.network.features[0],
        "coverage": min(1.0, coverage), "kept": KeptLabels(outcome.data, whole.preprocess)(scale), "dims": dims,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cases", type=int, default=8, help="validation cases at most")
    parser.add_argument("--variant", action="append", default=[], help="none, with --table: every training")
    parser.add_argument("--table", action="store_true", help="print what was found, train nothing")
    parser.add_argument(
        "--fit", action="store_true", help="with --table, the model of Dice fitted to trainings of all lengths"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results = arguments.work / "results.jsonl"
    arguments.work.mkdir(parents=True, exist_ok=True)
    variants = dict(parse_variant(text) for text in arguments.variant)

    def found() -> list[dict]:
        return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []

    for seed in [] if arguments.table else map(int, arguments.seeds.split(",")):
        for name in arguments.sets.split(","):
            outcome = prepare(name, arguments.data, arguments.work)
            for title, values in variants.items():
                key = {"set": name, "variant": title, "seed": seed, "limit": arguments.seconds}
                if any(key.items() <= line.items() for line in found()):
                    continue
                done = train_variant(
                    outcome, arguments.work / name, dict(values), arguments.seconds, seed, arguments.cases
                )
                with results.open("a") as file:
                    file.write(json.dumps({**key, **done, "options": values}) + "\n")
    known = [line for line in found() if line["set"] in arguments.sets.split(",")]
    if variants:
        sys.stdout.write(summary(known, arguments.seconds, list(variants)))
    else:
        sys.stdout.write(every_training([line for line in known if line["limit"] == arguments.seconds]))
    if arguments.fit:
        sys.stdout.write(fitted(known))


if __name__ == "__main__":
    main()
