"""Models exported to nnU-Net beside `autounet predict`: both predict the same files, and nearly every voxel is equal.

    python benchmarks/export_parity.py [--only NAME] [--cases 3]

Runs in an environment with nnU-Net 2.8.1 and this package. Small networks of every kind that can be exported are
trained for seconds on the synthetic set of `import_parity_jobs.py`, so that they find something. `autounet export
--format nnunet` writes each, nnU-Net installs the zip with `nnUNetv2_install_pretrained_model_from_zip` and predicts
with the command lines that the export prints, `-device cpu` added, by the entry points of its own programs. Compared
are `autounet predict` with the model, and with the export imported again, which predicts by nnU-Net's rules alone. The
weights of the import have to be the model's, byte for byte. What is in the work folder is not made again.

Exit code 1 when fewer than 99.99 % of the voxels are equal, to the model itself where it predicts by nnU-Net's rules,
or else to the import.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from import_parity import Agreement, agreement_of
from import_parity_jobs import REGIONS, SHAPES, TRAINING_CASES, make_shapes, shapes_case
from measuring import commit, machine, public_command, table, write_results
from nnunet_models import use_folders
from torch.nn import functional

from autounet.api import load
from autounet.imageio import read_labels
from autounet.inference.bundle import load_bundle, pack
from autounet.inference.export import append_one_hot
from autounet.interop.export_nnunet import NnunetExport, export_nnunet
from autounet.interop.import_nnunet import import_model
from autounet.nets import FAMILIES
from autounet.preprocessing import prepare_case
from autounet.schema.dataset import Channel, Dataset
from autounet.schema.labels import LabelClass, Labels, Region, targets_of
from autounet.schema.options import DataOptions, TrainOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, InferenceSpec, NetworkSpec, PreprocessSpec
from autounet.schema.run import RunRecord, fold_name
from autounet.schema.selection import Selection
from autounet.store.weights import save_weights

log = logging.getLogger("benchmark")

LEAST = 0.9999
"""share of equal voxels"""
LEARNING_RATE = 3e-3
FIRST = 900
"""number of the first model's data set in nnU-Net"""
CPU = ("-device", "cpu", "-npp", "0", "-nps", "0")
CLASSES = tuple(LabelClass(name=name, value=value) for value, name in enumerate(("background", "large", "small")))
LABELS = {
    SHAPES: Labels(classes=CLASSES),
    REGIONS: Labels(classes=CLASSES, regions=(Region(name="whole", values=(1, 2)), Region(name="core", values=(2,)))),
}
SCHEMES = (
    ChannelNormalisation(scheme="ct", mean=60.0, std=90.0, lower=-220.0, upper=400.0),
    ChannelNormalisation(scheme="zscore", nonzero_only=True),
)
SPACING = {"2d": (None, 1.0, 1.3), "3d_lowres": (4.0, 1.7, 1.9)}
"""mm; of every other configuration it is that of `FULL`"""
FULL = (2.6, 1.0, 1.3)


@dataclass(frozen=True)
class Model:
    """Configurations that are trained, exported as one model and compared."""

    name: str
    chosen: tuple[str, ...]
    dataset: str = SHAPES
    family: str = "plain"
    folds: tuple[int | None, ...] = (0,)
    as_nnunet: bool = True
    """it predicts by nnU-Net's rules alone"""
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    inference: Mapping[str, Any] = field(default_factory=dict)


