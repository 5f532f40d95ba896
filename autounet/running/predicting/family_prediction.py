"""What only networks of some families can do in prediction: be pruned, and show what their gates let pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from autounet.images import stem, suffix
from autounet.nets import FAMILIES
from autounet.preprocessing.maps import export_map
from autounet.schema.errors import OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.plan import Configuration
from autounet.schema.prepared import CaseProperties

if TYPE_CHECKING:
    from torch import nn

GATED, PRUNABLE = "attention", "nested"


class Scored(NamedTuple):
    """What the networks of one configuration saw of a case, and what they say."""

    image: np.ndarray
    """(C, *S); with the segmentation of a previous stage where that was asked for"""
    scores: np.ndarray
    """(C, *S), a channel for each output"""
    properties: CaseProperties


def pruned(name: str, configuration: Configuration, poolings: int) -> Configuration:
    """Predicted by the U-Net of this many poolings. Raises OptionError where there is none."""
    network = configuration.network
    if network.family != PRUNABLE:
        raise OptionError(
            f"--prune is for networks of the family {PRUNABLE}, and {name} is of the family {network.family}. Leave it "
            "out"
        )
    network = network.model_copy(update={"options": {**network.options, "prune": poolings}})
    if problems := FAMILIES[PRUNABLE].problems(network):
        raise OptionError(f"--prune {poolings}: {name}: {'; '.join(problems)}")
    return configuration.model_copy(update={"network": network})


def require_gates(configurations: Mapping[str, Configuration]) -> None:
    """Raises OptionError that names those whose networks have none."""
    families = {name: each.network.family for name, each in configurations.items()}
    without = [f"{name} is of the family {family}" for name, family in families.items() if family != GATED]
    if without:
        raise OptionError(
            f"--gate-maps is for networks of the family {GATED}, and {', '.join(without)}. Leave it out, or train "
            f"with --family {GATED}"
        )


def write_gates(
    configurations: Mapping[str, Configuration],
    models: Mapping[str, Sequence[nn.Module]],
    scored: Mapping[str, Scored],
    device: str,
    segmentation: Path,
    geometry: Geometry,
) -> list[Path]:
    """`<case>.gate<stage>.<ext>` beside the segmentation, in the image's geometry, for each gated stage.

    Coefficients are averaged over tiles, views and folds; voxels outside the crop are 0. Where there are several
    `configurations` the name comes before `gate`. Raises DataError where the format cannot hold a map.
    """
    from autounet.inference.gate_maps import predict_gate_maps, write_gate_maps

    case, ending = stem(segmentation), suffix(segmentation)
    paths = []
    for name, configuration in configurations.items():
        image, _, properties = scored[name]
        maps = predict_gate_maps(models[name], image, configuration, device)
        whole = {stage: export_map(found, properties) for stage, found in maps.items()}
        prefix = case if len(configurations) == 1 else f"{case}.{name}"
        paths += write_gate_maps(whole, segmentation.parent / prefix, geometry, ending)
    return paths
