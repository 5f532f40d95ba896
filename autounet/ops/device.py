"""The devices that a command may use, and their memory: what is free and what was used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ..schema.errors import OptionError
from ..system_memory import available_memory

if TYPE_CHECKING:
    import torch


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
    if kind == "cuda" and index < gpus and (number.isdigit() or wanted == "cuda"):
        return f"cuda:{index}"
    if (kind == "mps" and mps) or wanted == "cpu":
        return kind
    present = ["cpu", *(["mps"] if mps else []), *(f"cuda:{gpu}" for gpu in range(gpus))]
    raise OptionError(f"--device {wanted} is not here; there is {', '.join(present)}", "Give one of these")


def devices_like(device: str, wanted: str) -> list[str]:
    """`device`, and what else a command may use beside it: of GPUs those that are named, or all that are like it.

    Raises OptionError where other kinds of devices are named, or one of them twice.
    """
    named = choose_devices(wanted) if "," in wanted else []
    if not (device.startswith("cuda") or named):
        return [device]
    import torch

    if any(not each.startswith("cuda") for each in named) or len(set(named)) < len(named):
        raise OptionError(f"--device {wanted}: trainings side by side need different GPUs", "Name each of them once")
    if not named and wanted not in ("auto", "cuda", "cuda:all"):
        return [device]
    found = named or [f"cuda:{gpu}" for gpu in range(torch.cuda.device_count())]
    own = torch.cuda.get_device_properties(device)
    alike = [each for each in map(torch.cuda.get_device_properties, found)]
    others = [
        name
        for name, each in zip(found, alike, strict=True)
        if name != device and (named or (each.name, each.total_memory) == (own.name, own.total_memory))
    ]
    return [device, *others]


def free_memory(device: torch.device) -> int:
    """Bytes that may be used now: a GPU's free memory, or the machine's, limits of control groups respected."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def peak_memory(device: torch.device) -> int | None:
    """Bytes at most allocated on a GPU, or resident on a CPU, since this process began; None where nobody counts."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident() if device.type == "cpu" else None


def peak_resident() -> int:
    """Bytes that this process had resident at most: VmHWM in /proc, else what Windows or `getrusage` count.

    Not `getrusage` on Linux: there a process begins with the peak of the one that started it.
    """
    if sys.platform == "win32":  # which has no module `resource`
        return int(psutil.Process().memory_info().peak_wset)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return 1024 * next(int(each.split()[1]) for each in lines if each.startswith("VmHWM:"))
