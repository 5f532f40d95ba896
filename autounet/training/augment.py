"""Random changes of a patch, by batchgeneratorsv2's transforms with nnU-Net's probabilities and ranges.

The spatial part is decided before anything is read: most patches are neither rotated nor scaled and are read as they
are; for the others exactly the box that the rotated, scaled patch reaches into is read.

batchgeneratorsv2 draws from numpy's and torch's global generators. They are seeded for each sample and put back after.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from torch import Tensor

from ..workers import PROCESS_WIDE
from .transforms import Bend, draw_bend, intensity_transforms


class ClassSwap(NamedTuple):
    """What changes places in a mirror along one of the spatial axes."""

    axis: int
    classes: tuple[int, ...]
    """(K) the dense class that each one becomes"""


class Mirror(MirrorTransform):
    """Mirrors image and labels at random; along the axis of `swap` left and right classes change places.

    Made anew for every sample: `swapped` tells afterwards what was drawn.
    """

    def __init__(self, axes: tuple[int, ...], swap: ClassSwap | None) -> None:
        super().__init__(axes)
        self.swap = swap
        self.swapped = False

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        mirrored = super()._apply_to_segmentation(segmentation, **params)
        if self.swap is None or self.swap.axis not in params["axes"]:
            return mirrored
        self.swapped = True
        table = torch.tensor((*self.swap.classes, -1), dtype=mirrored.dtype)  # label -1 reads the last
        return table[mirrored.long()]


P_ROTATION = 0.2
P_SCALING = 0.2
SCALES = (0.7, 1.4)
"""above 1: objects become smaller"""
FLAT_RATIO = 3.0
"""a 3-D patch whose first axis is shorter than the longest by this is transformed in its planes only (nnU-Net)"""
LONG_RATIO = 1.5
"""a 2-D patch longer than wide by this is rotated by small angles only (nnU-Net)"""


class Spatial(NamedTuple):
    """One drawn spatial transform; angles in radians and scales per transformed axis, None for none."""

    seed: int
    """for the transforms that follow"""
    source_size: tuple[int, ...]
    """what has to be read, centred on the patch; each axis at least the patch's and of its parity"""
    angles: tuple[float, ...] | None = None
    scales: tuple[float, ...] | None = None
    bend: Bend | None = None
    """before rotation and scaling"""


class Augmented(NamedTuple):
    image: Tensor
    """(C + previous_classes, *patch)"""
    labels: Tensor
    """(*patch)"""
    swapped: bool = False
    """whether left and right classes have changed places"""


