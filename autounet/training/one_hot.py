"""The previous stage's segmentation as further channels of a sample, changed at random as nnU-Net does.

A network that can trust its input stops looking at the image, and on new images the input is worse than in training.
So classes grow, shrink and lose components. Probabilities and ranges are nnU-Net 2.8.1's.
"""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

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
