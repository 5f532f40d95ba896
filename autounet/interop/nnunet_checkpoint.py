"""nnU-Net's checkpoints without running what is in them, and their tensors under our names.

A checkpoint is a pickle, and a pickle may call anything. torch's restricted reader builds tensors and plain values
alone; nnU-Net's losses and its best score are numpy numbers, so those are allowed too, and nothing else is.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..nets import FAMILIES, plain, residual
from ..schema.errors import ModelError
from ..schema.plan import NetworkSpec
from .nnunet_files import CHECKPOINT, PLANS, ModelFolder, Source, model_folders, read_json
from .nnunet_plans import read_plans, their_configuration

if TYPE_CHECKING:
    from torch import Tensor

NUMPY_TYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""where numpy 1 and 2 have the function `scalar`"""
PREFIXES = ("module.", "_orig_mod.")
"""what torch's data parallel and compiled modules put before names"""
ALIASES = ((re.compile(r"^decoder\.encoder\."), "encoder."), (re.compile(r"\.all_modules\.0\."), ".conv."),
           (re.compile(r"\.all_modules\.\d+\."), ".norm."))  # fmt: skip
"""further names of tensors that nnU-Net's networks list twice"""
THEIR_NAMES = {
    "plain": lambda name, spec: plain.nnunet_name(name, len(spec.features)),
    "residual": residual.nnunet_name,
}


class Checkpoint(NamedTuple):
    """What a prediction needs of one fold."""

    weights: dict[str, Tensor]
    """nnU-Net's names"""
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path, label: str) -> Checkpoint:
    """`label` is what errors call the file. Raises ModelError when it is damaged, holds anything but tensors, numbers
    and text, or is no checkpoint of nnU-Net v2."""
    content = _load(path, label)
    try:
        weights, arguments = content["network_weights"], content["init_args"]
        axes = content.get("inference_allowed_mirroring_axes")
        found = Checkpoint(
            weights=_without_prefixes(weights),
            configuration=str(arguments["configuration"]),
            trainer=str(content["trainer_name"]),
            mirror_axes=tuple(int(axis) for axis in axes or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{label} is no checkpoint of nnU-Net v2: {type(error).__name__} {error}. Models of nnU-Net v1 and of "
            "other programs cannot be imported"
        ) from None
    return found


def _load(path: Path, label: str) -> Any:
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    with safe_globals(_allowed()):
        try:
            foreign = sorted(get_unsafe_globals_in_checkpoint(path))
        except Exception as error:  # a damaged file leads to whatever its bytes say
            raise ModelError(f"{label} cannot be read as a checkpoint: {_first_line(error)}. Copy it again") from None
        if foreign:
            raise ModelError(
                f"{label} wants to build {', '.join(foreign[:5])}, which could run code of its own; only tensors and "
                "plain values are read. Save its weights again with nnU-Net"
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise ModelError(f"{label} cannot be read as a checkpoint: {_first_line(error)}. Copy it again") from None


def _allowed() -> list[Any]:
    """numpy's numbers: what makes one, their types, and the codec of their bytes."""
    numbers = [np.dtype(name) for name in NUMPY_TYPES]
    makers = [_maker(module) for module in NUMPY_MODULES]
    return [*makers, np.dtype, *(type(each) for each in numbers), *(each.type for each in numbers), codecs.encode]


def _maker(module: str) -> Callable[..., Any]:
    """numpy's function that makes a number, called as checkpoints call it; torch goes by these names."""
    make: Any = np.float64(0).__reduce__()[0]

    def scalar(*arguments: Any) -> Any:
        return make(*arguments)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _without_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    named = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is no tensor")
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        named[name] = tensor
    return named


def our_weights(weights: Mapping[str, Tensor], spec: NetworkSpec, label: str) -> dict[str, Tensor]:
    """The tensors of `spec`'s network under our names, float32.

    Raises ModelError naming a tensor that is missing, of another shape, or has no place in the network.
    """
    import torch

    with torch.device("meta"):
        wanted = FAMILIES[spec.family].build(spec).state_dict()
    ours = {}
    names = {name: THEIR_NAMES[spec.family](name, spec) for name in wanted}
    for name, theirs in names.items():
        if theirs not in weights:
            raise ModelError(f"{label} has no tensor {theirs}, which the network of its plans needs. {REMEDY}")
        if weights[theirs].shape != wanted[name].shape:
            found, expected = tuple(weights[theirs].shape), tuple(wanted[name].shape)
            raise ModelError(f"{label}: {theirs} has shape {found} instead of {expected}. {REMEDY}")
        ours[name] = weights[theirs].to(torch.float32)
    known = set(names.values())
    left = [name for name in weights if name not in known and _canonical(name) not in known]
    if left:
        raise ModelError(f"{label} has tensors that the network of its plans has not, as {left[0]}. {REMEDY}")
    return ours


REMEDY = "Its trainer may have built another network than the plans tell; only those of the plans can be imported"


def _canonical(name: str) -> str:
    for pattern, replacement in ALIASES:
        name = pattern.sub(replacement, name)
    return name


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
