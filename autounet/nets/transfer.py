"""Starting one network from the weights of a trained one: the same architecture, perhaps for other classes or channels.

What depends on the number of classes, the heads, stays as it was drawn where that number differs. Of what reads the
image, a channel that the trained network had is copied, another one stays as drawn. A MedNeXt may have larger kernels
than the trained one (UpKern, Roy et al. 2023, Sec. 2.3). Everything else must be equal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from ..schema.errors import ModelError
from ..schema.plan import PREDICTION_OPTIONS, NetworkSpec
from . import FAMILIES

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES, INPUTS, KERNELS, OPTIONS = "out_channels", "in_channels", "kernel_sizes", "options"
Channels = tuple[int | None, ...]
"""for each input channel the trained network's; None: it stays as drawn"""
GROWING_KERNELS = frozenset({"mednext"})
"""families whose kernels may be larger than those of the weights"""


def differences(spec: NetworkSpec, trained: NetworkSpec, matched: bool = False) -> tuple[str, ...]:
    """What keeps a network `spec` from starting with the weights of `trained`, each with both values; for people.

    `matched`: it is known which channels are which, so that their number may differ.
    """
    return tuple(_differences(spec, trained, {CLASSES, INPUTS} if matched else {CLASSES}))


def _differences(spec: NetworkSpec, trained: NetworkSpec, open_fields: set[str]) -> Iterator[str]:
    if spec.family != trained.family:  # then the rest says nothing
        yield f"family is {spec.family} here and {trained.family} in the model"
        return
    for name in NetworkSpec.model_fields:
        if name in open_fields or (name == KERNELS and _may_grow(spec, trained)):
            continue
        here, there = (_options(each) if name == OPTIONS else getattr(each, name) for each in (spec, trained))
        if here != there:
            yield f"{name} {_is(here)} here and {there} in the model"


def _is(value: object) -> str:
    return f"are {value}" if isinstance(value, tuple | dict) else f"is {value}"


def _options(spec: NetworkSpec) -> dict[str, object]:
    """With the defaults that the plan may leave out, without what changes predictions alone."""
    chosen = FAMILIES[spec.family].options.model_validate(spec.options).model_dump(mode="json")
    return {name: value for name, value in chosen.items() if name not in PREDICTION_OPTIONS}


def _may_grow(spec: NetworkSpec, trained: NetworkSpec) -> bool:
    """Along axes that are convolved in both."""
    pairs = [
        (large, small)
        for stages in zip(spec.kernel_sizes, trained.kernel_sizes, strict=False)
        for large, small in zip(*stages, strict=False)
    ]
    grown = all(large == small or large > small > 1 for large, small in pairs)
    return spec.family in GROWING_KERNELS and len(spec.kernel_sizes) == len(trained.kernel_sizes) and grown


def class_tensors(spec: NetworkSpec) -> tuple[str, ...]:
    """Names of the tensors whose shape depends on the number of classes, in the order of the state dict."""
    return _depending_on(spec, CLASSES)


def input_tensors(spec: NetworkSpec) -> tuple[str, ...]:
    """Names of the tensors whose shape depends on the number of input channels, in the order of the state dict."""
    return _depending_on(spec, INPUTS)


def _depending_on(spec: NetworkSpec, number: str) -> tuple[str, ...]:
    import torch

    with torch.device("meta"):
        more = spec.model_copy(update={number: getattr(spec, number) + 1})
        states = [FAMILIES[each.family].build(each).state_dict() for each in (spec, more)]
    return tuple(name for name, tensor in states[0].items() if tensor.shape != states[1][name].shape)


def transfer(
    network: nn.Module,
    spec: NetworkSpec,
    weights: Mapping[str, Tensor],
    trained: NetworkSpec,
    new: Collection[str] = (),
    channels: Channels | None = None,
) -> None:
    """Set `network`, built from `spec`, to the `weights` of a network `trained`, but for the tensors `new`.

    `channels`: which of the trained network's each input channel is; None: they are the same ones.
    Raises ModelError that lists `differences`, or names a tensor that does not fit; nothing is changed then.
    """
    if found := differences(spec, trained, channels is not None):
        raise ModelError(
            f"the architecture of the model differs from that of the plan: {'; '.join(found)}",
            "Start from a model with the same architecture, or let the plan take the model's network",
        )
    state = network.state_dict()
    given = {**weights, **{name: state[name] for name in new}}
    if channels is not None:
        for tensor in input_tensors(spec):
            if tensor in weights and tensor not in new:
                given[tensor] = _rearranged(tensor, state[tensor], weights[tensor], channels)
    if spec.kernel_sizes != trained.kernel_sizes:
        from .mednext_modules import upkern

        upkern(network, given)
        return
    odd = (name for name in sorted(state.keys() | given.keys()) if _shape(given, name) != _shape(state, name))
    if (name := next(odd, None)) is not None:
        raise ModelError(
            f"the weights are not those of the network that the model describes: {name} does not fit",
            "Pack the model again from its training folder",
        )
    network.load_state_dict(given)


def _rearranged(name: str, drawn: Tensor, weights: Tensor, channels: Channels) -> Tensor:
    """A kernel (features, channels, ...) with the trained columns of the known channels, and `drawn` ones elsewhere."""
    if drawn.shape[1] != len(channels) or drawn.dim() != weights.dim():
        raise ModelError(
            f"the weights {name} have another number of channels than the {len(channels)} of the images",
            "Pack the model again from its training folder",
        )
    columns = [drawn[:, here] if there is None else weights[:, there] for here, there in enumerate(channels)]
    if any(column.shape != columns[0].shape for column in columns):
        raise ModelError(
            f"the weights are not those of the network that the model describes: {name} does not fit",
            "Pack the model again from its training folder",
        )
    import torch

    return torch.stack(columns, dim=1)


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return weights[name].shape if name in weights else None
