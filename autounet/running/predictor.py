"""New images through a packed model: read, prepare, predict with every fold, export, write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autounet.allocator import keep_freed_memory
from autounet.datasets import InputCase, find_inputs, load_input
from autounet.images import output_suffix, suffix, write_labels
from autounet.preprocessing import Prepared, append_one_hot, export, labels_for_next_stage, prepare_case
from autounet.schema.errors import AutoUNetError, DataError, ModelError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.plan import Configuration
from autounet.schema.prepared import CaseProperties
from autounet.schema.stages import with_previous_stages

log = logging.getLogger(__name__)

OnCase = Callable[[str], None]


class Predictor:
    """A trained model. `predict` gives label values as in the training data's files.

    `configuration` is one instead of those selected. `folds` are those of the selected: a previous stage of a cascade
    is always predicted with all folds that were packed.
    """

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
        self.names = (configuration,) if configuration else self.bundle.selection.chosen
        unknown = set(self.names) - set(self.bundle.configurations)
        if unknown:
            raise ModelError(
                f"{model} has no configuration {', '.join(sorted(unknown))}; "
                f"it has {', '.join(self.bundle.configurations)}"
            )
        self.configurations = {
            name: _adjusted(self.bundle.configurations[name], mirror, overlap)
            for name in with_previous_stages(self.names, self.bundle.configurations)
        }
        self.models = {
            name: build_models(self.bundle, self.folder, name, folds if name in self.names else None, self.device)
            for name in self.configurations
        }

    def prepare(self, image: np.ndarray, geometry: Geometry) -> list[Prepared]:
        """An image (C,Z,Y,X) for each of the configurations, previous stages included."""
        return [
            prepare_case("", "", image, None, geometry, configuration.preprocess)
            for configuration in self.configurations.values()
        ]

    def segment(self, prepared: Sequence[Prepared]) -> np.ndarray:
        """Label values (Z,Y,X) in the geometry of the image that `prepared` came from."""
        from autounet.inference.sliding import predict_scores

        classes = self.bundle.labels.count
        found: dict[str, tuple[np.ndarray, CaseProperties]] = {}
        for (name, configuration), case in zip(self.configurations.items(), prepared, strict=True):
            image = case.image
            if configuration.previous_stage is not None:
                labels = labels_for_next_stage(*found[configuration.previous_stage], case.properties)
                image = append_one_hot(image, labels, classes)
            scores = predict_scores(self.models[name], image, configuration, classes, self.device)
            found[name] = scores, case.properties
        return export([found[name] for name in self.names], self.bundle.labels)

    def predict(self, image: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
        """Segment an array (C,Z,Y,X), (Z,Y,X) or, for 2-D models, (Y,X); spacing (z,y,x) mm. Returns (Z,Y,X) values."""
        channels = len(self.bundle.channels)
        array = np.asarray(image, dtype=np.float32)
        while array.ndim < 3:
            array = array[None]
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4 or array.shape[0] != channels:
            names = ", ".join(channel.name for channel in self.bundle.channels)
            raise DataError(
                f"the array has shape {tuple(np.shape(image))}; the model needs ({channels}, Z, Y, X) for {names}"
            )
        dz, dy, dx = spacing if spacing is not None else (1.0, 1.0, 1.0)
        z, y, x = array.shape[1:]
        geometry = Geometry(shape=(z, y, x), spacing=(dz, dy, dx), kind="array", dimension=2 if z == 1 else 3)
        return self.segment(self.prepare(array, geometry))

    def predict_files(self, source: Path, out: Path, on_case: OnCase | None = None) -> list[str]:
        """Predict a file or folder into `out`. A bad image is reported and skipped; returns the messages of those."""
        keep_freed_memory()
        cases = find_inputs(source, self.bundle)
        paths = {case: out / f"{case.identifier}{output_suffix(suffix(case.images[0]))}" for case in cases}
        require_new(paths)
        failures: list[str] = []
        for case, loaded in _ahead(cases, partial(_load_and_prepare, self)):
            try:
                prepared, geometry = loaded()
                write_labels(paths[case], self.segment(prepared), geometry)
            except AutoUNetError as error:
                message = str(error)
                if not message.startswith(f"case {case.identifier}: "):
                    message = f"case {case.identifier}: {message}"
                log.error("%s", message)
                failures.append(message)
            if on_case:
                on_case(case.identifier)
        return failures


def require_new(paths: Mapping[InputCase, Path]) -> None:
    """Raises OptionError where a segmentation would take the place of an image."""
    images = {image.resolve() for case in paths for image in case.images}
    for case, path in paths.items():
        if path.resolve() in images:
            raise OptionError(f"case {case.identifier}: {path} is an image to be predicted. Give another --out")


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


def _adjusted(configuration: Configuration, mirror: bool, overlap: float | None) -> Configuration:
    inference = configuration.inference
    if not mirror:
        inference = inference.model_copy(update={"mirror_axes": ()})
    if overlap is not None:
        inference = inference.model_copy(update={"overlap": overlap})
    return configuration.model_copy(update={"inference": inference})
