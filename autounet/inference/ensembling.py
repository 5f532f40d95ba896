"""The one place that averages predictions: over views, folds, tiles, configurations and models.

What is averaged is logits, or probabilities, whose mean becomes logits again. A mean of probabilities is that of the
mixture of the networks: none of them can outvote the others by being surer than all probabilities allow, which one
large logit can, and its log-likelihood is never below the networks' mean (Jensen). As logits of the mean it goes the
same ways as logits do: resampled, decided on, kept as float16.

All of it takes NumPy arrays and torch tensors alike, and torch is not imported for the former.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..schema.labels import TargetKind
from ..schema.plan import Average

SMALLEST = float(np.finfo(np.float32).tiny)
"""probability below which no class falls, so that all logarithms are finite: the logits of a mean end at -87"""
LARGEST = 1 - 2**-24
"""of 2 p - 1 of an overlapping target, likewise: its logits end at +-17"""


class AveragedQuantity(NamedTuple):
    """Quantity that is averaged over views, folds and tiles; arrays (B, K, ...) with the K channels on axis 1."""

    from_logits: Callable[[Any], Any]
    """of one network or source"""
    to_logits: Callable[[Any], Any]
    """of a mean, which may be changed in place; the inverse, up to what float32 cannot hold"""


def _unchanged(values: Any) -> Any:
    return values


def softmax(logits: Any) -> Any:
    """Over axis 1."""
    if isinstance(logits, np.ndarray):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    return logits.float().softmax(1)


def log(mean: Any) -> Any:
    """Logits whose softmax are these probabilities."""
    if isinstance(mean, np.ndarray):
        return np.log(np.maximum(mean, np.float32(SMALLEST)))
    return mean.clamp_(min=SMALLEST).log_()


def signed_sigmoid(logits: Any) -> Any:
    """2 sigmoid - 1, by a tangent that keeps the sign of the smallest logits."""
    return np.tanh(logits / 2) if isinstance(logits, np.ndarray) else (logits.float() / 2).tanh()


def signed_logit(mean: Any) -> Any:
    """Logits whose `signed_sigmoid` this is."""
    if isinstance(mean, np.ndarray):
        return 2 * np.arctanh(np.clip(mean, np.float32(-LARGEST), np.float32(LARGEST)))
    return mean.clamp_(-LARGEST, LARGEST).atanh_().mul_(2)


LOGITS = AveragedQuantity(_unchanged, _unchanged)
PROBABILITIES: dict[TargetKind, AveragedQuantity] = {
    "classes": AveragedQuantity(softmax, log),
    "regions": AveragedQuantity(signed_sigmoid, signed_logit),
}


def averaged_quantity(average: Average, targets: TargetKind) -> AveragedQuantity:
    """As a configuration says in `inference.average` and `targets`."""
    return LOGITS if average == "logits" else PROBABILITIES[targets]


class RunningMean:
    """Mean of arrays or tensors that are added one after another; only their sum is held, as float32.

    Either all are added with a `weight`, and the weights sum to 1, or none is: then all count the same.
    """

    def __init__(self) -> None:
        self._sum: Any = None
        self._count = 0

    def add(self, values: Any, weight: float | None = None) -> None:
        """With a weight, `values` are changed in place and must not be used afterwards."""
        if weight is None:
            self._count += 1
        else:
            values *= weight
        if self._sum is not None:
            self._sum += values
        elif weight is not None:
            self._sum = values
        elif isinstance(values, np.ndarray):
            self._sum = values.astype(np.float32)
        else:
            self._sum = values.float().clone()

    def result(self) -> Any:
        """The mean, which is the sum's own memory: nothing can be added afterwards. Raises ValueError without any."""
        if self._sum is None:
            raise ValueError("a mean of nothing")
        if self._count:
            self._sum /= self._count
        return self._sum


def normalised_weights(weights: Any, count: int) -> tuple[float, ...]:
    """`count` float32 values summing to 1; equal where `weights` is None or empty.

    Raises ValueError for another number of weights.
    """
    shares = np.full(count, 1 / count) if weights is None else np.asarray(weights, float) / np.sum(weights)
    if len(shares) != count:
        raise ValueError(f"{len(shares)} weights for {count} sources")
    return tuple(float(share) for share in shares.astype(np.float32))
