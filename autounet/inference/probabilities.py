"""What lies behind a segmentation: probabilities, their entropy, and where the folds disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..schema.labels import Labels
from ..schema.plan import Configuration, prediction_swap
from .decisions import decision_for
from .ensembling import RunningMean
from .export import EnsembleScores

if TYPE_CHECKING:
    import torch
    from torch import nn


def probability_slices(scores: EnsembleScores, temperature: float = 1.0) -> Iterator[np.ndarray]:
    """Probabilities (Y, X, C) float32 of each slice of the whole file; background outside the crop.

    The temperature is that of the mean over sources: one for all of them changes no decision.
    """
    (first, last), (top, bottom), (left, right) = scores.box
    size = (bottom - top, right - left)
    y, x = (index.ravel() for index in np.indices(size))
    outside = np.broadcast_to(scores.decision.outside(scores.channels), (*scores.shape[1:], scores.channels))
    for z in range(scores.shape[0]):
        plane = outside.astype(np.float32)
        if first <= z < last:
            inside = scores.decision.probabilities(scores.logits_at(z - first, y, x) / temperature)
            plane[top:bottom, left:right] = inside.reshape(*size, scores.channels)
        yield plane


def probability_maps(
    scores: EnsembleScores, temperature: float, probabilities: bool, entropy: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities (C, Z, Y, X) and their entropy (Z, Y, X), float32 in the shape of the file; None unless wanted.

    The entropy is in nats: at most log(C), of overlapping regions C log(2), and 0 outside the crop. Only what is wanted
    is held whole.
    """
    chances = np.empty((scores.channels, *scores.shape), np.float32) if probabilities else None
    uncertainty = np.empty(scores.shape, np.float32) if entropy else None
    for z, plane in enumerate(probability_slices(scores, temperature)):
        if chances is not None:
            chances[:, z] = plane.transpose(2, 0, 1)
        if uncertainty is not None:
            own = scores.decision.entropy(plane.reshape(-1, scores.channels))
            uncertainty[z] = np.maximum(own, 0).reshape(plane.shape[:2])
    return chances, uncertainty


def fold_disagreement(
    networks: Sequence[nn.Module],
    image: np.ndarray,
    configuration: Configuration,
    labels: Labels,
    device: str | torch.device,
) -> np.ndarray:
    """(*S) float32 nats on the grid of a prepared image (C, *S): the mutual information of class and network.

    That is the entropy of the networks' mean probabilities less the mean of their entropies (Houlsby et al. 2011; Smith
    and Gal 2018), 0 where all agree and with one network: the uncertainty that more training data would remove. Of
    overlapping regions it is the sum over them. The networks predict once more, one after another, so that two sets of
    scores are held and not one a network. For the demands on `networks` see `predict_scores`.
    """
    from .sliding_window import predict_scores

    decision = decision_for(labels, configuration.targets)
    outputs, swap = configuration.network.out_channels, prediction_swap(configuration, labels)
    share = float(np.float32(1 / len(networks)))
    mean, mean_entropy = RunningMean(), RunningMean()
    for network in networks:
        scores = predict_scores([network], image, configuration, outputs, device, swap=swap)
        entropy = np.empty(image.shape[1:], np.float32)
        for z in range(image.shape[1]):
            plane = decision.probabilities(_voxels(scores[:, z]))
            entropy[z] = decision.entropy(plane).reshape(entropy[z].shape)
            scores[:, z] = plane.T.reshape(scores[:, z].shape)
        mean.add(scores, share)
        mean_entropy.add(entropy, share)
    probabilities, result = mean.result(), mean_entropy.result()
    for z, plane in enumerate(result):
        plane[...] = np.maximum(decision.entropy(_voxels(probabilities[:, z])).reshape(plane.shape) - plane, 0)
    return result


def _voxels(plane: np.ndarray) -> np.ndarray:
    """(K, Y, X) to (Y X, K)."""
    return np.ascontiguousarray(plane.reshape(len(plane), -1).T)
