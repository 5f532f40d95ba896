"""Maps beside a segmentation: probabilities, uncertainty, and what the gates of the family attention let pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..imageio import file_kind, stem, suffix, write_channels, write_image
from ..inference.ensembling import RunningMean, decision_for
from ..inference.export import EnsembleScores, ensemble_scores
from ..nets.attention import gated_stages
from ..preprocessing import restore_map
from ..schema.errors import ModelError, OptionError, RecordError
from ..schema.geometry import Geometry
from ..schema.labels import Labels, targets_of
from ..schema.plan import Configuration, prediction_swap
from ..schema.record import replacing
from ..schema.selection import ProbabilityChannels
from .predictor import NetworkScores, Predictor

if TYPE_CHECKING:
    import torch
    from torch import nn

CHANNELS_FILE = "classes.json"
PROBABILITIES_ENDINGS = (".probabilities.nii.gz", ".probabilities.npz")
"""of volumes, and of 2-D images"""
WITHOUT_FLOATS = frozenset({"png", "bmp"})
"""file kinds whose maps are TIFF, but for gate maps, which are scaled to 0..255"""
GATED = "attention"


def write_probability_maps(
    predictor: Predictor,
    scores: Mapping[str, NetworkScores],
    segmentation: Path,
    geometry: Geometry,
    probabilities: bool,
    uncertainty: bool,
) -> list[Path]:
    """Write the maps of one segmentation into its folder.

    `probabilities`: `<case>.probabilities.nii.gz` (of 2-D images `.npz`) with `classes.json`; `uncertainty`:
    `<case>.entropy.<ext>` and `<case>.disagreement.<ext>`, for which `scores` hold the images as the networks get them.
    Raises DataError where the format cannot hold a map.
    """
    labels = predictor.bundle.labels
    targets, average, temperature, weights = predictor.combination
    ensemble = ensemble_scores(predictor.sources(scores), labels, weights, targets, average)
    chances, entropy = probability_maps(ensemble, temperature, probabilities, uncertainty)
    paths = []
    if chances is not None:
        names = tuple(target.name for target in targets_of(labels, targets))
        channels = ProbabilityChannels(channels=names, targets=targets, temperature=temperature, labels=labels)
        channels.save(segmentation.parent / CHANNELS_FILE)
        paths.append(write_probabilities(chances, segmentation, geometry))
    if entropy is not None:
        paths.append(write_map(entropy, "entropy", segmentation, geometry))
        paths.append(write_map(_disagreement(predictor, scores), "disagreement", segmentation, geometry))
    return paths


def map_paths(
    predictor: Predictor, segmentation: Path, probabilities: bool, uncertainty: bool, gate_maps: bool
) -> list[Path]:
    """Files that may be written beside a segmentation; of probabilities both forms, as dimensions are known later."""
    case, paths = stem(segmentation), []
    if probabilities:
        paths += [segmentation.with_name(f"{case}{ending}") for ending in PROBABILITIES_ENDINGS]
    if uncertainty:
        paths += [_map_path(name, segmentation) for name in ("entropy", "disagreement")]
    if gate_maps:
        paths += [
            _gate_path(_gate_prefix(predictor, name, segmentation), stage, suffix(segmentation))
            for name in predictor.names
            for stage in gated_stages(predictor.configurations[name].network)
        ]
    return paths


def _disagreement(predictor: Predictor, scores: Mapping[str, NetworkScores]) -> np.ndarray:
    """Mean over the configurations of `fold_disagreement`, (Z, Y, X) in the geometry of the image."""
    maps = []
    for name in predictor.names:
        image, configuration = scores[name].image, predictor.configurations[name]
        labels, device = predictor.bundle.labels, predictor.device
        disagreement = fold_disagreement(predictor.models[name], image, configuration, labels, device)
        maps.append(restore_map(disagreement, scores[name].properties))
    return np.average(maps, axis=0, weights=predictor.combination.weights)


def write_probabilities(values: np.ndarray, segmentation: Path, geometry: Geometry) -> Path:
    """(C, Z, Y, X) with the channels last in the file: NIfTI of four axes, or in 2-D an array (Y, X, C)."""
    volume, array = (segmentation.with_name(f"{stem(segmentation)}{ending}") for ending in PROBABILITIES_ENDINGS)
    if geometry.dimension == 3:
        write_channels(volume, values, geometry)
        return volume
    with replacing(array, ".npz") as temporary:
        np.savez_compressed(temporary, probabilities=np.moveaxis(values[:, 0], 0, -1))
    return array


def write_map(values: np.ndarray, name: str, segmentation: Path, geometry: Geometry) -> Path:
    """`<case>.<name>.<ext>`: (Z, Y, X) float32 in the geometry and format of the segmentation, TIFF for pictures."""
    path = _map_path(name, segmentation)
    write_image(path, values.astype(np.float32, copy=False)[None], geometry)
    return path


def _map_path(name: str, segmentation: Path) -> Path:
    ending = ".tif" if file_kind(segmentation) in WITHOUT_FLOATS else suffix(segmentation)
    return segmentation.with_name(f"{stem(segmentation)}.{name}{ending}")


def foreign_channels_file(out: Path) -> list[Path]:
    """The file of the classes' names where it is there and AutoUNet did not write it."""
    try:
        ProbabilityChannels.load(out / CHANNELS_FILE)
    except RecordError:
        return [out / CHANNELS_FILE] if (out / CHANNELS_FILE).exists() else []
    return []


