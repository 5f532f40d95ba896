"""Several models together: the probabilities that each has written for the same images, averaged.

The models may differ in everything but the names of their classes: spacings, networks, even the program that planned
them, as their probabilities lie in the images' own voxels.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np

from ..datasets import image_files
from ..evaluation import on_grid_of
from ..imageio import read_geometry, read_image, stem, write_labels
from ..imageio.image_format import require_memory
from ..inference.ensembling import PROBABILITIES, RunningMean, decision_for, normalised_weights
from ..ops.masks import decode
from ..progress import progress
from ..schema.errors import DataError, FileError, OptionError, RecordError, UsageError
from ..schema.geometry import Geometry
from ..schema.labels import Labels, TargetKind, targets_of
from ..schema.plan import Average
from ..schema.record import require_folder, require_no_links
from ..schema.run import PredictedCase, record_of, require_replaceable, written_names
from ..schema.selection import ProbabilityChannels
from .maps import CHANNELS_FILE, PROBABILITIES_ENDINGS, foreign_channels_file, write_probabilities

log = logging.getLogger(__name__)

PREDICT = "Predict with autounet predict --probabilities first"


class PredictedFolder(NamedTuple):
    """Probabilities that one model wrote."""

    folder: Path
    labels: Labels
    targets: TargetKind
    channels: tuple[str, ...]
    files: dict[str, Path]
    """by case"""


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
    the logarithms (of overlapping regions the log odds), which gives a single model's certainty more influence.
    `probabilities` writes the average as well. Two volumes of probabilities are held at a time. Raises OptionError for
    folders or weights that cannot be and for files in the way, DataError where classes, cases or geometries differ.
    """
    folders, out = [Path(folder) for folder in folders], Path(out)
    _require_weights(weights, folders)
    require_folder(out)
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise OptionError(f"--out {out} is one of the folders that are averaged", "Give another folder")
    models = [_read_folder(folder) for folder in folders]
    first = models[0]
    orders = [_channel_order(first, other) for other in models]
    _require_same_cases(models)
    shares = normalised_weights(weights, len(models))
    segmentations = {case: _segmentation(first.folder, case) for case in sorted(first.files)}
    may_write = _may_write(out, segmentations, probabilities)
    with progress("averaging", len(first.files)) as meter:
        for case, segmentation in segmentations.items():
            geometry = read_geometry(segmentation)
            paths = [model.files[case] for model in models]
            mean = _mean(case, paths, orders, shares, geometry, average, first.targets)
            _record(out, case, may_write[case])
            _write(out, segmentation.name, mean, geometry, first, probabilities)
            meter.advance(text=case)
    return list(segmentations)


def _require_weights(weights: Sequence[float] | None, folders: Sequence[Path]) -> None:
    if len(folders) < 2:
        raise UsageError(
            "an ensemble needs at least two folders", "Give the folders that autounet predict wrote with each model"
        )
    if weights is None:
        return
    if len(weights) != len(folders):
        raise UsageError(f"--weights has {len(weights)} numbers for {len(folders)} folders", "Give one for each")
    if not np.isfinite(weights).all() or min(weights) < 0 or sum(weights) <= 0:
        raise UsageError(
            f"--weights {','.join(f'{each:g}' for each in weights)} cannot be used",
            "Give numbers of at least 0, not all 0",
        )


def _read_folder(folder: Path) -> PredictedFolder:
    try:
        record = ProbabilityChannels.load(folder / CHANNELS_FILE)
    except RecordError as error:
        raise DataError(f"{folder} holds no probabilities ({error.message})", PREDICT) from None
    if record.labels is None:
        raise DataError(f"{folder / CHANNELS_FILE} lacks the values of its classes", PREDICT)
    if record.labels.objects is not None:
        raise DataError(
            f"{folder} holds probabilities of objects that are told apart, which cannot be averaged here",
            "Train the configurations in one run: their ensemble is tried there",
        )
    files = {
        path.name.removesuffix(ending): path
        for ending in PROBABILITIES_ENDINGS
        for path in sorted(folder.glob(f"*{ending}"))
    }
    if not files:
        raise DataError(f"{folder} holds no <case>{PROBABILITIES_ENDINGS[0]}", PREDICT)
    return PredictedFolder(folder, record.labels, record.targets, record.channels, files)


def _channel_order(first: PredictedFolder, other: PredictedFolder) -> list[int]:
    """Which of the other's channels is each of the first's. Raises DataError that names the classes that differ."""
    if other.targets != first.targets:
        raise DataError(
            f"{other.folder} holds probabilities of {other.targets}, and {first.folder} of {first.targets}",
            "Average models that learnt the same",
        )
    members = [_members_by_channel(each) for each in (first, other)]
    for index, (here, there) in enumerate(((first, other), (other, first))):
        if alone := [name for name in members[index] if name not in members[1 - index]]:
            raise DataError(
                f"{here.folder} has {', '.join(alone)}, and {there.folder} has only {', '.join(members[1 - index])}",
                "Average models of the same classes, which have the same names",
            )
    if differing := [name for name in members[0] if members[0][name] != members[1][name]]:
        raise DataError(
            f"{differing[0]} is made of {' + '.join(members[0][differing[0]])} in {first.folder} and of "
            f"{' + '.join(members[1][differing[0]])} in {other.folder}",
            "Average models that learnt the same",
        )
    values = [{each.name: each.value for each in model.labels.classes} for model in (first, other)]
    if values[0] != values[1]:
        log.warning("%s has other label values than %s, whose values are written", other.folder, first.folder)
    return [other.channels.index(name) for name in first.channels]


