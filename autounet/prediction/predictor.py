"""New images through a packed model: prepare, predict with every fold, decide. Folders and files are `folder`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple, get_args

import numpy as np

from ..datasets.chunked_input import ChunkedInput, rows_of_piece
from ..inference.ensembling import decision_for
from ..inference.export import append_one_hot, ensemble_scores, export, labels_by_file, labels_for_next_stage
from ..inference.objects import UNTRIED, numbered_objects, object_maps
from ..nets import FAMILIES
from ..ops.masks import apply_steps, decode
from ..ops.resample import Rows
from ..ops.rows import RowBuffer
from ..preprocessing import ImageFigures, Prepared, case_properties, crop_taps, prepare_case, prepared_rows
from ..schema.bundle import ModelBundle
from ..schema.dataset import ChannelAvailability
from ..schema.errors import ModelError, OptionError, unknown_name
from ..schema.geometry import CaseProperties, Geometry
from ..schema.labels import TargetKind
from ..schema.option_rules import require_device
from ..schema.plan import Average, Configuration, prediction_swap, with_previous_stages
from .one_image import Files, from_array, from_files

HANDOVERS = {"grid": labels_for_next_stage, "file": labels_by_file}
"""by `InferenceSpec.handover`"""
PRUNABLE = "nested"


class NetworkScores(NamedTuple):
    """What the networks of one configuration predict for a case."""

    image: np.ndarray
    """(C, *S); with the segmentation of a previous stage where that is kept"""
    scores: np.ndarray
    """(C, *S), a channel for each output"""
    properties: CaseProperties


class Combination(NamedTuple):
    """How the configurations of a prediction are averaged, and the calibration temperature of the result."""

    targets: TargetKind
    average: Average
    temperature: float
    weights: tuple[float, ...] | None = None
    """of the configurations; None: equal"""


class Predictor:
    """A trained model. `predict` gives label values as in the training data's files.

    `configuration` is one instead of those selected. `folds` and `prune`, the number of poolings of the shallower
    network of the family nested, are those of the selected: a previous stage of a cascade is always predicted with all
    folds that were packed, and whole. `average` is what views and folds, and configurations, are averaged as; None: as
    the model was selected. `postprocess` removes the components that cross-validation says to remove; steps that were
    chosen for the selected configurations are not applied to another one. Objects that are told apart are numbered
    from 1 on; without `postprocess` small ones stay. With the `device` None there are no networks, for a process that
    only hands cases to others. Raises ModelError, and OptionError for a `prune` that the networks cannot have.
    """

    def __init__(
        self,
        model: Path,
        device: str | None = "auto",
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

        if device is not None:
            require_device(device)
        if average is not None and average not in get_args(Average):
            raise unknown_name("--average", average, get_args(Average))
        self.bundle, folder = load_bundle(Path(model))
        self.device = "" if device is None else choose_device(device)
        known = self.bundle.configurations
        self.names = (configuration,) if configuration else self.bundle.selection.chosen
        if configuration and configuration not in known:
            raise unknown_name("--configuration", configuration, known)
        if unknown := sorted(set(self.names) - set(known)):
            raise ModelError(
                f"{model} has no configuration {', '.join(unknown)}; it has {', '.join(known)}",
                "Pack the model again, or give one of these as --configuration",
            )
        self.configurations = {
            name: _adjusted(known[name], mirror, overlap, average) for name in with_previous_stages(self.names, known)
        }
        if prune is not None:
            self.configurations |= {name: _pruned(name, self.configurations[name], prune) for name in self.names}
        self.combination = _combination(self.bundle, self.names, average)
        self.folds = None if folds is None else tuple(folds)
        self.steps = self.bundle.selection.postprocessing if postprocess and configuration is None else ()
        found = self.bundle.selection.objects
        self.separation = UNTRIED if found is None else found.chosen
        if not postprocess:
            self.separation = self.separation.model_copy(update={"smallest": 0.0})
        built = self.bundle.model_copy(update={"configurations": self.configurations})
        self.models = {
            name: build_models(built, folder, name, folds if name in self.names else None, self.device)
            for name in (self.configurations if device is not None else ())
        }
        self._networks = Lock()
        """one image at a time: a second one would need memory of its own and gain nothing"""

    def prepare(
        self, image: np.ndarray, geometry: Geometry, present: ChannelAvailability | None = None
    ) -> list[Prepared]:
        """An image (C,Z,Y,X) for each of the configurations, previous stages included. `present`: what it has of C."""
        return [
            prepare_case("", "", image, None, geometry, configuration.preprocess, present)
            for configuration in self.configurations.values()
        ]

    def predict_scores(self, prepared: Sequence[Prepared], keep_input: bool = False) -> dict[str, NetworkScores]:
        """By configuration, previous stages included. Raises OutOfMemory.

        `keep_input` keeps the images as the networks get them, with what previous stages add.
        """
        from ..inference.sliding_window import predict_scores

        all_labels = self.bundle.labels
        results: dict[str, NetworkScores] = {}
        with self._networks:
            for (name, configuration), case in zip(self.configurations.items(), prepared, strict=True):
                image = case.image
                if configuration.previous_stage is not None:
                    before = results[configuration.previous_stage]
                    decision = decision_for(all_labels, self.configurations[configuration.previous_stage].targets)
                    hand_over = HANDOVERS[configuration.inference.handover]
                    labels = hand_over(before.scores, before.properties, case.properties, decision)
                    image = append_one_hot(image, labels, all_labels.count)
                outputs, swap = configuration.network.out_channels, prediction_swap(configuration, all_labels)
                scores = predict_scores(self.models[name], image, configuration, outputs, self.device, swap=swap)
                results[name] = NetworkScores(image if keep_input else case.image, scores, case.properties)
        return results

    def decide(self, scores: Mapping[str, NetworkScores]) -> np.ndarray:
        """Label values (Z, Y, X) in the geometry of the image, or the numbers of objects that are told apart."""
        sources = self.sources(scores)
        targets, average, _, weights = self.combination
        if self.bundle.labels.objects is not None:
            ensemble = ensemble_scores(sources, self.bundle.labels, weights, targets, average)
            maps = object_maps(ensemble, self.bundle.labels)
            return numbered_objects(maps, self.separation, sources[0][1].geometry.spacing)
        values = export(sources, self.bundle.labels, weights, targets, average)
        return apply_steps(values, sources[0][1].geometry.spacing, self.steps)

    def sources(self, scores: Mapping[str, NetworkScores]) -> list[tuple[np.ndarray, CaseProperties]]:
        """Of the configurations that are averaged."""
        return [(scores[name].scores, scores[name].properties) for name in self.names]

    def segment(self, prepared: Sequence[Prepared]) -> np.ndarray:
        """Label values (Z,Y,X) in the geometry of the image that `prepared` came from."""
        return self.decide(self.predict_scores(prepared))

    def label_rows(self, image: ChunkedInput, figures: ImageFigures) -> Iterator[tuple[int, np.ndarray]]:
        """What `segment` gives of an image that is larger than the memory, without postprocessing: some rows at a time.

        Yields the first row and label values (Z, Y, X) of it and those after, along the stored axis of the figures; in
        any order, and not of rows outside the crop. Of models without previous stages and objects. Raises OutOfMemory.
        """
        from ..inference.score_rows import score_rows

        targets, average, _, weights = self.combination
        cases, axes, buffers = [], [], []
        for name in self.names:
            configuration = self.configurations[name]
            case = case_properties("", "", figures.box, image.geometry, configuration.preprocess, image.present)
            axis = case.axes.index(figures.axis)
            prepared = RowBuffer(prepared_rows(image, figures, case), 1 + axis)
            outputs, swap = configuration.network.out_channels, prediction_swap(configuration, self.bundle.labels)
            models = self.models[name]
            blocks = score_rows(models, prepared, case.shape, axis, configuration, outputs, self.device, swap)
            cases.append(case)
            axes.append(axis)
            buffers.append(RowBuffer(blocks, 1 + axis))
        along = [crop_taps(case)[axis] for case, axis in zip(cases, axes, strict=True)]
        count, backwards = cases[0].cropped_shape[axes[0]], cases[0].flips[axes[0]]
        step = rows_of_piece(image.plane(figures.axis))
        with self._networks:
            for start in range(0, count, step):
                stop = min(start + step, count)
                sources, rows = [], []
                for case, axis, taps, buffer in zip(cases, axes, along, buffers, strict=True):
                    first, last = int(taps.low[start:stop].min()), int(taps.high[start:stop].max()) + 1
                    sources.append((buffer.take(first, last), case))
                    rows.append(Rows(axis, case.shape[axis], first, start, stop))
                scores = ensemble_scores(sources, self.bundle.labels, weights, targets, average, rows)
                shape = list(image.geometry.shape)
                shape[figures.axis] = stop - start
                dense = np.zeros(shape, np.int16)
                inside = [slice(*side) for side in scores.box]
                inside[figures.axis] = slice(None)
                scores.classify(dense[tuple(inside)])
                low, high = figures.box[figures.axis]
                yield (high - stop if backwards else low + start), decode(dense, self.bundle.labels)

    def predict(
        self,
        image: np.ndarray | Files,
        spacing: Sequence[float] | None = None,
        *,
        direction: Sequence[float] | np.ndarray | None = None,
        geometry: Geometry | None = None,
        present: Sequence[bool] | None = None,
        force: bool = False,
    ) -> np.ndarray:
        """Label values (Z, Y, X) int32 of one image, voxel by voxel in its own order; what its file gives, too.

        `image` is an image file (DICOM series included), the files of one case in the order of the model's channels,
        or an array: (C, Z, Y, X), of one channel also (Z, Y, X) or (Y, X), as stored in a file. Of an array, `spacing`
        is (z, y, x) mm (1 unless given) and `direction` ITK's matrix (3x3, row by row; columns are the directions of
        the index axes x, y, z in LPS); unless given, x runs to the left, y to the back and z up. `geometry` holds
        both at once, as `autounet.imageio.read_image` returns it. `present` says which channels an array has, of a
        model that was trained on images that lack some. An image that is unlike the training in dimension, spacing,
        modality or intensities is refused unless `force`. Several threads may predict with one predictor: its networks
        run for one image at a time. Raises DataError for an image that does not fit, OptionError for a spacing or
        direction that cannot be.
        """
        if isinstance(image, np.ndarray):
            given = from_array(image, self.bundle, spacing, direction, geometry, present, force)
        elif any(value is not None for value in (spacing, direction, geometry, present)):
            raise OptionError(
                "spacing, direction, geometry and present belong to arrays, and a file was given",
                "Leave them out: they are read from the file",
            )
        else:
            given = from_files(image, self.bundle, force)
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


def _pruned(name: str, configuration: Configuration, poolings: int) -> Configuration:
    """Predicted by the U-Net of this many poolings. Raises OptionError where there is none."""
    network = configuration.network
    if network.family != PRUNABLE:
        raise OptionError(
            f"--prune is for networks of the family {PRUNABLE}, and {name} is of the family {network.family}",
            "Leave --prune out",
        )
    network = network.model_copy(update={"options": {**network.options, "prune": poolings}})
    if problems := FAMILIES[PRUNABLE].problems(network):
        raise OptionError(
            f"--prune {poolings} does not fit {name}: {'; '.join(problems)}", "Give another number of poolings"
        )
    return configuration.model_copy(update={"network": network})


def _combination(bundle: ModelBundle, names: Sequence[str], average: Average | None) -> Combination:
    """Temperature and weights are those of what was selected: 1 and equal for another configuration or average."""
    calibration = bundle.selection.calibration
    as_selected = tuple(names) == bundle.selection.chosen and average is None
    temperature = calibration.temperature if calibration and as_selected else 1.0
    weights = (bundle.selection.weights or None) if as_selected else None
    return Combination(bundle.configurations[names[0]].targets, average or "probabilities", temperature, weights)
