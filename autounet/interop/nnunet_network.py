"""The network of an nnU-Net model: its architecture as a `NetworkSpec`, and its checkpoints as weights of ours.

PlainConvUNet and ResidualEncoderUNet, as nnU-Net's planners make them; argument names and defaults are those of
dynamic-network-architectures, whose classes nnU-Net builds.

A checkpoint is a pickle, and a pickle may call anything. torch's restricted reader builds tensors and plain values
alone; nnU-Net's losses and its best score are numpy numbers, so those are allowed too, and nothing else is.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from ..nets import FAMILIES
from ..nets.plain import nnunet_plain_name, nnunet_residual_name
from ..schema.errors import ModelError
from ..schema.plan import NetworkSpec

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = {"PlainConvUNet": ("plain", "n_conv_per_stage"), "ResidualEncoderUNet": ("residual", "n_blocks_per_stage")}
"""their class -> our family, and their argument for the length of encoder stages"""
SHAPE = frozenset({"n_stages", "features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage_decoder",
                   "n_conv_per_stage", "n_blocks_per_stage"})  # fmt: skip
IGNORED = frozenset({"dropout_op_kwargs", "deep_supervision", "squeeze_excitation_reduction_ratio"})
"""arguments that change nothing in a prediction where the others are as `_expected` wants them"""


def with_architecture(content: dict[str, Any], where: str) -> dict[str, Any]:
    """A configuration as plans since nnU-Net 2.5 hold it; before, its network's parts stood among the rest.

    Raises ModelError when neither form is there.
    """
    if "architecture" in content:
        return content
    try:
        name, dims = content["UNet_class_name"], len(content["patch_size"])
        blocks, base, most = (
            content[key] for key in ("n_conv_per_stage_encoder", "UNet_base_num_features", "unet_max_num_features")
        )
        arguments = {
            "n_stages": len(blocks),
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(blocks))],
            "strides": content["pool_op_kernel_sizes"],
            "kernel_sizes": content["conv_kernel_sizes"],
            "n_conv_per_stage_decoder": content["n_conv_per_stage_decoder"],
            CLASSES[name][1] if name in CLASSES else "blocks": blocks,
            **_expected(dims),
        }
    except (KeyError, TypeError) as error:
        raise ModelError(f"{where}: the plans describe no network, {error} is missing", "Export it again") from None
    return {**content, "architecture": {"network_class_name": name, "arch_kwargs": arguments}}


def network_spec(
    architecture: Mapping[str, Any], dims: int, in_channels: int, out_channels: int, where: str
) -> NetworkSpec:
    """Raises ModelError naming a class that is not known, or an argument that ours would not follow."""
    name = str(architecture.get("network_class_name", "")).rsplit(".", 1)[-1]
    if name not in CLASSES:
        raise ModelError(
            f"{where}: the architecture {name or 'without a name'} cannot be imported; known are {', '.join(CLASSES)}",
            "Predict with nnU-Net",
        )
    family, blocks = CLASSES[name]
    arguments: dict[str, Any] = dict(architecture.get("arch_kwargs", {}))
    _require_expected(arguments, dims, name, where)
    try:
        stages = int(arguments["n_stages"])
        return NetworkSpec(
            family=family,
            dims=dims,  # type: ignore[arg-type]
            in_channels=in_channels,
            out_channels=out_channels,
            features=_each(arguments["features_per_stage"], stages),
            strides=_steps(arguments["strides"], stages, dims),
            kernel_sizes=_steps(arguments["kernel_sizes"], stages, dims),
            encoder_blocks=_each(arguments[blocks], stages),
            decoder_blocks=_each(arguments["n_conv_per_stage_decoder"], stages - 1),
        )
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise ModelError(f"{where}: the network of the plans is impossible ({problems})", "Export it again") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{where}: the network of the plans lacks a value or has a wrong one ({error})", "Export it again"
        ) from None


def _expected(dims: int) -> dict[str, Any]:
    """What both planners of nnU-Net write, and our networks do."""
    return {
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _require_expected(arguments: Mapping[str, Any], dims: int, name: str, where: str) -> None:
    """Further arguments, as for squeeze and excitation, must be off."""
    expected = _expected(dims)
    for key in [*expected, *arguments]:
        if key in SHAPE | IGNORED:
            continue
        value = arguments.get(key)
        if _plain(value) != _plain(expected.get(key)) and (key in expected or value):
            raise ModelError(
                f"{where}: {name} with {key} {value!r} cannot be imported; known is {expected.get(key)!r}",
                "Predict with nnU-Net",
            )


def _plain(value: Any) -> Any:
    """Classes by their last name, arguments without what changes nothing."""
    if isinstance(value, str):
        return value.rsplit(".", 1)[-1]
    if isinstance(value, Mapping):
        unimportant = {"inplace": True, "negative_slope": 0.01}
        return {key: each for key, each in value.items() if unimportant.get(key) != each}
    return value


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number for all stages, or one for each."""
    return (int(value),) * count if isinstance(value, int) else tuple(int(each) for each in value)


