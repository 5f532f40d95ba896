"""Network families, each in its own file, found by name in one dict."""

from __future__ import annotations

from autounet.nets.family import Family
from autounet.nets.plain import PLAIN

FAMILIES: dict[str, Family] = {"plain": PLAIN}

__all__ = ["FAMILIES", "Family"]
