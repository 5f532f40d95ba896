"""The command line that repeats a run."""

from __future__ import annotations

import shlex

from ..schema.options import GIB, DataOptions, RunOptions


def run_command(data: str, out: str, options: RunOptions) -> str:
    """`autounet run ...` with every option that was given, quoted for a POSIX shell."""
    words = ["autounet", "run", data, "--out", out, *_data_words(options.data)]
    if options.memory_bytes is not None:
        words += ["--memory", f"{options.memory_bytes / GIB:.10g}GB"]
    if options.seconds is not None:
        words += ["--time", duration_option(options.seconds)]
    if options.configurations is not None:
        words += ["--configurations", ",".join(options.configurations)]
    for name in ("family", "loss", "preset", "folds", "epochs", "iterations", "device", "workers", "seed"):
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    if options.metrics is not None:
        words += ["--metrics", ",".join(options.metrics)]
    if options.deterministic:
        words.append("--deterministic")
    return shlex.join(words)


def duration_option(seconds: float) -> str:
    """30m, 2h, 90s: the largest unit that keeps it a whole number."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.10g}s"


def _data_words(data: DataOptions) -> list[str]:
    words: list[str] = []
    pairs: tuple[tuple[str, dict[str, str]], ...] = (
        ("--channel", data.channels),
        ("--kind", data.kinds),
        ("--class", {name: str(value) for name, value in data.classes.items()}),
        ("--region", {name: ",".join(map(str, values)) for name, values in data.regions.items()}),
    )
    for option, entries in pairs:
        for name, value in entries.items():
            words += [option, f"{name}={value}"]
    for name in ("label", "ignore", "group", "splits", "palette", "frames"):
        value = getattr(data, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    return [*words, "--missing-channels"] if data.missing_channels else words
