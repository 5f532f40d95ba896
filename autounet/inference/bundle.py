"""The bundle: a folder with everything that predicting needs, checked when it is loaded. No torch at import.

model/bundle.json                       the record, with a checksum of itself
model/<configuration>/fold_<k>.safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import JsonValue

from autounet import __version__
from autounet.inference.loading import load_network
from autounet.schema.dataset import Dataset
from autounet.schema.errors import ModelError, PlanError
from autounet.schema.options import DataOptions
from autounet.schema.plan import Configuration
from autounet.schema.presence import combinations
from autounet.schema.record import digest
from autounet.schema.run import BundleMember, ModelBundle, RunRecord, Selection
from autounet.schema.stages import with_previous_stages

if TYPE_CHECKING:
    from torch import nn

BUNDLE_FILE = "bundle.json"
PACKAGES = ("torch", "numpy", "scipy")
"""whose versions a prediction may depend on"""


class TrainedFold(NamedTuple):
    """One finished training: its record and its weights file."""

    record: RunRecord
    weights: Path


def pack(
    folder: Path,
    dataset: Dataset,
    options: DataOptions,
    configurations: Mapping[str, Configuration],
    selection: Selection,
    weights: Mapping[str, Mapping[int | None, Path]],
    mean_dice: float | None,
    details: Mapping[str, JsonValue] | None = None,
) -> ModelBundle:
    """Write the bundle of the selected configurations into `folder`, replacing an older bundle in one step.

    `weights` maps configuration and fold to a weights file, beside which lies the fold's `record.json`; what is
    neither selected nor the previous stage of what is selected is left out. Raises ModelError when one of these has
    no fold, when a fold was trained with another version of its configuration, or when `folder` holds other things.
    """
    folder = Path(folder)
    _require_replaceable(folder)
    packed = _needed(selection, configurations, "the model")
    folds = [
        TrainedFold(RunRecord.load(path.with_name("record.json")), path)
        for name in packed
        for path in weights.get(name, {}).values()
    ]
    _require_uniform(folds, configurations, packed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        bundle = ModelBundle(
            **{name: getattr(dataset, name) for name in ("name", "layout", "image_pattern", "suffix", "file_kind")},
            channels=dataset.channels,
            channel_patterns=dataset.channel_patterns or options.channels,
            channel_combinations=combinations(dataset),
            time_points=dataset.time_points,
            labels=dataset.labels,
            configurations={name: configurations[name] for name in packed},
            selection=selection,
            members=tuple(_copy_member(fold, temporary) for fold in folds),
            mean_dice=mean_dice,
            versions={name: version(name) for name in PACKAGES} | {"autounet": __version__},
            details=dict(details or {}),
        )
        bundle = bundle.model_copy(update={"checksum": _record_checksum(_content(bundle))})
        bundle.save(temporary / BUNDLE_FILE)
        os.chmod(temporary, 0o755)
        _replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return bundle


def load_bundle(folder: Path) -> tuple[ModelBundle, Path]:
    """The bundle in `folder` (or in the `model` folder of a run's output folder), and the folder it is in.

    Reads every weights file once for its checksum. Raises ModelError when something is missing, truncated or changed.
    """
    folder = Path(folder)
    if not (folder / BUNDLE_FILE).is_file() and (folder / "model" / BUNDLE_FILE).is_file():
        folder = folder / "model"
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise ModelError(f"{folder} is no model: it has no {BUNDLE_FILE}. Give the model folder of a finished run.")
    bundle = ModelBundle.load(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    if bundle.checksum != _record_checksum(content):
        raise ModelError(
            f"{path} was changed after packing. Copy the model again, or pack it again with autounet select."
        )
    needed = _needed(bundle.selection, bundle.configurations, str(path))
    missing = [name for name in needed if name not in {member.configuration for member in bundle.members}]
    if missing:
        raise ModelError(f"{path} needs {', '.join(missing)}, of which it holds no weights. Pack the model again.")
    for member in bundle.members:
        _check_member(bundle, member, folder)
    return bundle, folder


def build_models(
    bundle: ModelBundle, folder: Path, configuration: str, folds: Sequence[int | None] | None, device: str
) -> list[nn.Module]:
    """The networks of one configuration in eval mode on `device`, one per fold; `folds` None takes all.

    Raises ModelError for a configuration or fold that the bundle does not hold.
    """
    members = [member for member in bundle.members if member.configuration == configuration]
    if not members:
        known = ", ".join(sorted({member.configuration for member in bundle.members}))
        raise ModelError(f"the model holds no configuration {configuration!r}; it holds {known}")
    if folds is not None:
        unknown = sorted(map(_fold_name, set(folds) - {member.fold for member in members}))
        if unknown or not folds:
            known = ", ".join(_fold_name(member.fold) for member in members)
            raise ModelError(f"the model has no fold {', '.join(unknown)} of {configuration}; it has {known}")
        members = [member for member in members if member.fold in folds]
    plan = bundle.configurations[configuration]
    return [load_network(plan, Path(folder) / member.path, device) for member in members]


def file_checksum(path: Path) -> str:
    """blake2b-128 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _needed(selection: Selection, configurations: Mapping[str, Configuration], where: str) -> tuple[str, ...]:
    """What was selected and the previous stages it needs. Raises ModelError when one is not described."""
    try:
        return with_previous_stages(selection.chosen, configurations)
    except PlanError as error:
        raise ModelError(f"{where} cannot be complete: {error}. Train it and pack the model again.") from None


def _fold_name(fold: int | None) -> str:
    """`all` for the model that was trained on all cases."""
    return "all" if fold is None else str(fold)


def _content(bundle: ModelBundle) -> dict[str, JsonValue]:
    """What `save` writes."""
    return {"format_version": ModelBundle.FORMAT_VERSION, **bundle.model_dump(mode="json")}


def _record_checksum(content: Mapping[str, JsonValue]) -> str:
    """Over the file's content but the checksum itself; of the JSON as it is, so that new fields break no old file."""
    return digest({key: value for key, value in content.items() if key != "checksum"})


def _copy_member(fold: TrainedFold, folder: Path) -> BundleMember:
    record = fold.record
    name = f"{record.configuration_name}/fold_{_fold_name(record.fold)}.safetensors"
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    with open(fold.weights, "rb") as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy)
        copy.flush()
        os.fsync(copy.fileno())
    return BundleMember(
        configuration=record.configuration_name, fold=record.fold, path=name, checksum=file_checksum(target)
    )


