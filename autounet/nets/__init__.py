"""Network families by name. X.py describes a family without torch; X_modules.py holds its torch modules."""

from __future__ import annotations

from .attention import ATTENTION
from .efficient import EFFICIENT
from .family import Family
from .mednext import MEDNEXT
from .nested import NESTED
from .plain import PLAIN, RESIDUAL
from .swin import SWIN
from .unpadded import ORIGINAL, UNET3D

FAMILIES: dict[str, Family] = {
    family.name: family for family in (PLAIN, RESIDUAL, ORIGINAL, UNET3D, NESTED, ATTENTION, SWIN, EFFICIENT, MEDNEXT)
}

__all__ = ["FAMILIES", "Family"]
