"""From the scores of one voxel to its class: the highest of exclusive classes, or overlapping targets painted in order.

The export asks for winners, small integers: where all prepared voxels around a file voxel have the same winner, so has
every weighted mean of their scores. That holds for the highest class, and for the last target that is on: those after
it are off at each of them, and so in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..schema.labels import Labels, TargetKind, overlapping_targets

SMALLEST = np.finfo(np.float32).tiny
"""probability below which no class falls, so that all logarithms are finite"""
LARGEST = np.float32(1 - 2**-24)
"""of 2 p - 1 of an overlapping target, likewise"""


class Decision(Protocol):
    """How scores become classes. N voxels, C outputs, S a prepared grid."""

    @property
    def classes(self) -> np.ndarray | None:
        """int16: the dense class of each winner; None where it is the winner itself."""
        ...

    def winners(self, scores: np.ndarray) -> np.ndarray:
        """(*S) int16 from logits (C, *S)."""
        ...

    def shares(self, logits: np.ndarray) -> np.ndarray:
        """(N, C) from logits (N, C): what the mean over several sources is taken of."""
        ...

    def choose(self, values: np.ndarray) -> np.ndarray:
        """(N) int16 winners from logits (N, C) of one source, or the mean of several sources' shares."""
        ...

    def logits(self, shares: np.ndarray) -> np.ndarray:
        """(N, C) whose shares these are, up to what float32 cannot hold: the inverse of `shares`."""
        ...

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(N, C) in 0..1."""
        ...

    def entropy(self, probabilities: np.ndarray) -> np.ndarray:
        """(N,) in nats, of probabilities (N, C)."""
        ...

    def outside(self, channels: int) -> np.ndarray:
        """(C,) probabilities where nothing is predicted, outside the crop: background."""
        ...


class Highest:
    """Exclusive classes: the highest score; of equal ones the lowest class."""

    classes = None

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

    def shares(self, logits: np.ndarray) -> np.ndarray:
        """Softmax."""
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def choose(self, values: np.ndarray) -> np.ndarray:
        return values.argmax(axis=1).astype(np.int16)

    def logits(self, shares: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(shares, SMALLEST))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return self.shares(logits)

    def entropy(self, probabilities: np.ndarray) -> np.ndarray:
        return _surprise(probabilities).sum(axis=1)

    def outside(self, channels: int) -> np.ndarray:
        return np.eye(1, channels, dtype=np.float32)[0]


@dataclass(frozen=True)
class Painted:
    """Overlapping targets: on where the sigmoid is above 1/2, each painting its class over those before it.

    Winner 0 is the background, where none is on, and winner c + 1 the target of channel c.
    """

    paints: tuple[int, ...]
    """dense class of each channel"""

    @property
    def classes(self) -> np.ndarray:
        return np.array((0, *self.paints), np.int16)

    def winners(self, scores: np.ndarray) -> np.ndarray:
        result = np.zeros(scores.shape[1:], np.int16)
        for channel, own in enumerate(scores, 1):
            result[own > 0] = channel
        return result

    def shares(self, logits: np.ndarray) -> np.ndarray:
        """Sigmoid less 1/2, by a tangent that keeps the sign of the smallest logits."""
        return np.tanh(logits / 2) / 2

    def choose(self, values: np.ndarray) -> np.ndarray:
        channels = values.shape[1]
        last = channels - np.argmax(values[:, ::-1] > 0, axis=1)
        return np.where((values > 0).any(axis=1), last, 0).astype(np.int16)

    def logits(self, shares: np.ndarray) -> np.ndarray:
        return 2 * np.arctanh(np.clip(2 * shares, -LARGEST, LARGEST))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return self.shares(logits) + np.float32(0.5)

    def entropy(self, probabilities: np.ndarray) -> np.ndarray:
        """The sum over targets, as if they were independent: the most that the joint entropy can be."""
        return (_surprise(probabilities) + _surprise(1 - probabilities)).sum(axis=1)

    def outside(self, channels: int) -> np.ndarray:
        return np.zeros(channels, np.float32)


def _surprise(probabilities: np.ndarray) -> np.ndarray:
    """-p log p, 0 at 0."""
    return -probabilities * np.log(np.maximum(probabilities, SMALLEST))


HIGHEST = Highest()


def decision_for(labels: Labels, targets: TargetKind) -> Decision:
    """That of a network that has learnt the classes, or the regions, of these labels."""
    if targets == "classes":
        return HIGHEST
    return Painted(tuple(target.paints for target in overlapping_targets(labels)))
