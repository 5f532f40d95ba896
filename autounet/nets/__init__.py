"""Network families, each in its own file, found by name in one dict."""

from __future__ import annotations

from autounet.nets.attention import ATTENTION
from autounet.nets.efficient import EFFICIENT
from autounet.nets.family import Family
from autounet.nets.mednext import MEDNEXT
from autounet.nets.nested import NESTED
from autounet.nets.original import ORIGINAL
from autounet.nets.plain import PLAIN
from autounet.nets.residual import RESIDUAL
from autounet.nets.swin import SWIN
from autounet.nets.unet3d import UNET3D

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
