"""The cross-entropy of the 2015 U-Net, with a weight map that makes gaps between touching objects count."""

from __future__ import annotations

from torch import Tensor

from autounet.losses.deep_supervision import Pixelwise


class WeightedCrossEntropy:
    """Cross-entropy by the weights of a batch, which must have them: `ops.weight_map.border_weight` of each sample.

    Ronneberger, Fischer, Brox 2015, U-Net: convolutional networks for biomedical image segmentation, MICCAI,
    equations 1 and 2; divided by the sum of the weights, so that the learning rate does not depend on their size.
    Raises ValueError for a batch without weights.
    """

    def __init__(self, cross_entropy: Pixelwise) -> None:
        self.cross_entropy = cross_entropy

    def __call__(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, annotated: Tensor | None = None
    ) -> Tensor:
        if weight is None:
            raise ValueError("weighted_ce needs a weight for each voxel of the batch, and the batch has none")
        return self.cross_entropy(logits, labels, weight, annotated)
