"""Options written into the folder's dataset.json instead of on the command line, which wins over it.

`channels`, `kinds`, `label`, `regions`, `ignore`, `group`, `palette`, `frames` and `missing_channels` mean what the
options of these names do; classes stand under `labels`, as in nnU-Net's and the Decathlon's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autounet.datasets.layouts.found import read_description
from autounet.schema.errors import DataError
from autounet.schema.options import DataOptions

_TYPES: dict[str, type] = {
    "channels": dict, "kinds": dict, "regions": dict, "label": str, "group": str, "ignore": int, "palette": str,
    "frames": str, "missing_channels": bool,
}  # fmt: skip


def with_description(root: Path, options: DataOptions) -> DataOptions:
    """The options, those left out taken from dataset.json. Raises DataError for entries that no option can have."""
    description = read_description(root)
    given: dict[str, Any] = {key: description[key] for key in _TYPES if isinstance(description.get(key), _TYPES[key])}
    if not all(
        isinstance(pattern, str) and set(pattern) & set("*?/[") for pattern in given.get("channels", {}).values()
    ):
        del given["channels"]  # names, as other programs write them, and no patterns
    try:
        described = DataOptions.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"dataset.json: {where} is {problem['input']!r}: {problem['msg']}. Correct it") from None
    if options.channels:
        described = described.model_copy(
            update={"kinds": {name: kind for name, kind in described.kinds.items() if name in options.channels}}
        )
    missing = {key: getattr(described, key) for key in given if not getattr(options, key)}
    if options.ignore is not None:
        missing.pop("ignore", None)
    return options.model_copy(update=missing)
