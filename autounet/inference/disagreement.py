"""Where the networks of one configuration disagree: the uncertainty that more training data would remove."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from autounet.inference.sliding import predict_scores
from autounet.preprocessing.deciding import decision_for
from autounet.schema.labels import Labels
from autounet.schema.plan import Configuration
from autounet.schema.swaps import prediction_swap


def fold_disagreement(
    networks: Sequence[nn.Module],
    image: np.ndarray,
    configuration: Configuration,
    labels: Labels,
    device: str | torch.device,
) -> np.ndarray:
    """(*S) float32 nats on the grid of a prepared image (C, *S): the mutual information of class and network.

    That is the entropy of the networks' mean probabilities less the mean of their entropies (Houlsby et al. 2011; Smith
    and Gal 2018), 0 where all say the same and with one network. Of overlapping targets the sum over them. The networks
    predict once more, one after another, so that two sets of scores are held and not one a network. The demands on
    `networks` are those of `predict_scores`.
    """
    decision = decision_for(labels, configuration.targets)
    outputs, swap = configuration.network.out_channels, prediction_swap(configuration, labels)
    mean = np.zeros((outputs, *image.shape[1:]), np.float32)
    entropy = np.zeros(image.shape[1:], np.float32)
    share = np.float32(1 / len(networks))
    for network in networks:
        scores = predict_scores([network], image, configuration, outputs, device, swap=swap)
        for z in range(image.shape[1]):
            found = decision.probabilities(_voxels(scores[:, z]))
            mean[:, z] += share * found.T.reshape(mean[:, z].shape)
            entropy[z] += share * decision.entropy(found).reshape(entropy[z].shape)
    for z, row in enumerate(entropy):
        row[...] = np.maximum(decision.entropy(_voxels(mean[:, z])).reshape(row.shape) - row, 0)
    return entropy


def _voxels(plane: np.ndarray) -> np.ndarray:
    """(K, Y, X) to (Y X, K)."""
    return np.ascontiguousarray(plane.reshape(len(plane), -1).T)
