"""The contract that every network family keeps, and what is particular to one of them.

benchmarks/network_parity.py compares them with nnU-Net's own networks, weight by weight.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from autounet.nets import FAMILIES, Family
from autounet.nets.blocks import CHANNELS_LAST, InstanceNorm, UpConvolution, average_pool
from autounet.nets.plain import nnunet_plain_name, nnunet_residual_name
from autounet.schema.plan import NetworkSpec

PADDED = {name: FAMILIES[name] for name in ("plain", "residual")}
"""the contract of all families is in test_family_contract.py; these two keep more, see here"""
families = pytest.mark.parametrize("family", PADDED.values(), ids=PADDED.keys())


@pytest.fixture(autouse=True)
def _few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_spec(family: Family, dims: int = 3, deep_supervision: bool = True) -> NetworkSpec:
    strides = [(1,) * dims, (1,) * (dims - 1) + (2,), (2,) * dims]
    kernels = [(1,) * (dims - 2) + (3, 3), (3,) * dims, (3,) * dims]
    return family.propose(dims, 2, 3, strides, kernels, base_features=4, deep_supervision=deep_supervision)


@st.composite
def topologies(draw: Callable) -> dict:
    dims = draw(st.sampled_from([2, 3]))
    axis = st.tuples(*[st.sampled_from([1, 2])] * dims)
    strides = [(1,) * dims, *draw(st.lists(axis, min_size=1, max_size=3))]
    kernels = [draw(st.tuples(*[st.sampled_from([1, 3])] * dims)) for _ in strides]
    return {
        "dims": dims,
        "in_channels": draw(st.integers(1, 3)),
        "out_channels": draw(st.integers(2, 4)),
        "strides": strides,
        "kernel_sizes": kernels,
        "base_features": draw(st.sampled_from([2, 3])),
        "deep_supervision": draw(st.booleans()),
    }


@families
@settings(deadline=None, max_examples=15)
@given(topology=topologies(), wish=st.integers(1, 9), batch=st.integers(1, 2))
def test_shapes(family: Family, topology: dict, wish: int, batch: int) -> None:
    spec = family.propose(**topology)
    size = family.valid_size(spec, (max(wish, 2),) * spec.dims)
    assert all(a >= max(wish, 2) and a % d == 0 for a, d in zip(size, spec.divisor, strict=True))
    assert family.valid_size(spec, size) == size
    network = family.build(spec)
    image = torch.randn(batch, spec.in_channels, *size)
    outputs = network.train()(image)
    assert isinstance(outputs, tuple)
    assert len(outputs) == (len(spec.features) - 1 if spec.deep_supervision else 1)
    expected = list(family.output_size(spec, size))
    for output, stride in zip(outputs, spec.strides, strict=False):
        expected = [length // step for length, step in zip(expected, stride, strict=True)]
        assert output.shape == (batch, spec.out_channels, *expected)
    with torch.no_grad():
        assert network.eval()(image).shape == outputs[0].shape


@families
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_every_parameter_receives_a_gradient(family: Family, deep_supervision: bool) -> None:
    network = family.build(small_spec(family, deep_supervision=deep_supervision))
    sum(output.square().mean() for output in network(torch.randn(2, 2, 4, 4, 8))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@families
def test_same_seed_same_network_and_weights_load_into_another(family: Family) -> None:
    spec = small_spec(family)
    image = torch.randn(1, 2, 4, 4, 8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(family.build(spec))
    first, second, other = (network.eval() for network in results)
    with torch.no_grad():
        assert torch.equal(first(image), second(image))
        assert not torch.equal(first(image), other(image))
        other.load_state_dict(first.state_dict())
        assert torch.equal(first(image), other(image))


@families
@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_equals_its_single_samples(family: Family, dims: int) -> None:
    network = family.build(small_spec(family, dims)).eval()
    images = torch.randn(3, 2, *(4, 4, 8)[-dims:])
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


COMPUTES_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@families
@pytest.mark.parametrize("dims", [2, 3])
def test_bf16_channels_last_agrees_with_fp32(family: Family, dims: int) -> None:
    network = family.build(small_spec(family, dims)).train()
    image = torch.randn(2, 2, *(8, 8, 8)[-dims:])
    with torch.no_grad():
        expected = network(image)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    network = network.to(memory_format=layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(image.to(memory_format=layout))
    if COMPUTES_BF16:  # elsewhere oneDNN converts, and results of 3-D convolutions come back in the other order
        assert outputs[0].is_contiguous(memory_format=layout)
    for output, reference in zip(outputs, expected, strict=True):
        assert (output.float() - reference).norm() < 0.05 * reference.norm()
    outputs[0].float().sum().backward()


@families
def test_unknown_options_are_refused(family: Family) -> None:
    spec = small_spec(family).model_copy(update={"options": {"no_such_option": 1}})
    with pytest.raises(ValidationError):
        family.build(spec)


@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_norm_equals_torchs_instance_norm(dims: int, layout: str, slope: float) -> None:
    norm = InstanceNorm(3, slope).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, *(4, 3, 5)[-dims:], dtype=torch.float64)
    if layout == "last":
        x = x.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
    x.requires_grad_()
    reference = functional.leaky_relu(functional.instance_norm(x, weight=norm.weight, bias=norm.bias), slope)
    upstream = torch.randn_like(reference)
    before = upstream.clone()
    expected = torch.autograd.grad(reference, [x, norm.weight, norm.bias], upstream)
    for gradient, ours in zip(
        expected, torch.autograd.grad(norm(x), [x, norm.weight, norm.bias], upstream), strict=True
    ):
        torch.testing.assert_close(ours, gradient, rtol=1e-9, atol=1e-9)
    assert torch.equal(upstream, before)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), reference, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(norm, (x,))


@pytest.mark.parametrize("channels", [3, 8, 16, 40])
@pytest.mark.parametrize("size", [(2, 3), (32, 33), (4, 12, 24)])
@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
def test_norm_is_as_exact_whichever_way_it_takes(channels: int, size: tuple[int, ...], number: torch.dtype) -> None:
    """Of few and many voxels, channels that fill a register and others, a mean far from 0; gradients too."""
    norm = InstanceNorm(channels, slope=1.0)
    torch.nn.init.normal_(norm.weight, 1.0, 0.1)
    x = (3 + 2 * torch.randn(2, channels, *size)).to(number, memory_format=CHANNELS_LAST[len(size)])
    exact = x.double().requires_grad_()
    reference = functional.instance_norm(exact, weight=norm.weight.double(), bias=norm.bias.double())
    upstream = torch.randn_like(reference)
    expected = torch.autograd.grad(reference, exact, upstream)[0]
    x.requires_grad_()
    found = norm(x)
    gradient = torch.autograd.grad(found, x, upstream.to(number))[0]
    assert found.dtype == gradient.dtype == number
    error = 2e-2 if number == torch.bfloat16 else 1e-4
    for ours, true in ((found, reference), (gradient, expected)):
        assert (ours.double() - true).norm() < error * true.norm()
    with torch.no_grad():
        assert torch.equal(norm(x), found)


@pytest.mark.parametrize("stride", [(2, 2), (2, 1), (2, 2, 2), (1, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("layout", ["contiguous", "last", "neither"])
def test_average_pool_equals_torchs(stride: tuple[int, ...], layout: str) -> None:
    x = torch.randn(2, 3, *[2 * step for step in stride], dtype=torch.float64)
    if layout == "last":
        x = x.to(memory_format=CHANNELS_LAST[len(stride)])
    elif layout == "neither":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    x.requires_grad_()
    pool = functional.avg_pool2d if len(stride) == 2 else functional.avg_pool3d
    expected, found = pool(x, stride), average_pool(x, stride)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(result, x, upstream)[0] for result in (found, expected)))
    if layout == "last":
        assert found.is_contiguous(memory_format=CHANNELS_LAST[len(stride)])


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (2, 2, 2), (1, 2, 2), (3, 1, 2)])
def test_up_convolution_equals_torchs(stride: tuple[int, ...]) -> None:
    up = UpConvolution(3, 4, stride).double()
    torch.nn.init.normal_(up.weight)
    torch.nn.init.normal_(up.bias)
    x = torch.randn(2, 3, *(2, 3, 4)[-len(stride) :], dtype=torch.float64)
    reference = torch.nn.functional.conv_transpose2d if len(stride) == 2 else torch.nn.functional.conv_transpose3d
    expected = reference(x, up.weight, up.bias, stride)
    for ready in (x, x.to(memory_format=CHANNELS_LAST[len(stride)])):
        torch.testing.assert_close(up(ready), expected)
        with torch.no_grad():
            torch.testing.assert_close(up(ready), expected)


def test_parameter_count_of_the_hippocampus_network() -> None:
    """5,603,177 weights: what nnU-Net 2.8.1's PlainConvUNet has for features 32-64-128-256, 1 channel, 3 classes."""
    strides, kernels = [(1, 1, 1)] + [(2, 2, 2)] * 3, [(3, 3, 3)] * 4
    spec = FAMILIES["plain"].propose(3, 1, 3, strides, kernels)
    assert spec.features == (32, 64, 128, 256)
    network = FAMILIES["plain"].build(spec)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_603_177