@dataclass(frozen=True)
class Augmentation:
    """`draw` decides, `apply` does."""

    kind: Literal["full", "light", "none"]
    patch: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    previous_classes: int = 0
    """channels that the previous stage's segmentation becomes: its classes without the background; 0 without one"""
    swap: ClassSwap | None = None
    elastic: bool = False
    """every sample is bent as well (`training.elastic`), unless `kind` is none"""

    @property
    def flat(self) -> bool:
        return len(self.patch) == 3 and max(self.patch) / self.patch[0] > FLAT_RATIO

    @property
    def plane(self) -> tuple[int, ...]:
        """Size of what is rotated and scaled: the whole patch, or its last two axes."""
        return self.patch[1:] if self.flat else self.patch

    @property
    def largest_angle(self) -> float:
        if len(self.plane) == 2:
            small = not self.flat and max(self.patch) / min(self.patch) > LONG_RATIO
            return math.radians(15 if small else 180)
        return math.radians(30)

    def draw(self, generator: np.random.Generator) -> Spatial:
        seed = int(generator.integers(2**31))
        rotate, scale = generator.random() < P_ROTATION, generator.random() < P_SCALING
        if self.kind == "none" or not (rotate or scale or self.elastic):
            return Spatial(seed, self.patch)
        axes, reached = len(self.plane), self.plane
        angles, scales, bend = None, None, None
        if rotate or scale:
            largest = self.largest_angle
            angles = tuple(generator.uniform(-largest, largest, axes)) if rotate else (0.0,) * axes
            scales = (generator.uniform(*SCALES),) * axes if scale else (1.0,) * axes
            reached = reached_size(self.plane, angles, scales)
        if self.elastic:
            bend = draw_bend(generator, reached)
            reached = bend.source_size
        return Spatial(seed, (self.patch[0], *reached) if self.flat else reached, angles, scales, bend)

    def apply(self, spatial: Spatial, image: Tensor, labels: Tensor, previous: Tensor | None = None) -> Augmented:
        """Image (C, *source_size) and labels (*source_size), rotated, scaled, changed in intensity and mirrored.

        `previous` (*source_size), the labels of the previous stage, is moved like `labels` and appended one-hot.
        """
        if self.kind == "none" and previous is None:
            return Augmented(image, labels)
        mirror = Mirror(self.mirror_axes, self.swap)
        maps = [labels] if previous is None else [labels, previous.to(labels.dtype)]
        with seeded(spatial.seed), torch.no_grad():
            if spatial.angles is not None or spatial.bend is not None:
                image, *maps = self._transform_space(spatial, image, *maps)
            sample = {"image": image, "segmentation": torch.stack(maps)}
            for transform in self._transforms(mirror):
                sample = transform(**sample)
        return Augmented(sample["image"].contiguous(), sample["segmentation"][0].contiguous(), mirror.swapped)

    def _transforms(self, mirror: Mirror) -> Iterator[BasicTransform]:
        """Those after the spatial one."""
        if self.kind != "none":
            yield from intensity_transforms(self.kind, self.flat)
            yield mirror
        if self.previous_classes:
            from .transforms import one_hot_transforms

            yield from one_hot_transforms(self.previous_classes, augmented=self.kind != "none")

    def _transform_space(self, spatial: Spatial, image: Tensor, *segmentations: Tensor) -> tuple[Tensor, ...]:
        """Linear for the image and for each label's one-hot map; a voxel's label is the one with the largest share.

        Image and maps are channels of one array: the positions are computed once, which takes a third of the time of
        transforming them one by one.
        """
        present = [_present(each) for each in segmentations]
        maps = [
            (labels == values.view(-1, *[1] * labels.ndim)).float()
            for labels, values in zip(segmentations, present, strict=True)
        ]
        joined = torch.cat((image, *maps))  # (C + present, *source)
        if self.flat:
            # planes become channels, so that all are transformed alike
            moved = self._moved(spatial, joined.flatten(0, 1)).unflatten(0, joined.shape[:2])
        else:
            moved = self._moved(spatial, joined)
        shares = moved[len(image) :].split([len(values) for values in present])
        labels = (
            _largest_share(own, values).to(labels.dtype)
            for labels, own, values in zip(segmentations, shares, present, strict=True)
        )
        return moved[: len(image)].contiguous(), *labels

    def _moved(self, spatial: Spatial, source: Tensor) -> Tensor:
        """(C, *source_size) -> (C, *plane)."""
        if spatial.bend is not None:
            source = spatial.bend.apply(source)
        if spatial.angles is None or spatial.scales is None:
            return source
        angles, scales = spatial.angles, spatial.scales
        transform = SpatialTransform(
            self.plane,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=1,
            rotation=lambda image, dim: angles[dim],
            p_scaling=1,
            scaling=lambda image, dim: scales[dim],
        )
        return transform(image=source)["image"]


def _present(labels: Tensor) -> Tensor:
    """Values that occur in (*S) integers from -1 up, but 0, sorted; many times faster than `unique`."""
    values = torch.bincount(labels.flatten() + 1).nonzero()[:, 0] - 1
    return values[values != 0]


def _largest_share(shares: Tensor, values: Tensor) -> Tensor:
    """(*P) the value with the largest of `shares` (V, *P); 0 has what the others leave."""
    if not len(values):
        return values.new_zeros(shares.shape[1:])
    share, winner = shares.max(0)
    background = 1 - shares.sum(0)  # also beyond the borders of what was read
    return torch.where(share > background, values[winner], 0)


def reached_size(patch: Sequence[int], angles: Sequence[float], scales: Sequence[float]) -> tuple[int, ...]:
    """The smallest box around the rotated, scaled patch with a voxel to interpolate from, of the patch's parity."""
    flat = len(patch) == 2
    matrix = create_affine_matrix_2d(angles[-1], scales) if flat else create_affine_matrix_3d(angles, scales)
    half = np.abs(matrix) @ ((np.asarray(patch) - 1) / 2)
    margins = np.maximum(0, np.ceil(half - (np.asarray(patch) - 1) / 2).astype(int) + 1)
    return tuple(int(size + 2 * margin) for size, margin in zip(patch, margins, strict=True))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """numpy's and torch's global generators start from `seed` inside and are as before after.

    Other threads wait meanwhile.
    """
    with PROCESS_WIDE:
        numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            torch.set_rng_state(torch_state)
