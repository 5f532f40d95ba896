"""The Python API, and the only place where read, preprocess, predict, export and write are joined.

torch is imported when something is predicted or trained, never by importing this module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autounet.datasets import InputCase, Match, find_inputs, image_files, load_case, load_input, pair
from autounet.evaluation import distance_unit, evaluate_case, summarise
from autounet.images import output_suffix, read_geometry, read_labels, stem, suffix, write_labels
from autounet.preprocessing import Prepared, case_key, export, prepare_case
from autounet.schema.dataset import Dataset
from autounet.schema.errors import AutoUNetError, DataError, ModelError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.plan import Configuration, PreprocessSpec
from autounet.schema.run import CaseMetrics, Metrics
from autounet.store import is_prepared, open_prepared, read_scores, write_prepared, write_scores
from autounet.workers import map_parallel

if TYPE_CHECKING:
    from autounet.schema.run import ModelBundle

log = logging.getLogger(__name__)

OnCase = Callable[[str], None]


class _PrepareTask(NamedTuple):
    dataset: Dataset
    identifier: str
    key: str
    spec: PreprocessSpec
    folder: Path


def _prepare_one(task: _PrepareTask) -> str:
    if not is_prepared(task.folder, task.identifier, task.key):
        case = load_case(task.dataset, task.identifier)
        prepared = prepare_case(task.identifier, task.key, case.image, case.labels, case.geometry, task.spec)
        write_prepared(task.folder, prepared.properties, prepared.image, prepared.labels, prepared.locations)
    return task.identifier


def prepare_cases(
    dataset: Dataset,
    hashes: Mapping[str, str],
    spec: PreprocessSpec,
    folder: Path,
    workers: int,
    on_case: OnCase | None = None,
) -> None:
    """Preprocess every case into `folder`, in parallel; cases already there with the same key are kept.

    `hashes` holds the content hash of each case.
    """
    keys = {case.identifier: case_key(spec, hashes[case.identifier]) for case in dataset.cases}
    tasks = [
        _PrepareTask(
            dataset.model_copy(update={"cases": (case,)}), case.identifier, keys[case.identifier], spec, folder
        )
        for case in dataset.cases
    ]
    missing = [task for task in tasks if not is_prepared(folder, task.identifier, task.key)]
    if on_case:
        for task in tasks:
            if task not in missing:
                on_case(task.identifier)
    map_parallel(_prepare_one, missing, workers, on_case)


def validate_cases(
    dataset: Dataset,
    name: str,
    configuration: Configuration,
    models: Sequence[Any],
    prepared: Path,
    cases: Sequence[str],
    fold: int,
    folder: Path,
    device: str,
    on_case: OnCase | None = None,
) -> Metrics:
    """Predict whole out-of-fold volumes into `folder` (segmentations and `scores/`) and evaluate them."""
    from autounet.inference.sliding import predict_scores

    results = []
    for identifier in cases:
        case = open_prepared(prepared / configuration.prepared, identifier)
        scores = predict_scores(models, case.image[:], configuration, dataset.labels.count, device)
        write_scores(folder / "scores", identifier, scores.astype(np.float16))
        segmentation = export([(scores, case.properties)], dataset.labels)
        results.append(_write_and_evaluate(dataset, identifier, segmentation, folder, fold))
        if on_case:
            on_case(identifier)
    return summarise_cases(results, dataset)


def ensemble_cases(
    dataset: Dataset,
    sources: Mapping[str, tuple[Configuration, Path]],
    prepared: Path,
    folds: Mapping[str, int],
    folder: Path,
) -> Metrics:
    """Average the kept out-of-fold scores of several configurations into `folder` and evaluate them.

    `sources` maps a configuration's name to itself and its scores folder; `folds` maps each case to its fold.
    """
    results = []
    for identifier, fold in folds.items():
        pairs = [
            (
                read_scores(scores, identifier).astype(np.float32),
                open_prepared(prepared / configuration.prepared, identifier).properties,
            )
            for configuration, scores in sources.values()
        ]
        segmentation = export(pairs, dataset.labels)
        results.append(_write_and_evaluate(dataset, identifier, segmentation, folder, fold))
    return summarise_cases(results, dataset)


def summarise_cases(cases: Sequence[CaseMetrics], dataset: Dataset) -> Metrics:
    """Means over out-of-fold cases; distances in the unit of the data set's own images."""
    first = dataset.cases[0].label
    unit = distance_unit(read_geometry(Path(dataset.root) / first)) if first else "mm"
    return summarise(cases, dataset.labels, unit=unit)


