"""Weights as safetensors: nothing is unpickled, so a weights file cannot run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autounet.atomic import replacing
from autounet.schema.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict to a temporary name in the same folder, flush, then rename. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    content = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        try:
            save_file(content, temporary)
        except SafetensorError as error:  # its own type even where the disk is full
            raise OSError(f"{path} cannot be written: {error}") from None


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict, on the CPU. Raises ModelError naming the file when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights {path} cannot be read: {error}") from None
