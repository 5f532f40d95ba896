"""Which of the models in a folder or zip of nnU-Net's are meant, and their checkpoints one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from autounet.interop.nnunet_checkpoint import Checkpoint, read_checkpoint
from autounet.interop.nnunet_files import CHECKPOINT, PLANS, ModelFolder, Source, model_folders, read_json
from autounet.interop.nnunet_plans import read_plans, their_configuration
from autounet.schema.errors import ModelError


def wanted_folders(source: Source, names: Sequence[str] | None) -> dict[str, ModelFolder]:
    """By configuration the folders to predict with. Raises ModelError when the names do not decide it."""
    found = model_folders(source)
    if source.given and names is None:
        return {_configuration_of(source, found[source.given]): found[source.given]}
    by_name: dict[str, list[ModelFolder]] = {}
    for folder in found.values():
        by_name.setdefault(_configuration_of(source, folder), []).append(folder)
    if names is None and len(by_name) > 1:
        known = ", ".join(sorted(by_name))
        raise ModelError(f"{source.label} holds several configurations: {known}. Choose with --configuration")
    chosen: dict[str, ModelFolder] = {}
    for name in names or by_name:
        candidates = by_name.get(name, [])
        if len(candidates) != 1:
            held = ", ".join(sorted(folder.path for folder in candidates or found.values()))
            problem = "several models" if candidates else "no model"
            raise ModelError(f"{source.label} holds {problem} of {name}; there are {held}. Give the folder of one")
        chosen[name] = candidates[0]
    return chosen


def _configuration_of(source: Source, folder: ModelFolder) -> str:
    """By the folder's name; where that was changed, by its first checkpoint."""
    if folder.configuration is not None:
        return folder.configuration
    with opened_checkpoint(source, folder, next(iter(finished_folds(source, folder)))) as checkpoint:
        return checkpoint.configuration


def finished_folds(source: Source, folder: ModelFolder) -> dict[int | None, str]:
    """The checkpoints by fold. Raises ModelError when there is none."""
    if not folder.checkpoints:
        raise ModelError(
            f"{source.label}: {folder.path} has no fold with a {CHECKPOINT}. Finish its training, or export it again"
        )
    return folder.checkpoints


def with_first_stages(source: Source, folders: dict[str, ModelFolder]) -> dict[str, ModelFolder]:
    """With the folder of each previous stage, of the same trainer and plans. Raises ModelError where it is missing."""
    found = model_folders(source)
    complete = dict(folders)
    for name, folder in folders.items():
        plans = f"{folder.path}/{PLANS}"
        label = f"{source.label}: {plans}"
        previous = their_configuration(read_plans(read_json(source, plans), label), name, label).previous_stage
        if previous is None or previous in complete:
            continue
        if (place := folder.sibling(previous)) not in found:
            raise ModelError(
                f"{source.label}: {name} is the second stage of a cascade, and {place}, its first, is missing. Put it "
                "beside, or export both"
            )
        complete[previous] = found[place]
    return complete


@contextmanager
def opened_checkpoint(source: Source, folder: ModelFolder, fold: int | None) -> Iterator[Checkpoint]:
    name = folder.checkpoints[fold]
    with source.file(name) as path:
        yield read_checkpoint(path, f"{source.label}: {name}")
