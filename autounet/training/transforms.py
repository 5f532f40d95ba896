"""The transforms of a sample: deformations, intensities, mirroring, and the previous stage's labels as channels.

Deformations are those that the first U-Net was trained with: displacements are drawn from a Gaussian at the nodes of a
coarse grid of 3 points per axis, and interpolated in between by cubic splines (Ronneberger, Fischer, Brox 2015, section
3.1: 10 pixels of standard deviation on tiles of 572).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import cc3d
import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.nn.functional import grid_sample

from ..schema.plugins import Registry, not_callable

NODES = 3
"""per axis, the outer ones at the borders"""
DEVIATION = 10 / 572
"""standard deviation of a displacement as a share of the axis's length: small patches are bent as large ones are"""


@dataclass(frozen=True)
class Bend:
    """One drawn deformation."""

    nodes: np.ndarray
    """(D, 3, ...) displacements in voxels, the first axis naming the direction"""
    size: tuple[int, ...]
    """of what comes out, which `nodes` span"""
    source_size: tuple[int, ...]
    """what has to be read, centred: as many voxels more on both sides as the farthest one comes from"""

    def places(self, device: torch.device | None = None) -> Tensor:
        """(*size, D) where each voxel comes from, in the order and the units of torch's `grid_sample`."""
        field = displacement(self.nodes, self.size, device)
        positions = []
        for axis, (length, have) in enumerate(zip(self.size, self.source_size, strict=True)):
            shape = [-1 if other == axis else 1 for other in range(len(self.size))]
            start = torch.arange(length, dtype=torch.float32, device=device).view(shape) + (have - length) / 2
            positions.append(2 * (start + field[axis]) / max(1, have - 1) - 1)
        return torch.stack(positions[::-1], dim=-1)  # grid_sample counts axes from the last one

    def apply(self, source: Tensor, places: Tensor | None = None) -> Tensor:
        """(C, *size) float32 from (C, *source_size) by linear interpolation; 0 beyond the borders of the source."""
        grid = (self.places(source.device) if places is None else places)[None]
        return grid_sample(source[None].float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]


def draw_bend(generator: np.random.Generator, size: Sequence[int]) -> Bend:
    lengths = np.reshape(size, (len(size), *[1] * len(size)))
    nodes = generator.normal(size=(len(size), *[NODES] * len(size))) * DEVIATION * lengths
    return bend_by(nodes, size)


def bend_by(nodes: np.ndarray, size: Sequence[int]) -> Bend:
    reach = displacement(nodes, size).abs().flatten(1).max(1).values.ceil()
    source = tuple(int(length + 2 * more) for length, more in zip(size, reach, strict=True))
    return Bend(nodes, tuple(size), source)


def displacement(nodes: np.ndarray, size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """(D, *size) float32 voxels, interpolated between `nodes` (D, 3, ...), which span `size`."""
    field = torch.from_numpy(nodes.astype(np.float32)).to(device, non_blocking=True)
    for length in size:
        weights = _spline(length).to(device, non_blocking=True)
        field = torch.tensordot(field, weights, dims=([1], [1]))  # the axis that is done becomes the last one
    return field


@lru_cache(maxsize=64)
def _spline(length: int) -> Tensor:
    """(length, 3) weights of the nodes for each voxel: the natural cubic spline through them."""
    through = CubicSpline(np.arange(NODES), np.eye(NODES), bc_type="natural")
    return torch.from_numpy(through(np.linspace(0, NODES - 1, length)).astype(np.float32))


class ClassSwap(NamedTuple):
    """What changes places in a mirror along one of the spatial axes."""

    axis: int
    classes: tuple[int, ...]
    """(K) the dense class that each one becomes"""

    def of(self, labels: Tensor) -> Tensor:
        table = torch.tensor((*self.classes, -1), dtype=labels.dtype)  # label -1 reads the last
        return table.to(labels.device, non_blocking=True)[labels.long()]


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
        return self.swap.of(mirrored)


def light_transforms(flat: bool) -> tuple[BasicTransform, ...]:
    """The cheap half of nnU-Net's list."""
    each = {"synchronize_channels": False, "p_per_channel": 1}
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    contrast = ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, **each)
    gamma = GammaTransform(BGContrast((0.7, 1.5)), p_invert_image=0, p_retain_stats=1, **each)
    return (RandomTransform(noise, 0.1), RandomTransform(contrast, 0.15), RandomTransform(gamma, 0.3))


