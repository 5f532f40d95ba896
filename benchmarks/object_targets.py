"""What a network had best learn about objects that touch: several targets in equal time, each with its own way back.

    python benchmarks/object_targets.py --data DATA --work WORK [--seconds 300] [--folds 0,4] [--targets core,distance]
        [--configuration 2d]

`core` has core and border of each object, and background; `cores` the same as overlapping regions, the object and its
border. `gap` is that of Ronneberger et al. (2015): one class with a gap of background between objects, and the weight
map that makes gaps dear. `distance` has four levels of depth in place of a map of distances; `depths` the same as
nested regions, from each level on inwards, `depths8` with eight levels; `levels` is that by the code of a run, where
pixels that touch another object have the outermost level. `flow` has eight directions to the deepest point in place of
a field of vectors. All are learnt with the same network, loss (but for `gap`) and seconds, so that only the
target differs; without augmentation, since rotated samples would need other directions. The way back of each has a
parameter, which a fold takes from where the other folds are best.
Seconds are those of a processor, on one thread. DATA is DSB2018_nuclei as `autounet check --objects nucleus --fix`
writes it; without it 15
volumes are made, for `--configuration 3d_fullres` and the targets `cores` and `levels`. A training that is in WORK is
not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from generated_set import touching_objects
from measuring import commit, machine, public_command, table, write_results
from scipy import ndimage

Spacing = tuple[float, float, float]
CERTAIN = 255
LEVELS, FINE, DIRECTIONS = 4, 8, 8
IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
STEPS = 60
"""of one pixel along the directions, by which even large objects have come to their middle"""


# ---- what is learnt ------------------------------------------------------------------------------------------------


def core(numbers: np.ndarray, spacing: Spacing) -> np.ndarray:
    """1, and 2 within a rim of a quarter of the object's depth, from 1 to 3 pixels, and where another is touched."""
    result = np.zeros(numbers.shape, np.int16)
    highest = ndimage.maximum_filter(numbers, size=3, mode="nearest")
    lowest = ndimage.minimum_filter(np.where(numbers == 0, np.iinfo(np.int32).max, numbers), size=3, mode="nearest")
    touching = (highest != numbers) | (lowest != numbers)
    for box, own, depth in _objects(numbers, spacing):
        edge = (depth <= min(max(depth.max() / 4, 1), 3)) | (touching[box] & (depth < depth.max()))
        result[box] = np.where(own, 1 + edge, result[box])
    return result


def levels(numbers: np.ndarray, spacing: Spacing) -> np.ndarray:
    """What a run learns."""
    from autounet.ops.objects import object_depths

    return object_depths(numbers, spacing, LEVELS).astype(np.int16)


def gap(numbers: np.ndarray, spacing: Spacing) -> np.ndarray:
    from autounet.ops.objects import apart

    return apart(numbers)


def distance(numbers: np.ndarray, spacing: Spacing, count: int = LEVELS) -> np.ndarray:
    """1 at the edge to `count` in the middle, by shares of the depth of the object; what touches another has 1."""
    result = np.zeros(numbers.shape, np.int16)
    for box, own, depth in _objects(numbers, spacing):
        share = depth / depth.max()
        level = 1 + np.minimum((count * share).astype(np.int16), count - 1)
        result[box] = np.where(own, level, result[box])
    return result


def flow(numbers: np.ndarray, spacing: Spacing) -> np.ndarray:
    """1 to `DIRECTIONS`: the octant in which the deepest pixel of the object lies."""
    result = np.zeros(numbers.shape, np.int16)
    for box, own, depth in _objects(numbers, spacing):
        _, y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        _, rows, columns = np.indices(depth.shape)
        angle = np.arctan2(y - rows, x - columns)
        octant = np.rint(angle / (2 * math.pi / DIRECTIONS)).astype(np.int16) % DIRECTIONS
        result[box] = np.where(own, 1 + octant, result[box])
    return result


def _objects(numbers: np.ndarray, spacing: Spacing) -> Any:
    """Box, mask and depth of each object: the distance to what is around it, which the edge of the image is not."""
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        if box is None:
            continue
        wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        own = numbers[wide] == number
        yield wide, own, ndimage.distance_transform_edt(own, sampling=spacing)


# ---- the way back --------------------------------------------------------------------------------------------------


def from_core(chances: np.ndarray, seeds: float, spacing: Spacing) -> np.ndarray:
    """Seeds are where the core is as probable as `seeds`."""
    return _flooded(chances[1] >= seeds, chances[0] <= 0.5, -chances[1])


