"""Small prepared cases and tasks for tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autounet.nets import FAMILIES
from autounet.schema.geometry import CaseProperties, Geometry
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import TrainOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, PreprocessSpec
from autounet.schema.stage_inputs import TrainingCase, TrainingInputs, TrainingPlace
from autounet.store import write_prepared
from autounet.training.schedule import Horizon

SPEC = PreprocessSpec(
    orientation="ras", spacing=(1.0, 1.0, 1.0), normalisation=(ChannelNormalisation(scheme="zscore"),)
)

BOTH = ("cpu", "cpu")
"""devices of a training in two processes"""
OPTIONS = TrainOptions(learning_rate=5e-3, ema_decay=0.9, augmentation="light", augmented_by="torch")
"""of trainings that are compared: the same samples, whichever process draws them"""


def labels(count: int = 3, ignore: int | None = None) -> Labels:
    names = ("background", *(f"organ{index}" for index in range(1, count)))
    return Labels(classes=tuple(LabelClass(name=name, value=i) for i, name in enumerate(names)), ignore=ignore)


def write_case(
    folder: Path,
    identifier: str,
    shape: tuple[int, int, int],
    seed: int = 0,
    rare: bool = False,
    empty: bool = False,
    noise: float = 0.2,
) -> None:
    """Two bright boxes of classes 1 and 2 in noise; `rare`: and a voxel of class 3; `empty`: noise alone."""
    generator = np.random.default_rng(seed)
    target = np.zeros(shape, np.int8)
    half = [max(1, length // 2) for length in shape]
    target[: half[0], : half[1], : half[2]] = 1
    target[-half[0] :, -half[1] :, -half[2] :] = 2
    if rare:
        target[0, -1, 0] = 3
    if empty:
        target[:] = 0
    image = (generator.normal(size=shape) * noise + target).astype(np.float32)[None]
    locations = {index: np.argwhere(target == index).astype(np.int32) for index in (1, 2, 3)}
    properties = CaseProperties(
        identifier=identifier,
        key="test",
        spec=SPEC,
        geometry=Geometry(shape=shape),
        axes=(0, 1, 2),
        flips=(False, False, False),
        network_shape=shape,
        network_spacing=(1.0, 1.0, 1.0),
        box=tuple((0, length) for length in shape),
        shape=shape,
    )
    write_prepared(folder, properties, image, target, locations)


def configuration(
    patch: tuple[int, ...] = (8, 12, 8), batch: int = 2, precision: str = "fp32", classes: int = 3
) -> Configuration:
    dims = len(patch)
    network = FAMILIES["plain"].propose(
        dims, 1, classes, [(1,) * dims, (2,) * dims, (2,) * dims], [(3,) * dims] * 3, base_features=4
    )
    return Configuration(
        preprocess=SPEC,
        prepared="test",
        patch_size=patch,
        batch_size=batch,
        network=network,
        precision=precision,
        channels_last=precision != "fp32",
        mirror_axes=tuple(range(dims)),
        median_shape=(12, 16, 12),
        predicted_memory_bytes=0,
    )


@dataclass(frozen=True)
class Training:
    """What `train_fold` takes, and the configuration and labels that it was made from."""

    inputs: TrainingInputs
    place: TrainingPlace
    horizon: Horizon
    configuration: Configuration

    def __iter__(self) -> Iterator[TrainingInputs | TrainingPlace | Horizon]:
        return iter((self.inputs, self.place, self.horizon))

    @property
    def options(self) -> TrainOptions:
        return self.inputs.options

    @property
    def labels(self) -> Labels:
        return self.place.labels

    @property
    def folder(self) -> Path:
        return self.place.folder


def task(root: Path, horizon: Horizon, workers: int = 0, **changes: object) -> Training:
    """A training on four small cases, prepared below `root`; `changes` are fields of its inputs or its place."""
    names = tuple(f"case{number}" for number in range(4))
    for number, name in enumerate(names):
        if not (root / "prepared" / f"{name}.json").exists():
            write_case(root / "prepared", name, (12, 10 + 2 * number, 12), number)
    given = {"labels": labels(), "configuration": configuration(), "train_cases": names[:3], "annotated": {}, **changes}
    present, annotated = given.pop("present", {}), given["annotated"]
    cases = tuple(
        TrainingCase(identifier=name, prepared="test", annotated=annotated.get(name), present=present.get(name))
        for name in given.pop("train_cases")
    )
    inputs: dict[str, object] = {
        "options": TrainOptions(), "fold": 0, "steps": horizon.steps, "promised_seconds": horizon.seconds,
        "cases": cases, "labels": given["labels"].nameless,
    }  # fmt: skip
    place: dict[str, object] = {
        "configuration_name": "3d_fullres", "prepared": root / "prepared", "validation_cases": names[3:],
        "folder": root / "models" / "fold_0", "workers": workers,
    }  # fmt: skip
    inputs |= {name: value for name, value in given.items() if name in TrainingInputs.model_fields and name != "labels"}
    inputs["configuration"] = given["configuration"].trained
    place |= {name: value for name, value in given.items() if name in TrainingPlace.model_fields and name != "initial"}
    place |= {"initial": given["weights"]} if "weights" in given else {}
    return Training(TrainingInputs(**inputs), TrainingPlace(**place), horizon, given["configuration"])
