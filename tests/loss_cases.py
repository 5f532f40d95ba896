"""Small batches that the tests of losses share."""

from __future__ import annotations

import torch

from autounet.losses import Batch
from autounet.schema.labels import LabelClass, Labels, Region, overlapping_targets

PATCH = (6, 4, 5)


def classes(count: int) -> Labels:
    return Labels(classes=tuple(LabelClass(name=f"class{index}", value=index) for index in range(count)))


def tumour(ignore: bool = False) -> Labels:
    """Four classes, and the regions of a brain tumour: targets whole (1, 2, 3), core (2, 3) and class 3."""
    regions = (Region(name="whole", values=(1, 2, 3)), Region(name="core", values=(2, 3)))
    return classes(4).model_copy(update={"regions": regions, "ignore": 9 if ignore else None})


def channels(labels: Labels, overlapping: bool) -> int:
    return len(overlapping_targets(labels)) if overlapping else labels.count


def random_batch(
    seed: int, shape: tuple[int, ...], ignore: bool, weights: bool, partial: bool, classes: int = 4
) -> Batch:
    """`shape` (B, *P); every class but those not annotated occurs in every sample, and some voxels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    labels.flatten(1)[:, :classes] = torch.arange(classes)
    annotated = None
    if partial:
        annotated = torch.ones(shape[0], classes, dtype=torch.bool)
        annotated[0, 1] = False
        labels[0][labels[0] == 1] = 0
    if ignore:
        hidden = torch.rand(shape, generator=generator) < 0.3
        hidden.flatten(1)[:, :classes] = False
        labels[hidden] = -1
    weight = torch.rand(shape, generator=generator) + 0.1 if weights else None
    return Batch(torch.zeros(shape[0], 1, *shape[1:]), labels.short(), annotated, weight)


def random_outputs(seed: int, shape: tuple[int, ...], count: int, levels: int = 1) -> list[torch.Tensor]:
    """Float64 logits that need gradients, each level with half the size of the one before."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [
        torch.randn(
            shape[0], count, *(max(1, n >> level) for n in shape[1:]), generator=generator, dtype=torch.float64
        ).requires_grad_()
        for level in range(levels)
    ]