def test_parameter_count_of_the_residual_network() -> None:
    """25,895,593 weights: what nnU-Net 2.8.1's ResidualEncoderUNet has for the same features, channels and classes."""
    spec = FAMILIES["residual"].propose(3, 1, 3, [(1, 1, 1)] + [(2, 2, 2)] * 3, [(3, 3, 3)] * 4)
    assert spec.encoder_blocks == (1, 3, 4, 6)
    assert spec.decoder_blocks == (1, 1, 1)
    with torch.device("meta"):
        network = FAMILIES["residual"].build(spec)
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_895_593


def test_a_new_residual_block_passes_on_its_skip() -> None:
    spec = FAMILIES["residual"].propose(2, 1, 2, [(1, 1), (2, 2)], [(3, 3)] * 2, base_features=4)
    spec = spec.model_copy(update={"features": (4, 4)})
    network = FAMILIES["residual"].build(spec)
    x = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(network.encoder[0](x), x)
    torch.testing.assert_close(network.encoder[1](x), average_pool(x, (2, 2)))


def test_features_are_capped() -> None:
    propose = FAMILIES["plain"].propose
    assert propose(3, 1, 2, [(1,) * 3] * 6, [(3,) * 3] * 6).features == (32, 64, 128, 256, 320, 320)
    assert propose(2, 1, 2, [(1,) * 2] * 6, [(3,) * 2] * 6).features == (32, 64, 128, 256, 512, 512)


