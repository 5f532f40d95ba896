"""What goes wrong in processes that predict: each loads its model by this."""

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


def killed_at_its_second_case(marker: Path, model: Path, device: str | None) -> Predictor:
    """The first process that calls this for a device is. Each case that is decided makes the marker a byte longer."""
    predictor = Predictor(model, device, mirror=False)
    decide, doomed, calls = predictor.decide, False, count(1)
    if device is not None:
        with suppress(FileExistsError):
            marker.touch(exist_ok=False)
            doomed = True

    def counted(scores: Mapping[str, NetworkScores]) -> np.ndarray:
        with marker.open("a") as file:
            file.write(".")
        if doomed and next(calls) == 2:
            time.sleep(1)  # the first one is written in the meantime
            os.kill(os.getpid(), signal.SIGKILL)
        return decide(scores)

    predictor.decide = counted  # type: ignore[method-assign]
    return predictor