def _steps(value: Any, stages: int, dims: int) -> tuple[tuple[int, ...], ...]:
    """One number for all stages, or for each one number for all axes, or one for each."""
    entries = [value] * stages if isinstance(value, int) else value
    return tuple(_each(entry, dims) for entry in entries)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

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
NNUNET_NAMES = {
    "plain": nnunet_plain_name,
    "residual": nnunet_residual_name,
}
OTHER_NETWORK = "Its trainer may have built another network than that of its plans, and only that can be imported"


class NnunetCheckpoint(NamedTuple):
    """What a prediction needs of one fold."""

    weights: dict[str, Tensor]
    """nnU-Net's names"""
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path, label: str) -> NnunetCheckpoint:
    """`label` is what errors call the file. Raises ModelError when it is damaged, holds anything but tensors, numbers
    and text, or is no checkpoint of nnU-Net v2."""
    content = _load(path, label)
    try:
        weights, arguments = content["network_weights"], content["init_args"]
        axes = content.get("inference_allowed_mirroring_axes")
        return NnunetCheckpoint(
            weights=_without_prefixes(weights),
            configuration=str(arguments["configuration"]),
            trainer=str(content["trainer_name"]),
            mirror_axes=tuple(int(axis) for axis in axes or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{label} is no checkpoint of nnU-Net v2 ({type(error).__name__} {error})",
            "Give a model of nnU-Net v2; those of nnU-Net v1 and of other programs cannot be imported",
        ) from None


def _load(path: Path, label: str) -> Any:
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    with safe_globals(_allowed_globals()):
        try:
            foreign = sorted(get_unsafe_globals_in_checkpoint(path))
        except Exception as error:  # a damaged file leads to whatever its bytes say
            raise ModelError(f"{label} cannot be read as a checkpoint ({error})", "Copy it again") from None
        if foreign:
            raise ModelError(
                f"{label} would build {', '.join(foreign[:5])}, which could run code of its own; only tensors and "
                "plain values are read",
                "Save its weights again with nnU-Net",
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise ModelError(f"{label} cannot be read as a checkpoint ({error})", "Copy it again") from None


def _allowed_globals() -> list[Any]:
    """numpy's numbers: what makes one, their types, and the codec of their bytes."""
    numbers = [np.dtype(name) for name in NUMPY_TYPES]
    functions = [_scalar_function(module) for module in NUMPY_MODULES]
    return [*functions, np.dtype, *(type(each) for each in numbers), *(each.type for each in numbers), codecs.encode]


def _scalar_function(module: str) -> Callable[..., Any]:
    """numpy's function that makes a number, called as checkpoints call it; torch goes by these names."""
    make: Any = np.float64(0).__reduce__()[0]

    def scalar(*arguments: Any) -> Any:
        return make(*arguments)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


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


def convert_weights(weights: Mapping[str, Tensor], spec: NetworkSpec, label: str) -> dict[str, Tensor]:
    """The tensors of `spec`'s network under our names, float32.

    Raises ModelError naming a tensor that is missing, of another shape, or has no place in the network.
    """
    import torch

    with torch.device("meta"):
        wanted = FAMILIES[spec.family].build(spec).state_dict()
    ours = {}
    names = {name: NNUNET_NAMES[spec.family](name, spec) for name in wanted}
    for name, theirs in names.items():
        if theirs not in weights:
            raise ModelError(f"{label} has no tensor {theirs}, which the network of its plans needs", OTHER_NETWORK)
        if weights[theirs].shape != wanted[name].shape:
            shape, expected = tuple(weights[theirs].shape), tuple(wanted[name].shape)
            raise ModelError(f"{label}: {theirs} has the shape {shape} instead of {expected}", OTHER_NETWORK)
        ours[name] = weights[theirs].to(torch.float32)
    known = set(names.values())
    left = [name for name in weights if name not in known and _canonical(name) not in known]
    if left:
        raise ModelError(f"{label} has tensors that the network of its plans lacks, such as {left[0]}", OTHER_NETWORK)
    return ours


def _canonical(name: str) -> str:
    for pattern, replacement in ALIASES:
        name = pattern.sub(replacement, name)
    return name
