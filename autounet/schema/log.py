"""Reading `log.jsonl`, which a training writes a line at a time."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from autounet.schema.run import EpochLog


def read_log(path: Path) -> list[EpochLog]:
    """The lines of a log; none where there is no file, and a last line cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(EpochLog.model_validate_json(text))
        except ValidationError:
            break
    return lines
