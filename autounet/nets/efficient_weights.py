"""Pretrained weights for the encoder of the family efficient, in timm's naming (timm/models/efficientnet.py).

conv_stem.weight, bn1.*, blocks.S.I.{conv_pw, bn1, conv_dw, bn2, se.conv_reduce, se.conv_expand, conv_pwl, bn3}.*
for MBConv stage S and block I, both from 0; in stage 0 blocks.0.I.{conv_dw, bn1, se.*, conv_pw, bn2}.*. Each norm has
weight, bias, running_mean, running_var, and perhaps num_batches_tracked. The names are those of our encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..schema.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

UNUSED = ("conv_head.", "bn2.", "classifier.")
"""what stands after the last block in timm, and not in a U-Net"""
COUNTER = ".num_batches_tracked"
FIRST = "conv_stem.weight"
COLOURS = 3
"""channels of the images of pretraining: red, green, blue"""


def load_pretrained(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the encoder of `network`, as `efficient.build` gives it, to `weights`; see `encoder_weights`.

    Raises ModelError where they do not fit. Nothing is changed in that case.
    """
    fitting = encoder_weights(network, weights)
    network.encoder.load_state_dict(fitting, strict=False)  # type: ignore[union-attr]  # only counters may be left out


def encoder_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `weights` that belong to the encoder of `network`, which may be on the Meta device.

    For one input channel the stem's weights are summed over the colours, so that a grey image gives the same result;
    for other numbers the colours are repeated in turn and scaled by 3 / channels (timm's rule). Raises ModelError
    naming the first tensor that is missing, unknown or of another shape, and for a network that is not 2-D.
    """
    state = network.encoder.state_dict()  # type: ignore[union-attr]
    if state[FIRST].ndim != 4:
        raise ModelError("pretrained weights are two-dimensional, and this network is not. Use a 2-D configuration")
    given = {name: tensor for name, tensor in weights.items() if not name.startswith(UNUSED)}
    missing = sorted(name for name in state.keys() - given.keys() if not name.endswith(COUNTER))
    remedy = "Use weights of timm's efficientnet with the variant of the plan, and 32 base features"
    if missing:
        raise ModelError(f"the pretrained weights lack {missing[0]}. {remedy}")
    unknown = sorted(given.keys() - state.keys())
    if unknown:
        raise ModelError(f"the pretrained weights hold {unknown[0]}, which the network does not have. {remedy}")
    given[FIRST] = for_channels(given[FIRST], state[FIRST].shape[1])
    for name, tensor in given.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(tensor.shape)}, and {tuple(state[name].shape)} in the network"
            raise ModelError(f"{name} is {shapes}. {remedy}")
    return given


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """The stem's weight (outputs, 3, *kernel) for images of `channels` channels."""
    if weight.ndim != 4 or weight.shape[1] != COLOURS or channels == COLOURS:
        return weight
    if channels == 1:
        return weight.float().sum(1, keepdim=True)
    turns = -(-channels // COLOURS)
    return weight.float().repeat(1, turns, 1, 1)[:, :channels] * (COLOURS / channels)
