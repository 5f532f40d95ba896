"""Training one configuration on one fold."""

from __future__ import annotations

from ..time_budget.benchmark import measure_speed, time_steps
from .loop import train_fold
from .probe import probe_device
from .schedule import Horizon

__all__ = ["Horizon", "measure_speed", "probe_device", "time_steps", "train_fold"]
