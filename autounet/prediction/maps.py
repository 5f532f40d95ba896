"""What is written beside a segmentation: probabilities, and how unsure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..imageio import file_kind, stem, suffix, write_channels, write_image
from ..inference.export import export_map
from ..inference.probabilities import PooledScores, pooled_maps
from ..nets import FAMILIES
from ..schema.bundle import ModelBundle
from ..schema.errors import OptionError
from ..schema.geometry import Geometry
from ..schema.labels import Labels, TargetKind, targets_of
from ..schema.plan import Average, Configuration
from ..schema.prepared import CaseProperties
from ..schema.record import replacing
from ..schema.selection import ProbabilityChannels

if TYPE_CHECKING:
    from torch import nn

CHANNELS_FILE = "classes.json"
WITHOUT_FLOATS = frozenset({"png", "bmp"})
"""file kinds whose maps are TIFF"""


class Wanted(NamedTuple):
    """What is asked for."""

    probabilities: bool
    uncertainty: bool


class Pooling(NamedTuple):
    """How the configurations of a prediction are put together, and how sure their probabilities are told."""

    targets: TargetKind
    average: Average
    temperature: float
    weights: tuple[float, ...] | None = None
    """of the configurations; None: equal"""


def pooling_for(bundle: ModelBundle, names: Sequence[str], average: Average | None) -> Pooling:
    """Temperature and weights are those of what was selected: 1 and equal for another configuration or average."""
    calibration = bundle.selection.calibration
    as_selected = tuple(names) == bundle.selection.chosen and average is None
    temperature = calibration.temperature if calibration and as_selected else 1.0
    weights = (bundle.selection.weights or None) if as_selected else None
    return Pooling(bundle.configurations[names[0]].targets, average or "probabilities", temperature, weights)


def write_pooled(
    pooled: PooledScores, pooling: Pooling, labels: Labels, wanted: Wanted, segmentation: Path, geometry: Geometry
) -> list[Path]:
    """`<case>.probabilities.nii.gz` (of 2-D images `.npz`) with `classes.json`, `<case>.entropy.<ext>`: as wanted.

    Raises DataError where the format cannot hold a map.
    """
    maps = pooled_maps(pooled, pooling.temperature, wanted.probabilities, wanted.uncertainty)
    paths = []
    if maps.probabilities is not None:
        names = tuple(target.name for target in targets_of(labels, pooling.targets))
        channels = ProbabilityChannels(
            channels=names, targets=pooling.targets, temperature=pooling.temperature, labels=labels
        )
        channels.save(segmentation.parent / CHANNELS_FILE)
        paths.append(write_probabilities(maps.probabilities, segmentation, geometry))
    if maps.entropy is not None:
        paths.append(write_map(maps.entropy, "entropy", segmentation, geometry))
    return paths


def write_probabilities(values: np.ndarray, segmentation: Path, geometry: Geometry) -> Path:
    """(C, Z, Y, X) with the channels last in the file: NIfTI of four axes, or in 2-D an array (Y, X, C)."""
    folder, case = segmentation.parent, stem(segmentation)
    if geometry.dimension == 3:
        path = folder / f"{case}.probabilities.nii.gz"
        write_channels(path, values, geometry)
        return path
    path = folder / f"{case}.probabilities.npz"
    with replacing(path, ".npz") as temporary:
        np.savez_compressed(temporary, probabilities=np.moveaxis(values[:, 0], 0, -1))
    return path


def write_map(values: np.ndarray, name: str, segmentation: Path, geometry: Geometry) -> Path:
    """`<case>.<name>.<ext>`: (Z, Y, X) float32 in the geometry and format of the segmentation, TIFF for pictures."""
    ending = ".tif" if file_kind(segmentation) in WITHOUT_FLOATS else suffix(segmentation)
    path = segmentation.parent / f"{stem(segmentation)}.{name}{ending}"
    write_image(path, values.astype(np.float32, copy=False)[None], geometry)
    return path


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
    from ..inference.maps import predict_gate_maps, write_gate_maps

    case, ending = stem(segmentation), suffix(segmentation)
    paths = []
    for name, configuration in configurations.items():
        image, _, properties = scored[name]
        maps = predict_gate_maps(models[name], image, configuration, device)
        whole = {stage: export_map(found, properties) for stage, found in maps.items()}
        prefix = case if len(configurations) == 1 else f"{case}.{name}"
        paths += write_gate_maps(whole, segmentation.parent / prefix, geometry, ending)
    return paths
