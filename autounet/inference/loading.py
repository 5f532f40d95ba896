"""From weights on disk to a network that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autounet.schema.errors import ModelError
from autounet.schema.plan import Configuration

if TYPE_CHECKING:
    from torch import nn


def load_network(configuration: Configuration, weights: Path, device: str) -> nn.Module:
    """The configuration's network with the weights of a safetensors file, in eval mode on `device`.

    Raises ModelError when the file is missing or damaged, or does not fit the network.
    """
    import torch

    from autounet.nets import FAMILIES
    from autounet.store.weights import load_weights

    spec = configuration.network
    if spec.family not in FAMILIES:
        raise ModelError(f"{weights}: unknown network family {spec.family!r}; known are {', '.join(sorted(FAMILIES))}")
    try:
        state = load_weights(weights)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{weights} cannot be read as weights: {error}. Copy or train the model again.") from error
    with torch.device("meta"):  # initial values would be thrown away
        network = FAMILIES[spec.family].build(spec)
    if set(dict(network.named_buffers())) - set(state):
        network = FAMILIES[spec.family].build(spec)  # buffers that are computed, not saved
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{weights} does not fit the plan's network: {error}") from None
    network = network.requires_grad_(False).eval().to(device)
    if configuration.channels_last:
        layout = torch.channels_last if spec.dims == 2 else torch.channels_last_3d
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
    return network
