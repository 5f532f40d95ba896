"""MedNeXt: the published sizes, its blocks, depthwise convolutions against torch's, UpKern."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from autounet.nets.blocks import CHANNELS_LAST
from autounet.nets.depthwise import depthwise, depthwise_transposed
from autounet.nets.mednext import MEDNEXT
from autounet.nets.mednext_modules import UpBlock, upkern
from autounet.schema.errors import ModelError
from autounet.schema.plan import NetworkSpec


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def published(size: str, kernel: int) -> NetworkSpec:
    return MEDNEXT.propose(
        3,
        1,
        14,
        [(1, 1, 1)] + [(2, 2, 2)] * 4,
        [(3, 3, 3)] * 5,
        size=size,
        kernel=kernel,  # type: ignore[arg-type]
    )


def small(kernel: int = 3, dims: int = 2, size: str = "S") -> NetworkSpec:
    strides = [(1,) * dims, (2,) * dims, (1,) * (dims - 1) + (2,)]
    return MEDNEXT.propose(
        dims,
        1,
        2,
        strides,
        [(3,) * dims] * 3,
        base_features=4,
        size=size,
        kernel=kernel,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("size", "kernel", "millions"),
    [
        ("S", 3, 5.6),
        ("B", 3, 10.5),
        ("B", 5, 11.0),
        ("M", 3, 17.6),
        ("M", 5, 18.3),
        ("L", 3, 61.8),
        ("L", 5, 63.0),
    ],
)
def test_parameters_of_the_published_sizes(size: str, kernel: int, millions: float) -> None:
    """The authors' table (README of MIC-DKFZ/MedNeXt). S with kernel 5 has 5.99 M, which they write as 5.9 M."""
    with torch.device("meta"):
        network = MEDNEXT.build(published(size, kernel))
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == millions


def test_a_size_says_how_many_blocks_and_how_wide_they_are() -> None:
    spec = published("L", 3)
    assert spec.features == (32, 64, 128, 256, 512)
    assert spec.encoder_blocks == (3, 4, 8, 8, 8)
    assert spec.decoder_blocks == (3, 4, 8, 8)
    with torch.device("meta"):
        network = MEDNEXT.build(spec)
    hidden = [stage.blocks[0].expand.out_channels / stage.blocks[0].expand.in_channels for stage in network.encoder]
    assert hidden == [3, 4, 8, 8, 8]
    assert [stage.up.expand.out_channels / stage.up.expand.in_channels for stage in network.decoder] == [3, 4, 8, 8]


def test_axes_that_are_not_convolved_stay_so_and_features_stop_doubling() -> None:
    strides = [(1, 1, 1), (1, 2, 2)] + [(2, 2, 2)] * 5
    spec = MEDNEXT.propose(3, 2, 3, strides, [(1, 3, 3)] + [(3, 3, 3)] * 6, base_features=8, kernel=5)
    assert spec.kernel_sizes[:2] == ((1, 5, 5), (5, 5, 5))
    assert spec.features == (8, 16, 32, 64, 128, 128, 128)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        ((3, 3), (1, 1), (4, 5)),
        ((5, 5), (2, 2), (6, 4)),
        ((3, 3, 3), (1, 1, 1), (3, 4, 5)),
        ((3, 3, 3), (2, 2, 2), (1, 2, 4)),
        ((1, 3, 3), (1, 2, 2), (3, 4, 6)),
        ((5, 5, 5), (2, 1, 2), (6, 3, 4)),
        ((3, 1, 3), (3, 2, 1), (6, 4, 2)),
    ],
)
def test_depthwise_convolutions_are_torchs(transposed: bool, kernel: tuple, stride: tuple, size: tuple) -> None:
    dims = len(kernel)
    kind = (depthwise_transposed if transposed else depthwise)(3, kernel, stride)
    module = kind.double()
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=CHANNELS_LAST[dims]).requires_grad_()
    inputs = [x, module.weight, module.bias]
    padding = tuple(length // 2 for length in kernel)
    expected = getattr(functional, name)(*inputs, stride=stride, padding=padding, groups=3)
    result = module(x)
    torch.testing.assert_close(result, expected)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(result, inputs, upstream)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        # weights are summed in single precision
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected)


