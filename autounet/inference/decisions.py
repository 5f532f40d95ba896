"""From the scores of one voxel to its class: the highest of exclusive classes, or overlapping regions in their order.

Decisions are made through winners, small integers: where all prepared voxels around a file voxel have the same winner,
so has every weighted mean of their scores. That holds for the highest class, and for the last region that is on: those
after it are off at each of them, and so in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ..schema.labels import Labels, TargetKind, overlapping_targets
from .ensembling import SMALLEST, signed_sigmoid, softmax


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
