"""Weights from elsewhere: a file of named tensors, read without running any code in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autounet.schema.errors import ModelError
from autounet.store.weights import load_weights

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("state_dict", "model")
"""keys under which training programs keep the tensors beside other things"""


def read_pretrained(path: Path) -> dict[str, Tensor]:
    """The tensors by name, on the CPU, of a safetensors file or of a file that `torch.save` wrote.

    Raises ModelError naming the file when it is missing, damaged, holds anything but tensors by name, or would need
    code of its own to be read.
    """
    if path.suffix == ".safetensors":
        return load_weights(path)
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever a damaged file leads to
        raise ModelError(f"the weights {path} cannot be read: {error}") from None
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path} does not hold tensors by name. Give a state dict, as safetensors or by torch.save")
    return content