def _require_uniform(
    folds: Sequence[TrainedFold], configurations: Mapping[str, Configuration], packed: Sequence[str]
) -> None:
    """Every configuration to be packed has folds, all of them trained with the configuration as planned now."""
    for name in packed:
        records = [fold.record for fold in folds if fold.record.configuration_name == name]
        if not records:
            raise ModelError(f"no trained fold of {name}, which was selected or is needed. Train it before packing.")
        if len({record.fold for record in records}) != len(records):
            raise ModelError(f"a fold of {name} is given twice")
        other = [record.fold for record in records if record.configuration != configurations[name].key]
        if other:
            raise ModelError(
                f"fold {', '.join(map(_fold_name, other))} of {name} was trained with another version of the plan. "
                "Train it again, or restore the plan it was trained with."
            )


def _require_replaceable(folder: Path) -> None:
    """Packing replaces a bundle, an empty folder or nothing."""
    if folder.exists() and not (folder / BUNDLE_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is no model. Choose another folder for the model.")


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there is moved aside first and removed last."""
    if not folder.exists():
        os.replace(new, folder)
        return
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _check_member(bundle: ModelBundle, member: BundleMember, folder: Path) -> None:
    if member.configuration not in bundle.configurations:
        raise ModelError(f"{folder}: weights of {member.configuration}, which the model does not describe")
    path = folder / member.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{folder}: the weights {member.path} lie outside the model")
    if not path.is_file():
        raise ModelError(f"{path} is missing. Copy the whole model folder again.")
    if file_checksum(path) != member.checksum:
        raise ModelError(f"{path} is damaged or was changed: its checksum differs. Copy the model again.")
