"""The network of an nnU-Net model: its architecture as a `NetworkSpec`, its tensors as weights of ours, and back.

PlainConvUNet and ResidualEncoderUNet, as nnU-Net's planners make them; argument names and defaults are those of
dynamic-network-architectures, whose classes nnU-Net builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from ..nets import FAMILIES
from ..nets.plain import nnunet_plain_name, nnunet_residual_name
from ..schema.errors import ModelError
from ..schema.plan import NetworkSpec

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "dynamic_network_architectures.architectures.unet"
REQUIRED_IMPORTS = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""arguments that nnU-Net looks up by their names"""


class NnunetClass(NamedTuple):
    """A class of nnU-Net's and the family of ours that is the same network."""

    family: str
    blocks: str
    """its argument for the length of encoder stages"""
    tensor: Callable[[str, NetworkSpec], str]
    """our tensor's name and the network -> its name there"""

    def fields(self) -> dict[str, str]:
        """Its argument for each field of `NetworkSpec` that holds a list over stages."""
        return {
            "features": "features_per_stage",
            "strides": "strides",
            "kernel_sizes": "kernel_sizes",
            "encoder_blocks": self.blocks,
            "decoder_blocks": "n_conv_per_stage_decoder",
        }


CLASSES = {
    "PlainConvUNet": NnunetClass("plain", "n_conv_per_stage", nnunet_plain_name),
    "ResidualEncoderUNet": NnunetClass("residual", "n_blocks_per_stage", nnunet_residual_name),
}
FAMILY_CLASSES = {each.family: name for name, each in CLASSES.items()}
SHAPE = frozenset({"n_stages", *(argument for each in CLASSES.values() for argument in each.fields().values())})
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
            CLASSES[name].blocks if name in CLASSES else "blocks": blocks,
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
    arguments = architecture.get("arch_kwargs")
    if not isinstance(arguments, Mapping):
        raise ModelError(f"{where}: the network of the plans has no arguments", "Export it again")
    _require_expected(arguments, dims, name, where)
    try:
        stages = int(arguments["n_stages"])
        values: dict[str, Any] = {
            field: _steps(arguments[argument], stages, dims)
            if field in ("strides", "kernel_sizes")
            else _each(arguments[argument], stages - 1 if field == "decoder_blocks" else stages)
            for field, argument in CLASSES[name].fields().items()
        }
        return NetworkSpec(
            family=CLASSES[name].family,
            dims=dims,  # type: ignore[arg-type]
            in_channels=in_channels,
            out_channels=out_channels,
            **values,
        )
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise ModelError(f"{where}: the network of the plans is impossible ({problems})", "Export it again") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{where}: the network of the plans lacks a value or has a wrong one ({error})", "Export it again"
        ) from None


def nnunet_architecture(spec: NetworkSpec, where: str) -> dict[str, Any]:
    """Inverse of `network_spec`. Raises ModelError for a network that nnU-Net does not have."""
    if spec.family not in FAMILY_CLASSES or spec.options:
        named = f"the family {spec.family}" + (f" with {', '.join(spec.options)}" if spec.options else "")
        raise ModelError(
            f"{where}: nnU-Net has no network of {named}; it has {' and '.join(FAMILY_CLASSES)}",
            "Export it as onnx or torch, or as a bundle",
        )
    name = FAMILY_CLASSES[spec.family]
    values = {argument: getattr(spec, field) for field, argument in CLASSES[name].fields().items()}
    plain = {argument: [list(each) if isinstance(each, tuple) else each for each in value]
             for argument, value in values.items()}  # fmt: skip
    return {
        "network_class_name": f"{MODULE}.{name}",
        "arch_kwargs": {"n_stages": len(spec.features), **plain, **_expected(spec.dims), "dropout_op_kwargs": None},
        "_kw_requires_import": list(REQUIRED_IMPORTS),
    }


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


# ---- tensors ---------------------------------------------------------------------------------------------------------

TWICE = ((".conv.", ".all_modules.0."), (".norm.", ".all_modules.1."))
"""modules that nnU-Net's blocks list a second time"""
ENCODER, AGAIN = "encoder.", "decoder.encoder."
"""its decoder holds the encoder, too"""
OTHER_NETWORK = "Its trainer may have built another network than that of its plans, and only that can be imported"


def all_names(name: str) -> list[str]:
    """All names that nnU-Net's state dict has for one tensor, its own first."""
    names = [name, *(name.replace(own, again) for own, again in TWICE if own in name)]
    return names + [f"{AGAIN}{each.removeprefix(ENCODER)}" for each in names if each.startswith(ENCODER)]


def _own_name(name: str) -> str:
    """The first of `all_names` for any of them."""
    if name.startswith(AGAIN):
        name = ENCODER + name.removeprefix(AGAIN)
    for own, again in TWICE:
        name = name.replace(again, own)
    return name


def _shapes(spec: NetworkSpec) -> dict[str, Tensor]:
    """Tensors without values by our names, with all heads, which nnU-Net always has."""
    import torch

    with torch.device("meta"):
        return FAMILIES[spec.family].build(spec.model_copy(update={"deep_supervision": True})).state_dict()


def _nnunet_name(name: str, spec: NetworkSpec) -> str:
    return CLASSES[FAMILY_CLASSES[spec.family]].tensor(name, spec)


def convert_weights(weights: Mapping[str, Tensor], spec: NetworkSpec, label: str) -> dict[str, Tensor]:
    """The tensors of `spec`'s network under our names, float32.

    Raises ModelError naming a tensor that is missing, of another shape, or has no place in the network.
    """
    import torch

    wanted, ours = _shapes(spec), {}
    names = {name: _nnunet_name(name, spec) for name in wanted}
    for name, theirs in names.items():
        if theirs not in weights:
            raise ModelError(f"{label} has no tensor {theirs}, which the network of its plans needs", OTHER_NETWORK)
        if weights[theirs].shape != wanted[name].shape:
            shape, expected = tuple(weights[theirs].shape), tuple(wanted[name].shape)
            raise ModelError(f"{label}: {theirs} has the shape {shape} instead of {expected}", OTHER_NETWORK)
        ours[name] = weights[theirs].to(torch.float32)
    known = set(names.values())
    left = [name for name in weights if _own_name(name) not in known]
    if left:
        raise ModelError(f"{label} has tensors that the network of its plans lacks, such as {left[0]}", OTHER_NETWORK)
    return ours


def nnunet_weights(weights: Mapping[str, Tensor], spec: NetworkSpec) -> dict[str, Tensor]:
    """Inverse of `convert_weights`, under all of nnU-Net's names, which share one tensor.

    The heads of a network without deep supervision, which only training uses, are 0.
    """
    import torch

    theirs: dict[str, Tensor] = {}
    for name, shape in _shapes(spec).items():
        tensor = weights[name] if name in weights else torch.zeros(shape.shape)
        theirs |= dict.fromkeys(all_names(_nnunet_name(name, spec)), tensor)
    return theirs
