"""Small bundles with random weights, as trainings here leave them, for what is exported to nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autounet.inference.bundle import pack
from autounet.nets import FAMILIES
from autounet.schema.dataset import Channel, Dataset
from autounet.schema.labels import LabelClass, Labels, Region, targets_of
from autounet.schema.options import DataOptions, TrainOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, InferenceSpec, NetworkSpec, PreprocessSpec
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection
from autounet.store.weights import save_weights

CLASSES = Labels(classes=tuple(LabelClass(name=n, value=v) for v, n in enumerate(("background", "large", "small"))))
REGIONS = Labels(
    classes=CLASSES.classes, regions=(Region(name="whole", values=(1, 2)), Region(name="core", values=(2,)))
)
CHANNELS = (Channel(name="CT"), Channel(name="T1"))
SCHEMES = (
    ChannelNormalisation(scheme="ct", mean=40.5, std=12.25, lower=-3.0, upper=90.0),
    ChannelNormalisation(scheme="zscore", nonzero_only=True),
)


def configuration(
    dims: int = 3,
    family: str = "plain",
    labels: Labels = CLASSES,
    previous: str | None = None,
    network: Mapping[str, Any] | None = None,
    inference: Mapping[str, Any] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Configuration:
    """Of two channels; what is not given is as nnU-Net does it."""
    ones, twos, kernel = (1,) * dims, (2,) * dims, (3,) * dims
    targets = "regions" if labels.regions else "classes"
    spec = NetworkSpec(
        family=family,
        dims=dims,  # type: ignore[arg-type]
        in_channels=2 + (labels.count - 1 if previous else 0),
        out_channels=len(targets_of(labels, targets)),  # type: ignore[arg-type]
        features=(4, 6, 6),
        strides=(ones, (1,) * (dims - 2) + (2, 2), twos),
        kernel_sizes=((1,) * (dims - 2) + (3, 3), kernel, kernel),
        encoder_blocks=(1, 2, 2),
        decoder_blocks=(1, 1),
    ).model_copy(update=dict(network or {}))
    axes = tuple(range(dims))
    content: dict[str, Any] = {
        "preprocess": PreprocessSpec(
            orientation="ras", spacing=(2.5 if dims == 3 else None, 0.75, 1.0), normalisation=SCHEMES
        ).model_copy(update=dict(preprocess or {})),
        "prepared": f"{dims}d",
        "patch_size": (8,) * (dims - 2) + (16, 20),
        "batch_size": 2,
        "network": spec,
        "targets": targets,
        "mirror_axes": axes,
        "previous_stage": previous,
        "inference": InferenceSpec(
            mirror_axes=axes, average="logits", handover="file" if previous else "grid"
        ).model_copy(update=dict(inference or {})),
        "median_shape": (9, 30, 31),
        "predicted_memory_bytes": 0,
    }
    return Configuration(**{**content, **changes})


def packed(
    folder: Path,
    configurations: Mapping[str, Configuration],
    chosen: Sequence[str] | None = None,
    labels: Labels = CLASSES,
    folds: Sequence[int | None] = (0, 1),
    selection: Mapping[str, Any] | None = None,
    **dataset: Any,
) -> Path:
    """The folder of a bundle below `folder`; `dataset` changes its data set."""
    weights: dict[str, dict[int | None, Path]] = {}
    for place, (name, own) in enumerate(configurations.items()):
        for fold in folds:
            torch.manual_seed(place * 10 + (9 if fold is None else fold))
            path = folder / "trained" / name / f"fold_{fold}" / "weights.safetensors"
            path.parent.mkdir(parents=True)
            state = FAMILIES[own.network.family].build(own.network).state_dict()
            save_weights(path, {key: torch.randn_like(value) * 0.3 for key, value in state.items()})
            _record(name, own, fold).save(path.with_name("record.json"))
            weights.setdefault(name, {})[fold] = path
    content: dict[str, Any] = {
        "root": "", "name": "Dataset777_Shapes", "layout": "nnunet", "channels": CHANNELS, "labels": labels,
        "labels_declared": True, "cases": (), "image_pattern": "*.nii.gz", "file_kind": "nifti", "suffix": ".nii.gz",
    }  # fmt: skip
    made = Selection(chosen=tuple(chosen or configurations), compared=(), reason="only one", **(selection or {}))
    pack(folder / "model", Dataset(**{**content, **dataset}), DataOptions(), configurations, made, weights, None)
    return folder / "model"


def _record(name: str, own: Configuration, fold: int | None) -> RunRecord:
    return RunRecord(
        configuration_name=name, configuration=own.key, fold=fold, options=TrainOptions(), train_cases=(),
        validation_cases=(), device="cpu", steps=1, seconds=1.0, curve=(), parameters=1, peak_memory_bytes=None,
        versions={},
    )  # fmt: skip
