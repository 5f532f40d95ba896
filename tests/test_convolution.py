"""The 3-D convolution whose kernel gradient is put together from planes: the same function as torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from autounet.nets import FAMILIES, convolution
from autounet.nets.convolution import Conv2d, Conv3d

ROUNDING = 0.02
"""of sums of products rounded to bf16 (2^-8), as a share of the sum of the absolute products"""


def trained(layer: nn.Module, x: torch.Tensor, towards: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Result and gradients, float32."""
    x = x.clone().requires_grad_(True)
    y = layer(x)
    (y.float() * towards).sum().backward()
    return tuple(each.float() for each in (y.detach(), x.grad, layer.weight.grad, layer.bias.grad))


sizes = st.integers(1, 5)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(*[st.sampled_from((1, 3))] * 3),
    stride=st.tuples(*[st.sampled_from((1, 2))] * 3),
    size=st.tuples(sizes, sizes, sizes),
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padded=st.booleans(),
    channels_last=st.booleans(),
)
def test_it_is_torchs_convolution(kernel, stride, size, batch, channels, padded, channels_last) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = size if padded else tuple(length + 2 for length in size)
    given_ = (*channels, kernel, stride, tuple(length // 2 for length in kernel) if padded else 0)
    true = nn.Conv3d(*given_)
    ours = Conv3d(*given_)
    ours.load_state_dict(true.state_dict())
    x = torch.randn((batch, channels[0], *shape), generator=generator)
    towards = torch.randn(true(x).shape, generator=generator)
    expected = trained(true, x, towards)
    positive = Conv3d(*given_)
    positive.load_state_dict({name: value.abs() for name, value in true.state_dict().items()})
    scales = trained(positive, x.abs(), towards.abs())
    if channels_last:
        ours, x = (each.to(memory_format=torch.channels_last_3d) for each in (ours, x))
    assert all(map(torch.equal, trained(ours, x, towards), expected)) or channels_last  # float32 is torch's own
    ours.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        found = trained(ours, x, towards)
    for each, other, scale in zip(found, expected, scales, strict=True):
        assert each.shape == other.shape
        assert (each - other).norm() <= ROUNDING * scale.norm()


@pytest.mark.parametrize("batch", [1, 6])
def test_the_kernels_gradient_comes_from_planes(monkeypatch, batch: int) -> None:
    """oneDNN's own in 3-D overwrites memory."""
    asked = []
    true = convolution.convolution_backward

    def spy(gradient, x, weight, stride, padding, wanted):
        asked.append((x.ndim, wanted))
        return true(gradient, x, weight, stride, padding, wanted)

    monkeypatch.setattr(convolution, "convolution_backward", spy)
    layer = Conv3d(2, 4, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(batch, 2, 4, 6, 6, requires_grad=True)).float().sum().backward()
    assert (5, (True, False)) in asked
    assert {dims for dims, (_, kernel) in asked if kernel} == {4}


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(*[st.sampled_from((1, 3))] * 2),
    stride=st.tuples(*[st.sampled_from((1, 2, 3))] * 2),
    size=st.tuples(sizes, sizes),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padded=st.booleans(),
)
def test_in_2d_it_is_torchs_convolution_too(kernel, stride, size, channels, padded) -> None:
    """The expected gradients are computed in the contiguous order, where torch's own are right."""
    layer_options = (*channels, kernel, stride, tuple(length // 2 for length in kernel) if padded else 0)
    true, ours = nn.Conv2d(*layer_options), Conv2d(*layer_options)
    ours.load_state_dict(true.state_dict())
    x = torch.randn((2, channels[0], *(length if padded else length + 2 for length in size)))
    towards = torch.randn(true(x).shape)
    expected = trained(true, x, towards)
    ours, x = (each.to(memory_format=torch.channels_last) for each in (ours, x))
    for each, other in zip(trained(ours, x, towards), expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_family_trains_a_pointwise_convolution_with_a_stride(family: str) -> None:
    """oneDNN overwrites memory in the backward pass of such planes, of which bf16 convolutions in 3-D are made."""
    asked = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution.default and torch.is_grad_enabled():
                weight, stride, groups = args[1], args[3], args[8]
                if groups == 1 and any(k == 1 and s > 1 for k, s in zip(weight.shape[2:], stride, strict=True)):
                    asked.append((tuple(weight.shape), stride))
            return function(*args, **(kwargs or {}))

    for dims in FAMILIES[family].dims:
        strides, kernels = [(1,) * dims, *[(2,) * dims] * 2], [(3,) * dims, (1,) * (dims - 1) + (3,), (1,) * dims]
        spec = FAMILIES[family].propose(dims, 1, 3, strides, kernels, 8)
        with Watch():
            network, size = FAMILIES[family].build(spec), FAMILIES[family].valid_size(spec, (8,) * dims)
            with torch.autocast("cpu", torch.bfloat16, enabled=dims == 3):
                network(torch.randn(1, 1, *size))
    assert asked == []


def test_without_training_it_is_torchs_own() -> None:
    layer, x = Conv3d(2, 4, 3), torch.randn(1, 2, 4, 6, 6)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), nn.Conv3d.forward(layer, x))


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if 3 in family.dims])
def test_no_family_asks_for_the_kernels_gradient_in_3d(family: str) -> None:
    """Whatever the family builds its convolutions from; groups of one channel go other ways in oneDNN."""
    asked = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                weight, groups, wanted = args[2], args[9], args[10]
                if weight.ndim == 5 and groups == 1 and wanted[1] and args[1].dtype == torch.bfloat16:
                    asked.append(tuple(weight.shape))
            return function(*args, **(kwargs or {}))

    strides = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
    spec = FAMILIES[family].propose(3, 1, 3, strides, [(1, 3, 3), (3, 3, 3), (3, 3, 3)], 8)
    network = FAMILIES[family].build(spec).to(memory_format=torch.channels_last_3d)
    size = FAMILIES[family].valid_size(spec, (16, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.randn(2, 1, *size).to(memory_format=torch.channels_last_3d))
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    with Watch():
        sum(each.float().square().mean() for each in outputs).backward()
    assert asked == []
