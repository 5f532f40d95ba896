"""From the scores of a whole image to its numbered objects, after tiles are stitched and sources averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..ops.objects import CERTAIN, separate, without_small
from ..schema.labels import Labels, targets_of
from ..schema.selection import ObjectTrial
from .export import EnsembleScores

UNTRIED = ObjectTrial(seeds=0.5, smallest=0.0)
"""where nothing was left to choose on"""


class ObjectMaps(NamedTuple):
    """Probabilities in the file's own voxels, (Z, Y, X) uint8 with 255 for 1: what `ops.objects.separate` takes."""

    core: np.ndarray
    foreground: np.ndarray
    """core and border"""


def object_maps(scores: EnsembleScores, labels: Labels) -> ObjectMaps:
    """Of a network that has learnt core and border of objects; 0 outside the crop. Goes slice by slice."""
    places = {target.members: index for index, target in enumerate(targets_of(labels, scores.decision.targets))}
    maps = ObjectMaps(np.zeros(scores.shape, np.uint8), np.zeros(scores.shape, np.uint8))
    core, foreground = (each[tuple(slice(start, stop) for start, stop in scores.box)] for each in maps)
    y, x = (each.ravel() for each in np.indices(core.shape[1:]))
    for z in range(len(core)):
        chances = scores.decision.probabilities(scores.logits_at(z, y, x))
        border = chances[:, places[(2,)]]
        if scores.decision.targets == "regions":
            whole = chances[:, places[(1, 2)]]
            inner = whole * (1 - border)
        else:
            inner = chances[:, places[(1,)]]
            whole = inner + border
        core[z].ravel()[...] = np.rint(inner * CERTAIN)
        foreground[z].ravel()[...] = np.rint(np.minimum(whole, 1) * CERTAIN)
    return maps


def numbered_objects(maps: ObjectMaps, trial: ObjectTrial, spacing: Sequence[float]) -> np.ndarray:
    """(Z, Y, X) int32: 0 where there is no object, and objects from 1 on."""
    return without_small(separate(*maps, trial.seeds), trial.smallest, float(np.prod(spacing)))
