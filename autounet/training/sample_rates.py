"""How fast one core makes samples: augmenting, and reading prepared cases."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from autounet.schema.geometry import Geometry
from autounet.schema.plan import ChannelNormalisation, PreprocessSpec
from autounet.schema.prepared import CaseProperties
from autounet.store import open_prepared, write_prepared
from autounet.training.augment import P_ROTATION, P_SCALING, Augmentation, Spatial
from autounet.training.samples import one_thread

PATCHES = {"2d": (256, 256), "3d": (40, 40, 40)}
"""large enough that voxels outweigh the start of the transforms; below 128 x 128 or 24^3 a voxel costs a half more"""
ROUNDS = 12
"""samples of each kind: those that are rotated or scaled, and the others"""
STORED = (32, 128, 128)
"""voxels of the case that is read"""
READINGS = 4


def measure_sample_rates() -> dict[str, float]:
    """`DeviceProfile.sample_rates`, in under a second. Processor time counts: other work does not disturb it."""
    rates = {}
    with one_thread():
        for kind in ("light", "full"):
            for dims, patch in PATCHES.items():
                rates[f"{kind}_{dims}"] = np.prod(patch) / _augmenting_seconds(Augmentation(kind, patch, (0, 1)))  # type: ignore[arg-type]
    rates["reading"] = np.prod(STORED) / _reading_seconds()
    return {name: float(f"{rate:.3g}") for name, rate in rates.items()}


def _augmenting_seconds(augmentation: Augmentation) -> float:
    """Mean of one sample with one channel and two classes.

    A few samples would hold too many or too few that are rotated or scaled, which take most of the time: as many of
    both kinds are timed, and weighted by their probabilities.
    """
    generator = np.random.default_rng(0)
    moved_share = 1 - (1 - P_ROTATION) * (1 - P_SCALING)
    taken: dict[bool, list[float]] = {True: [], False: []}
    while min(map(len, taken.values())) <= ROUNDS:
        spatial = augmentation.draw(generator)
        seconds = taken[spatial.angles is not None]
        if len(seconds) <= ROUNDS:
            seconds.append(_seconds_of(augmentation, spatial))
    moved, kept = (float(np.mean(taken[kind][1:])) for kind in (True, False))  # the first of each warms up
    return moved_share * moved + (1 - moved_share) * kept


def _seconds_of(augmentation: Augmentation, spatial: Spatial) -> float:
    generator = np.random.default_rng(spatial.seed)
    image = torch.from_numpy(generator.normal(size=(1, *spatial.source_size)).astype(np.float32))
    labels = torch.zeros(spatial.source_size, dtype=torch.int16)
    for label in (1, 2):  # boxes inside each other
        inside = tuple(slice(label * length // 6, length - label * length // 6) for length in spatial.source_size)
        labels[inside] = label
    began = time.thread_time()
    augmentation.apply(spatial, image, labels)
    return time.thread_time() - began


def _reading_seconds() -> float:
    """Of one channel of a stored case of noise, which hardly compresses; the shortest of a few."""
    spec = PreprocessSpec(spacing=(1.0, 1.0, 1.0), normalisation=(ChannelNormalisation(scheme="none"),))
    properties = CaseProperties(
        identifier="probe",
        key="",
        spec=spec,
        geometry=Geometry(shape=STORED),
        axes=(0, 1, 2),
        flips=(False, False, False),
        network_shape=STORED,
        network_spacing=(1.0, 1.0, 1.0),
        box=tuple((0, length) for length in STORED),  # type: ignore[arg-type]
        shape=STORED,
    )
    image = np.random.default_rng(0).normal(size=(1, *STORED)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder), properties, image, None, {})
        taken = []
        for _ in range(READINGS):
            case = open_prepared(Path(folder), "probe")
            began = time.process_time()
            case.image[:]
            taken.append(time.process_time() - began)
            del case
    return min(taken)
