"""A trained nnU-Net v2 model becomes a bundle that predicts what nnU-Net predicts (`autounet import`).

Read without running any of its code: JSON, and checkpoints by torch's restricted reader. The bundle says what nnU-Net
does: the orientation in which it sees images, its normalisation and resampling, the mirrored axes of its checkpoints,
half-overlapping tiles with Gaussian weights, and logits averaged over folds.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..imageio import file_kind
from ..inference.bundle import pack
from ..schema.bundle import ModelBundle
from ..schema.dataset import Channel, ChannelKind, Dataset
from ..schema.errors import DataError, ModelError
from ..schema.labels import Labels, planned_targets, targets_of
from ..schema.options import DataOptions, TrainOptions
from ..schema.plan import Configuration
from ..schema.run import RunRecord, fold_name
from ..schema.selection import Selection
from ..store.weights import save_weights
from .nnunet_files import (
    DATASET,
    PLANS,
    ModelFolder,
    Source,
    add_first_stages,
    choose_folders,
    finished_folds,
    open_checkpoint,
    open_source,
    read_json,
)
from .nnunet_network import convert_weights
from .nnunet_plans import NnunetPlans, convert_configuration, read_configuration, read_plans
from .nnunet_records import NnunetCheckpoint, read_channels, read_labels

log = logging.getLogger(__name__)

NNUNET_TRAINERS = "nnUNetTrainer"
"""what the names of nnU-Net's trainers begin with; others may build or feed networks in their own way"""
KINDS = {"ct": ChannelKind.ct, "unit": ChannelKind.photo}
"""by the scheme a channel is normalised with"""


class ModelDescription(NamedTuple):
    """Content of a model folder's two JSON files."""

    plans: NnunetPlans
    labels: Labels
    channels: tuple[str, ...]
    ending: str


class ConvertedConfiguration(NamedTuple):
    """One configuration, and the weights of its folds as files of ours."""

    configuration: Configuration
    weights: dict[int | None, Path]
    trainer: str


