"""Where the networks of one configuration disagree: the uncertainty that more training data would remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..imageio import write_image
from ..nets.attention import gated_stages
from ..schema.errors import ModelError
from ..schema.geometry import Geometry
from ..schema.labels import Labels
from ..schema.plan import Configuration, prediction_swap
from .decisions import decision_for
from .sliding_window import predict_scores


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


PICTURES = (".png", ".bmp")
"""suffixes of formats that hold 0..255 only"""


def predict_gate_maps(
    networks: Sequence[nn.Module], image: np.ndarray, configuration: Configuration, device: str | torch.device
) -> dict[int, np.ndarray]:
    """Coefficients in 0..1 of each gated stage, (*S) float32 on the grid of a prepared image (C, *S).

    Networks, tiles and mirrored views, but those that exchange left and right classes, are averaged as in
    `predict_scores`, with the same demands on `networks`. Stages count from the highest resolution; coarser maps are
    repeated. Raises ModelError for networks without gates.
    """
    from ..nets.attention_modules import AttentionUNet, GateMaps

    gated = [network for network in networks if isinstance(network, AttentionUNet)]
    if len(gated) < len(networks):
        family = configuration.network.family
        raise ModelError(f"a network of the family {family} has no gates. Train one with --family attention")
    stages = gated_stages(configuration.network)
    recorders = [GateMaps(network).train(network.training) for network in gated]
    inference = configuration.inference
    plain = tuple(axis for axis in inference.mirror_axes if axis != configuration.swap_axis)
    inference = inference.model_copy(update={"mirror_axes": plain, "average": "logits"})  # coefficients as they are
    configuration = configuration.model_copy(update={"inference": inference})
    maps = predict_scores(recorders, image, configuration, len(stages), device)
    return dict(zip(stages, maps, strict=True))


def write_gate_maps(maps: Mapping[int, np.ndarray], prefix: Path, geometry: Geometry, suffix: str) -> list[Path]:
    """`<prefix>.gate<stage><suffix>` for each map (Z, Y, X) in the shape of `geometry`.

    Pictures get 0..255 for 0..1. Raises DataError where the format cannot hold a map.
    """
    paths = []
    for stage, coefficients in maps.items():
        path = prefix.with_name(f"{prefix.name}.gate{stage}{suffix}")
        picture = suffix.lower() in PICTURES
        values = np.rint(255 * coefficients.clip(0, 1)).astype(np.uint8) if picture else coefficients
        write_image(path, values[None], geometry)
        paths.append(path)
    return paths
