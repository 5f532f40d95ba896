"""The network of nnU-Net's plans as a `NetworkSpec`: PlainConvUNet and ResidualEncoderUNet, as its planners make them.

Argument names and defaults are those of dynamic-network-architectures, whose classes nnU-Net builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..schema.errors import ModelError
from ..schema.plan import NetworkSpec

CLASSES = {"PlainConvUNet": ("plain", "n_conv_per_stage"), "ResidualEncoderUNet": ("residual", "n_blocks_per_stage")}
"""their class -> our family, and their argument for the length of encoder stages"""
SHAPE = frozenset({"n_stages", "features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage_decoder",
                   "n_conv_per_stage", "n_blocks_per_stage"})  # fmt: skip
IGNORED = frozenset({"dropout_op_kwargs", "deep_supervision", "squeeze_excitation_reduction_ratio"})
"""arguments that change nothing in a prediction where the others are as `_expected` wants them"""


def with_architecture(content: dict[str, Any], where: str) -> dict[str, Any]:
    """A configuration as plans since nnU-Net 2.5 hold it; before, its network's parts stood beside the rest.

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
        raise ModelError(f"{where}: the plans describe no network: {error} is missing. Export it again") from None
    return {**content, "architecture": {"network_class_name": name, "arch_kwargs": arguments}}


def network_spec(
    architecture: Mapping[str, Any], dims: int, in_channels: int, out_channels: int, where: str
) -> NetworkSpec:
    """Raises ModelError naming a class that is not known, or an argument that ours would not follow."""
    name = str(architecture.get("network_class_name", "")).rsplit(".", 1)[-1]
    if name not in CLASSES:
        raise ModelError(
            f"{where}: the architecture {name or 'without a name'} cannot be imported; known: {', '.join(CLASSES)}. "
            "Predict by nnU-Net"
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
        raise ModelError(f"{where}: the network of the plans is impossible: {problems}. Export it again") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: the network of the plans lacks or garbles {error}. Export it again") from None


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
                f"{where}: {name} with {key} {value!r} cannot be imported; known is {expected.get(key)!r}. Predict by "
                "nnU-Net"
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