def import_model(source: Path, out: Path, configurations: Sequence[str] | None = None) -> ModelBundle:
    """Write the bundle of a trained model into `out`; `source` is its folder, the one above it, or an exported zip.

    `configurations` are those to predict with (several: their probabilities are averaged); it need not be given where
    there is one only. A cascade brings its first stage. Folds without a final checkpoint are left out, with a warning.
    Raises ModelError, which names the file, when the model is incomplete or damaged, or does what we cannot repeat.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open_source(source) as model, tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folders = choose_folders(model, configurations)
        described: ModelDescription | None = None
        converted: dict[str, ConvertedConfiguration] = {}
        for name, folder in add_first_stages(model, folders).items():
            own = _read_description(model, folder)
            if described is not None and (own.labels, own.channels) != (described.labels, described.channels):
                raise ModelError(
                    f"{model.label}: {folder.name} has other classes or channels than the others",
                    "Import configurations of one data set",
                )
            described = own
            converted[name] = _convert(model, folder, name, own, Path(scratch) / name)
        assert described is not None
        return _pack(out, tuple(folders), described, converted, model.label)


def _read_description(source: Source, folder: ModelFolder) -> ModelDescription:
    plans, dataset = f"{folder.path}/{PLANS}", f"{folder.path}/{DATASET}"
    described = read_json(source, dataset)
    label = f"{source.label}: {dataset}"
    ending = str(described.get("file_ending", ".nii.gz"))
    try:
        file_kind(f"x{ending}")
    except DataError as error:
        raise ModelError(f"{label}: file_ending {ending!r} is unknown ({error.message})", error.remedy) from None
    return ModelDescription(
        read_plans(read_json(source, plans), f"{source.label}: {plans}"),
        read_labels(described, label),
        read_channels(described, label),
        ending,
    )


def _convert(
    source: Source, folder: ModelFolder, name: str, described: ModelDescription, scratch: Path
) -> ConvertedConfiguration:
    """One checkpoint at a time. Raises ModelError when folds differ in anything but their weights."""
    if folder.unfinished:
        log.warning("%s: left out, without a final checkpoint: %s", folder.name, ", ".join(folder.unfinished))
    configuration: Configuration | None = None
    weights: dict[int | None, Path] = {}
    for fold in finished_folds(source, folder):
        with open_checkpoint(source, folder, fold) as checkpoint:
            own = _configuration(source, folder, name, described, checkpoint)
            if configuration not in (None, own):
                raise ModelError(
                    f"{source.label}: the folds of {folder.path} are predicted differently", "Import only one of them"
                )
            configuration, trainer = own, checkpoint.trainer
            weights[fold] = scratch / fold_name(fold) / "weights.safetensors"
            weights[fold].parent.mkdir(parents=True)
            label = f"{source.label}: {folder.checkpoints[fold]}"
            save_weights(weights[fold], convert_weights(checkpoint.weights, own.network, label))
    assert configuration is not None
    if not trainer.startswith(NNUNET_TRAINERS):
        log.warning("%s: its trainer %s is none of nnU-Net's; it may feed the network otherwise", folder.name, trainer)
    return ConvertedConfiguration(configuration, weights, trainer)


def _configuration(
    source: Source, folder: ModelFolder, name: str, described: ModelDescription, checkpoint: NnunetCheckpoint
) -> Configuration:
    label, labels = f"{source.label}: {folder.path}/{PLANS}", described.labels
    if checkpoint.configuration != name:
        raise ModelError(
            f"{source.label}: {folder.path} holds a checkpoint of {checkpoint.configuration}, not of {name}",
            "Put it back into its own folder",
        )
    cascade = read_configuration(described.plans, name, label).previous_stage is not None
    return convert_configuration(
        described.plans,
        name,
        label,
        in_channels=len(described.channels) + (labels.count - 1 if cascade else 0),
        out_channels=len(targets_of(labels, planned_targets(labels))),
        mirror_axes=checkpoint.mirror_axes,
        regions=bool(labels.regions),
    )


def _pack(
    out: Path,
    chosen: tuple[str, ...],
    described: ModelDescription,
    converted: dict[str, ConvertedConfiguration],
    label: str,
) -> ModelBundle:
    """Records of trainings are written to the weights' folders, where packing reads them; the bundle lacks them."""
    for name, each in converted.items():
        if len(each.configuration.preprocess.normalisation) != len(described.channels):
            raise ModelError(
                f"{label}: {name} normalises other channels than dataset.json names", "Export the model again"
            )
        for fold, path in each.weights.items():
            _record(name, each.configuration, fold).save(path.with_name("record.json"))
    schemes = next(iter(converted.values())).configuration.preprocess.normalisation
    named = zip(described.channels, schemes, strict=True)
    dataset = Dataset(
        root="",
        name=described.plans.dataset_name,
        layout="nnunet",
        channels=tuple(Channel(name=name, kind=KINDS.get(each.scheme, ChannelKind.other)) for name, each in named),
        labels=described.labels,
        labels_declared=True,
        cases=(),
        image_pattern=f"imagesTr/*_0000{described.ending}",
        file_kind=file_kind(f"x{described.ending}"),
        suffix=described.ending,
    )
    trainers = ", ".join(sorted({each.trainer for each in converted.values()}))
    origin = f"imported from nnU-Net: {described.plans.dataset_name}, {trainers}, {described.plans.plans_name}"
    return pack(
        out,
        dataset,
        DataOptions(),
        {name: each.configuration for name, each in converted.items()},
        Selection(chosen=chosen, compared=(), reason=f"{origin}. Chosen on import, compared with nothing."),
        {name: each.weights for name, each in converted.items()},
        mean_dice=None,
        details={"origin": origin},
    )


def _record(name: str, configuration: Configuration, fold: int | None) -> RunRecord:
    """Of a training that happened elsewhere: what is not known stays empty."""
    return RunRecord(
        configuration_name=name,
        configuration=configuration.key,
        fold=fold,
        options=TrainOptions(),
        train_cases=(),
        validation_cases=(),
        device="unknown",
        steps=0,
        seconds=0.0,
        curve=(),
        parameters=0,
        peak_memory_bytes=None,
        versions={},
        events=("imported from nnU-Net",),
    )
