"""Which configuration, or which ensemble of them, predicts; what is removed from it; how sure its probabilities are."""

from autounet.selection.calibrate import Sample, calibrate
from autounet.selection.choose import select
from autounet.selection.postprocess import CaseTable, Judgement, apply_steps, held_out, judge, tabulate

__all__ = [
    "CaseTable",
    "Judgement",
    "Sample",
    "apply_steps",
    "calibrate",
    "held_out",
    "judge",
    "select",
    "tabulate",
]
