"""What the gates of an attention U-Net let pass, over whole images: predicted like scores, written as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autounet.images import write_image
from autounet.inference.sliding import predict_scores
from autounet.nets.attention import gated_stages
from autounet.schema.errors import ModelError
from autounet.schema.geometry import Geometry
from autounet.schema.plan import Configuration

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
    from autounet.nets.attention_modules import AttentionUNet, GateMaps

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
