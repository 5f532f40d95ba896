"""Weights as safetensors: nothing is unpickled, so a weights file cannot run code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autounet.schema.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict to a temporary name in the same folder, flush, then rename. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
        except SafetensorError as error:  # its own type even where the disk is full
            raise OSError(f"{path} cannot be written: {error}") from None
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict, on the CPU. Raises ModelError naming the file when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights {path} cannot be read: {error}") from None
