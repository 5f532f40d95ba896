"""What goes wrong in processes that predict: each loads its model by one of these."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np

from autounet.prediction.predictor import NetworkScores, Predictor


def _is_first(marker: Path) -> bool:
    """Of all that ask."""
    with suppress(FileExistsError):
        marker.touch(exist_ok=False)
        return True
    return False


def second_raises(marker: Path, model: Path, device: str | None) -> Predictor:
    """One of the processes that call this for a device has a mistake; the other is busy for an hour."""
    if device is None:
        return Predictor(model, None)
    if _is_first(marker):
        time.sleep(3600)
    raise KeyError("a mistake in the program")


def killed_at_its_second_case(marker: Path, model: Path, device: str | None) -> Predictor:
    """The first process that calls this for a device is. Each case that is decided makes the marker a byte longer."""
    predictor = Predictor(model, device, mirror=False)
    decide, doomed, calls = predictor.decide, device is not None and _is_first(marker), count(1)

    def counted(scores: Mapping[str, NetworkScores]) -> np.ndarray:
        with marker.open("a") as file:
            file.write(".")
        if doomed and next(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return decide(scores)

    predictor.decide = counted  # type: ignore[method-assign]
    return predictor
