"""Training one configuration on one fold."""

from __future__ import annotations

from autounet.training.loop import train_fold
from autounet.training.probe import probe_device, time_steps
from autounet.training.schedule import Horizon
from autounet.training.task import FoldTask

__all__ = ["FoldTask", "Horizon", "probe_device", "time_steps", "train_fold"]
