"""What the gates of an attention U-Net let pass, over whole images: predicted like scores, written as images."""

from __future__ import annotations

from collections.abc import Mapping
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
    network: nn.Module, image: np.ndarray, configuration: Configuration, device: str | torch.device
) -> dict[int, np.ndarray]:
    """Coefficients in 0..1 of each gated stage, (*S) float32 on the grid of a prepared image (C, *S).

    Tiles and mirrored views are averaged as in `predict_scores`, with the same demands on `network`. Stages count
    from the highest resolution; coarser maps are repeated. Raises ModelError for a network without gates.
    """
    from autounet.nets.attention_modules import AttentionUNet, GateMaps

    if not isinstance(network, AttentionUNet):
        family = configuration.network.family
        raise ModelError(f"a network of the family {family} has no gates. Train one with --family attention")
    stages = gated_stages(configuration.network)
    recorder = GateMaps(network).train(network.training)
    maps = predict_scores([recorder], image, configuration, len(stages), device)
    return dict(zip(stages, maps, strict=True))


def write_gate_maps(
    maps: Mapping[int, np.ndarray],
    folder: Path,
    case: str,
    spacing: tuple[float, float, float],
    suffix: str = ".nii.gz",
) -> list[Path]:
    """`<case>.gate<stage><suffix>` in `folder` for each map (*S); `spacing` (z, y, x) mm of the prepared grid.

    Pictures get 0..255 for 0..1. Raises DataError where the format cannot hold a map.
    """
    paths = []
    for stage, coefficients in maps.items():
        path = Path(folder) / f"{case}.gate{stage}{suffix}"
        values = np.rint(255 * coefficients).astype(np.uint8) if suffix in PICTURES else coefficients
        write_image(path, values[None], Geometry(shape=coefficients.shape, spacing=spacing))
        paths.append(path)
    return paths
