"""Cases as read to cases as trained on, and back to the file's own grid. Works on arrays only."""

from .prepare import Prepared, case_key, prepare_case

__all__ = ["Prepared", "case_key", "prepare_case"]
