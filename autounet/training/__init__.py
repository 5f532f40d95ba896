"""Training one configuration on one fold."""

from __future__ import annotations

from .loop import train_fold
from .probe import probe_device
from .schedule import Horizon

__all__ = ["Horizon", "probe_device", "train_fold"]
