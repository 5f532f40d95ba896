"""Weights as safetensors: nothing is unpickled, so a weights file cannot run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZIP_STORED, ZipFile, is_zipfile

from ..schema.errors import ModelError
from ..schema.record import replacing
from ..system_memory import require_no_lack_of_memory

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
            raise OSError(str(error)) from None  # `replacing` names the file


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict, on the CPU. Raises ModelError naming the file when it is missing, damaged, or not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        require_no_lack_of_memory(path, error)
        raise ModelError(f"the weights {path} cannot be read: {error}", "Copy the file again") from None
    _require_finite(path, state)
    return state


def _require_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """NaN or infinity in a network makes every prediction meaningless, without an error."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(
                f"the weights {path} hold values that are not finite, in {name}", "Copy the file, or train it, again"
            )


def require_uncompressed(path: Path) -> None:
    """Raises ValueError for a compressed file in place of one of `torch.save`: a megabyte of it can fill the memory.

    Files of before torch 1.6, which are no zip, hold what they say.
    """
    if is_zipfile(path):
        with ZipFile(path) as archive:
            if packed := next((each for each in archive.infolist() if each.compress_type != ZIP_STORED), None):
                raise ValueError(f"{packed.filename} in it is compressed, as torch.save writes none")


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
        require_uncompressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever a damaged file leads to
        require_no_lack_of_memory(path, error)
        raise ModelError(f"the weights {path} cannot be read: {error}", "Copy the file again") from None
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path} does not hold tensors by name", "Give a state dict, as safetensors or by torch.save")
    _require_finite(path, content)
    return content