def _members_by_channel(model: PredictedFolder) -> dict[str, tuple[str, ...]]:
    """Names of the classes that each channel is the union of."""
    classes = model.labels.classes
    members = {
        target.name: tuple(sorted(classes[member].name for member in target.members))
        for target in targets_of(model.labels, model.targets)
    }
    if set(members) != set(model.channels):
        raise DataError(
            f"{model.folder / CHANNELS_FILE} has other channels than its own classes need",
            "Predict again with --probabilities",
        )
    return members


def _require_same_cases(models: Sequence[PredictedFolder]) -> None:
    every = set().union(*(model.files for model in models))
    for model in models:
        if missing := sorted(every - set(model.files)):
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise DataError(
                f"{model.folder} has no probabilities of {', '.join(missing[:5])}{more}",
                "Predict the same images with every model",
            )


def _segmentation(folder: Path, case: str) -> Path:
    """Of the same folder as the probabilities: its format and geometry are those of what is written."""
    paths = [path for path in image_files(folder) if stem(path) == case]
    if not paths:
        raise DataError(f"{folder} holds no segmentation", "Predict again with --probabilities", case)
    return paths[0]


def _mean(
    case: str,
    paths: Sequence[Path],
    orders: Sequence[Sequence[int]],
    weights: Sequence[float],
    geometry: Geometry,
    average: Average,
    targets: TargetKind,
) -> np.ndarray:
    """Weighted mean (C, Z, Y, X) float32 of probabilities; of regions 2 p - 1, as they are averaged everywhere."""
    quantity, mean = PROBABILITIES[targets], RunningMean()
    for path, order, weight in zip(paths, orders, weights, strict=True):
        values = _read(case, path, geometry)[list(order)]
        if targets == "regions":
            values *= 2
            values -= 1
        if average == "logits":
            _convert(values, quantity.to_logits)
        mean.add(values, weight)
    result: np.ndarray = mean.result()
    if average == "logits":
        _convert(result, quantity.from_logits)
    return result


def _convert(values: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> None:
    """(C, Z, Y, X) in place and slice by slice through a function of (N, C)."""
    for z in range(values.shape[1]):
        plane = values[:, z]
        rows = np.ascontiguousarray(plane.reshape(len(plane), -1).T)
        values[:, z] = function(rows).T.reshape(plane.shape)


def _read(case: str, path: Path, geometry: Geometry) -> np.ndarray:
    """(C, Z, Y, X) float32 in the voxels of the first model's segmentation. Raises DataError."""
    if path.suffix == ".npz":
        values = np.moveaxis(_stored_map(path), -1, 0)[:, None].astype(np.float32)
        difference = (
            "" if values.shape[1:] == geometry.shape else f"shape {values.shape[1:]} instead of {geometry.shape}"
        )
    else:
        values, differences = on_grid_of(*read_image(path), geometry)
        difference = "; ".join(map(str, differences))
    if difference:
        raise DataError(f"{path} differs from the first folder's in {difference}", "Predict the same images", case)
    return values


def _stored_map(path: Path) -> np.ndarray:
    """(Y, X, C). Raises FileError for a file that holds something else, or more than there is memory for."""
    try:
        with ZipFile(path) as archive:  # a megabyte of it may hold a thousand
            require_memory(path, sum(each.file_size for each in archive.infolist()), 1)
        with np.load(path, allow_pickle=False) as stored:
            found = np.asarray(stored["probabilities"])
        if found.ndim != 3 or found.dtype.kind != "f":
            raise ValueError(f"an array of {found.dtype} with {found.ndim} axes")
    except MemoryError as error:  # the zip fits, so that the array's own header says more than there is
        raise FileError(
            path, f"says that it holds more than fits into the memory ({error})", "Predict it again"
        ) from None
    except (ValueError, KeyError, EOFError, BadZipFile, NotImplementedError, zlib.error, SyntaxError) as error:
        raise FileError(path, f"holds no map of probabilities ({error})", "Predict it again") from None
    return found


def _may_write(out: Path, segmentations: Mapping[str, Path], probabilities: bool) -> dict[str, list[Path]]:
    """By case; of probabilities both forms, as dimensions are known later. Raises OptionError for files in the way."""
    paths = {case: [out / segmentation.name] for case, segmentation in segmentations.items()}
    if probabilities:
        for case, own in paths.items():
            own += [out / f"{case}{ending}" for ending in PROBABILITIES_ENDINGS]
    require_no_links(out, [path for case, own in paths.items() for path in (record_of(out, case), *own)])
    require_replaceable(out, paths, foreign_channels_file(out) if probabilities else [], "Give another --out")
    return paths


def _record(out: Path, case: str, paths: Sequence[Path]) -> None:
    """That what is written for the case is AutoUNet's, and is not what `predict` may have written before."""
    names = written_names(out, case) | {path.relative_to(out).as_posix() for path in paths}
    PredictedCase(case=case, key="", run="ensemble", earlier=tuple(sorted(names))).save(record_of(out, case))


def _write(
    out: Path, name: str, mean: np.ndarray, geometry: Geometry, first: PredictedFolder, probabilities: bool
) -> None:
    decision = decision_for(first.labels, first.targets)
    dense = np.empty(mean.shape[1:], np.int16)
    for z in range(len(dense)):
        winners = decision.choose(np.ascontiguousarray(mean[:, z].reshape(len(mean), -1).T))
        dense[z] = (winners if decision.classes is None else decision.classes[winners]).reshape(dense.shape[1:])
    write_labels(out / name, decode(dense, first.labels), geometry)
    if probabilities:
        if first.targets == "regions":
            mean += 1
            mean /= 2
        channels = ProbabilityChannels(
            channels=first.channels, targets=first.targets, temperature=1.0, labels=first.labels
        )
        channels.save(out / CHANNELS_FILE)
        write_probabilities(mean, out / name, geometry)
