"""Which configuration, or which ensemble of them, predicts."""

from autounet.selection.choose import select

__all__ = ["select"]
