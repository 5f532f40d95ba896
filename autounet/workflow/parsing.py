"""Options as written on the command line, and as stored, to the records that the program works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from ..schema.errors import OptionError, RecordError
from ..schema.options import NO_WEIGHTS, DataOptions, RunOptions, WeightsSource
from ..schema.plan import Average
from ..schema.quantities import parse_size, parse_time


def named(entries: Sequence[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE options as a dict. Raises OptionError."""
    pairs = {}
    for entry in entries or ():
        name, equals, value = entry.partition("=")
        if not equals or not name or not value:
            raise OptionError(f"{option} {entry}: write {option} NAME=VALUE")
        if name in pairs:
            raise OptionError(f"{option} {name} is given twice")
        pairs[name] = value
    return pairs


def integers(text: str, option: str) -> tuple[int, ...]:
    """`1` or `1,2,3`. Raises OptionError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option}: '{text}' is not a whole number or a comma-separated list of them") from None


def integer(text: str, option: str) -> int:
    values = integers(text, option)
    if len(values) > 1:
        raise OptionError(f"{option}: '{text}' should be one whole number")
    return values[0]


def classes(entries: Sequence[str] | None) -> dict[str, int]:
    """--class NAME=VALUE. Raises OptionError when two names have one value."""
    found = {name: integer(value, f"--class {name}") for name, value in named(entries, "--class").items()}
    if len(set(found.values())) < len(found):
        raise OptionError("--class: two classes have the same value")
    return found


def regions(entries: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """--region NAME=V1,V2,... Raises OptionError."""
    return {name: integers(values, f"--region {name}") for name, values in named(entries, "--region").items()}


def data_options(given: Mapping[str, Any]) -> DataOptions:
    """From the parameters of a command with DATA."""
    return DataOptions(
        channels=named(given["channel"], "--channel"),
        kinds=named(given["kind"], "--kind"),
        label=given["label"],
        classes=classes(given["class_"]),
        regions=regions(given["region"]),
        ignore=given["ignore"],
        group=given["group"],
        splits=_splits(given["splits"]),
        palette=_whole_path(given["palette"]) if given["palette"] else None,
        frames=_frames(given["frames"]),
        missing_channels=given["missing_channels"],
    )


def _frames(text: str | None) -> Literal["channels", "time"] | None:
    if text is None:
        return None
    if text == "channels":
        return "channels"
    if text == "time":
        return "time"
    raise OptionError(f"--frames {text}: write channels or time")


def averaged(text: str | None) -> Average | None:
    """`--average`. Raises OptionError."""
    if text is None:
        return None
    if text == "probabilities":
        return "probabilities"
    if text == "logits":
        return "logits"
    raise OptionError(f"--average {text}: write probabilities or logits")


def weights(text: str | None) -> tuple[float, ...] | None:
    """`--weights`: numbers with commas between. Raises OptionError."""
    if text is None:
        return None
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise OptionError(f"--weights {text}: write numbers with commas between, for example 0.7,0.3") from None


def _splits(text: str | None) -> str | None:
    return text if text in (None, "nnunet") else _whole_path(str(text))


def _weights(text: str | None) -> WeightsSource | None:
    if text is None:
        return None
    return WeightsSource(path=text if text == NO_WEIGHTS else _whole_path(text))


def _metrics(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    from ..evaluation import chosen_metrics

    return chosen_metrics(text.split(","))


def _whole_path(text: str) -> str:
    """Files are kept so: a later command may be given in another folder."""
    return str(Path(text).expanduser().absolute())


def run_options(given: Mapping[str, Any]) -> RunOptions:
    """From the parameters of a command with DATA and run's options. Raises OptionError."""
    configurations, workers = given["configurations"], given["workers"]
    as_given = ("family", "loss", "preset", "folds", "epochs", "iterations", "device", "seed", "deterministic", "track")
    try:
        return RunOptions(
            data=data_options(given),
            memory_bytes=parse_size(given["memory"]) if given["memory"] else None,
            seconds=parse_time(given["time"]) if given["time"] else None,
            configurations=tuple(configurations.split(",")) if configurations else None,
            pretrained=_weights(given["pretrained"]),
            init=_weights(given["init"]),
            metrics=_metrics(given["metrics"]),
            workers=None if workers in (None, "auto") else integer(workers, "--workers"),
            **{name: given[name] for name in as_given},
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise OptionError(f"--{problem['loc'][0]} {problem['input']}: {problem['msg']}") from None


def with_stored(options: RunOptions, file: Path) -> RunOptions:
    """An omitted option takes the value in `file`, options.json. Raises RecordError where that cannot be read."""
    if not file.exists():
        return options
    try:
        stored = RunOptions.load(file)
    except RecordError as error:
        raise RecordError(f"{error}. To go on, delete it and give all options again") from None
    given = options.model_dump(exclude_none=True, exclude_defaults=True)
    data = {**stored.data.model_dump(), **given.pop("data", {})}
    return RunOptions.model_validate({**stored.model_dump(), **given, "data": data})
