"""Cases as read to cases as trained on."""

from .prepare import Prepared, prepare_case

__all__ = ["Prepared", "prepare_case"]
