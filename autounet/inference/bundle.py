"""The bundle: a folder with everything that predicting needs, checked when it is loaded. No torch at import.

model/bundle.json                       the record, with checksums of all files and of itself
model/model_card.md                     what people should know before they use the model
model/<configuration>/fold_<k>.safetensors

The same files in one, `<name>.autounet`: see `archive`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import JsonValue

from .. import __version__
from ..planning.validation import network_problems
from ..schema.bundle import BundleMember, ModelBundle, ModelCard
from ..schema.dataset import CaseFacts, Dataset, channel_combinations
from ..schema.errors import ModelError, PlanError
from ..schema.fingerprint import Fingerprint
from ..schema.labels import targets_of
from ..schema.metrics import Metrics
from ..schema.options import DataOptions
from ..schema.plan import Configuration, with_previous_stages
from ..schema.plugins import names, plugins_used, require_plugins
from ..schema.record import new_folder, read_json, utf8, write_text
from ..schema.run import RunRecord
from ..schema.selection import Selection
from ..store.run_folder import RunFolder
from ..store.weights import load_weights
from ..system_memory import require_no_lack_of_memory
from .archive import (
    BUNDLE_FILE,
    CARD_FILE,
    SUFFIX,
    copy_file,
    file_checksum,
    record_checksum,
    record_text,
    replace_folder,
    require_replaceable,
    sealed,
    unpacked,
    write_archive,
)
from .card import card_text
from .summaries import describe

if TYPE_CHECKING:
    from torch import nn

PACKAGES = ("torch", "numpy", "scipy")
"""whose versions a prediction may depend on"""


class FoldWeights(NamedTuple):
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
    fingerprint: Fingerprint | None = None,
    metrics: Metrics | None = None,
    facts: Sequence[CaseFacts] = (),
) -> ModelBundle:
    """Write the bundle of the selected configurations into `folder`, replacing an older bundle in one step.

    `weights` maps configuration and fold to a weights file, in whose folder lies the fold's `record.json`;
    configurations that are neither selected nor the previous stage of a selected one are left out. `fingerprint`,
    `metrics` and the `facts` of cases, where they are known, go into the model card. Raises ModelError when a
    configuration has no fold, when a fold was trained with another version of it, or when `folder` holds other things.
    """
    folder = Path(folder)
    require_replaceable(folder)
    packed = _needed(selection, configurations, "the model")
    folds = [
        FoldWeights(RunRecord.load(path.with_name("record.json")), path)
        for name in packed
        for path in weights.get(name, {}).values()
    ]
    _require_uniform(folds, configurations, packed)
    needed = plugins_used(families=[configurations[name].network.family for name in packed])
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_folder(folder)
    try:
        bundle = ModelBundle(
            **{name: getattr(dataset, name) for name in ("name", "layout", "image_pattern", "suffix", "file_kind")},
            channels=dataset.channels,
            channel_patterns=dataset.channel_patterns or options.channels,
            channel_combinations=channel_combinations(dataset),
            time_points=dataset.time_points,
            labels=dataset.labels,
            configurations={name: configurations[name] for name in packed},
            selection=selection,
            members=tuple(_copy_member(fold, temporary) for fold in folds),
            mean_dice=mean_dice,
            versions={name: version(name) for name in PACKAGES}
            | {"autounet": __version__}
            | {each.package: each.version for each in needed},
            plugins=needed,
            details=dict(details or {}),
            card=describe(fingerprint, metrics, [fold.record for fold in folds], dataset.labels, facts),
        )
        bundle = sealed(bundle)
        write_text(temporary / CARD_FILE, card_text(bundle))
        bundle.save(temporary / BUNDLE_FILE)
        replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return bundle


def load_bundle(model: Path) -> tuple[ModelBundle, Path]:
    """The bundle in a folder (or in the `model` folder of a run's output folder), and the folder it is in.

    A `.autounet` file is unpacked into a temporary folder that goes with the process. Reads every file once for its
    checksum. Raises ModelError when something is missing, truncated or changed.
    """
    folder = unpacked(Path(model)) if Path(model).is_file() else Path(model)
    if not (folder / BUNDLE_FILE).is_file() and (RunFolder(folder).bundle / BUNDLE_FILE).is_file():
        folder = RunFolder(folder).bundle
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise ModelError(
            f"{folder} is no model: it has no {BUNDLE_FILE}",
            "Give the model folder of a finished run, or a .autounet file",
        )
    bundle = ModelBundle.load(path)
    content = read_json(path, str(path))
    if bundle.checksum != record_checksum(content):
        raise ModelError(
            f"{path} was changed after packing", "Copy the model again, or pack it again with autounet select"
        )
    require_plugins(str(path), bundle.plugins)
    needed = _needed(bundle.selection, bundle.configurations, str(path))
    missing = [name for name in needed if name not in {member.configuration for member in bundle.members}]
    if missing:
        raise ModelError(f"{path} needs {', '.join(missing)} and holds no weights of it", "Pack the model again")
    _check_configurations(bundle, path)
    for member in bundle.members:
        _check_member(bundle, member, folder)
    _check_file(folder / CARD_FILE, bundle.card_checksum)
    return bundle, folder


def _check_configurations(bundle: ModelBundle, path: Path) -> None:
    """What a checksum does not say: whoever writes a bundle can seal anything. Raises ModelError."""
    for name, configuration in bundle.configurations.items():
        network, labels = configuration.network, bundle.labels
        previous = 0 if configuration.previous_stage is None else labels.count - 1
        expected = {
            "in_channels": (network.in_channels, len(bundle.channels) + previous),
            "out_channels": (network.out_channels, len(targets_of(labels, configuration.targets))),
            "normalisation": (len(configuration.preprocess.normalisation), len(bundle.channels)),
        }
        problems = list(network_problems(configuration)) if network.family in names("families") else []
        problems += [f"{what} is for {own}, not {wanted}" for what, (own, wanted) in expected.items() if own != wanted]
        if sorted(configuration.preprocess.transpose) != [0, 1, 2]:
            problems.append(f"preprocess.transpose is {configuration.preprocess.transpose}")
        if problems:
            raise ModelError(f"{path} cannot be used: {name}: {'; '.join(problems)}", "Get or pack the model again")


def build_models(
    bundle: ModelBundle, folder: Path, configuration: str, folds: Sequence[int | None] | None, device: str
) -> list[nn.Module]:
    """The networks of one configuration in eval mode on `device`, one per fold; `folds` None takes all.

    Raises ModelError for a configuration or fold that the bundle does not hold.
    """
    members = [member for member in bundle.members if member.configuration == configuration]
    if not members:
        known = ", ".join(sorted({member.configuration for member in bundle.members}))
        raise ModelError(f"the model holds no configuration {configuration!r}; it holds {known}", "Give one of these")
    if folds is not None:
        unknown = sorted(map(_fold_name, set(folds) - {member.fold for member in members}))
        if unknown or not folds:
            known = ", ".join(_fold_name(member.fold) for member in members)
            raise ModelError(
                f"the model has no fold {', '.join(unknown)} of {configuration}; it has {known}", "Give some of these"
            )
        members = [member for member in members if member.fold in folds]
    plan = bundle.configurations[configuration]
    return [load_network(plan, Path(folder) / member.path, device) for member in members]


def load_network(configuration: Configuration, weights: Path, device: str) -> nn.Module:
    """The configuration's network with the weights of a safetensors file, in eval mode on `device`.

    Raises ModelError when the file is missing or damaged, or does not fit the network.
    """
    import torch

    from ..nets import FAMILIES

    spec = configuration.network
    if spec.family not in FAMILIES:
        raise ModelError(
            f"{weights} is for the network family {spec.family!r}, and known are {', '.join(sorted(FAMILIES))}",
            "Predict with the version of autounet that trained it",
        )
    try:
        state = load_weights(weights)
    except ModelError:
        raise
    except Exception as error:
        require_no_lack_of_memory(weights, error)
        raise ModelError(f"{weights} cannot be read as weights ({error})", "Copy or train the model again") from error
    with torch.device("meta"):  # initial values would be thrown away
        network = FAMILIES[spec.family].build(spec)
    if set(dict(network.named_buffers())) - set(state):
        network = FAMILIES[spec.family].build(spec)  # buffers that are computed, not saved
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"{weights} does not fit the plan's network ({error})", "Copy the model again, or train it with this plan"
        ) from None
    network = network.requires_grad_(False).eval().to(device)
    if configuration.channels_last:
        layout = torch.channels_last if spec.dims == 2 else torch.channels_last_3d
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
    return network


def _needed(selection: Selection, configurations: Mapping[str, Configuration], where: str) -> tuple[str, ...]:
    """The selected configurations and the previous stages they need. Raises ModelError when one is missing."""
    try:
        return with_previous_stages(selection.chosen, configurations)
    except PlanError as error:
        raise ModelError(
            f"{where} cannot be complete: {error.message}", "Train what is missing and pack the model again"
        ) from None


def _fold_name(fold: int | None) -> str:
    """`all` for the model that was trained on all cases."""
    return "all" if fold is None else str(fold)


def _copy_member(fold: FoldWeights, folder: Path) -> BundleMember:
    record = fold.record
    name = f"{record.configuration_name}/fold_{_fold_name(record.fold)}.safetensors"
    target = folder / name
    copy_file(fold.weights, target)
    load_weights(fold.weights)  # a model that cannot be loaded is not packed
    return BundleMember(
        configuration=record.configuration_name, fold=record.fold, path=name, checksum=file_checksum(target)
    )


def _require_uniform(
    folds: Sequence[FoldWeights], configurations: Mapping[str, Configuration], packed: Sequence[str]
) -> None:
    """Every configuration to be packed has folds, all of them trained with the configuration as planned now."""
    for name in packed:
        records = [fold.record for fold in folds if fold.record.configuration_name == name]
        if not records:
            raise ModelError(
                f"there is no trained fold of {name}, which was selected or is needed", "Train it before packing"
            )
        if len({record.fold for record in records}) != len(records):
            raise ModelError(f"a fold of {name} is given twice", "Give each fold once")
        other = [record.fold for record in records if record.configuration != configurations[name].key]
        if other:
            raise ModelError(
                f"fold {', '.join(map(_fold_name, other))} of {name} was trained with another version of the plan",
                "Train it again, or restore the plan it was trained with",
            )


def _check_member(bundle: ModelBundle, member: BundleMember, folder: Path) -> None:
    if member.configuration not in bundle.configurations:
        raise ModelError(
            f"{folder} holds weights of {member.configuration}, which its {BUNDLE_FILE} does not describe",
            "Copy the model again",
        )
    path = folder / member.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"{folder} names weights outside of itself: {member.path}", "Do not use it; get the model again"
        )
    _check_file(path, member.checksum)


def _check_file(path: Path, checksum: str | None) -> None:
    if not path.is_file():
        raise ModelError(f"{path} is missing", "Copy the whole model folder again")
    if file_checksum(path) != checksum:
        raise ModelError(f"{path} is damaged or was changed: its checksum differs", "Copy the model again")


def export_bundle(model: Path, out: Path, licence: str | None = None) -> ModelCard:
    """Write the bundle of `model` to `out`: a file where that ends in `.autounet`, else a folder; returns its card.

    `licence` is written into the card; None keeps what is there. Everything in it is checked first. A folder replaces
    an older bundle. Raises ModelError for a damaged model, and for a folder with other things in it.
    """
    out = Path(out)
    as_file = out.name.lower().endswith(SUFFIX)
    if as_file and out.is_dir():
        raise ModelError(f"{out} is a folder", "Give the name of a new file")
    if not as_file:
        require_replaceable(out)
    bundle, folder = load_bundle(Path(model))
    card = bundle.card.model_copy(update={"licence": licence or bundle.card.licence})
    bundle = sealed(bundle.model_copy(update={"card": card}))
    weights = {member.path: folder / member.path for member in bundle.members}
    out.parent.mkdir(parents=True, exist_ok=True)
    if as_file:
        records = {BUNDLE_FILE: utf8(record_text(bundle)), CARD_FILE: utf8(card_text(bundle))}
        write_archive(out, {**records, **weights})
        return card
    temporary = new_folder(out)
    try:
        for name, path in weights.items():
            copy_file(path, temporary / name)
        write_text(temporary / CARD_FILE, card_text(bundle))
        write_text(temporary / BUNDLE_FILE, record_text(bundle))
        replace_folder(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return card
