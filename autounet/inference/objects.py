"""From the scores of a whole image to its numbered objects, after tiles are stitched and sources averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..ops.objects import CERTAIN, separate, without_small
from ..schema.labels import Labels, targets_of
from ..schema.selection import ObjectTrial
from .export import EnsembleScores

UNTRIED = ObjectTrial(height=0.1, smallest=0.0)
"""where nothing was left to choose on"""


class ObjectMaps(NamedTuple):
    """In the file's own voxels, (Z, Y, X) uint8 with 255 for 1: what `ops.objects.separate` takes."""

    depth: np.ndarray
    """expected, 1 in the middle of an object"""
    foreground: np.ndarray
    """probability of any object"""


def object_maps(scores: EnsembleScores, labels: Labels) -> ObjectMaps:
    """Of a network that has learnt depths in objects; 0 outside the crop. Goes slice by slice."""
    kind, levels = scores.decision.targets, labels.count - 1
    members = [target.members for target in targets_of(labels, kind)]
    from_level = [
        [index for index, own in enumerate(members) if own == tuple(range(first, levels + 1))]
        if kind == "regions"
        else [members.index((level,)) for level in range(first, levels + 1)]
        for first in range(1, levels + 1)
    ]
    maps = ObjectMaps(np.zeros(scores.shape, np.uint8), np.zeros(scores.shape, np.uint8))
    depth, foreground = (each[tuple(slice(start, stop) for start, stop in scores.box)] for each in maps)
    y, x = (each.ravel() for each in np.indices(depth.shape[1:]))
    for z in range(len(depth)):
        chances = scores.decision.probabilities(scores.logits_at(z, y, x))
        reached = np.stack([chances[:, channels].sum(axis=1) for channels in from_level]).clip(0, 1)
        depth[z].ravel()[...] = np.rint(reached.mean(axis=0) * CERTAIN)
        foreground[z].ravel()[...] = np.rint(reached[0] * CERTAIN)
    return maps


def numbered_objects(maps: ObjectMaps, trial: ObjectTrial, spacing: Sequence[float]) -> np.ndarray:
    """(Z, Y, X) int32: 0 where there is no object, and objects from 1 on."""
    return without_small(separate(*maps, trial.height, spacing), trial.smallest, float(np.prod(spacing)))
