"""AutoUNet configures itself: segmentation models planned, trained and cross-validated from a folder of images.

import autounet
segmentation = autounet.load("out/model").predict(array, spacing=(3.0, 1.0, 1.0))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import evaluate as evaluate
    from .api import load as load

__version__ = "0.1.0"
__all__ = ["evaluate", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `evaluate` come with their libraries only when used: importing the package stays instant."""
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'autounet' has no attribute '{name}'")