def _write_and_evaluate(dataset: Dataset, identifier: str, segmentation: Any, folder: Path, fold: int) -> CaseMetrics:
    case = dataset.case(identifier)
    assert case.label is not None
    reference, geometry = read_labels(Path(dataset.root) / case.label)
    write_labels(folder / f"{identifier}{output_suffix(dataset.suffix)}", segmentation, geometry)
    per_class = evaluate_case(segmentation, reference, geometry.spacing, dataset.labels, unit=distance_unit(geometry))
    return CaseMetrics(case=identifier, fold=fold, per_class=per_class)


class Predictor:
    """A trained model. `predict` gives label values as in the training data's files."""

    def __init__(
        self,
        model: Path,
        device: str = "auto",
        configuration: str | None = None,
        folds: Sequence[int] | None = None,
        mirror: bool = True,
        overlap: float | None = None,
    ) -> None:
        from autounet.device import choose_device
        from autounet.inference.bundle import build_models, load_bundle

        self.bundle, self.folder = load_bundle(Path(model))
        self.device = choose_device(device)
        names = (configuration,) if configuration else self.bundle.selection.chosen
        unknown = set(names) - set(self.bundle.configurations)
        if unknown:
            raise ModelError(
                f"{model} has no configuration {', '.join(sorted(unknown))}; it has {', '.join(self.bundle.configurations)}"
            )
        self.configurations = {
            name: _adjusted(self.bundle.configurations[name], mirror, overlap, self.device) for name in names
        }
        self.models = {
            name: build_models(self.bundle, self.folder, name, folds, self.device) for name in self.configurations
        }

    def prepare(self, image: np.ndarray, geometry: Geometry) -> list[Prepared]:
        return [
            prepare_case("", "", image, None, geometry, configuration.preprocess)
            for configuration in self.configurations.values()
        ]

    def segment(self, prepared: Sequence[Prepared]) -> np.ndarray:
        """Label values (Z,Y,X) in the geometry of the image that `prepared` came from."""
        from autounet.inference.sliding import predict_scores

        sources = []
        for (name, configuration), case in zip(self.configurations.items(), prepared, strict=True):
            scores = predict_scores(self.models[name], case.image, configuration, self.bundle.labels.count, self.device)
            sources.append((scores, case.properties))
        return export(sources, self.bundle.labels)

    def predict(self, image: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
        """Segment an array (C,Z,Y,X), (Z,Y,X) or, for 2-D models, (Y,X); spacing (z,y,x) mm. Returns (Z,Y,X) values."""
        channels = len(self.bundle.channels)
        array = np.asarray(image, dtype=np.float32)
        while array.ndim < 3:
            array = array[None]
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4 or array.shape[0] != channels:
            raise DataError(
                f"the array has shape {tuple(np.shape(image))}; the model needs ({channels}, Z, Y, X): one entry for each of "
                + ", ".join(channel.name for channel in self.bundle.channels)
            )
        three = tuple(spacing) if spacing is not None else (1.0, 1.0, 1.0)
        z, y, x = array.shape[1:]
        geometry = Geometry(shape=(z, y, x), spacing=three, kind="array", dimension=2 if z == 1 else 3)
        return self.segment(self.prepare(array, geometry))

    def predict_files(self, source: Path, out: Path, on_case: OnCase | None = None) -> list[str]:
        """Predict a file or folder into `out`. A bad image is reported and skipped; returns the messages of those."""
        cases = find_inputs(source, self.bundle)
        failures: list[str] = []
        for case, loaded in _ahead(cases, partial(_load_and_prepare, self)):
            try:
                prepared, geometry = loaded()
                path = out / f"{case.identifier}{output_suffix(suffix(case.images[0]))}"
                write_labels(path, self.segment(prepared), geometry)
            except AutoUNetError as error:
                log.error("%s: %s", case.identifier, error)
                failures.append(f"{case.identifier}: {error}")
            if on_case:
                on_case(case.identifier)
        return failures


def _load_and_prepare(predictor: Predictor, case: InputCase) -> tuple[list[Prepared], Geometry]:
    image, geometry = load_input(case, predictor.bundle.channels)
    return predictor.prepare(image, geometry), geometry


def _ahead(items: Sequence[Any], function: Callable[[Any], Any]) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """Each item with a call that gives `function(item)`, computed one item ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(function, items[0])] if items else []
        for index, item in enumerate(items):
            current = pending.pop()
            if index + 1 < len(items):
                pending.append(pool.submit(function, items[index + 1]))
            yield item, current.result


def _adjusted(configuration: Configuration, mirror: bool, overlap: float | None, device: str) -> Configuration:
    inference = configuration.inference
    if not mirror:
        inference = inference.model_copy(update={"mirror_axes": ()})
    if overlap is not None:
        inference = inference.model_copy(update={"overlap": overlap})
    return configuration.model_copy(update={"inference": inference})


def load(model: str | Path, device: str = "auto", **options: Any) -> Predictor:
    """Load a bundle (`OUT/model`). Options as in `autounet predict`. Raises ModelError."""
    return Predictor(Path(model), device=device, **options)


class _EvaluateTask(NamedTuple):
    case: str
    prediction: Path
    reference: Path
    labels: Labels


def _evaluate_one(task: _EvaluateTask) -> CaseMetrics:
    prediction, _ = read_labels(task.prediction)
    reference, geometry = read_labels(task.reference)
    if prediction.shape != reference.shape:
        raise DataError(
            f"case {task.case}: the prediction has shape {prediction.shape} and the reference {reference.shape}. "
            "Predict with the original images, or give the matching reference folder"
        )
    unit = distance_unit(geometry)
    per_class = evaluate_case(prediction, reference, geometry.spacing, task.labels, unit=unit)
    return CaseMetrics(case=task.case, per_class=per_class)


def _values(pair_: tuple[Path, Path]) -> set[int]:
    return {int(value) for path in pair_ for value in np.unique(read_labels(path)[0])}


def evaluate(
    predictions: Path,
    references: Path,
    classes: Mapping[str, int] | None = None,
    bundle: ModelBundle | None = None,
    workers: int = 1,
    on_case: Callable[[Any], None] | None = None,
) -> Metrics:
    """Evaluate a folder (or file) of label images against references, paired by the design's rule.

    Classes come from `bundle`, else from `classes` (name -> value), else from the values found.
    """
    pairs = _evaluation_pairs(Path(predictions), Path(references))
    if bundle is not None:
        labels = bundle.labels
    else:
        found = set().union(*map_parallel(_values, [(a, b) for _, a, b in pairs], workers))
        labels = _named_labels(dict(classes or {}), found)
    tasks = [_EvaluateTask(case, prediction, reference, labels) for case, prediction, reference in pairs]
    unit = distance_unit(read_geometry(tasks[0].reference))
    return summarise(map_parallel(_evaluate_one, tasks, workers, on_case), labels, unit=unit)


def _evaluation_pairs(predictions: Path, references: Path) -> list[Match]:
    """Two files are a pair; of two folders every prediction needs its reference."""
    if predictions.is_file() and references.is_file():
        return [Match(stem(predictions), predictions, references)]
    predicted, known = _files(predictions), _files(references)
    pairs = pair(predicted, known)
    alone = sorted(path.name for path in set(predicted) - {match.first for match in pairs})
    if alone:
        raise DataError(
            f"{len(alone)} predictions have no reference in {references}: {', '.join(alone[:5])}. "
            "Give the folder with a reference of the same name for each"
        )
    if len(pairs) < len(known):
        log.warning("%d of %d references have no prediction and are not counted", len(known) - len(pairs), len(known))
    return pairs


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else image_files(path)
    if not files:
        raise DataError(f"{path} has no label images. Give the folder that holds them")
    return files


def _named_labels(classes: dict[str, int], found: set[int]) -> Labels:
    names = {value: name for name, value in classes.items()}
    rest = sorted((found | set(names)) - {0})
    background = LabelClass(name=names.get(0, "background"), value=0)
    foreground = tuple(LabelClass(name=names.get(value, f"label_{value}"), value=value) for value in rest)
    return Labels(classes=(background, *foreground), background_named=0 in names)
