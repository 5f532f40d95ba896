"""The plain U-Net with squeeze and excitation after every encoder stage (Hu et al., CVPR 2018).

What the planner asks for needs no torch: it is imported in `build` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from autounet.nets.family import Family
from autounet.schema.plan import NetworkSpec
from autounet.schema.record import Part

if TYPE_CHECKING:
    from torch import nn


class SqueezeOptions(Part):
    reduction: int = Field(default=8, ge=1)
    """features of a stage for each of its squeezed ones"""


def squeeze_network(spec: NetworkSpec, options: SqueezeOptions) -> nn.Module:
    from .modules import SqueezeUNet

    return SqueezeUNet(spec, options.reduction)


SQUEEZE = Family("squeeze", squeeze_network, options=SqueezeOptions)
