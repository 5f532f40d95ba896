"""What the mean over views, networks and tiles is taken of: logits, or probabilities, whose mean becomes logits again.

A mean of probabilities is that of the mixture of the networks: none of them can outvote the others by being surer than
all probabilities allow, which one large logit can, and its log-likelihood is never below the networks' mean (Jensen).
As logits of the mean it goes the same ways as logits do: resampled, decided on, kept as float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..schema.labels import TargetKind
from ..schema.plan import Average

SMALLEST = torch.finfo(torch.float32).tiny
"""probability below which no class falls: the logits of the mean end at -87"""
LARGEST = 1 - 2**-24
"""of 2 p - 1 of an overlapping target: its logits end at +-17"""


class Pooling(NamedTuple):
    """A way to average."""

    shares: Callable[[Tensor], Tensor]
    """of logits (B, K, *P): what the mean is taken of"""
    scores: Callable[[Tensor], Tensor]
    """logits (K, *S) of a mean; may change it in place"""


def _same(values: Tensor) -> Tensor:
    return values


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits.float(), 1)


def _log(mean: Tensor) -> Tensor:
    return mean.clamp_(min=SMALLEST).log_()


def _signed(logits: Tensor) -> Tensor:
    """2 sigmoid - 1, which keeps the sign of the smallest logits."""
    return torch.tanh(logits.float() / 2)


def _unsigned(mean: Tensor) -> Tensor:
    return mean.clamp_(-LARGEST, LARGEST).atanh_().mul_(2)


LOGITS = Pooling(_same, _same)
PROBABILITIES: dict[TargetKind, Pooling] = {
    "classes": Pooling(_softmax, _log),
    "regions": Pooling(_signed, _unsigned),
}


def pooling_of(average: Average, targets: TargetKind) -> Pooling:
    """As a configuration says in `inference.average` and `targets`."""
    return LOGITS if average == "logits" else PROBABILITIES[targets]