def from_cores(chances: np.ndarray, seeds: float, spacing: Spacing) -> np.ndarray:
    """Of the object and its border, each by itself."""
    return from_core(np.stack([1 - chances[0], chances[0] * (1 - chances[1]), chances[0] * chances[1]]), seeds, spacing)


def from_gap(chances: np.ndarray, foreground: float, spacing: Spacing) -> np.ndarray:
    return np.asarray(ndimage.label(chances[1] >= foreground)[0], np.int32)


def from_distance(chances: np.ndarray, height: float, spacing: Spacing) -> np.ndarray:
    """Seeds are hills of the expected depth that are higher than what is around them by `height`."""
    return from_depths(np.cumsum(chances[:0:-1], axis=0)[::-1], height, spacing)


def from_depths(chances: np.ndarray, height: float, spacing: Spacing) -> np.ndarray:
    """Of the regions from each level on inwards: their mean is the expected depth."""
    from skimage.morphology import h_maxima

    depth = chances.mean(0)
    smooth = ndimage.gaussian_filter(depth, (0, 1, 1))
    seeds = np.stack([h_maxima(plane, height) for plane in smooth]) > 0
    return _flooded(seeds, chances[0] >= 0.5, -smooth)


def from_levels(chances: np.ndarray, height: float, spacing: Spacing) -> np.ndarray:
    """As a run does it."""
    from autounet.ops.objects import separate

    depth, foreground = (np.rint(CERTAIN * each).astype(np.uint8) for each in (chances.mean(0), chances[0]))
    return separate(depth, foreground, height, spacing)


def from_flow(chances: np.ndarray, least: float, spacing: Spacing) -> np.ndarray:
    """Each pixel goes where its directions lead; seeds are where at least `least` of them meet."""
    angles = 2 * math.pi / DIRECTIONS * np.arange(DIRECTIONS)
    rows, columns = (np.tensordot(each, chances[1:], 1) for each in (np.sin(angles), np.cos(angles)))
    length = np.maximum(np.hypot(rows, columns), 1e-6)
    mask = chances[0] <= 0.5
    result = np.zeros(mask.shape, np.int32)
    for z in range(len(mask)):
        y, x = (each.astype(np.float32) for each in np.nonzero(mask[z]))
        start = tuple(each.astype(int) for each in (y, x))
        for _ in range(STEPS):
            place = (
                np.clip(np.rint(y), 0, mask.shape[1] - 1).astype(int),
                np.clip(np.rint(x), 0, mask.shape[2] - 1).astype(int),
            )
            inside = mask[z][place]
            y += np.where(inside, (rows / length)[z][place], 0)
            x += np.where(inside, (columns / length)[z][place], 0)
        last = (
            np.clip(np.rint(y), 0, mask.shape[1] - 1).astype(int),
            np.clip(np.rint(x), 0, mask.shape[2] - 1).astype(int),
        )
        met = np.zeros(mask.shape[1:])
        np.add.at(met, last, 1)
        near = ndimage.uniform_filter(met, 5) * 25
        middles, _ = ndimage.label(near >= least)
        result[z][start] = middles[last]
    return _flooded(result > 0, mask, np.zeros(mask.shape), result)


def _flooded(seeds: np.ndarray, mask: np.ndarray, height: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
    from skimage.segmentation import watershed

    numbered = (ndimage.label(seeds & mask)[0] if numbers is None else numbers).astype(np.int32)
    parts, _ = ndimage.label(mask)
    alone = mask & ~np.isin(parts, np.unique(parts[numbered > 0]))
    rest, _ = ndimage.label(alone)
    numbered = np.where(rest > 0, rest + numbered.max(initial=0), numbered)
    return np.asarray(watershed(height, numbered, mask=mask), np.int32)


class Target(NamedTuple):
    classes: int
    learnt: Callable[[np.ndarray, Spacing], np.ndarray]
    back: Callable[[np.ndarray, float, Spacing], np.ndarray]
    parameters: tuple[float, ...]
    loss: str | None = None
    regions: tuple[tuple[int, ...], ...] = ()
    """of the classes; with them they are what is learnt"""


HEIGHTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def inwards(levels: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(first, levels + 1)) for first in range(1, levels + 1))


