"""Our plain and residual U-Nets beside those of nnU-Net 2.8.1 with the same weights: outputs, gradients, and counts.

    /path/to/nnunet-env/bin/python benchmarks/network_parity.py

Runs in nnU-Net's environment, which has all that our networks import. Every parameter of ours is named as nnU-Net names
it, so the comparison fails where a name of either side is left over. Exit code 1 when anything differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from autounet.nets import FAMILIES
from autounet.nets.plain import nnunet_plain_name, nnunet_residual_name
from autounet.planning.memory import convolution_outputs
from autounet.schema.plan import NetworkSpec

THEIRS = {"plain": (PlainConvUNet, "n_conv_per_stage"), "residual": (ResidualEncoderUNet, "n_blocks_per_stage")}
NAMES: dict[str, Callable[[str, NetworkSpec], str]] = {
    "plain": nnunet_plain_name,
    "residual": nnunet_residual_name,
}
TOPOLOGIES = {
    "2-D": ([(1, 1), (2, 2), (2, 1), (2, 2)], [(3, 3)] * 4),
    "3-D": ([(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3),
    "3-D, anisotropic": ([(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)]),
}
TOLERANCE = 1e-9
"""relative, in float64"""


def their_network(spec: NetworkSpec) -> nn.Module:
    kind, blocks = THEIRS[spec.family]
    arguments: dict[str, Any] = {blocks: spec.encoder_blocks}
    return kind(
        input_channels=spec.in_channels,
        n_stages=len(spec.features),
        features_per_stage=spec.features,
        conv_op=nn.Conv2d if spec.dims == 2 else nn.Conv3d,
        kernel_sizes=spec.kernel_sizes,
        strides=spec.strides,
        num_classes=spec.out_channels,
        n_conv_per_stage_decoder=spec.decoder_blocks,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if spec.dims == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **arguments,
    )


def differences(spec: NetworkSpec) -> list[str]:
    """What differs for one network, in words."""
    torch.manual_seed(0)
    ours, theirs = FAMILIES[spec.family].build(spec).double(), their_network(spec).double()
    # parameters are listed once, tensors with further names (`all_modules`, `decoder.encoder`) under the first
    wanted = dict(theirs.named_parameters())
    named = {NAMES[spec.family](name, spec): parameter for name, parameter in ours.named_parameters()}
    if set(named) != set(wanted):
        return [f"names {sorted(set(named) ^ set(wanted))[:6]} are on one side only"]
    with torch.no_grad():
        for name, parameter in named.items():
            if parameter.shape != wanted[name].shape:
                return [f"{name} has shape {tuple(parameter.shape)} instead of {tuple(wanted[name].shape)}"]
            # also where the initial weights are 0
            wanted[name].normal_(std=0.1)
            parameter.copy_(wanted[name])
    size = [2 * step for step in spec.divisor]
    image = torch.randn(2, spec.in_channels, *size, dtype=torch.float64)
    found = []
    for index, (mine, other) in enumerate(zip(ours.train()(image), theirs(image), strict=True)):
        (mine.square().mean()).backward(retain_graph=True)
        (other.square().mean()).backward(retain_graph=True)
        found += _far(f"output {index}", mine, other)
    for name, parameter in named.items():
        found += _far(f"gradient of {name}", parameter.grad, wanted[name].grad)
    count, expected = convolution_outputs(spec, size, spec.out_channels), _their_count(spec, size)
    return found if count == expected else [*found, f"{count} convolution outputs instead of {expected}"]


def _far(what: str, mine: torch.Tensor | None, other: torch.Tensor | None) -> list[str]:
    if mine is None or other is None:
        return [f"{what} is missing"]
    # gradients of biases before a norm are 0 but for rounding
    error = (mine - other).norm() / (other.norm() + 1e-6)
    return [f"{what}: relative difference {error:.1e}"] if not error < TOLERANCE else []


def _their_count(spec: NetworkSpec, size: list[int]) -> int:
    """As nnU-Net's planners count: without the heads of deep supervision."""
    network = their_network(spec)
    network.decoder.deep_supervision = False
    return int(network.compute_conv_feature_map_size(size))


def main() -> int:
    failures = 0
    for family in THEIRS:
        for title, (strides, kernels) in TOPOLOGIES.items():
            spec = FAMILIES[family].propose(len(strides[0]), 2, 3, strides, kernels, base_features=6)
            # the features of the deepest stages are often equal, and then a skip is pooled but not projected
            spec = spec.model_copy(update={"features": (*spec.features[:-1], spec.features[-2])})
            found = differences(spec)
            failures += bool(found)
            sys.stdout.write(f"{family}, {title}: {'; '.join(found[:5]) or 'equal'}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