TURNED = {"orientation": "as_stored", "transpose": (2, 0, 1)}
MODELS = (
    Model("plain 3d_fullres, 2 folds", ("3d_fullres",), folds=(0, 1)),
    Model("residual 2d", ("2d",), family="residual"),
    Model("regions, 3d_fullres", ("3d_fullres",), REGIONS),
    Model("cascade, by files", ("3d_cascade_fullres",), inference={"handover": "file"}),
    Model("plain 2d", ("2d",)),
    Model("residual 3d_fullres, all cases", ("3d_fullres",), family="residual", folds=(None,)),
    Model("as stored, axes transposed", ("3d_fullres",), preprocess=TURNED),
    Model("not mirrored, tiles overlap by a quarter", ("3d_fullres",), inference={"mirror_axes": (), "overlap": 0.25}),
    Model("3d_lowres", ("3d_lowres",)),
    Model("2d and 3d_fullres averaged", ("2d", "3d_fullres")),
    Model("regions, residual 2d", ("2d",), REGIONS, family="residual"),
    Model("probabilities averaged, 2 folds", ("3d_fullres",), folds=(0, 1), as_nnunet=False,
          inference={"average": "probabilities"}),
    Model("residual cascade, by scores", ("3d_cascade_fullres",), family="residual", as_nnunet=False),
    Model("regions, cascade by files", ("3d_cascade_fullres",), REGIONS, inference={"handover": "file"}),
)  # fmt: skip


def configuration(model: Model, name: str) -> Configuration:
    """A small one of the model, with a network that learns something in seconds."""
    dims, labels = 2 if name == "2d" else 3, LABELS[model.dataset]
    previous = "3d_lowres" if name == "3d_cascade_fullres" else None
    residual, targets = model.family == "residual", "regions" if labels.regions else "classes"
    strides, kernels = ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    mirrored = (1,) if dims == 2 else (0, 2)
    inference = InferenceSpec(mirror_axes=mirrored, average="logits").model_copy(update=model.inference)
    return Configuration(
        preprocess=PreprocessSpec(orientation="ras", spacing=SPACING.get(name, FULL), normalisation=SCHEMES).model_copy(
            update=model.preprocess
        ),
        prepared=name,
        patch_size=(64, 64) if dims == 2 else (12, 32, 32),
        batch_size=4,
        network=NetworkSpec(
            family=model.family,
            dims=dims,  # type: ignore[arg-type]
            in_channels=2 + (labels.count - 1 if previous else 0),
            out_channels=len(targets_of(labels, targets)),  # type: ignore[arg-type]
            features=(8, 16, 32),
            strides=tuple(stride[-dims:] for stride in strides),
            kernel_sizes=tuple(kernel[-dims:] for kernel in kernels),
            encoder_blocks=(1, 2, 2) if residual else (2, 2, 2),
            decoder_blocks=(1, 1) if residual else (2, 2),
        ),
        targets=targets,  # type: ignore[arg-type]
        mirror_axes=inference.mirror_axes,
        previous_stage=previous,
        inference=inference,
        median_shape=(24, 60, 60),
        predicted_memory_bytes=0,
    )


@functools.cache
def raw_cases() -> tuple[Any, ...]:
    return tuple(shapes_case(index) for index in range(TRAINING_CASES[SHAPES]))


