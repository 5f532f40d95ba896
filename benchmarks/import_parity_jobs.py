"""What `import_parity.py` trains and predicts with nnU-Net: data sets in its raw layout, and the models on them.

Task04 of the Decathlon has small images of one channel that a patch nearly covers, in which nothing is resampled. ACDC,
used where it is given, has slices far apart that are resampled one by one, and several tiles. The synthetic set has
what these lack: two channels, slices along the last axis, a frame of zeros, directions that differ, a cascade, and once
more regions for classes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from autounet.datasets.synthetic import make_case
from autounet.imageio import write_image, write_labels
from autounet.schema.geometry import Geometry

HIPPOCAMPUS, HEARTS = "Dataset004_Hippocampus", "Dataset027_ACDC"
SHAPES, REGIONS = "Dataset901_Shapes", "Dataset902_Regions"
TRAINING_CASES = {HIPPOCAMPUS: 50, HEARTS: 8, SHAPES: 8, REGIONS: 8}
LABELS = {
    SHAPES: {"labels": {"background": 0, "large": 1, "small": 2}},
    REGIONS: {"labels": {"background": 0, "whole": [1, 2], "small": 2}, "regions_class_order": [1, 2]},
}
PLANNERS = {
    "plain": ("ExperimentPlanner", "nnUNetPlans"),
    "residual": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
}
TRAINER = "nnUNetTrainer"
SMALL_BATCH = {"batch_size": 2, "architecture": {"arch_kwargs": {"features_per_stage": [8, 16, 32, 64]}}}
"""the planned networks of Task04 with a quarter of their features: a short training on a CPU must find something"""
DIRECTIONS = ((1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 0, 1, 1, 0, 0, 0, 1, 0))


@dataclass(frozen=True)
class Model:
    """One configuration that is trained and compared."""

    dataset: str
    architecture: str
    configuration: str
    folds: tuple[int | str, ...]
    iterations: int
    edits: dict[str, Any]
    """of the planned configuration: what a short training on a CPU can afford"""
    previous: str | None = None

    def folder(self, results: Path, configuration: str | None = None) -> Path:
        plans = PLANNERS[self.architecture][1]
        return results / self.dataset / f"{TRAINER}__{plans}__{configuration or self.configuration}"


def _network(dims: int, residual: bool) -> dict[str, Any]:
    """A small network of the synthetic set."""
    blocks = {"n_blocks_per_stage": [1, 2, 2]} if residual else {"n_conv_per_stage": [2, 2, 2]}
    strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    kwargs = {
        "n_stages": 3,
        "features_per_stage": [8, 16, 32],
        "strides": [stride[-dims:] for stride in strides],
        "kernel_sizes": [kernel[-dims:] for kernel in kernels],
        "n_conv_per_stage_decoder": [1, 1] if residual else [2, 2],
        **blocks,
    }
    return {"batch_size": 4, "patch_size": [12, 32, 32][-dims:], "architecture": {"arch_kwargs": kwargs}}


def heart_models(iterations: int) -> tuple[Model, ...]:
    """Those of the data set ACDC, with small networks."""
    return tuple(
        Model(HEARTS, architecture, name, (0,), iterations, {**_network(dims, residual), "patch_size": patch})
        for architecture, residual in (("plain", False), ("residual", True))
        for name, dims, patch in (("2d", 2, [96, 96]), ("3d_fullres", 3, [8, 64, 64]))
    )


def models(iterations: int) -> tuple[Model, ...]:
    """Those of the other data sets, each after the one whose segmentations it is trained on."""
    models = []
    for architecture in PLANNERS:
        residual = architecture == "residual"
        models += [
            Model(HIPPOCAMPUS, architecture, "2d", (0,), iterations, {**SMALL_BATCH, "batch_size": 24}),
            Model(HIPPOCAMPUS, architecture, "3d_fullres", (0,) if residual else (0, 1), iterations, SMALL_BATCH),
            Model(SHAPES, architecture, "2d", (0,), iterations, _network(2, residual)),
            Model(SHAPES, architecture, "3d_fullres", (0, 1), iterations, _network(3, residual)),
        ]
    lowres = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": [5.0, 1.7, 1.9],
        "next_stage": "3d_cascade_fullres",
    }
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    return (
        *models,
        Model(REGIONS, "plain", "3d_fullres", (0,), iterations, _network(3, residual=False)),
        Model(SHAPES, "plain", "3d_lowres", ("all",), iterations, lowres),
        Model(SHAPES, "plain", "3d_cascade_fullres", ("all",), iterations, cascade, previous="3d_lowres"),
    )


def jobs(models: tuple[Model, ...]) -> list[dict[str, Any]]:
    """What `nnunet_models.py train` reads, one for each data set and architecture. All edits come before a training."""
    grouped: dict[tuple[str, str], list[Model]] = {}
    for model in models:
        grouped.setdefault((model.dataset, model.architecture), []).append(model)
    return [
        {
            "dataset": int(dataset[7:10]),
            "planner": PLANNERS[architecture][0],
            "plans": PLANNERS[architecture][1],
            "configurations": {model.configuration: model.edits for model in group},
            "trainings": [
                {
                    "configuration": model.configuration,
                    "fold": fold,
                    "iterations": model.iterations,
                    "validate": "next_stage" in model.edits,
                }
                for model in group
                for fold in model.folds
            ],
        }
        for (dataset, architecture), group in grouped.items()
    ]


def make_hippocampus(raw: Path, tests: Path, data: Path, cases: int) -> None:
    """The first cases of the Decathlon folder to train on, the next ones into `tests`, all named as nnU-Net wants."""
    source = json.loads((data / "dataset.json").read_text())
    entries = sorted(source["training"], key=lambda entry: entry["image"])
    train = TRAINING_CASES[HIPPOCAMPUS]
    for index, entry in enumerate(entries[: train + cases]):
        name = Path(entry["image"]).name.removesuffix(".nii.gz")
        images = raw / "imagesTr" if index < train else tests
        images.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / entry["image"], images / f"{name}_0000.nii.gz")
        if index < train:
            (raw / "labelsTr").mkdir(exist_ok=True)
            shutil.copyfile(data / entry["label"], raw / "labelsTr" / f"{name}.nii.gz")
    labels = {name: int(value) for value, name in source["labels"].items()}
    _describe(raw, list(source["modality"].values()), {"labels": labels}, train)


def make_hearts(raw: Path, tests: Path, data: Path, cases: int) -> None:
    """The first cases of ACDC in nnU-Net's raw layout to train on, the next ones into `tests`."""
    train = TRAINING_CASES[HEARTS]
    for index, image in enumerate(sorted((data / "imagesTr").glob("*_0000.nii.gz"))[: train + cases]):
        target = raw / "imagesTr" if index < train else tests
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, target / image.name)
        if index < train:
            label = image.name.replace("_0000", "")
            (raw / "labelsTr").mkdir(exist_ok=True)
            shutil.copyfile(data / "labelsTr" / label, raw / "labelsTr" / label)
    labels = json.loads((data / "dataset.json").read_text())["labels"]
    _describe(raw, ["cineMRI"], {"labels": labels}, train)