TARGETS = {
    "core": Target(3, core, from_core, (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)),
    "cores": Target(3, core, from_cores, (0.3, 0.5, 0.7, 0.8, 0.9, 0.95), regions=((1, 2), (2,))),
    "gap": Target(2, gap, from_gap, (0.3, 0.5, 0.7, 0.8, 0.9), "weighted_ce"),
    "distance": Target(1 + LEVELS, distance, from_distance, HEIGHTS),
    "depths": Target(1 + LEVELS, distance, from_depths, HEIGHTS, regions=inwards(LEVELS)),
    "levels": Target(1 + LEVELS, levels, from_levels, HEIGHTS, regions=inwards(LEVELS)),
    "depths8": Target(1 + FINE, partial(distance, count=FINE), from_depths, HEIGHTS, regions=inwards(FINE)),
    "flow": Target(1 + DIRECTIONS, flow, from_flow, (5, 10, 20, 30, 50)),
}
SMALLEST = (0, 10, 20, 30)
"""pixels of an object, tried with each parameter"""


# ---- trainings -----------------------------------------------------------------------------------------------------


def steps_of(planned: Any) -> Spacing:
    """Of the prepared grid; 1 along an axis that is not resampled, such as that of single pictures."""
    z, y, x = (value or 1.0 for value in planned.preprocess.spacing)
    return z, y, x


def relabelled(run: Any, name: str, planned: Any, target: Target) -> Any:
    """The configuration with cases of its own, whose labels are those of the target; and its labels."""
    from autounet.datasets import read_numbers
    from autounet.preprocessing.prepare import class_locations, prepare_labels
    from autounet.schema.dataset import Dataset
    from autounet.schema.labels import LabelClass, Labels, Region, targets_of
    from autounet.store import open_prepared, write_prepared

    dataset, source = Dataset.load(run.dataset), run.prepared(planned.prepared)
    names = (
        LabelClass(name=f"{name} {value}" if value else "background", value=value) for value in range(target.classes)
    )
    regions = (Region(name=f"{name} {values}", values=values) for values in target.regions)
    labels, kind = Labels(classes=tuple(names), regions=tuple(regions)), "regions" if target.regions else "classes"
    outputs = len(targets_of(labels, kind))
    changed = planned.model_copy(
        update={
            "prepared": f"{planned.prepared}_{name}",
            "targets": kind,
            "network": planned.network.model_copy(update={"out_channels": outputs}),
        }
    )
    for case in dataset.cases:
        if (run.prepared(changed.prepared) / f"{case.identifier}.json").exists():
            continue
        stored, (numbers, _) = open_prepared(source, case.identifier), read_numbers(dataset, case)
        grid = prepare_labels(numbers, stored.properties).astype(np.int32)
        learnt = target.learnt(grid, steps_of(planned)).astype(np.int8)
        place = class_locations(learnt, case.identifier)
        write_prepared(run.prepared(changed.prepared), stored.properties, stored.image[:], learnt, place)
    return changed, labels


def train(run: Any, name: str, configuration: str, fold: int, seconds: float, place: Path) -> None:
    """Trains and keeps the chances of each class, (K, Z, Y, X) on the prepared grid, of the fold's cases."""
    import torch
    from recipes import ProcessorClock
    from trainings import fold_training

    from autounet.inference.bundle import load_network
    from autounet.inference.sliding_window import predict_scores
    from autounet.schema.dataset import Splits
    from autounet.schema.option_table import run_options
    from autounet.schema.plan import Plan
    from autounet.store import open_prepared
    from autounet.training import Horizon, loop, train_fold
    from autounet.workflow.defaults import train_options

    target = TARGETS[name]
    planned = Plan.load(run.plan).configurations[configuration]
    changed, labels = relabelled(run, name, planned, target)
    torch.set_num_threads(1)
    loop.time = ProcessorClock
    changes = {"augmentation": "none", **({"loss": target.loss} if target.loss else {})}
    options = train_options(run_options(()), planned.predicted_steps or 1000, 2).model_copy(update=changes)
    inputs, where, horizon = fold_training(run, configuration, changed, options, place, Horizon(seconds=seconds), fold)
    voxels = np.zeros(target.classes, np.int64)
    for case in inputs.cases:
        stored = open_prepared(run.prepared(changed.prepared), case.identifier)
        assert stored.labels is not None
        voxels += np.bincount(stored.labels[:].ravel(), minlength=target.classes)
    weighs = {"class_voxels": tuple(map(int, voxels))} if target.loss else {}
    inputs = inputs.model_copy(update={"labels": labels, **weighs})
    record = train_fold(inputs, where.model_copy(update={"labels": labels}), horizon)
    model = load_network(changed, place / "weights.safetensors", "cpu")
    (place / "chances").mkdir(exist_ok=True)
    for case in Splits.load(run.splits).validation(fold):
        image = open_prepared(run.prepared(changed.prepared), case).image[:]
        logits = predict_scores([model], image, changed, changed.network.out_channels, "cpu")
        shifted = np.exp(logits - logits.max(0))
        chances = 1 / (1 + np.exp(-logits)) if target.regions else shifted / shifted.sum(0)
        np.save(place / "chances" / f"{case}.npy", chances.astype(np.float16))
    (place / "done.json").write_text(json.dumps({"steps": record.steps}))


