"""Random changes of intensity: batchgeneratorsv2's transforms with nnU-Net's probabilities and ranges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform


@cache
def intensity_transforms(kind: str, flat: bool) -> tuple[BasicTransform, ...]:
    """nnU-Net's list ("full"), or its cheap half ("light"); `flat` patches become coarser in their planes only."""
    each = {"synchronize_channels": False, "p_per_channel": 1}
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    contrast = ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, **each)
    gamma = GammaTransform(BGContrast((0.7, 1.5)), p_invert_image=0, p_retain_stats=1, **each)
    if kind == "light":
        return (RandomTransform(noise, 0.1), RandomTransform(contrast, 0.15), RandomTransform(gamma, 0.3))
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
        RandomTransform(noise, 0.1),
        RandomTransform(blur, 0.2),
        RandomTransform(brightness, 0.15),
        RandomTransform(contrast, 0.15),
        RandomTransform(coarse, 0.25),
        RandomTransform(inverted, 0.1),
        RandomTransform(gamma, 0.3),
    )


def _blur_sigma(shape: Sequence[int], dim: int) -> float:
    """0.5 to 1 voxels; next to none along an axis too thin for the transform's kernel of up to 7 voxels."""
    return np.random.uniform(0.5, 1.0) if shape[dim] > 3 else 0.01