def make_shapes(raw: Path, tests: Path, cases: int) -> None:
    """With the classes of the data set that `raw` is named after, or with regions made of them."""
    train = TRAINING_CASES[raw.name]
    for index in range(train + cases):
        image, labels, geometry = shapes_case(index)
        folder = raw / "imagesTr" if index < train else tests
        for channel, values in enumerate(image):
            write_image(folder / f"shapes_{index:03d}_{channel:04d}.nii.gz", values[None], geometry)
        if index < train:
            write_labels(raw / "labelsTr" / f"shapes_{index:03d}.nii.gz", labels, geometry)
    _describe(raw, ["CT", "MRI"], LABELS[raw.name], train)


def shapes_case(index: int) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Two channels with slices along the last array axis, 0 outside the body."""
    rng = np.random.default_rng((901, index))
    shape = tuple(int(size) for size in rng.integers((18, 52, 48), (26, 68, 64)))
    first, labels, made = make_case(rng, shape)  # type: ignore[arg-type]
    second = 3 * ndimage.gaussian_filter(first[0], 1) + rng.normal(scale=20, size=shape)
    image = np.stack([first[0] - 200, second.astype(np.float32)])
    image[:, ndimage.gaussian_filter(first[0], 2) < 0.35 * first.mean()] = 0
    frame = [(2, 1), (3, 5), (4, 2)]
    image, labels = np.pad(image, [(0, 0), *frame]), np.pad(labels, frame)
    through, *inside = made.spacing
    spacing = (*inside, through * float(rng.uniform(1.2, 2)))
    image, labels = image.transpose(0, 2, 3, 1), labels.transpose(1, 2, 0)
    direction = DIRECTIONS[index % len(DIRECTIONS)]
    geometry = Geometry(shape=labels.shape, spacing=spacing, origin=made.origin, direction=direction)  # type: ignore[arg-type]
    return np.ascontiguousarray(image), np.ascontiguousarray(labels), geometry


def _describe(raw: Path, channels: list[str], labels: dict[str, Any], cases: int) -> None:
    description = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        **labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description, indent=1))
