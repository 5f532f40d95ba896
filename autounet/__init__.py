"""AutoUNet: from a folder of images and labels to a cross-validated, ensembled segmentation model.

`run`, `plan`, `train` and `check` do what the commands of these names do; `load` and `evaluate` are for models and
their results, `register` for plug-ins. The rest are their records and errors; docs/python.md shows each in use.
"""

from __future__ import annotations

import logging as _logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import AutoUNetError as AutoUNetError
    from .api import Cancelled as Cancelled
    from .api import CheckResult as CheckResult
    from .api import DataError as DataError
    from .api import DeadlineError as DeadlineError
    from .api import Metrics as Metrics
    from .api import Model as Model
    from .api import ModelError as ModelError
    from .api import OptionError as OptionError
    from .api import Plan as Plan
    from .api import Progress as Progress
    from .api import RunResult as RunResult
    from .api import TrainedFold as TrainedFold
    from .api import TrainResult as TrainResult
    from .api import check as check
    from .api import evaluate as evaluate
    from .api import load as load
    from .api import plan as plan
    from .api import register as register
    from .api import run as run
    from .api import train as train

__version__ = "0.1.0"
__all__ = [
    "AutoUNetError",
    "Cancelled",
    "CheckResult",
    "DataError",
    "DeadlineError",
    "Metrics",
    "Model",
    "ModelError",
    "OptionError",
    "Plan",
    "Progress",
    "RunResult",
    "TrainResult",
    "TrainedFold",
    "check",
    "evaluate",
    "load",
    "plan",
    "register",
    "run",
    "train",
]
_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # else Python itself would print warnings


if not TYPE_CHECKING:  # type checkers know each name from above, and that there are no others

    def __getattr__(name: str) -> Any:
        """The interface comes with its libraries only when used: importing the package stays instant."""
        if name in __all__:
            from . import api

            return getattr(api, name)
        raise AttributeError(f"module 'autounet' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The interface and nothing else."""
    return [*__all__, "__version__"]
