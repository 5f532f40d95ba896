"""Training one configuration on one fold."""

from __future__ import annotations

from autounet.training.loop import train_fold
from autounet.training.probe import probe_device
from autounet.training.schedule import Horizon
from autounet.training.task import FoldTask
from autounet.training.timing import measure_speed, time_steps

__all__ = ["FoldTask", "Horizon", "measure_speed", "probe_device", "time_steps", "train_fold"]