def full_transforms(flat: bool) -> tuple[BasicTransform, ...]:
    """nnU-Net's list; `flat` patches become coarser in their planes only."""
    each = {"synchronize_channels": False, "p_per_channel": 1}
    noise, contrast, gamma = light_transforms(flat)
    # `benchmark` would choose between convolution and FFT by measured time, and so change results from run to run
    blur = GaussianBlurTransform(_blur_sigma, p_per_channel=0.5, benchmark=False)
    brightness = MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), **each)
    coarse = SimulateLowResolutionTransform(
        scale=(0.5, 1),
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=(0,) if flat else None,
        p_per_channel=0.5,
    )
    inverted = GammaTransform(BGContrast((0.7, 1.5)), p_invert_image=1, p_retain_stats=1, **each)
    return (
        noise,
        RandomTransform(blur, 0.2),
        RandomTransform(brightness, 0.15),
        contrast,
        RandomTransform(coarse, 0.25),
        RandomTransform(inverted, 0.1),
        gamma,
    )


Transforms = Callable[[bool], Sequence[BasicTransform]]
AUGMENTATIONS: Registry[Transforms] = Registry(
    "augmentations", {"full": full_transforms, "light": light_transforms}, not_callable
)
"""name -> from whether patches are flat to the changes of intensity of a sample (image (C, *P), segmentation (M, *P)),
between its deformation and its mirroring; with those of plug-ins. `none` has no entry: samples stay as they are"""


@cache
def intensity_transforms(kind: str, flat: bool) -> tuple[BasicTransform, ...]:
    """Those of a key of `AUGMENTATIONS`."""
    return tuple(AUGMENTATIONS[kind](flat))


def _blur_sigma(shape: Sequence[int], dim: int) -> float:
    """0.5 to 1 voxels; next to none along an axis too thin for the transform's kernel of up to 7 voxels."""
    return np.random.uniform(0.5, 1.0) if shape[dim] > 3 else 0.01


P_OPERATOR = 0.4
OPERATOR_SIZES = (1, 8)
"""radius in voxels of the ball (disk) that classes are dilated, eroded, opened or closed with"""
P_REMOVAL = 0.2
P_CLASS = 0.5
"""of each class, once one of the two is applied"""
LARGEST_REMOVED = 0.15
"""share of the patch from which on a component is not removed"""


def one_hot_transforms(classes: int, augmented: bool) -> list[BasicTransform]:
    """Channel 1 of `segmentation` moves to the end of `image` as `classes` one-hot channels (without background).

    Made anew for every sample: batchgeneratorsv2's operator keeps the order of channels that it last drew, and a
    sample must not depend on those before it.
    """
    moved = MoveSegAsOneHotToDataTransform(1, range(1, classes + 1), remove_channel_from_source=True)
    if not augmented:
        return [moved]
    channels = list(range(-classes, 0))
    operator = ApplyRandomBinaryOperatorTransform(channels, strel_size=OPERATOR_SIZES, p_per_label=P_CLASS)
    return [moved, RandomTransform(operator, P_OPERATOR), RandomTransform(RemoveComponents(channels), P_REMOVAL)]


class RemoveComponents(ImageOnlyTransform):
    """Removes one random component of some of the one-hot channels.

    What batchgeneratorsv2's RemoveRandomConnectedComponentFromOneHotEncodingTransform does in nnU-Net; that one needs
    acvl-utils, which would bring another torch.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.channels = channels

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        order = np.random.permutation(self.channels)
        return {"channels": order[(torch.rand(len(order)) < P_CLASS).numpy()].tolist()}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        for channel in params["channels"]:
            mask = img[channel].numpy() > 0
            components = cc3d.connected_components(mask, connectivity=26 if mask.ndim == 3 else 8)
            sizes = np.bincount(components.ravel())[1:]
            small = np.flatnonzero(sizes < LARGEST_REMOVED * mask.size) + 1
            if len(small):
                img[channel][torch.from_numpy(components == np.random.choice(small))] = 0
        return img
