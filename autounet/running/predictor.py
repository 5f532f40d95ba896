"""New images through a packed model: read, prepare, predict with every fold, export, write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from autounet.allocator import keep_freed_memory
from autounet.datasets import InputCase, find_inputs, load_input
from autounet.preprocessing import (
    PooledScores,
    Prepared,
    append_one_hot,
    decision_for,
    export,
    labels_by_file,
    labels_for_next_stage,
    prepare_case,
)
from autounet.preprocessing.maps import export_map
from autounet.running.family_prediction import Scored, pruned, require_gates, write_gates
from autounet.running.prediction_files import prediction_path, write_prediction
from autounet.running.prediction_maps import Pooling, Wanted, pooling_for, write_map, write_pooled
from autounet.schema.errors import AutoUNetError, DataError, ModelError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.plan import Average, Configuration
from autounet.schema.prepared import CaseProperties
from autounet.schema.presence import Presence
from autounet.schema.stages import with_previous_stages
from autounet.schema.swaps import prediction_swap
from autounet.selection import apply_steps
from autounet.workers import one_ahead

log = logging.getLogger(__name__)

OnCase = Callable[[str], None]
HANDOVERS = {"grid": labels_for_next_stage, "file": labels_by_file}
"""by `InferenceSpec.handover`"""


class Predictor:
    """A trained model. `predict` gives label values as in the training data's files.

    `configuration` is one instead of those selected. `folds` and `prune`, the number of poolings of the shallower
    network of the family nested, are those of the selected: a previous stage of a cascade is always predicted with all
    folds that were packed, and whole. `average` is what views and folds, and configurations, are averaged as; None: as
    the model was selected. `postprocess` removes the components that cross-validation says to remove; what was judged
    on the selected configurations is not applied to another one. Raises ModelError, and OptionError for a `prune` that
    the networks cannot have.
    """

    def __init__(
        self,
        model: Path,
        device: str = "auto",
        configuration: str | None = None,
        folds: Sequence[int] | None = None,
        mirror: bool = True,
        overlap: float | None = None,
        prune: int | None = None,
        average: Average | None = None,
        postprocess: bool = True,
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
            name: _adjusted(self.bundle.configurations[name], mirror, overlap, average)
            for name in with_previous_stages(self.names, self.bundle.configurations)
        }
        if prune is not None:
            self.configurations |= {name: pruned(name, self.configurations[name], prune) for name in self.names}
        self.pooling: Pooling = pooling_for(self.bundle, self.names, average)
        self.steps = self.bundle.selection.postprocessing if postprocess and configuration is None else ()
        built = self.bundle.model_copy(update={"configurations": self.configurations})
        self.models = {
            name: build_models(built, self.folder, name, folds if name in self.names else None, self.device)
            for name in self.configurations
        }

    def prepare(self, image: np.ndarray, geometry: Geometry, present: Presence | None = None) -> list[Prepared]:
        """An image (C,Z,Y,X) for each of the configurations, previous stages included. `present`: what it has of C."""
        return [
            prepare_case("", "", image, None, geometry, configuration.preprocess, present)
            for configuration in self.configurations.values()
        ]

    def segment(self, prepared: Sequence[Prepared]) -> np.ndarray:
        """Label values (Z,Y,X) in the geometry of the image that `prepared` came from."""
        return self._decided(self._scored(prepared))

    def _scored(self, prepared: Sequence[Prepared], as_seen: bool = False) -> dict[str, Scored]:
        """By configuration, previous stages included; `as_seen` keeps the images with what previous stages add."""
        from autounet.inference.sliding import predict_scores

        all_labels = self.bundle.labels
        found: dict[str, Scored] = {}
        for (name, configuration), case in zip(self.configurations.items(), prepared, strict=True):
            image = case.image
            if configuration.previous_stage is not None:
                before = found[configuration.previous_stage]
                decision = decision_for(all_labels, self.configurations[configuration.previous_stage].targets)
                hand_over = HANDOVERS[configuration.inference.handover]
                labels = hand_over(before.scores, before.properties, case.properties, decision)
                image = append_one_hot(image, labels, all_labels.count)
            outputs, swap = configuration.network.out_channels, prediction_swap(configuration, all_labels)
            scores = predict_scores(self.models[name], image, configuration, outputs, self.device, swap=swap)
            found[name] = Scored(image if as_seen else case.image, scores, case.properties)
        return found

    def _decided(self, scored: Mapping[str, Scored]) -> np.ndarray:
        sources, pooling = self._sources(scored), self.pooling
        values = export(sources, self.bundle.labels, targets=pooling.targets, average=pooling.average)
        return apply_steps(values, sources[0][1].geometry.spacing, self.steps)

    def _sources(self, scored: Mapping[str, Scored]) -> list[tuple[np.ndarray, CaseProperties]]:
        return [(scored[name].scores, scored[name].properties) for name in self.names]

    def write_maps(
        self, scored: Mapping[str, Scored], wanted: Wanted, segmentation: Path, geometry: Geometry
    ) -> list[Path]:
        """What `wanted` names, beside the segmentation; `scored` with the images as the networks saw them."""
        from autounet.inference.disagreement import fold_disagreement

        labels = self.bundle.labels
        pooled = PooledScores(self._sources(scored), labels, targets=self.pooling.targets, average=self.pooling.average)
        paths = write_pooled(pooled, self.pooling, labels, wanted, segmentation, geometry)
        if not wanted.uncertainty:
            return paths
        found = [
            export_map(
                fold_disagreement(
                    self.models[name], scored[name].image, self.configurations[name], labels, self.device
                ),
                scored[name].properties,
            )
            for name in self.names
        ]
        return [*paths, write_map(np.mean(found, axis=0), "disagreement", segmentation, geometry)]

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

    def predict_files(
        self,
        source: Path,
        out: Path,
        on_case: OnCase | None = None,
        gate_maps: bool = False,
        form: str | None = None,
        probabilities: bool = False,
        uncertainty: bool = False,
    ) -> list[str]:
        """Predict a file or folder into `out`. A bad image is reported and skipped; returns the messages of those.

        `form` is None for the image's own format, or dicom-seg. With `gate_maps` also what the gates of the family
        attention let pass, see `write_gates`; with `probabilities` and `uncertainty` the maps of `write_maps`. Raises
        OptionError for networks without gates.
        """
        wanted = Wanted(probabilities, uncertainty)
        gated = {name: self.configurations[name] for name in self.names} if gate_maps else {}
        require_gates(gated)
        keep_freed_memory()
        cases = find_inputs(source, self.bundle)
        paths = {case: prediction_path(out, case, form) for case in cases}
        require_new(paths)
        failures: list[str] = []
        for case, loaded in one_ahead(cases, partial(_load_and_prepare, self)):
            try:
                prepared, geometry = loaded()
                scored = self._scored(prepared, as_seen=gate_maps or wanted.uncertainty)
                write_prediction(paths[case], self._decided(scored), geometry, case, self.bundle.labels)
                beside = prediction_path(out, case, None)
                if any(wanted):
                    self.write_maps(scored, wanted, beside, geometry)
                if gated:
                    write_gates(gated, self.models, scored, self.device, beside, geometry)
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
    present = None if case.present is None else tuple(index in case.present for index in range(len(image)))
    return predictor.prepare(image, geometry, present), geometry


def _adjusted(
    configuration: Configuration, mirror: bool, overlap: float | None, average: Average | None
) -> Configuration:
    inference = configuration.inference
    if not mirror:
        inference = inference.model_copy(update={"mirror_axes": ()})
    if overlap is not None:
        inference = inference.model_copy(update={"overlap": overlap})
    if average is not None:
        inference = inference.model_copy(update={"average": average})
    return configuration.model_copy(update={"inference": inference})
