"""The fallback without private interfaces: what autograd saves in real steps of two small batches, extrapolated.

`torch.autograd.graph.saved_tensors_hooks` shows every tensor kept for the backward pass. At its begin all of them are
alive; while it goes on the gradients of the layer at hand are, twice the largest saved tensor. The steps run on the
CPU, so a GPU's own code paths are not seen. Only patches of the smallest sizes are computed, which takes a second.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autounet.losses import Batch, even_weight
from autounet.nets import FAMILIES
from autounet.schema.plan import NetworkSpec
from autounet.step import Precision

if TYPE_CHECKING:
    from autounet.tracing.traced import StepSetting

BATCH = 2
STATES = {"adamw": 2, "sgd": 1}
"""numbers that an optimiser keeps per weight"""


def saved_peak(spec: NetworkSpec, patch: tuple[int, ...], batch: int, setting: StepSetting) -> int:
    """Bytes: weights, averages, optimiser state, and the larger of what is saved and of the gradients."""
    with torch.random.fork_rng():
        model = FAMILIES[spec.family].build(spec).train()
        model = setting.precision.place(model, torch.device("cpu"))
        least = FAMILIES[spec.family].valid_size(spec, [2 * step for step in spec.divisor])
        more = FAMILIES[spec.family].valid_size(spec, (*least[:-1], 2 * least[-1]))
        sizes = [BATCH * math.prod(size) for size in (least, more)]
        counts = [_saved(spec, model, size, setting) for size in (least, more)]
    voxels = batch * math.prod(patch)
    share = (voxels - sizes[0]) / (sizes[1] - sizes[0])
    saved, largest = (first + share * (second - first) for first, second in zip(*counts, strict=True))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    copies = 1 + STATES[setting.options.optimiser] + (setting.options.ema_decay is not None)
    data = voxels * (4 * spec.in_channels + 2)
    return round(copies * weights + data + max(saved + 2 * largest, weights))


def _saved(spec: NetworkSpec, model: torch.nn.Module, patch: tuple[int, ...], setting: StepSetting) -> tuple[int, int]:
    """Bytes of all saved tensors and of the largest; weights do not count, and each storage counts once."""
    from autounet.tracing.traced import step_loss

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    precision: Precision = setting.precision
    image = torch.randn(BATCH, spec.in_channels, *patch)
    known = torch.ones((BATCH, setting.labels.count), dtype=torch.bool) if setting.partial else None
    labels = torch.zeros((BATCH, *patch), dtype=torch.int16)
    batch = Batch(image, labels, known, even_weight(setting.options.loss, labels.shape))
    batch = batch.to(torch.device("cpu"), precision.channels_last)
    loss = step_loss(spec, setting.labels, setting.options)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with precision.autocast("cpu"):
            outputs = model(batch.image)
        value = loss(outputs, batch)
    held = {output.untyped_storage().data_ptr(): output for output in outputs}
    sizes = [tensor.untyped_storage().nbytes() for tensor in (seen | held).values()]
    del value
    return sum(sizes), max(sizes)