# ---- attention gates -------------------------------------------------------------------------------------------------


def require_gates(predictor: Predictor) -> None:
    """Raises OptionError that names the configurations whose networks have none."""
    families = {name: predictor.configurations[name].network.family for name in predictor.names}
    without = [f"{name} is of the family {family}" for name, family in families.items() if family != GATED]
    if without:
        raise OptionError(
            f"--gate-maps is for networks of the family {GATED}, and {', '.join(without)}",
            f"Leave it out, or train with --family {GATED}",
        )


def write_gates(
    predictor: Predictor, scores: Mapping[str, NetworkScores], segmentation: Path, geometry: Geometry
) -> list[Path]:
    """`<case>.gate<stage>.<ext>` in the folder of the segmentation, in the image's geometry, for each gated stage.

    Coefficients are averaged over tiles, views and folds; voxels outside the crop are 0. `scores` hold the images as
    the networks get them. Where there are several configurations the name comes before `gate`. Raises DataError where
    the format cannot hold a map.
    """
    paths = []
    for name in predictor.names:
        image, _, properties = scores[name]
        maps = predict_gate_maps(predictor.models[name], image, predictor.configurations[name], predictor.device)
        whole = {stage: restore_map(coefficients, properties) for stage, coefficients in maps.items()}
        paths += write_gate_maps(whole, _gate_prefix(predictor, name, segmentation), geometry, suffix(segmentation))
    return paths


def _gate_prefix(predictor: Predictor, name: str, segmentation: Path) -> Path:
    case = stem(segmentation)
    return segmentation.with_name(case if len(predictor.names) == 1 else f"{case}.{name}")


def _gate_path(prefix: Path, stage: int, ending: str) -> Path:
    return prefix.with_name(f"{prefix.name}.gate{stage}{ending}")


def predict_gate_maps(
    networks: Sequence[nn.Module], image: np.ndarray, configuration: Configuration, device: str | torch.device
) -> dict[int, np.ndarray]:
    """Coefficients in 0..1 of each gated stage, (*S) float32 on the grid of a prepared image (C, *S).

    Networks, tiles and mirrored views, but those that exchange left and right classes, are averaged as in
    `predict_scores`, with the same demands on `networks`. Stages count from the highest resolution; coarser maps are
    repeated. Raises ModelError for networks without gates.
    """
    from ..inference.sliding_window import predict_scores
    from ..nets.attention_modules import AttentionUNet, GateMaps

    gated = [network for network in networks if isinstance(network, AttentionUNet)]
    if len(gated) < len(networks):
        family = configuration.network.family
        raise ModelError(f"a network of the family {family} has no gates", f"Train one with --family {GATED}")
    stages = gated_stages(configuration.network)
    recorders = [GateMaps(network).train(network.training) for network in gated]
    inference = configuration.inference
    plain = tuple(axis for axis in inference.mirror_axes if axis != configuration.swap_axis)
    inference = inference.model_copy(update={"mirror_axes": plain, "average": "logits"})  # coefficients as they are
    configuration = configuration.model_copy(update={"inference": inference})
    maps = predict_scores(recorders, image, configuration, len(stages), device)
    return dict(zip(stages, maps, strict=True))


