"""The devices that a command may use."""

from __future__ import annotations

from ..schema.errors import OptionError


def choose_devices(wanted: str) -> list[str]:
    """One or more devices, separated by commas; cuda:all is every GPU. A device named twice gets two processes.

    Raises OptionError for a device that this machine does not have.
    """
    import torch

    if wanted == "cuda:all" and torch.cuda.is_available():
        return [f"cuda:{gpu}" for gpu in range(torch.cuda.device_count())]
    return [choose_device(each.strip()) for each in wanted.split(",")]


def choose_device(wanted: str) -> str:
    """'auto' becomes cuda:0, mps or cpu, what there is; anything else is checked. Raises OptionError."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda:0" if gpus else "mps" if mps else "cpu"
    kind, _, number = wanted.partition(":")
    index = int(number) if number.isdigit() else 0
    if kind == "cuda" and index < gpus:
        return f"cuda:{index}"
    if (kind == "mps" and mps) or wanted == "cpu":
        return kind
    present = ["cpu", *(["mps"] if mps else []), *(f"cuda:{gpu}" for gpu in range(gpus))]
    raise OptionError(f"--device {wanted} is not here; there is {', '.join(present)}", "Give one of these")
