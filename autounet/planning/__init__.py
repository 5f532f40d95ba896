"""From a fingerprint to a plan. Pure: no files, no torch, no randomness."""

from __future__ import annotations

from autounet.planning.memory import Measure
from autounet.planning.planner import CONFIGURATIONS, plan
from autounet.planning.presets import PRESETS
from autounet.planning.validation import validate

__all__ = ["CONFIGURATIONS", "PRESETS", "Measure", "plan", "validate"]
