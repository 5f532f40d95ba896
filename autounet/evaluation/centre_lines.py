"""The metric of tubes, such as vessels: whether they are followed, however thick they are."""

from __future__ import annotations

import numpy as np

from autounet.evaluation.mask_pair import MaskPair, Undefined
from autounet.ops.skeleton import skeleton

NO_CENTRE_LINE = "thinning leaves no centre line"


def cl_dice(pair: MaskPair) -> float:
    """Centre-line Dice: the harmonic mean of two shares, Shit et al., "clDice", CVPR 2021.

    Of the prediction's centre line the share inside the reference, and of the reference's the share inside the
    prediction; centre lines as in `ops.skeleton`, every voxel counting one. 0 when one mask is empty, undefined when
    both are, or when thinning leaves nothing of one.
    """
    if pair.is_missed():
        return 0.0
    prediction, reference = pair.flat
    precision = _share(skeleton(prediction), reference)
    sensitivity = _share(skeleton(reference), prediction)
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def _share(line: np.ndarray, mask: np.ndarray) -> float:
    """Of a centre line, inside a mask."""
    length = int(np.count_nonzero(line))
    if not length:
        raise Undefined(NO_CENTRE_LINE)
    return int(np.count_nonzero(line & mask)) / length
