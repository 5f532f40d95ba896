"""What is written beside a segmentation: probabilities, and how unsure they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autounet.atomic import replacing
from autounet.images import file_kind, stem, suffix, write_channels, write_image
from autounet.preprocessing import PooledScores, pooled_maps
from autounet.schema.aftercare import ProbabilityChannels
from autounet.schema.bundle import ModelBundle
from autounet.schema.geometry import Geometry
from autounet.schema.labels import Labels
from autounet.schema.plan import Average
from autounet.schema.targets import TargetKind, targets_of

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
