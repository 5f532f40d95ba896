"""Network families, each in its own file, found by name in one dict."""

from __future__ import annotations

from .attention import ATTENTION
from .efficient import EFFICIENT
from .family import Family
from .mednext import MEDNEXT
from .nested import NESTED
from .original import ORIGINAL
from .plain import PLAIN
from .residual import RESIDUAL
from .swin import SWIN
from .unet3d import UNET3D

FAMILIES: dict[str, Family] = {
    "plain": PLAIN,
    "residual": RESIDUAL,
    "original": ORIGINAL,
    "unet3d": UNET3D,
    "nested": NESTED,
    "attention": ATTENTION,
    "swin": SWIN,
    "efficient": EFFICIENT,
    "mednext": MEDNEXT,
}

__all__ = ["FAMILIES", "Family"]
