"""Several models together: the probabilities that each has written for the same images, averaged.

The models may differ in everything but the names of their classes: spacings, networks, even the program that planned
them, as their probabilities lie in the images' own voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..datasets import image_files
from ..imageio import read_geometry, read_image, stem, write_labels
from ..inference.decisions import Decision, decision_for
from ..ops.label_values import decode
from ..progress import progress
from ..schema.errors import DataError, OptionError, RecordError
from ..schema.geometry import Geometry
from ..schema.labels import Labels, TargetKind, targets_of
from ..schema.plan import Average
from ..schema.selection import ProbabilityChannels
from .maps import CHANNELS_FILE, write_probabilities
from .submission import geometry_difference

log = logging.getLogger(__name__)

ENDINGS = (".probabilities.nii.gz", ".probabilities.npz")


class _Predicted(NamedTuple):
    """What one model wrote."""

    folder: Path
    labels: Labels
    targets: TargetKind
    channels: tuple[str, ...]
    files: dict[str, Path]
    """probabilities by case"""


def ensemble(
    folders: Sequence[Path],
    out: Path,
    weights: Sequence[float] | None = None,
    average: Average = "probabilities",
    probabilities: bool = False,
) -> list[str]:
    """Write the segmentation of every case by the average of what `folders` hold into `out`; returns the cases.

    Each folder is what `autounet predict --probabilities` wrote. Classes are matched by name; label values are those of
    the first folder. `weights` are one a folder, equal unless given, and need not sum to 1. `average` logits averages
    the logarithms (of overlapping targets the log odds), which gives a single model's certainty more say.
    `probabilities` writes the average as well. Two volumes of probabilities are held at a time. Raises OptionError for
    folders or weights that cannot be, DataError where classes, cases or geometries differ.
    """
    folders, out = [Path(folder) for folder in folders], Path(out)
    shares = _shares(weights, folders)
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise OptionError(f"--out {out} is one of the folders. Give another")
    found = [_predicted(folder) for folder in folders]
    first = found[0]
    orders = [_order(first, other) for other in found]
    _require_same_cases(found)
    decision = decision_for(first.labels, first.targets)
    with progress("averaging", len(first.files)) as meter:
        for case in sorted(first.files):
            segmentation = _segmentation(first.folder, case)
            geometry = read_geometry(segmentation)
            paths = [other.files[case] for other in found]
            mean = _mean(paths, orders, shares, geometry, decision, average, first.targets)
            _write(out, segmentation.name, mean, geometry, first, decision, probabilities)
            meter.advance(text=case)
    return sorted(first.files)


def _shares(weights: Sequence[float] | None, folders: Sequence[Path]) -> tuple[float, ...]:
    """Summing to 1."""
    if len(folders) < 2:
        raise OptionError("an ensemble is of at least two folders. Give what autounet predict wrote with each model")
    if weights is None:
        return (1 / len(folders),) * len(folders)
    if len(weights) != len(folders):
        raise OptionError(f"--weights are {len(weights)} for {len(folders)} folders. Give one for each")
    if not np.isfinite(weights).all() or min(weights) < 0 or sum(weights) <= 0:
        raise OptionError(
            f"--weights {','.join(f'{each:g}' for each in weights)}: give numbers of at least 0, not all 0"
        )
    return tuple(each / sum(weights) for each in weights)


def _predicted(folder: Path) -> _Predicted:
    remedy = "Predict with autounet predict --probabilities first"
    try:
        told = ProbabilityChannels.load(folder / CHANNELS_FILE)
    except RecordError as error:
        raise DataError(f"{folder} holds no probabilities: {error}. {remedy}") from None
    if told.labels is None:
        raise DataError(f"{folder / CHANNELS_FILE} does not say the values of its classes: it is of an older version. "
                        f"{remedy}")  # fmt: skip
    files = {path.name.removesuffix(ending): path for ending in ENDINGS for path in sorted(folder.glob(f"*{ending}"))}
    if not files:
        raise DataError(f"{folder} holds no <case>{ENDINGS[0]}. {remedy}")
    return _Predicted(folder, told.labels, told.targets, told.channels, files)


def _order(first: _Predicted, other: _Predicted) -> list[int]:
    """Which of the other's channels is each of the first's. Raises DataError that names the classes that differ."""
    if other.targets != first.targets:
        raise DataError(
            f"{other.folder} holds probabilities of {other.targets}, and {first.folder} of {first.targets}. "
            "Average models that learnt the same"
        )
    meanings = [_meanings(each) for each in (first, other)]
    for index, (here, there) in enumerate(((first, other), (other, first))):
        if alone := [name for name in meanings[index] if name not in meanings[1 - index]]:
            raise DataError(
                f"{here.folder} has {', '.join(alone)}, and {there.folder} has only {', '.join(meanings[1 - index])}. "
                "Average models of the same classes, which have the same names"
            )
    if differing := [name for name in meanings[0] if meanings[0][name] != meanings[1][name]]:
        raise DataError(
            f"{differing[0]} is made of {' + '.join(meanings[0][differing[0]])} in {first.folder} and of "
            f"{' + '.join(meanings[1][differing[0]])} in {other.folder}. Average models that learnt the same"
        )
    values = [{each.name: each.value for each in model.labels.classes} for model in (first, other)]
    if values[0] != values[1]:
        log.warning("%s has other label values than %s, whose values are written", other.folder, first.folder)
    return [other.channels.index(name) for name in first.channels]


def _meanings(model: _Predicted) -> dict[str, tuple[str, ...]]:
    """Names of the classes that each channel is the union of."""
    classes = model.labels.classes
    found = {
        target.name: tuple(sorted(classes[member].name for member in target.members))
        for target in targets_of(model.labels, model.targets)
    }
    if set(found) != set(model.channels):
        raise DataError(f"{model.folder / CHANNELS_FILE} contradicts itself. Predict again with --probabilities")
    return found


def _require_same_cases(found: Sequence[_Predicted]) -> None:
    every = set().union(*(model.files for model in found))
    for model in found:
        if missing := sorted(every - set(model.files)):
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise DataError(
                f"{model.folder} has no probabilities of {', '.join(missing[:5])}{more}. Predict the same images with "
                "every model"
            )


def _segmentation(folder: Path, case: str) -> Path:
    """Beside the probabilities: its format and geometry are those of what is written."""
    found = [path for path in image_files(folder) if stem(path) == case]
    if not found:
        raise DataError(f"case {case}: {folder} holds no segmentation of it. Predict again with --probabilities")
    return found[0]


def _mean(
    paths: Sequence[Path],
    orders: Sequence[Sequence[int]],
    shares: Sequence[float],
    geometry: Geometry,
    decision: Decision,
    average: Average,
    targets: TargetKind,
) -> np.ndarray:
    """Weighted mean (C, Z, Y, X) float32 of the shares that `decision` chooses by, or of the logits."""
    total: np.ndarray | None = None
    for path, order, share in zip(paths, orders, shares, strict=True):
        values = _read(path, geometry)[list(order)]
        if targets == "regions":
            values -= np.float32(0.5)
        if average == "logits":
            for z in range(values.shape[1]):
                values[:, z] = _by_voxel(decision.logits, values[:, z])
        values *= np.float32(share)
        total = values if total is None else np.add(total, values, out=total)
    assert total is not None
    if average == "logits":
        for z in range(total.shape[1]):
            total[:, z] = _by_voxel(decision.shares, total[:, z])
    return total


def _by_voxel(function: Callable[[np.ndarray], np.ndarray], plane: np.ndarray) -> np.ndarray:
    """(C, Y, X) through a function of (N, C)."""
    rows = plane.reshape(len(plane), -1).T
    return function(np.ascontiguousarray(rows)).T.reshape(plane.shape)


def _read(path: Path, geometry: Geometry) -> np.ndarray:
    """(C, Z, Y, X) float32 in the voxels of the first model's segmentation. Raises DataError."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            values = np.moveaxis(stored["probabilities"], -1, 0)[:, None].astype(np.float32)
        difference = "" if values.shape[1:] == geometry.shape else f"shape: {values.shape[1:]}, not {geometry.shape}"
    else:
        values, own = read_image(path)
        difference = geometry_difference(own, geometry)
    if difference:
        raise DataError(f"{path} differs from the first folder's in {difference}. Predict the same images")
    return values


def _write(
    out: Path, name: str, mean: np.ndarray, geometry: Geometry, first: _Predicted, decision: Decision, maps: bool
) -> None:
    dense = np.empty(mean.shape[1:], np.int16)
    for z in range(len(dense)):
        winners = decision.choose(np.ascontiguousarray(mean[:, z].reshape(len(mean), -1).T))
        dense[z] = (winners if decision.classes is None else decision.classes[winners]).reshape(dense.shape[1:])
    write_labels(out / name, decode(dense, first.labels), geometry)
    if maps:
        if first.targets == "regions":
            mean += np.float32(0.5)
        channels = ProbabilityChannels(
            channels=first.channels, targets=first.targets, temperature=1.0, labels=first.labels
        )
        channels.save(out / CHANNELS_FILE)
        write_probabilities(mean, out / name, geometry)
