"""The one place that averages predictions: over views, folds, tiles, configurations and models.

What is averaged is logits, or probabilities, whose mean becomes logits again. A mean of probabilities is that of the
mixture of the networks: none of them can outvote the others by being surer than all probabilities allow, which one
large logit can, and its log-likelihood is never below the networks' mean (Jensen). As logits of the mean it goes the
same ways as logits do: resampled, decided on, kept as float16.

All of that takes NumPy arrays and torch tensors alike, and torch is not imported for the former.

Below, from the scores of one voxel to its class: the highest of exclusive classes, or overlapping regions in their
order. Decisions are made through winners, small integers: where all prepared voxels around a file voxel have the same
winner, so has every weighted mean of their scores. That holds for the highest class, and for the last region that is
on: those after it are off at each of them, and so in the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from ..schema.labels import Labels, TargetKind, overlapping_targets
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


# ---- classes ---------------------------------------------------------------------------------------------------------


class Decision(Protocol):
    """How scores become classes. N voxels, C outputs, S a prepared grid."""

    @property
    def targets(self) -> TargetKind: ...

    @property
    def classes(self) -> np.ndarray | None:
        """int16: the dense class of each winner; None where it is the winner itself."""
        ...

    def winners(self, scores: np.ndarray) -> np.ndarray:
        """(*S) int16 from logits (C, *S)."""
        ...

    def choose(self, values: np.ndarray) -> np.ndarray:
        """(N) int16 winners from logits (N, C), or from the mean (N, C) of several sources' `averaged_quantity`."""
        ...

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(N, C) in 0..1 from logits (N, C)."""
        ...

    def entropy(self, probabilities: np.ndarray) -> np.ndarray:
        """(N,) in nats, of probabilities (N, C)."""
        ...

    def outside(self, channels: int) -> np.ndarray:
        """(C,) probabilities where nothing is predicted, outside the crop: background."""
        ...


class ArgmaxDecision:
    """Exclusive classes: the highest score; of equal ones the lowest class."""

    targets: ClassVar[TargetKind] = "classes"
    classes: ClassVar[None] = None

    def winners(self, scores: np.ndarray) -> np.ndarray:
        """A running comparison a slice at a time stays in the cache, which `argmax` over the first axis does not."""
        result = np.zeros(scores.shape[1:], np.int16)
        for index, winner in enumerate(result):
            highest = np.array(scores[0, index], np.float32)
            for label in range(1, len(scores)):
                candidate = scores[label, index].astype(np.float32, copy=False)
                winner[candidate > highest] = label
                np.maximum(highest, candidate, out=highest)
        return result

    def choose(self, values: np.ndarray) -> np.ndarray:
        return values.argmax(axis=1).astype(np.int16)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax."""
        return softmax(logits)

    def entropy(self, probabilities: np.ndarray) -> np.ndarray:
        return _entropy_terms(probabilities).sum(axis=1)

    def outside(self, channels: int) -> np.ndarray:
        return np.eye(1, channels, dtype=np.float32)[0]


@dataclass(frozen=True)
class OrderedRegions:
    """Overlapping regions: on where the sigmoid is above 1/2, each overwriting those before it with its own class.

    Winner 0 is the background, where none is on, and winner c + 1 the region of channel c.
    """

    own_classes: tuple[int, ...]
    """dense class that each channel's region writes"""

    targets: ClassVar[TargetKind] = "regions"

    @property
    def classes(self) -> np.ndarray:
        return np.array((0, *self.own_classes), np.int16)

    def winners(self, scores: np.ndarray) -> np.ndarray:
        result = np.zeros(scores.shape[1:], np.int16)
        for channel, own in enumerate(scores, 1):
            result[own > 0] = channel
        return result

    def choose(self, values: np.ndarray) -> np.ndarray:
        channels = values.shape[1]
        last = channels - np.argmax(values[:, ::-1] > 0, axis=1)
        return np.where((values > 0).any(axis=1), last, 0).astype(np.int16)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Sigmoid."""
        return (signed_sigmoid(logits) + 1) / 2

    def entropy(self, probabilities: np.ndarray) -> np.ndarray:
        """The sum over regions, as if they were independent: the most that the joint entropy can be."""
        return (_entropy_terms(probabilities) + _entropy_terms(1 - probabilities)).sum(axis=1)

    def outside(self, channels: int) -> np.ndarray:
        return np.zeros(channels, np.float32)


def _entropy_terms(probabilities: np.ndarray) -> np.ndarray:
    """-p log p, 0 at 0."""
    return -probabilities * np.log(np.maximum(probabilities, np.float32(SMALLEST)))


ARGMAX = ArgmaxDecision()


def decision_for(labels: Labels, targets: TargetKind) -> Decision:
    """That of a network that has learnt the classes, or the regions, of these labels."""
    if targets == "classes":
        return ARGMAX
    return OrderedRegions(tuple(target.paints for target in overlapping_targets(labels)))
