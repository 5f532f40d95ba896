"""Channel dropout: every combination of channels that occurs in the data set is trained, also on cases with more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from autounet.schema.presence import Presence

P_DROPOUT = 0.5
"""of a sample whose case has more channels than some other combination"""


@dataclass(frozen=True)
class ChannelDropout:
    """Which channels a sample shows. Inactive where every case has all channels."""

    combinations: tuple[Presence, ...] = ()
    """those that occur, of the whole data set"""
    present: Mapping[str, Presence] = field(default_factory=dict)
    """of the cases that lack channels"""
    probability: float = P_DROPOUT

    def draw(self, generator: np.random.Generator, case: str, channels: int) -> Presence | None:
        """The channels that a sample of a case shows: its own, or a smaller combination; None for all of them.

        Nothing is drawn where there is nothing to choose, so that samples of other data sets stay what they were.
        """
        if not self.combinations:
            return None
        own = self.present.get(case, (True,) * channels)
        smaller = [each for each in self.combinations if each != own and not any(np.greater(each, own))]
        if smaller and generator.random() < self.probability:
            own = smaller[int(generator.integers(len(smaller)))]
        return None if all(own) else own


def drop_channels(image: Tensor, shown: Presence | None) -> Tensor:
    """Image (C + previous stage's channels, *P) with 0 in the channels that are not shown, as prepared cases have it.

    After intensity transforms, which would put noise into absent channels.
    """
    if shown is not None:
        for index, there in enumerate(shown):
            if not there:
                image[index] = 0
    return image
