"""Our counterpart of `nnunet_driver.py`: training steps, a bundle with given weights, agreement of two results.

    python autounet_driver.py steps OUT RESULT.json --batches fixed|augmented --steps N
    python autounet_driver.py bundle OUT WEIGHTS_FOLDER MODEL
    python autounet_driver.py agreement PREDICTIONS PREDICTIONS RESULT.json

OUT is the output folder of `autounet preprocess --preset nnunet`. `steps` runs what the training loop runs, in the same
order, on batches made in this process (no workers), so that both programs are measured alike.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from autounet.losses import Batch
from autounet.schema.dataset import Dataset, Splits
from autounet.schema.options import DataOptions, TrainOptions
from autounet.schema.plan import Configuration, Plan
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection
from autounet.step import Precision, configuration_loss, train_step
from autounet.store.run_folder import RunFolder
from autounet.workers import keep_freed_memory

CONFIGURATION = "3d_fullres"
WARM_UP = 1


def fixed_batch(configuration: Configuration, classes: int) -> Batch:
    """One random batch of the plan's size."""
    generator = torch.Generator().manual_seed(0)
    shape = (configuration.batch_size, configuration.network.in_channels, *configuration.patch_size)
    labels = torch.randint(0, classes, (shape[0], *shape[2:]), generator=generator, dtype=torch.int16)
    return Batch(torch.randn(shape, generator=generator), labels)


def time_steps(out: Path, result: Path, batches: str, steps: int) -> None:
    """Seconds of each step after the warm-up, as JSON: {"seconds": [...], "data_seconds": [...]}."""
    from trainings import fold_training

    from autounet.training import Horizon
    from autounet.training.loader import BatchLoader
    from autounet.training.sources import train_source
    from autounet.training.state import new_state

    keep_freed_memory()  # as the training loop does
    configuration = Plan.load(out / "plan.json").configurations[CONFIGURATION]
    options = TrainOptions()
    inputs, place, _ = fold_training(
        RunFolder(out), CONFIGURATION, configuration, options, out / "unused", Horizon(steps=250_000)
    )
    device = torch.device("cpu")
    precision = Precision(configuration.precision, configuration.channels_last)
    state = new_state(inputs, None, precision, device)
    loss = configuration_loss(configuration, inputs.labels, options)
    source: Iterator[Batch]
    if batches == "fixed":
        source = iter([fixed_batch(configuration, inputs.labels.count)] * (WARM_UP + steps))
    else:
        source = BatchLoader(train_source(inputs, place), 0, workers=0)
    seconds, data_seconds = [], []
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        batch = next(source).to(device, precision.channels_last)
        loaded = time.perf_counter()
        train_step(state.model, loss, state.optimiser, state.scaler, batch, precision, options.gradient_clip)
        seconds.append(time.perf_counter() - started)
        data_seconds.append(loaded - started)
    measured = {
        "seconds": seconds[WARM_UP:],
        "data_seconds": data_seconds[WARM_UP:],
        "batch": list(batch.image.shape),
    }
    result.write_text(json.dumps(measured))


def make_bundle(out: Path, weights: Path, model: Path) -> None:
    """A bundle of five folds with nnU-Net's tensors under our names."""
    from autounet.inference.bundle import pack
    from autounet.nets import FAMILIES
    from autounet.nets.plain import nnunet_plain_name
    from autounet.store.weights import save_weights

    dataset, splits = Dataset.load(out / "dataset.json"), Splits.load(out / "splits.json")
    configuration = Plan.load(out / "plan.json").configurations[CONFIGURATION]
    spec = configuration.network
    names = list(FAMILIES[spec.family].build(spec).state_dict())
    files: dict[int | None, Path] = {}
    for fold in range(5):
        theirs = torch.load(weights / f"fold_{fold}.pt", weights_only=True)
        ours = {name: theirs[nnunet_plain_name(name, spec)] for name in names}
        files[fold] = model.parent / "untrained" / f"fold_{fold}" / "weights.safetensors"
        save_weights(files[fold], ours)
        RunRecord(
            configuration_name=CONFIGURATION,
            configuration=configuration.key,
            fold=fold,
            options=TrainOptions(),
            train_cases=splits.training(fold),
            validation_cases=splits.validation(fold),
            device="cpu",
            steps=0,
            seconds=0.0,
            curve=(),
            parameters=sum(tensor.numel() for tensor in ours.values()),
            peak_memory_bytes=None,
            versions={},
        ).save(files[fold].with_name("record.json"))
    selection = Selection(chosen=(CONFIGURATION,), compared=(), reason="Untrained weights, to measure time.")
    pack(model, dataset, DataOptions(), {CONFIGURATION: configuration}, selection, {CONFIGURATION: files}, None)


def agreement(first: Path, second: Path, result: Path) -> None:
    """Share of voxels with equal labels over the files of the same name: {"cases": N, "equal": 0..1}."""
    from autounet.imageio import read_labels

    names = sorted(path.name for path in first.glob("*.nii.gz") if (second / path.name).exists())
    equal = total = 0
    for name in names:
        a, b = read_labels(first / name)[0], read_labels(second / name)[0]
        equal += int((a == b).sum())
        total += a.size
    result.write_text(json.dumps({"cases": len(names), "equal": equal / max(1, total)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    steps = commands.add_parser("steps")
    steps.add_argument("out", type=Path)
    steps.add_argument("result", type=Path)
    steps.add_argument("--batches", choices=["fixed", "augmented"], default="fixed")
    steps.add_argument("--steps", type=int, default=5)
    bundle = commands.add_parser("bundle")
    for name in ("out", "weights", "model"):
        bundle.add_argument(name, type=Path)
    agree = commands.add_parser("agreement")
    for name in ("first", "second", "result"):
        agree.add_argument(name, type=Path)
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if given.command == "steps":
        time_steps(given.out, given.result, given.batches, given.steps)
    elif given.command == "bundle":
        make_bundle(given.out, given.weights, given.model)
    else:
        agreement(given.first, given.second, given.result)


if __name__ == "__main__":
    main()