def test_initial_weights_follow_he() -> None:
    spec = FAMILIES["plain"].propose(2, 1, 2, [(1, 1), (2, 2)], [(3, 3)] * 2, base_features=64)
    network = FAMILIES["plain"].build(spec)
    weight = network.encoder[1].blocks[1].conv.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / (128 * 9)), rel=0.02)
    assert not network.encoder[1].blocks[1].conv.bias.any()


def test_names_map_to_nnunets() -> None:
    spec = FAMILIES["plain"].propose(2, 1, 2, [(1, 1), *[(2, 2)] * 3], [(3, 3)] * 4)
    for ours, theirs in {
        "encoder.2.blocks.1.conv.weight": "encoder.stages.2.0.convs.1.conv.weight",
        "decoder.0.blocks.0.norm.bias": "decoder.stages.2.convs.0.norm.bias",
        "decoder.2.up.weight": "decoder.transpconvs.0.weight",
        "decoder.1.head.bias": "decoder.seg_layers.1.bias",
    }.items():
        assert nnunet_plain_name(ours, spec) == theirs


def test_names_of_the_residual_network_map_to_nnunets() -> None:
    strides = [(1, 1, 1), (1, 2, 2), (1, 1, 1)]
    spec = FAMILIES["residual"].propose(3, 1, 2, strides, [(3, 3, 3)] * 3, base_features=2)
    named = {name: nnunet_residual_name(name, spec) for name, _ in FAMILIES["residual"].build(spec).named_parameters()}
    assert len(set(named.values())) == len(named)
    expected = {
        "stem.conv.weight": "encoder.stem.convs.0.conv.weight",
        "encoder.0.blocks.0.first.conv.bias": "encoder.stages.0.blocks.0.conv1.conv.bias",
        "encoder.1.blocks.2.second.norm.weight": "encoder.stages.1.blocks.2.conv2.norm.weight",
        "encoder.1.blocks.0.project.conv.weight": "encoder.stages.1.blocks.0.skip.1.conv.weight",
        "encoder.2.blocks.0.project.norm.bias": "encoder.stages.2.blocks.0.skip.0.norm.bias",
        "decoder.0.blocks.0.conv.weight": "decoder.stages.1.convs.0.conv.weight",
        "decoder.1.up.bias": "decoder.transpconvs.0.bias",
    }
    assert expected.items() <= named.items()


def test_sizes_are_known_without_torch() -> None:
    code = (
        "import sys; from autounet.nets import FAMILIES; f = FAMILIES['plain']; "
        "s = f.propose(2, 1, 2, [(1, 1), (2, 2)], [(3, 3)] * 2); assert f.valid_size(s, (5, 6)) == (6, 6); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
