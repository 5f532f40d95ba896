"""One self-contained page about a run, for the person who has to trust its result."""

from __future__ import annotations

from .page import write_report

__all__ = ["write_report"]
