"""New images through a packed model: read, prepare, predict with every fold, export, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from ..inference.decisions import decision_for
from ..inference.export import append_one_hot, export, export_map, labels_by_file, labels_for_next_stage
from ..inference.probabilities import PooledScores
from ..ops.components import apply_steps
from ..preprocessing import Prepared, prepare_case
from ..schema.dataset import ChannelAvailability
from ..schema.errors import ModelError, OptionError
from ..schema.geometry import Geometry
from ..schema.plan import Average, Configuration, prediction_swap, with_previous_stages
from ..schema.prepared import CaseProperties
from .maps import Pooling, Scored, Wanted, pooling_for, pruned, write_map, write_pooled
from .one_image import Files, from_array, from_files

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
        from ..inference.bundle import build_models, load_bundle
        from ..ops.device import choose_device

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
        self.folds = None if folds is None else tuple(folds)
        self.steps = self.bundle.selection.postprocessing if postprocess and configuration is None else ()
        built = self.bundle.model_copy(update={"configurations": self.configurations})
        self.models = {
            name: build_models(built, self.folder, name, folds if name in self.names else None, self.device)
            for name in self.configurations
        }
        self._networks = Lock()
        """one image at a time: a second one would take its memory besides and gain nothing"""

    def prepare(
        self, image: np.ndarray, geometry: Geometry, present: ChannelAvailability | None = None
    ) -> list[Prepared]:
        """An image (C,Z,Y,X) for each of the configurations, previous stages included. `present`: what it has of C."""
        return [
            prepare_case("", "", image, None, geometry, configuration.preprocess, present)
            for configuration in self.configurations.values()
        ]

    def segment(self, prepared: Sequence[Prepared]) -> np.ndarray:
        """Label values (Z,Y,X) in the geometry of the image that `prepared` came from."""
        return self.decided(self.scored(prepared))

    def scored(self, prepared: Sequence[Prepared], as_seen: bool = False) -> dict[str, Scored]:
        """What the networks say, by configuration, previous stages included.

        `as_seen` keeps the images with what previous stages add. Raises OutOfMemory.
        """
        with self._networks:
            return self._run_networks(prepared, as_seen)

    def _run_networks(self, prepared: Sequence[Prepared], as_seen: bool) -> dict[str, Scored]:
        from ..inference.sliding_window import predict_scores

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

    def decided(self, scored: Mapping[str, Scored]) -> np.ndarray:
        """Label values (Z, Y, X) in the geometry of the image."""
        sources, pooling = self._sources(scored), self.pooling
        values = export(sources, self.bundle.labels, pooling.weights, targets=pooling.targets, average=pooling.average)
        return apply_steps(values, sources[0][1].geometry.spacing, self.steps)

    def _sources(self, scored: Mapping[str, Scored]) -> list[tuple[np.ndarray, CaseProperties]]:
        return [(scored[name].scores, scored[name].properties) for name in self.names]

    def write_maps(
        self, scored: Mapping[str, Scored], wanted: Wanted, segmentation: Path, geometry: Geometry
    ) -> list[Path]:
        """What `wanted` names, beside the segmentation; `scored` with the images as the networks saw them."""
        from ..inference.maps import fold_disagreement

        labels = self.bundle.labels
        pooling = self.pooling
        pooled = PooledScores(self._sources(scored), labels, pooling.weights, pooling.targets, pooling.average)
        paths = write_pooled(pooled, pooling, labels, wanted, segmentation, geometry)
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
        mean = np.average(found, axis=0, weights=pooling.weights)
        return [*paths, write_map(mean, "disagreement", segmentation, geometry)]

    def predict(
        self,
        image: np.ndarray | Files,
        spacing: Sequence[float] | None = None,
        *,
        direction: Sequence[float] | np.ndarray | None = None,
        geometry: Geometry | None = None,
        present: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Label values (Z, Y, X) int32 of one image, voxel by voxel in its own order; what its file gives, too.

        `image` is an image file (DICOM series included), the files of one case in the order of the model's channels,
        or an array: (C, Z, Y, X), of one channel also (Z, Y, X) or (Y, X), as stored in a file. Of an array, `spacing`
        is (z, y, x) mm (1 unless given) and `direction` ITK's matrix (3x3, row by row; columns are the directions of
        the index axes x, y, z in LPS); unless given, x runs to the left, y to the back and z up. `geometry` says both
        at once, as `autounet.images.read_image` tells it. `present` says which channels an array has, of a model that
        was trained on images that lack some. Several threads may predict with one predictor: its networks run for one
        image at a time. Raises DataError for an image that does not fit, OptionError for a spacing or direction that
        cannot be.
        """
        if isinstance(image, np.ndarray):
            given = from_array(image, self.bundle, spacing, direction, geometry, present)
        elif any(said is not None for said in (spacing, direction, geometry, present)):
            raise OptionError("spacing, direction, geometry and present are of arrays; files tell their own")
        else:
            given = from_files(image, self.bundle)
        return self.segment(self.prepare(given.array, given.geometry, given.present))


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
