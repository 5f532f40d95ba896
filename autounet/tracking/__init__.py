"""Curves, results and reports in TensorBoard, Weights & Biases or MLflow: `--track`.

Each service is one module with a class that does what `Tracker` says; nothing else knows its library.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ..schema.errors import OptionError
from .services import MLflow, TensorBoard, WeightsAndBiases
from .tracker import Background, TrackedRun, Tracker

__all__ = ["LIBRARIES", "TRACKERS", "Background", "TrackedRun", "Tracker", "open_tracker", "require_tracker"]

TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
"""by the word of `--track`: made of the folder that it may write to, and the name of the project"""
LIBRARIES: Final = {name: name for name in TRACKERS}
"""what is imported for each"""


def require_tracker(name: str) -> None:
    """Raises OptionError for an unknown service, and for one whose library is not installed."""
    if name not in TRACKERS:
        raise OptionError(f"--track {name} is unknown; choose one of {', '.join(TRACKERS)}, or none")
    found = find_spec(LIBRARIES[name])
    if found is None or found.origin is None:  # a folder of that name, as wandb makes one, is no library
        raise OptionError(f"--track {name} needs the package {LIBRARIES[name]}: pip install 'autounet[track]'")


def open_tracker(name: str, folder: Path, project: str) -> Background:
    """A tracker that no training waits for and whose failures stop none. Raises OptionError as `require_tracker`."""
    require_tracker(name)
    return Background(name, lambda: TRACKERS[name](folder, project))
