"""The report of a run: one self-contained page for the person who has to trust its result."""

from .page import write_report

__all__ = ["write_report"]
