"""Memory before anything runs: of a training step, and of predicting a case, for any network and device.

`training_memory(labels, options, profile)` gives the measure that the planner takes, `inference_memory` what
prediction needs. Torch is loaded at the first question, not on import.
"""

from __future__ import annotations

from .estimates import InferenceMemory, TrainingMemory, inference_memory, training_memory
from .peak import Margin, memory_margin

__all__ = [
    "InferenceMemory",
    "Margin",
    "TrainingMemory",
    "inference_memory",
    "memory_margin",
    "training_memory",
]
