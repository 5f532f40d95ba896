"""A bundle becomes a trained model of nnU-Net v2 (`autounet export --format nnunet`): the inverse of `import_nnunet`.

    OUT/<dataset>/<trainer>__<plans>__<configuration>/plans.json, dataset.json, fold_<k>/checkpoint_final.pth
    OUT/<dataset>/README.md, model_card.md        commands that predict with it, and what they do in another way
    OUT/<dataset>.zip                             the same for nnUNetv2_install_pretrained_model_from_zip

What nnU-Net cannot express is refused. What it does in its own way while the networks stay the same, such as averaging
logits, is listed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..inference.archive import CARD_FILE
from ..inference.bundle import load_bundle
from ..schema.bundle import ModelBundle
from ..schema.errors import ModelError, OptionError, unknown_name
from ..schema.plan import Configuration, prediction_swap, with_previous_stages
from ..schema.record import new_folder, utf8, write_text
from ..store.weights import load_weights
from .nnunet_files import CHECKPOINT, DATASET, PLANS, fold_folder, model_folder_name
from .nnunet_network import nnunet_weights
from .nnunet_plans import EXPORT_OTHERWISE, TRAINER, nnunet_plans
from .nnunet_records import NnunetCheckpoint, find_reader, nnunet_dataset, write_checkpoint, written_numbers

README = "README.md"
DATASET_NAME = re.compile(r"Dataset\d{3}_\w+")
DECATHLON = re.compile(r"Task(\d{2})_(\w+)")
FIRST_NUMBER, NUMBERS = 500, 500
"""of data sets whose own names say none: nnU-Net's documentation leaves the numbers from 500 on to users"""
DEFAULT_FOLDS = (0, 1, 2, 3, 4)
DEFAULT_OVERLAP = 0.5


class NnunetExport(NamedTuple):
    """What was written."""

    dataset: str
    paths: tuple[Path, ...]
    """the folder of the data set and the zip, or the zip alone"""
    commands: tuple[str, ...]
    """that predict with it, in their order"""
    differences: tuple[str, ...]
    """what these do otherwise than `autounet predict`; sentences"""