# ---- figures -------------------------------------------------------------------------------------------------------


def precisions(run: Any, name: str, configuration: str, fold: int, place: Path) -> np.ndarray:
    """(parameters, least sizes, cases, IoUs) average precision, on the prepared grid."""
    from autounet.datasets import read_numbers
    from autounet.evaluation.overlap_metrics import objects
    from autounet.ops.objects import without_small
    from autounet.preprocessing.prepare import prepare_labels
    from autounet.schema.dataset import Dataset, Splits
    from autounet.schema.plan import Plan
    from autounet.store import read_properties

    target, dataset, cases = TARGETS[name], Dataset.load(run.dataset), Splits.load(run.splits).validation(fold)
    planned = Plan.load(run.plan).configurations[configuration]
    prepared = run.prepared(planned.prepared)
    result = np.full((len(target.parameters), len(SMALLEST), len(cases), len(IOUS)), np.nan)
    for column, case in enumerate(cases):
        numbers, _ = read_numbers(dataset, dataset.case(case))
        reference = prepare_labels(numbers, read_properties(prepared, case)).astype(np.int32)
        chances = np.load(place / "chances" / f"{case}.npy").astype(np.float32)
        for row, parameter in enumerate(target.parameters):
            found = target.back(chances, parameter, steps_of(planned))
            for size, smallest in enumerate(SMALLEST):
                kept = without_small(found, smallest, 1.0)
                both = objects(kept > 0, reference > 0, (kept, reference))
                total = int(kept.max(initial=0)) + both.true
                matched = [int(np.count_nonzero(both.iou > iou)) for iou in IOUS]
                result[row, size, column] = [each / (total - each) if total else np.nan for each in matched]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="without it, objects in 3-D that touch are made")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--folds", default="0,4")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--configuration", default="2d")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()

    from autounet.store.run_folder import RunFolder

    out, folds = given.work / "run", [int(each) for each in given.folds.split(",")]
    if not (out / "prepared_here").exists():
        data = given.data or touching_objects(given.work / "made")
        options = ["--configurations", given.configuration, "--time", "30m", "--device", "cpu"]
        command = ["preprocess", data, "--out", out, *options]
        subprocess.run([sys.executable, "-m", "autounet", *map(str, command)], check=True, env={**os.environ})
        (out / "prepared_here").touch()
    run, rows = RunFolder(out), []
    for name in given.targets.split(","):
        steps, found = [], {}
        for fold in folds:
            place = given.work / f"{name}_{fold}_{given.seconds:g}"
            if not (place / "done.json").exists():
                train(run, name, given.configuration, fold, given.seconds, place)
            steps.append(json.loads((place / "done.json").read_text())["steps"])
            found[fold] = precisions(run, name, given.configuration, fold, place)
        chosen = []
        for fold in folds:
            others = np.concatenate([found[other] for other in folds if other != fold or len(folds) == 1], axis=2)
            best = np.unravel_index(int(np.nanmean(others, (2, 3)).argmax()), others.shape[:2])
            chosen.append(found[fold][best])
        together = np.concatenate(chosen)
        each = [f"{np.nanmean(own[:, 0]):.3f}" for own in chosen]
        rows.append(
            (
                name,
                *each,
                f"{np.nanmean(together[:, 0]):.3f}",
                f"{np.nanmean(together):.3f}",
                ", ".join(map(str, steps)),
            )
        )
        print(rows[-1], flush=True)
    header = ("target", *(f"AP50 of fold {fold}" for fold in folds), "AP50", "mean AP of IoU 0.5 to 0.9", "steps")
    text = f"""# What to learn about objects that touch

- command: `python {public_command([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])}`
- machine: {machine()}; seconds of one core
- commit: {commit()}

{table(header, rows)}
"""
    write_results("object_targets", text, given.results)


if __name__ == "__main__":
    main()
