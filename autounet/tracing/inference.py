"""Peak memory of predicting the largest case: networks and tiles on the device, image and scores beside them."""

from __future__ import annotations

import math
from typing import NamedTuple

from autounet.ops.orient import permute
from autounet.ops.resample import prepared_shape
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.plan import Configuration
from autounet.tracing.margins import Margin
from autounet.tracing.replay import alive_peak

FLOAT = 4
"""bytes of a float32 number"""


class InferenceMemory(NamedTuple):
    """Peak bytes. With `shared`, device and host are one memory, and both numbers are its whole peak."""

    device_bytes: int
    host_bytes: int
    scores_on_device: bool
    shared: bool


class _Case(NamedTuple):
    """The largest case of a data set, network axis order."""

    stored: tuple[int, ...]
    grid: tuple[int, ...]
    padded: tuple[int, ...]
    """the prepared grid, at least as large as the patch"""


def inference_memory(
    configuration: Configuration,
    fingerprint: Fingerprint,
    classes: int,
    device: str,
    tile_batch: int,
    networks: int = 1,
    margin: Margin | None = None,
    free_bytes: int | None = None,
) -> InferenceMemory:
    """Predicting the case with the most voxels on the configuration's grid and exporting its segmentation.

    `tile_batch`: inputs of one forward (`inference.sliding.default_batch`). `networks`: folds held at once.
    `free_bytes`: of a GPU; scores that would take more than half of it are kept on the host, as the prediction does.
    `margin` is added on the device. One configuration; further ones of an ensemble add their scores, which are
    host_bytes less the image. Reading and resampling come before and are not included.
    """
    case = _largest_case(configuration, fingerprint)
    channels, patch = configuration.network.in_channels, configuration.patch_size
    kind = device.partition(":")[0]
    scores = FLOAT * classes * math.prod(case.padded)
    on_device = kind == "cuda" and (free_bytes is None or scores < free_bytes / 2)
    tiles = max(1, tile_batch // 2 ** len(configuration.inference.mirror_axes))
    coverage = FLOAT * (math.prod(case.padded[-len(patch) :]) + math.prod(patch))
    # the mean over views and networks of a group of tiles, beside the logits of the last forward
    mean = FLOAT * classes * tiles * math.prod(patch)
    forward = _forward_peak(configuration, tile_batch, kind, networks) + mean
    image = FLOAT * channels * (math.prod(case.grid) + math.prod(case.padded))
    # cropping the padded scores, or fetching them from a GPU, makes a copy
    cropped = FLOAT * classes * math.prod(case.grid)
    copied = cropped if on_device or case.grid != case.padded else 0
    exported = cropped + _export_bytes(case)
    held_image = FLOAT * channels * math.prod(case.grid)
    if kind == "cpu":
        total = max(forward + scores + coverage + image, scores + copied + image, held_image + exported)
        total = margin.on(total) if margin else total
        return InferenceMemory(total, total, True, True)
    at_device = forward + (scores + coverage if on_device else 0)
    host = image + (0 if on_device else scores + coverage)
    host = max(host, host + copied, held_image + exported)
    return InferenceMemory(margin.on(at_device) if margin else at_device, host, on_device, False)


def _largest_case(configuration: Configuration, fingerprint: Fingerprint) -> _Case:
    """A volume is padded to the patch; of a 2d configuration only the slices are."""
    spec, patch = configuration.preprocess, configuration.patch_size
    grids = [prepared_shape(spec, case.cropped_shape, case.spacing) for case in fingerprint.cases]
    largest = max(range(len(grids)), key=lambda index: math.prod(grids[index]))
    found, grid = fingerprint.cases[largest], grids[largest]
    least = (1,) * (3 - len(patch)) + tuple(patch)
    padded = tuple(map(max, grid, least))
    return _Case(permute(found.shape, spec.transpose), grid, padded)


def _forward_peak(configuration: Configuration, tile_batch: int, kind: str, networks: int) -> int:
    """Weights of all networks and one forward; inputs before and after their memory order is changed."""
    from autounet.step import Precision
    from autounet.tracing.traced import trace_forward

    spec, patch = configuration.network, configuration.patch_size
    precision = Precision(configuration.precision, configuration.channels_last)
    trace = trace_forward(spec, patch, tile_batch, precision, "cpu" if kind == "cpu" else "cuda")
    weights = alive_peak(trace.setup)
    inputs = FLOAT * spec.in_channels * tile_batch * math.prod(patch)
    return alive_peak([*trace.setup, *trace.step]) + (networks - 1) * weights + inputs


def _export_bytes(case: _Case) -> int:
    """Winners on the grid (int16); of the file dense classes (int16), numpy's indices (int64), values (int32)."""
    return 2 * math.prod(case.grid) + (2 + 8 + 4) * math.prod(case.stored)
