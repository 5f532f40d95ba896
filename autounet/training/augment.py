"""Random changes of patches with nnU-Net's probabilities and ranges, by batchgeneratorsv2 or in plain torch.

The spatial part is decided before anything is read: most patches are neither rotated nor scaled and are read as they
are; for the others exactly the box that the rotated, scaled patch reaches into is read.

batchgeneratorsv2 changes sample by sample on the CPU, and draws from numpy's and torch's global generators. They are
seeded for each sample and put back after. `batched.py` changes a batch where it lies. Both read the same boxes; what
they draw after that differs, so a training keeps to one of them (`TrainOptions.augmented_by`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from torch import Tensor

from ..schema.run import AugmentedBy
from ..workers import PROCESS_WIDE
from .batched import Move, change_intensities, draw_changes, moved, rotation
from .transforms import Bend, ClassSwap, Mirror, draw_bend, intensity_transforms, one_hot_transforms

P_ROTATION = 0.2
P_SCALING = 0.2
SCALES = (0.7, 1.4)
"""above 1: objects become smaller"""
FLAT_RATIO = 3.0
"""a 3-D patch whose first axis is shorter than the longest by this is transformed in its planes only (nnU-Net)"""
FEW_VALUES = 4
"""apart from the lowest, of which each is looked for: faster than to count all voxels"""
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

    @property
    def moves(self) -> bool:
        """Whether anything is interpolated."""
        return self.angles is not None or self.bend is not None


class Excerpt(NamedTuple):
    """What was read around one patch, before it is changed."""

    spatial: Spatial
    image: Tensor
    """(C, *source_size) float32"""
    maps: tuple[Tensor, ...]
    """(*source_size) int16 each: labels, and in a cascade those of the previous stage"""
    present: tuple[tuple[int, ...], ...]
    """for each map the values that occur, but 0; empty where nothing is interpolated"""

    @classmethod
    def of(cls, spatial: Spatial, image: Tensor, *maps: Tensor) -> Excerpt:
        """Of arrays in the memory of the CPU."""
        return cls(spatial, image, maps, tuple(map(_present, maps)) if spatial.moves else ())

    def holding(self, image: Tensor, *maps: Tensor) -> Excerpt:
        """The same with arrays from elsewhere."""
        return self._replace(image=image, maps=maps)


class Augmented(NamedTuple):
    """B samples."""

    images: Tensor
    """(B, C + previous_classes, *patch) float32"""
    labels: Tensor
    """(B, *patch) int16"""
    swapped: tuple[bool, ...]
    """(B) whether left and right classes have changed places"""


@dataclass(frozen=True)
class Augmentation:
    """`draw` decides, `apply` does."""

    kind: str
    """key of `transforms.AUGMENTATIONS`, or none"""
    patch: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    previous_classes: int = 0
    """channels that the previous stage's segmentation becomes: its classes without the background; 0 without one"""
    swap: ClassSwap | None = None
    elastic: bool = False
    """every sample is bent as well (`training.elastic`), unless `kind` is none"""
    by: AugmentedBy = "batchgeneratorsv2"

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
            # two steps in planes interpolate along slanted lines, from up to one voxel farther away
            around = 2 if self.by == "torch" and axes == 3 else 1
            reached = reached_size(self.plane, angles, scales, around)
        if self.elastic:
            bend = draw_bend(generator, reached)
            reached = bend.source_size
        return Spatial(seed, (self.patch[0], *reached) if self.flat else reached, angles, scales, bend)

    def apply(self, cuts: Sequence[Excerpt]) -> Augmented:
        """B samples rotated, scaled, changed in intensity and mirrored, on the device of the first one's image.

        A previous stage's labels are moved like the others and appended to the image one-hot. What was cut may be
        changed in place.
        """
        with torch.no_grad():
            if self.by == "torch" and self.kind != "none":
                return self._apply_together(cuts)
            return _stacked([self._apply_alone(cut) for cut in cuts])

    def _apply_together(self, cuts: Sequence[Excerpt]) -> Augmented:
        shape = (len(cuts[0].image), *self.patch)
        images = cuts[0].image.new_empty(len(cuts), *shape)
        maps = cuts[0].maps[0].new_empty(len(cuts), len(cuts[0].maps), *self.patch)
        drawn, swapped = [], []
        for number, cut in enumerate(cuts):
            generator = np.random.default_rng(cut.spatial.seed)
            drawn.append(draw_changes(generator, self.kind, shape[0], self.patch, self.flat, self.mirror_axes))
            mirrored = drawn[-1].mirrored
            images[number], maps[number] = self._placed(cut, mirrored)
            swapped.append(self.swap is not None and self.swap.axis in mirrored)
            if self.swap is not None and swapped[-1]:
                maps[number] = self.swap.of(maps[number])
        change_intensities(images, drawn)
        if not self.previous_classes:
            return Augmented(images, maps[:, 0], tuple(swapped))
        with_previous = [
            self._with_previous(cut.spatial.seed, *sample)
            for cut, *sample in zip(cuts, images, maps, swapped, strict=True)
        ]
        return _stacked(with_previous)

    def _placed(self, cut: Excerpt, mirrored: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Image (C, *patch) and maps (M, *patch), moved and mirrored."""
        image, maps = cut.image, torch.stack(cut.maps)
        if cut.spatial.moves:
            image, maps = moved(image, cut.maps, cut.present, self._move(cut.spatial, image.device))
        axes = [axis + 1 for axis in mirrored]
        return (torch.flip(image, axes), torch.flip(maps, axes)) if axes else (image, maps)

    def _apply_alone(self, cut: Excerpt) -> tuple[Tensor, Tensor, bool]:
        """Image (C + previous_classes, *patch), labels (*patch), and whether left and right have changed places."""
        spatial, image, maps = cut.spatial, cut.image, torch.stack(cut.maps)
        if self.kind == "none":
            return self._with_previous(spatial.seed, image, maps, False)
        mirror = Mirror(self.mirror_axes, self.swap)
        with seeded(spatial.seed):
            if spatial.moves:
                image, maps = self._transform_space(cut)
            sample = {"image": image, "segmentation": maps}
            for transform in (*intensity_transforms(self.kind, self.flat), mirror, *self._previous_transforms()):
                sample = transform(**sample)
        return sample["image"].contiguous(), sample["segmentation"][0].contiguous(), mirror.swapped

    def _previous_transforms(self) -> list[BasicTransform]:
        classes = self.previous_classes
        return one_hot_transforms(classes, augmented=self.kind != "none") if classes else []

    def _with_previous(self, seed: int, image: Tensor, maps: Tensor, swapped: bool) -> tuple[Tensor, Tensor, bool]:
        """The second of `maps` (M, *patch), where there is one, becomes one-hot channels of the image."""
        if not self.previous_classes:
            return image, maps[0], swapped
        sample = {"image": image, "segmentation": maps}
        with seeded(seed):
            for transform in self._previous_transforms():
                sample = transform(**sample)
        return sample["image"].contiguous(), sample["segmentation"][0].contiguous(), swapped

    def _transform_space(self, cut: Excerpt) -> tuple[Tensor, Tensor]:
        """Image (C, *patch) and maps (M, *patch).

        Linear for the image and for each label's one-hot map; a voxel's label is the one with the largest share. Image
        and maps are channels of one array: the positions are computed once, which takes a third of the time of
        transforming them one by one.
        """
        image, device = cut.image, cut.image.device
        present = [torch.tensor(each, dtype=torch.int16).to(device, non_blocking=True) for each in cut.present]
        one_hot = [
            (labels == values.view(-1, *[1] * labels.ndim)).float()
            for labels, values in zip(cut.maps, present, strict=True)
        ]
        joined = torch.cat((image, *one_hot))  # (C + present, *source)
        if self.flat:
            # planes become channels, so that all are transformed alike
            moved = self._moved(cut.spatial, joined.flatten(0, 1)).unflatten(0, joined.shape[:2])
        else:
            moved = self._moved(cut.spatial, joined)
        shares = moved[len(image) :].split([len(values) for values in present])
        maps = torch.stack([_largest_share(own, values) for own, values in zip(shares, present, strict=True)])
        return moved[: len(image)].contiguous(), maps

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

    def _move(self, spatial: Spatial, device: torch.device) -> Move:
        """(K, *source_size) -> (K, *patch) in plain torch, its places computed once."""
        steps: list[Move] = []
        bend, plane = spatial.bend, spatial.source_size[len(self.patch) - len(self.plane) :]
        if bend is not None:
            steps.append(partial(bend.apply, places=bend.places(device)))
            plane = bend.size
        if spatial.angles is not None and spatial.scales is not None:
            steps.append(rotation(self.plane, plane, affine_matrix(spatial.angles, spatial.scales), device))

        def move(array: Tensor) -> Tensor:
            result = array.flatten(0, 1) if self.flat else array  # planes become channels
            for step in steps:
                result = step(result)
            return result.unflatten(0, array.shape[:2]) if self.flat else result

        return move


def _stacked(samples: Sequence[tuple[Tensor, Tensor, bool]]) -> Augmented:
    images, labels, swapped = zip(*samples, strict=True)
    return Augmented(torch.stack(images), torch.stack(labels), swapped)


def _present(labels: Tensor) -> tuple[int, ...]:
    """Values that occur in (*S) integers from -1 up, but 0, sorted; many times faster than `unique`."""
    low, high = (int(each) for each in torch.aminmax(labels))
    if high - low <= FEW_VALUES:
        return tuple(value for value in range(low, high + 1) if value and (labels.numpy() == value).any())
    values = torch.bincount(labels.flatten() + 1).nonzero()[:, 0] - 1
    return tuple(values[values != 0].tolist())


def _largest_share(shares: Tensor, values: Tensor) -> Tensor:
    """(*P) the value with the largest of `shares` (V, *P); 0 has what the others leave."""
    if not len(values):
        return values.new_zeros(shares.shape[1:])
    share, winner = shares.max(0)
    background = 1 - shares.sum(0)  # also beyond the borders of what was read
    return torch.where(share > background, values[winner], 0)


def affine_matrix(angles: Sequence[float], scales: Sequence[float]) -> np.ndarray:
    """(D, D) from places around the centre of the patch to those in what is read."""
    return create_affine_matrix_2d(angles[-1], scales) if len(scales) == 2 else create_affine_matrix_3d(angles, scales)


def reached_size(
    patch: Sequence[int], angles: Sequence[float], scales: Sequence[float], around: int = 1
) -> tuple[int, ...]:
    """The smallest box of the patch's parity around the rotated, scaled patch, and so many voxels more on each side.

    One more is what a place between two voxels is interpolated from.
    """
    half = np.abs(affine_matrix(angles, scales)) @ ((np.asarray(patch) - 1) / 2)
    margins = np.maximum(0, np.ceil(half - (np.asarray(patch) - 1) / 2).astype(int) + around)
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