def test_depthwise_convolutions_compute_in_bf16_under_autocast() -> None:
    module = depthwise(4, (3, 3, 3), (1, 1, 1)).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 4, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    exact = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module(x)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert module.weight.grad.dtype == torch.float32
    torch.testing.assert_close(result.float(), exact, rtol=2e-2, atol=2e-2)


def test_going_up_puts_voxels_where_the_authors_do() -> None:
    """One voxel more than (S - 1) x stride + 1 is missing at stride 2; it is a zero in front."""
    block = UpBlock(2, 3, (3, 3), (1, 2), 2)
    x = torch.randn(1, 2, 4, 3)
    y = block(x)
    assert y.shape == (1, 3, 4, 6)
    assert not y[..., 0].any()
    residual = functional.conv_transpose2d(x, block.residual.weight, block.residual.bias, (1, 2))
    torch.testing.assert_close(y[..., 1:], block.change(x) + residual)


def test_upkern_interpolates_kernels_and_copies_the_rest() -> None:
    trained, network = MEDNEXT.build(small(3)), MEDNEXT.build(small(5))
    weights = trained.state_dict()
    name = "encoder.0.blocks.0.depthwise.weight"
    weights[name] = torch.arange(3.0).expand(weights[name].shape).clone()
    upkern(network, weights)
    state = network.state_dict()
    assert state[name].shape[2:] == (5, 5)
    line = torch.tensor([0.0, 0.4, 1.0, 1.6, 2.0])  # sampled at (i + 1/2) 3/5 - 1/2, held at the ends
    torch.testing.assert_close(state[name], line.expand(state[name].shape))
    same = [key for key in state if state[key].shape == weights[key].shape]
    assert len(same) > len(state) / 2
    assert all(torch.equal(state[key], weights[key]) for key in same)


def test_upkern_of_a_volume_starts_near_the_small_kernels_response() -> None:
    """Interpolated kernels of a constant are constant: the response to a constant image grows with their volume."""
    trained, network = MEDNEXT.build(small(3, dims=3)), MEDNEXT.build(small(5, dims=3))
    name = "encoder.1.blocks.0.depthwise.weight"
    weights = trained.state_dict() | {name: torch.full(trained.state_dict()[name].shape, 0.25)}
    upkern(network, weights)
    torch.testing.assert_close(network.state_dict()[name], torch.full((8, 1, 5, 5, 5), 0.25))


def test_upkern_names_what_does_not_fit() -> None:
    network = MEDNEXT.build(small(5))
    weights = MEDNEXT.build(small(3)).state_dict()
    with pytest.raises(ModelError, match=r"lack decoder\.0\.head\.bias"):
        upkern(network, {name: value for name, value in weights.items() if name != "decoder.0.head.bias"})
    with pytest.raises(ModelError, match="does not have surplus"):
        upkern(network, weights | {"surplus": torch.zeros(1)})
    wide = MEDNEXT.build(small(3, size="B")).state_dict()
    with pytest.raises(ModelError, match=r"encoder\.1\.\S+ is \(24, 8, 1, 1\) in the weights|encoder\.1"):
        upkern(network, wide)


def test_a_training_step_in_bf16_and_channels_last_can_be_traced() -> None:
    dims, layout = 3, torch.channels_last_3d
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16):
        network = MEDNEXT.build(small(dims=dims))
        outputs = network(torch.randn(2, 1, *(8,) * dims).to(memory_format=layout))
        sum(output.float().square().mean() for output in outputs).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_it_learns() -> None:
    network = MEDNEXT.build(small())
    image = torch.randn(2, 1, 16, 16).to(memory_format=torch.channels_last)
    target = (functional.avg_pool2d(image, 3, 1, 1) > 0).long()[:, 0]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = functional.cross_entropy(network(image)[0], target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