def write_gate_maps(maps: Mapping[int, np.ndarray], prefix: Path, geometry: Geometry, suffix: str) -> list[Path]:
    """`<prefix>.gate<stage><suffix>` for each map (Z, Y, X) in the shape of `geometry`.

    Pictures get 0..255 for 0..1. Raises DataError where the format cannot hold a map.
    """
    paths = []
    for stage, coefficients in maps.items():
        path = _gate_path(prefix, stage, suffix)
        picture = suffix.lower().lstrip(".") in WITHOUT_FLOATS
        values = np.rint(255 * coefficients.clip(0, 1)).astype(np.uint8) if picture else coefficients
        write_image(path, values[None], geometry)
        paths.append(path)
    return paths


def probability_slices(scores: EnsembleScores, temperature: float = 1.0) -> Iterator[np.ndarray]:
    """Probabilities (Y, X, C) float32 of each slice of the whole file; background outside the crop.

    The temperature is that of the mean over sources: one for all of them changes no decision.
    """
    (first, last), (top, bottom), (left, right) = scores.box
    size = (bottom - top, right - left)
    y, x = (index.ravel() for index in np.indices(size))
    outside = np.broadcast_to(scores.decision.outside(scores.channels), (*scores.shape[1:], scores.channels))
    for z in range(scores.shape[0]):
        plane = outside.astype(np.float32)
        if first <= z < last:
            inside = scores.decision.probabilities(scores.logits_at(z - first, y, x) / temperature)
            plane[top:bottom, left:right] = inside.reshape(*size, scores.channels)
        yield plane


def probability_maps(
    scores: EnsembleScores, temperature: float, probabilities: bool, entropy: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities (C, Z, Y, X) and their entropy (Z, Y, X), float32 in the shape of the file; None unless wanted.

    The entropy is in nats: at most log(C), of overlapping regions C log(2), and 0 outside the crop. Only what is wanted
    is held whole.
    """
    chances = np.empty((scores.channels, *scores.shape), np.float32) if probabilities else None
    uncertainty = np.empty(scores.shape, np.float32) if entropy else None
    for z, plane in enumerate(probability_slices(scores, temperature)):
        if chances is not None:
            chances[:, z] = plane.transpose(2, 0, 1)
        if uncertainty is not None:
            own = scores.decision.entropy(plane.reshape(-1, scores.channels))
            uncertainty[z] = np.maximum(own, 0).reshape(plane.shape[:2])
    return chances, uncertainty


def fold_disagreement(
    networks: Sequence[nn.Module],
    image: np.ndarray,
    configuration: Configuration,
    labels: Labels,
    device: str | torch.device,
) -> np.ndarray:
    """(*S) float32 nats on the grid of a prepared image (C, *S): the mutual information of class and network.

    That is the entropy of the networks' mean probabilities less the mean of their entropies (Houlsby et al. 2011; Smith
    and Gal 2018), 0 where all agree and with one network: the uncertainty that more training data would remove. Of
    overlapping regions it is the sum over them. The networks predict once more, one after another, so that two sets of
    scores are held and not one a network. For the demands on `networks` see `predict_scores`.
    """
    from ..inference.sliding_window import predict_scores

    decision = decision_for(labels, configuration.targets)
    outputs, swap = configuration.network.out_channels, prediction_swap(configuration, labels)
    share = float(np.float32(1 / len(networks)))
    mean, mean_entropy = RunningMean(), RunningMean()
    for network in networks:
        scores = predict_scores([network], image, configuration, outputs, device, swap=swap)
        entropy = np.empty(image.shape[1:], np.float32)
        for z in range(image.shape[1]):
            plane = decision.probabilities(_voxels(scores[:, z]))
            entropy[z] = decision.entropy(plane).reshape(entropy[z].shape)
            scores[:, z] = plane.T.reshape(scores[:, z].shape)
        mean.add(scores, share)
        mean_entropy.add(entropy, share)
    probabilities, result = mean.result(), mean_entropy.result()
    for z, plane in enumerate(result):
        plane[...] = np.maximum(decision.entropy(_voxels(probabilities[:, z])).reshape(plane.shape) - plane, 0)
    return result


def _voxels(plane: np.ndarray) -> np.ndarray:
    """(K, Y, X) to (Y X, K)."""
    return np.ascontiguousarray(plane.reshape(len(plane), -1).T)