def train(own: Configuration, labels: Labels, steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Cross-entropy on random patches with AdamW: enough for classes to be told apart."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    prepared = []
    for image, values, geometry in raw_cases():
        case = prepare_case("case", "", image, values.astype(np.int16), geometry, own.preprocess)
        array = append_one_hot(case.image, case.labels, labels.count) if own.previous_stage else case.image
        prepared.append((array, case.labels))
    network = FAMILIES[own.network.family].build(own.network).train()
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    members = [target.members for target in targets_of(labels, own.targets)]
    for _ in range(steps):
        samples = [_patch(*prepared[rng.integers(len(prepared))], own, rng) for _ in range(own.batch_size)]
        image, target = (torch.from_numpy(np.stack(each)) for each in zip(*samples, strict=True))
        logits = network(image)[0]
        if own.targets == "regions":
            wanted = torch.stack([torch.isin(target, torch.tensor(each)) for each in members], 1).float()
            loss = functional.binary_cross_entropy_with_logits(logits, wanted)
        else:
            loss = functional.cross_entropy(logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def _patch(
    image: np.ndarray, labels: np.ndarray, own: Configuration, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random patch; with a previous stage its channels get holes, as predictions have them."""
    if own.network.dims == 2:
        index = rng.integers(labels.shape[0])
        image, labels = image[:, index], labels[index]
    padding = [(0, max(0, length - size)) for length, size in zip(own.patch_size, labels.shape, strict=True)]
    image, labels = np.pad(image, [(0, 0), *padding]), np.pad(labels, padding)
    starts = [rng.integers(size - length + 1) for length, size in zip(own.patch_size, labels.shape, strict=True)]
    window = tuple(slice(start, start + length) for start, length in zip(starts, own.patch_size, strict=True))
    part = image[(slice(None), *window)].copy()
    part[2:] *= rng.random(part.shape[1:]) < 0.7
    return part, labels[window].astype(np.int64)


def make_model(model: Model, folder: Path, steps: int) -> Path:
    """Train and pack; the path of the bundle."""
    names = ("3d_lowres", *model.chosen) if "3d_cascade_fullres" in model.chosen else model.chosen
    configurations = {name: configuration(model, name) for name in names}
    weights: dict[str, dict[int | None, Path]] = {name: {} for name in names}
    for name, own in configurations.items():
        for fold in model.folds:
            weights[name][fold] = folder / "trained" / name / fold_name(fold) / "weights.safetensors"
            weights[name][fold].parent.mkdir(parents=True)
            state = train(own, LABELS[model.dataset], steps, seed=fold or 0)
            save_weights(weights[name][fold], state)
            RunRecord(
                configuration_name=name, configuration=own.key, fold=fold, options=TrainOptions(), train_cases=(),
                validation_cases=(), device="cpu", steps=steps, seconds=0.0, curve=(), parameters=0,
                peak_memory_bytes=None, versions={},
            ).save(weights[name][fold].with_name("record.json"))  # fmt: skip
    dataset = Dataset(
        root="", name=model.dataset, layout="nnunet", channels=(Channel(name="CT"), Channel(name="MRI")),
        labels=LABELS[model.dataset], labels_declared=True, cases=(), image_pattern="imagesTr/*_0000.nii.gz",
        file_kind="nifti", suffix=".nii.gz",
    )  # fmt: skip
    selection = Selection(chosen=model.chosen, compared=(), reason="Trained briefly, to compare predictions.")
    pack(folder / "model", dataset, DataOptions(), configurations, selection, weights, None)
    return folder / "model"


@dataclass(frozen=True)
class Row:
    name: str
    as_nnunet: bool
    itself: Agreement
    imported: Agreement
    differences: Sequence[str]

    @property
    def passes(self) -> bool:
        decisive = self.itself if self.as_nnunet else self.imported
        return decisive.equal >= LEAST and decisive.found > 0


def exported_model(model: Model, number: int, work: Path, steps: int) -> NnunetExport:
    """Trained, exported, imported again, in folders of its own below `work`, which are made anew."""
    folder = work / "models" / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    bundle = make_model(model, folder, steps)
    exported = export_nnunet(bundle, folder / "exported", dataset=f"Dataset{number}_Parity")
    import_model(exported.paths[1], folder / "again", model.chosen)
    require_equal_weights(bundle, folder / "again")
    log.info("%s: trained and exported", model.name)
    return exported


def predict_with_nnunet(exported: NnunetExport, images: Path, out: Path) -> None:
    """Install, then each command line of the export, on the CPU, by the entry points of nnU-Net's programs."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [["nnUNetv2_install_pretrained_model_from_zip", str(exported.paths[1])]]
    for command in exported.commands:
        words = [str(images) if word == "IMAGES" else word for word in command.split()]
        words = [str(out / word) if word.startswith("SEGMENTATIONS") else word for word in words]
        lines.append([*words, *(CPU if words[0] == "nnUNetv2_predict" else ["-np", "1"])])
    for words in lines:
        (program,) = entry_points(group="console_scripts", name=words[0])
        sys.argv = words
        program.load()()


def agreement_with(model: Path, images: Path, theirs: Path) -> Agreement:
    """Of `autounet predict` with nnU-Net's files, over all cases."""
    predictor = load(model, device="cpu")
    pairs = []
    for first in sorted(images.glob("*_0000.nii.gz")):
        case = first.name.removesuffix("_0000.nii.gz")
        ours = predictor.predict([first, first.with_name(f"{case}_0001.nii.gz")])
        pairs.append((ours, read_labels(theirs / f"{case}.nii.gz")[0]))
    return agreement_of(pairs)


def require_equal_weights(first: Path, second: Path) -> None:
    """Raises ValueError where two bundles hold other weights."""
    (one, here), (other, there) = load_bundle(first), load_bundle(second)
    files = [{member.path: (folder / member.path).read_bytes() for member in bundle.members}
             for bundle, folder in ((one, here), (other, there))]  # fmt: skip
    if files[0] != files[1]:
        raise ValueError(f"the weights of {second} are not those of {first}")


def compared(model: Model, number: int, work: Path, steps: int) -> Row:
    exported = exported_model(model, number, work, steps)
    folder, theirs = work / "models" / str(number), work / "theirs" / str(number)
    predict_with_nnunet(exported, work / "tests", theirs)
    both = [agreement_with(folder / name, work / "tests", theirs / "SEGMENTATIONS") for name in ("model", "again")]
    log.info("%s: %.4f %%, %.4f %% equal", model.name, *(100 * each.equal for each in both))
    return Row(model.name, model.as_nnunet, *both, exported.differences)


def report(rows: Sequence[Row], command: Sequence[str]) -> str:
    """The markdown page."""
    header = ["model", "cases", "equal to predict", "worst case", "equal to the import", "worst case", "a class found",
              "equal where either finds a class"]  # fmt: skip
    lines = [
        [
            row.name,
            str(row.itself.cases),
            *(f"{share:.4%}" for each in (row.itself, row.imported) for share in (each.equal, each.worst)),
            f"{row.itself.found:.1%}",
            f"{row.itself.foreground:.4%}",
        ]
        for row in rows
    ]
    told = {text for row in rows for text in row.differences}
    return "\n".join(
        [
            "# Models exported to nnU-Net 2.8.1 beside `autounet predict`\n",
            f"- command: `python {public_command(command)}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            "- nnU-Net: the zip installed by `nnUNetv2_install_pretrained_model_from_zip`, predicted with the commands "
            "that the export prints and `-device cpu -npp 0 -nps 0`",
            "- weights after export and import: equal, byte for byte, for every model\n",
            table(header, lines),
            f"At least {LEAST:.2%} have to be equal: to `predict` where nothing is told on export, else to `predict` "
            "with the export imported again. What was told:\n",
            *(f"- {text}" for text in sorted(told)),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "autounet-export-parity")
    parser.add_argument("--steps", type=int, default=80, help="of each training")
    parser.add_argument("--cases", type=int, default=3, help="cases predicted")
    parser.add_argument("--only", default="", help="a model's name, or a part of it")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    command, work, rows = [f"benchmarks/{Path(__file__).name}", *sys.argv[1:]], given.work.resolve(), []
    use_folders(work)
    if not (work / "raw" / SHAPES / "dataset.json").exists():
        make_shapes(work / "raw" / SHAPES, work / "tests", given.cases)
    for number, model in enumerate(MODELS, FIRST):
        kept = work / "rows" / f"{number}.json"
        kept.parent.mkdir(exist_ok=True)
        if not kept.exists() and given.only in model.name:
            kept.write_text(json.dumps(asdict(compared(model, number, work, given.steps))))
        if kept.exists() and given.only in model.name:
            row = json.loads(kept.read_text())
            rows.append(Row(**{**row, "itself": Agreement(**row["itself"]), "imported": Agreement(**row["imported"])}))
    text = report(rows, command)
    write_results("export_parity", text, given.results)
    sys.stdout.write(text)
    return 0 if all(row.passes for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
