"""What a training starts from, where that is not random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autounet.nets.efficient_weights import load_pretrained
from autounet.nets.transfer import transfer
from autounet.schema.errors import ModelError
from autounet.schema.plan import NetworkSpec
from autounet.store.pretrained import read_pretrained

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Start:
    """Weights in a file."""

    weights: Path
    trained: NetworkSpec | None = None
    """the network whose weights they are; None: they are those of an encoder, in timm's naming"""
    new: tuple[str, ...] = ()
    """tensors of the network that stay as drawn"""
    channels: tuple[int | None, ...] | None = None
    """for each input channel the trained network's, None where it had none; None for all: they are the same"""

    def set(self, network: nn.Module, spec: NetworkSpec) -> None:
        """Put the weights into `network`, as built from `spec`. Raises ModelError naming the file."""
        content = read_pretrained(self.weights)
        try:
            if self.trained is None:
                load_pretrained(network, content)
            else:
                transfer(network, spec, content, self.trained, self.new, self.channels)
        except ModelError as error:
            raise ModelError(f"{self.weights}: {error}") from None