def export_nnunet(
    model: Path,
    out: Path,
    configuration: str | None = None,
    folds: Sequence[int | None] | None = None,
    dataset: str | None = None,
) -> NnunetExport:
    """Write the selected configurations (or `configuration`) with their previous stages as models of nnU-Net 2.8.1.

    `out` is a new folder, or the zip alone where it ends in `.zip`. `folds` are those of the configurations that are
    averaged; previous stages come with all. `dataset` is the name in nnU-Net, `Dataset123_Liver`; None makes one.
    Raises OptionError for a wrong name or an `out` that is there, ModelError naming what nnU-Net cannot express.
    """
    bundle, folder = load_bundle(Path(model))
    name = _dataset_name(bundle, dataset)
    if configuration and configuration not in bundle.configurations:
        raise unknown_name("--configuration", configuration, bundle.configurations)
    names = (configuration,) if configuration else bundle.selection.chosen
    zipped = Path(out).suffix.lower() == ".zip"
    if Path(out).exists() and (zipped or not Path(out).is_dir() or any(Path(out).iterdir())):
        raise OptionError(f"{out} is there already", "Give a new folder, or a new zip file")
    members = fold_files(bundle, names, folds)
    commands, differences = predict_commands(bundle, names, members, name), export_differences(bundle, names)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    temporary = new_folder(Path(out))
    try:
        for each, own in members.items():
            _write_configuration(bundle, folder, each, own, temporary / name, name)
        shutil.copyfile(folder / CARD_FILE, temporary / name / CARD_FILE)
        write_text(temporary / name / README, _readme(bundle, commands, differences))
        _zip(temporary, name)
        os.replace(temporary / f"{name}.zip" if zipped else temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    paths = (Path(out),) if zipped else (Path(out) / name, Path(out) / f"{name}.zip")
    return NnunetExport(name, paths, commands, differences)


def _dataset_name(bundle: ModelBundle, given: str | None) -> str:
    """`Dataset123_Liver`, by the data set's own name where that has a number."""
    if given is not None:
        if not DATASET_NAME.fullmatch(given):
            raise OptionError(f"--dataset {given} is no name of nnU-Net's", "Give one such as Dataset123_Liver")
        return given
    if DATASET_NAME.fullmatch(bundle.name):
        return bundle.name
    if decathlon := DECATHLON.fullmatch(bundle.name):
        return f"Dataset{int(decathlon[1]):03d}_{decathlon[2]}"
    plain = re.sub(r"\W+", "_", bundle.name, flags=re.ASCII).strip("_") or "Model"
    return f"Dataset{FIRST_NUMBER + zlib.crc32(utf8(bundle.name)) % NUMBERS}_{plain}"


def fold_files(
    bundle: ModelBundle, names: Sequence[str], folds: Sequence[int | None] | None
) -> dict[str, dict[int | None, str]]:
    """Weights files by configuration, previous stages first, and fold. Raises ModelError for one that is not there."""
    members: dict[str, dict[int | None, str]] = {}
    for name in with_previous_stages(names, bundle.configurations):
        packed = {member.fold: member.path for member in bundle.members if member.configuration == name}
        wanted = packed if folds is None or name not in names else folds
        if missing := [fold for fold in wanted if fold not in packed]:
            known = ", ".join(fold_folder(fold) for fold in packed)
            raise ModelError(
                f"the model has no {fold_folder(missing[0])} of {name}; it has {known}", "Give some of these"
            )
        members[name] = {fold: packed[fold] for fold in wanted}
    return members


def _write_configuration(
    bundle: ModelBundle, source: Path, name: str, members: Mapping[int | None, str], target: Path, dataset: str
) -> None:
    """The folder of one configuration, which has to hold its previous stage's plans as well."""
    where, own = f"{bundle.name}: {name}", bundle.configurations[name]
    _require_all_channels(bundle, where)
    if bundle.labels.objects is not None:
        raise ModelError(f"{where}: objects are told apart, which nnU-Net does not do", "Export it as onnx or torch")
    data = bundle.card.data
    reader, ending = _reader(bundle, own, where)
    channels = [channel.name for channel in bundle.channels]
    cases = data.cases if data else 0
    described = nnunet_dataset(channels, bundle.labels, own.targets, ending, cases, where)
    stages = {each: bundle.configurations[each] for each in with_previous_stages([name], bundle.configurations)}
    spacing = data.spacing if data else tuple(value or 1.0 for value in own.preprocess.spacing)
    plans = nnunet_plans(dataset, reader, stages, spacing, bundle.name).model_dump(mode="json", by_alias=True)
    folder = target / model_folder_name(name)
    for fold, path in members.items():
        place = folder / fold_folder(fold)
        place.mkdir(parents=True)
        weights = nnunet_weights(load_weights(source / path), own.network)
        checkpoint = NnunetCheckpoint(weights, name, TRAINER, mirrored_axes(bundle, own))
        write_checkpoint(place / CHECKPOINT, checkpoint, fold, plans, described)
    for file, content in ((PLANS, plans), (DATASET, described)):
        write_text(folder / file, _json(content))


def _reader(bundle: ModelBundle, own: Configuration, where: str) -> tuple[str, str]:
    """nnU-Net's reader for the images that the configuration was trained on, and the ending of its files."""
    data = bundle.card.data
    dimension = data.dimension if data else 3 if own.network.dims == 3 else None
    highest = max(written_numbers(bundle.labels, own.targets))
    return find_reader(own.preprocess.orientation, bundle.suffix, dimension, highest, where)


def _require_all_channels(bundle: ModelBundle, where: str) -> None:
    combinations = bundle.channel_combinations
    if combinations and not any(all(each) for each in combinations):
        raise ModelError(f"{where}: no image has all channels, and nnU-Net needs all of them", EXPORT_OTHERWISE)


def mirrored_axes(bundle: ModelBundle, own: Configuration) -> tuple[int, ...]:
    """Those of the prediction along which nnU-Net may mirror: it exchanges no classes."""
    swap = prediction_swap(own, bundle.labels)
    return tuple(axis for axis in own.inference.mirror_axes if swap is None or axis != swap.axis)


def export_differences(bundle: ModelBundle, names: Sequence[str]) -> tuple[str, ...]:
    """What nnU-Net does otherwise than `autounet predict` with the same networks, as sentences."""
    return tuple(f"{text}." for text in _differences(bundle, names))


def _differences(bundle: ModelBundle, names: Sequence[str]) -> Iterator[str]:
    selection, labels = bundle.selection, bundle.labels
    for name in with_previous_stages(names, bundle.configurations):
        own = bundle.configurations[name]
        if own.inference.average == "probabilities":
            yield f"{name}: nnU-Net averages logits over views, tiles and folds, as predict --average logits does"
        if mirrored_axes(bundle, own) != own.inference.mirror_axes:
            yield f"{name}: predictions are not mirrored from left to right, since nnU-Net exchanges no classes"
        if own.previous_stage is not None and own.inference.handover == "grid":
            yield (
                f"{name}: the segmentation of {own.previous_stage} goes by way of its files, from which labels are "
                "resampled; predict interpolates its scores"
            )
        if own.precision == "bf16":
            yield f"{name}: on a CPU nnU-Net computes in float32, where predict takes bfloat16"
    if len(names) > 1 and selection.weights and names == selection.chosen:
        weights = ", ".join(f"{weight:.3g}" for weight in selection.weights)
        yield f"nnUNetv2_ensemble averages with equal weights, and predict with {weights}"
    if selection.postprocessing and names == selection.chosen:
        steps = "; ".join(map(str, selection.postprocessing))
        yield f"components are not removed: predict keeps {steps}"
    ending = _reader(bundle, bundle.configurations[names[0]], bundle.name)[1]
    if bundle.suffix and ending != bundle.suffix.lower():
        yield f"images have to be converted to {ending}: nnU-Net does not read {bundle.suffix} so"
    if bundle.channel_combinations:
        yield "every image needs all channels"
    numbers = written_numbers(labels, bundle.configurations[names[0]].targets)
    if numbers != labels.values:
        pairs = ", ".join(f"{own} is {new}" for own, new in zip(labels.values, numbers, strict=True) if own != new)
        yield f"values in segmentations are numbered without gaps: {pairs}"


def predict_commands(
    bundle: ModelBundle, names: Sequence[str], members: Mapping[str, Mapping[int | None, str]], dataset: str
) -> tuple[str, ...]:
    """nnU-Net's command lines, previous stages first; several configurations are averaged at the end."""
    commands = []
    for name, folds in members.items():
        own = bundle.configurations[name]
        out = "SEGMENTATIONS" if tuple(names) == (name,) else f"SEGMENTATIONS_{name}"
        words = ["nnUNetv2_predict", "-i IMAGES", f"-o {out}", f"-d {dataset}", f"-c {name}"]
        if tuple(folds) != DEFAULT_FOLDS:
            words.append("-f " + " ".join("all" if fold is None else str(fold) for fold in folds))
        if own.inference.overlap != DEFAULT_OVERLAP:
            words.append(f"-step_size {1 - own.inference.overlap:.6g}")
        if own.previous_stage is not None:
            words.append(f"-prev_stage_predictions SEGMENTATIONS_{own.previous_stage}")
        if len(names) > 1 and name in names:
            words.append("--save_probabilities")
        commands.append(" ".join(words))
    if len(names) > 1:
        folders = " ".join(f"SEGMENTATIONS_{name}" for name in names)
        commands.append(f"nnUNetv2_ensemble -i {folders} -o SEGMENTATIONS")
    return tuple(commands)


def _readme(bundle: ModelBundle, commands: Sequence[str], differences: Sequence[str]) -> str:
    channels = ", ".join(f"_{index:04d} {channel.name}" for index, channel in enumerate(bundle.channels))
    lines = ["For nnU-Net v2 (2.8.1). Images are called `<case>_0000.<ending>`, by channels: " + channels + ".", ""]
    lines += [f"    {command}" for command in commands]
    if differences:
        lines += ["", "Other than `autounet predict` with this model:", "", *(f"- {text}" for text in differences)]
    return "\n".join(lines) + "\n"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False) + "\n"


def _zip(folder: Path, name: str) -> None:
    """`folder`/NAME.zip of `folder`/NAME, named from there on; weights do not get smaller."""
    with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_STORED) as archive:
        for file in sorted((folder / name).rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
