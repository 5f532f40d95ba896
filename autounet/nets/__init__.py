"""Network families by name. X.py describes a family without torch; X_modules.py holds its torch modules."""

from __future__ import annotations

from ..schema.plugins import Registry
from .attention import ATTENTION
from .efficient import EFFICIENT
from .family import Family
from .mednext import MEDNEXT
from .nested import NESTED
from .plain import PLAIN, RESIDUAL
from .swin import SWIN
from .unpadded import ORIGINAL, UNET3D

OWN_FAMILIES = (PLAIN, RESIDUAL, ORIGINAL, UNET3D, NESTED, ATTENTION, SWIN, EFFICIENT, MEDNEXT)


def no_family(name: str, found: object) -> str | None:
    """What is wrong with a family that a plug-in brings under `name`."""
    if not isinstance(found, Family):
        return "is no autounet.nets.Family"
    return None if found.name == name else f"is a family called {found.name}, not {name}"


FAMILIES: Registry[Family] = Registry("families", {family.name: family for family in OWN_FAMILIES}, no_family)
"""with those of plug-ins"""

__all__ = ["FAMILIES", "Family"]
