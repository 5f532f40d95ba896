"""Stands in a bundle for autounet's records, which need pydantic: the plan as it was exported, which nobody edits.

The exporter makes modules `schema.plan`, `schema.record`, ... of these names, for the code that is copied beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

PLAN = "plan.json"
Geometry = Shape3 = Box3 = Labels = Configuration = PreprocessSpec = PostprocessStep = ChannelNormalisation = Any
TargetKind = Average = str
overlapping_targets = None
"""asked for while labels are planned only; the plan holds what came of it"""


class OutOfMemory(RuntimeError):
    """Memory ran out, and nothing smaller is left to try."""


class ModelError(ValueError):
    """The network is none of its family's."""


class PlanError(ValueError):
    """The same."""


class Registry(dict[str, Any]):
    """Network families by name, without those of plug-ins."""

    def __init__(self, kind: str, built_in: dict[str, Any], problem: Any) -> None:
        super().__init__(built_in)


def Field(default: Any = ..., **rules: Any) -> Any:
    """The default alone."""
    return default


class Part:
    """Options of a network family: the defaults of the class, and what the plan says."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)

    @classmethod
    def model_validate(cls, content: dict[str, Any]) -> Part:
        return cls(**content)


class Swap(NamedTuple):
    axis: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class NetworkSpec:
    """A network of one family. Sizes per stage, highest resolution first."""

    family: str
    dims: int
    in_channels: int
    out_channels: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    deep_supervision: bool
    options: dict[str, Any]

    @property
    def divisor(self) -> tuple[int, ...]:
        product = [1] * self.dims
        for stride in self.strides:
            product = [total * step for total, step in zip(product, stride, strict=True)]
        return tuple(product)


@dataclass(frozen=True)
class Precision:
    """Number format of the convolutions."""

    name: str = "fp32"
    channels_last: bool = False

    def autocast(self, device_type: str) -> Any:
        """fp16 is for GPUs, on a CPU float32 stands in for it."""
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        if low is None or (self.name == "fp16" and device_type == "cpu"):
            return torch.autocast(device_type, enabled=False)
        return torch.autocast(device_type, dtype=low)


def read_plan(bundle_root: str, mirror: object = True) -> Any:
    """`configs/plan.json`: channels, classes, and for each configuration how images are prepared and predicted.

    `mirror` False leaves mirrored views out. It is read here and not by MONAI, for which texts that begin with $ or @,
    as the name of a class may, are programs and references.
    """
    content = json.loads((Path(bundle_root) / "configs" / PLAN).read_text(encoding="utf-8"))
    plan = _frozen({**content, "configurations": {}})
    plan.configurations = {name: _configuration(own, is_on(mirror)) for name, own in content["configurations"].items()}
    return plan


def is_on(value: object) -> bool:
    """Of a switch: MONAI's command line gives a text unless it is Python's True or False."""
    return str(value).lower() not in ("false", "no", "off", "0")


def _configuration(content: dict[str, Any], mirror: bool) -> Any:
    options = content["network"].pop("options")
    swap = content.pop("swap")
    own = _frozen(content)
    own.network = NetworkSpec(**vars(own.network), options=options)
    own.swap = Swap(swap["axis"], tuple(swap["inputs"]), tuple(swap["outputs"])) if swap and mirror else None
    if not mirror:
        own.inference.mirror_axes = ()
    return own


def _frozen(value: Any) -> Any:
    """Objects in place of dicts, tuples in place of lists."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _frozen(each) for key, each in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
