"""From a fingerprint to a plan. Pure: no files, no torch, no randomness."""

from __future__ import annotations

from ..schema.option_rules import CONFIGURATIONS
from .memory import Measure
from .planner import plan
from .search import PRESETS
from .validation import validate

__all__ = ["CONFIGURATIONS", "PRESETS", "Measure", "plan", "validate"]
