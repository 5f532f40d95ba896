"""The contract that every network family keeps, whatever it is made of. One entry of FAMILIES, one run of each test.

What is particular to a family stands in its own tests; published sizes in test_published_networks.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from autounet.losses import Batch, build_loss
from autounet.nets import FAMILIES
from autounet.nets.blocks import CHANNELS_LAST
from autounet.nets.family import covering_size
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.plan import NetworkSpec
from autounet.store.weights import load_weights, save_weights

CHANNELS, CLASSES = 2, 3
LABELS = Labels(classes=tuple(LabelClass(name=f"class{index}", value=index) for index in range(CLASSES)))

families = pytest.mark.parametrize("name", FAMILIES)
families_and_dims = pytest.mark.parametrize(
    ("name", "dims"),
    [(name, dims) for name, family in FAMILIES.items() for dims in family.dims],
    ids=lambda value: f"{value}d" if isinstance(value, int) else value,
)


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_spec(name: str, dims: int, deep_supervision: bool = True, base_features: int = 4) -> NetworkSpec:
    """Three stages; strides and kernels that differ between the axes."""
    strides = [(1,) * dims, (1,) * (dims - 1) + (2,), (2,) * dims]
    kernels = [(1,) * (dims - 2) + (3, 3), (3,) * dims, (3,) * dims]
    return FAMILIES[name].propose(
        dims, CHANNELS, CLASSES, strides, kernels, base_features=base_features, deep_supervision=deep_supervision
    )


def size_of(name: str, spec: NetworkSpec, output: int = 4) -> tuple[int, ...]:
    return covering_size(FAMILIES[name], spec, (output,) * spec.dims)


def built(spec: NetworkSpec, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return FAMILIES[spec.family].build(spec)


def settled(spec: NetworkSpec, size: tuple[int, ...]) -> nn.Module:
    """In eval mode, after forwards in training, so that running statistics are not what they were at first."""
    network = built(spec).train()
    with torch.no_grad():
        for _ in range(2):
            network(3 * torch.randn(2, CHANNELS, *size) + 1)
    return network.eval()


@st.composite
def topologies(draw: Callable, dims: int) -> dict:
    axis = st.tuples(*[st.sampled_from([1, 2])] * dims)
    strides = [(1,) * dims, *draw(st.lists(axis, min_size=1, max_size=3))]
    return {
        "dims": dims,
        "in_channels": draw(st.sampled_from([1, 2, 3, 5])),
        "out_channels": draw(st.integers(2, 4)),
        "strides": strides,
        "kernel_sizes": [draw(st.tuples(*[st.sampled_from([1, 3])] * dims)) for _ in strides],
        "base_features": draw(st.sampled_from([2, 3, 4])),
        "deep_supervision": draw(st.booleans()),
    }


@families_and_dims
@settings(max_examples=8)
@given(data=st.data())
def test_shapes(name: str, dims: int, data: st.DataObject) -> None:
    """Outputs are as `output_size` says, one per decoder stage with deep supervision, none larger than the one before.

    Sizes: the valid one is the least, keeps itself, and covers what it is asked to cover.
    """
    family = FAMILIES[name]
    spec = family.propose(**data.draw(topologies(dims)))
    wish = data.draw(st.tuples(*[st.integers(1, 6)] * dims))
    size = family.valid_size(spec, wish)
    output = family.output_size(spec, size)
    assert all(length >= asked for length, asked in zip(size, wish, strict=True))
    assert family.valid_size(spec, size) == size
    assert all((length - given) % 2 == 0 and 1 <= given <= length for length, given in zip(size, output, strict=True))
    covering = covering_size(family, spec, wish)
    assert family.valid_size(spec, covering) == covering
    assert all(given >= asked for given, asked in zip(family.output_size(spec, covering), wish, strict=True))
    assert not spec.deep_supervision or family.deep_supervision

    network = family.build(spec)
    image = torch.randn(2, spec.in_channels, *size)
    with torch.no_grad():
        outputs = network.train()(image)
        assert isinstance(outputs, tuple)
        assert len(outputs) == (len(spec.decoder_blocks) if spec.deep_supervision else 1)
        assert outputs[0].shape == (2, spec.out_channels, *output)
        for finer, coarser in itertools.pairwise(outputs):
            assert coarser.shape[:2] == finer.shape[:2]
            assert all(a % b == 0 for a, b in zip(finer.shape[2:], coarser.shape[2:], strict=True))
        assert network.eval()(image).shape == outputs[0].shape


@families_and_dims
@settings(max_examples=10)
@given(data=st.data())
def test_valid_sizes_are_the_smallest(name: str, dims: int, data: st.DataObject) -> None:
    """Growing the wish by one voxel changes a valid length by one step of the strides, and only where it was met."""
    family = FAMILIES[name]
    spec = family.propose(**data.draw(topologies(dims)))
    wish = data.draw(st.tuples(*[st.integers(1, 40)] * dims))
    size = family.valid_size(spec, wish)
    larger = family.valid_size(spec, [length + 1 for length in size])
    assert larger == tuple(length + step for length, step in zip(size, spec.divisor, strict=True))
    between = [max(length - 1, asked) for length, asked in zip(size, wish, strict=True)]
    assert family.valid_size(spec, between) == size


@families_and_dims
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_a_training_step_reaches_every_parameter(name: str, dims: int, deep_supervision: bool) -> None:
    """Through the loss that a training uses, with labels as large as the input; the lowest head may have weight 0."""
    spec = small_spec(name, dims, deep_supervision)
    size = size_of(name, spec)
    network = built(spec).train()
    with torch.no_grad():
        for parameter in network.parameters():  # off zero, from which residual blocks and biases start
            parameter.add_(0.1 * torch.randn_like(parameter))
    levels = len(spec.decoder_blocks) if spec.deep_supervision else 1
    batch = Batch(torch.randn(2, CHANNELS, *size), torch.randint(0, CLASSES, (2, *size)))
    outputs = network(batch.image)
    value = build_loss("dice_ce", LABELS, False, levels)(outputs, batch)
    (value + 0.1 * sum(output.float().square().mean() for output in outputs)).backward()
    assert value.isfinite()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.ndim < 2 or parameter.grad.count_nonzero() > 0, parameter_name


@families_and_dims
def test_one_seed_one_network(name: str, dims: int) -> None:
    spec = small_spec(name, dims)
    first, second, other = (built(spec, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    image = torch.randn(2, CHANNELS, *size_of(name, spec))
    results = []
    for _ in range(2):
        network = built(spec, 1).train()
        results.append(network(image))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@families_and_dims
def test_weights_files_hold_the_whole_network(name: str, dims: int, tmp_path: Path) -> None:
    """Running statistics included: the loaded network predicts what the saved one does."""
    spec = small_spec(name, dims)
    size = size_of(name, spec)
    network, other = settled(spec, size), built(spec, seed=1).eval()
    image = torch.randn(1, CHANNELS, *size)
    save_weights(tmp_path / "weights.safetensors", network.state_dict())
    with torch.no_grad():
        assert not torch.equal(network(image), other(image))
        other.load_state_dict(load_weights(tmp_path / "weights.safetensors"))
        assert torch.equal(network(image), other(image))


@families_and_dims
def test_a_batch_equals_its_single_samples(name: str, dims: int) -> None:
    spec = small_spec(name, dims)
    size = size_of(name, spec)
    network = settled(spec, size)
    images = torch.randn(3, CHANNELS, *size)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
        assert torch.equal(network(images), together)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@families_and_dims
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_last_and_bf16_agree_with_fp32(name: str, dims: int, precision: str) -> None:
    spec = small_spec(name, dims)
    size = size_of(name, spec, output=8)
    network = settled(spec, size)
    image = torch.randn(2, CHANNELS, *size)
    with torch.no_grad():
        expected = network(image)
    network = network.to(memory_format=CHANNELS_LAST[dims])
    last = image.to(memory_format=CHANNELS_LAST[dims])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        found = network(last)
    tolerance = 0.05 if precision == "bf16" else 1e-4
    assert (found.float() - expected).norm() < tolerance * expected.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        outputs = network.train()(last)
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@families_and_dims
def test_odd_numbers_of_features(name: str, dims: int) -> None:
    """Widths as a time limit may ask for them, and features of no common divisor, as a plan edited by hand has them."""
    for base in (3, 5):
        spec = small_spec(name, dims, base_features=base)
        image = torch.randn(2, CHANNELS, *size_of(name, spec))
        with torch.no_grad():
            assert built(spec).eval()(image).isfinite().all()


@families_and_dims
def test_a_step_can_be_traced_without_data(name: str, dims: int) -> None:
    """Under fake tensors, as the memory model runs it: nothing may depend on values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    spec = small_spec(name, dims)
    size = size_of(name, spec)
    with FakeTensorMode(allow_non_fake_inputs=False):
        network = FAMILIES[name].build(spec).train()
        outputs = network(torch.randn(2, CHANNELS, *size))
        sum(output.square().mean() for output in outputs).backward()
        assert outputs[0].shape[2:] == FAMILIES[name].output_size(spec, size)
        assert all(parameter.grad is not None for parameter in network.parameters())


@families
def test_options_are_checked(name: str) -> None:
    family = FAMILIES[name]
    spec = small_spec(name, family.dims[0])
    assert family.problems(spec) == ()
    with pytest.raises(ValidationError):
        family.build(spec.model_copy(update={"options": {"no_such_option": 1}}))


@families
def test_a_network_of_one_stage_is_refused(name: str) -> None:
    family = FAMILIES[name]
    dims = family.dims[0]
    with pytest.raises(ValueError, match="at least two stages"):
        family.build(family.propose(dims, 1, 2, [(1,) * dims], [(3,) * dims]))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.deep_supervision])
def test_one_output_where_a_family_has_no_more(name: str) -> None:
    family = FAMILIES[name]
    spec = small_spec(name, family.dims[0])
    assert not spec.deep_supervision
    with pytest.raises(ValueError, match="deep_supervision"):
        family.build(spec.model_copy(update={"deep_supervision": True}))


def test_weights_of_the_loss_follow_resolution() -> None:
    """Outputs of one size weigh the same: U-Net++ learns from all of its heads, the others from each level by half."""
    from autounet.losses.deep_supervision import level_weights, output_weights

    assert output_weights([(8, 8), (4, 4), (2, 2)]) == level_weights(3)
    assert output_weights([(8, 8)] * 4) == (0.25,) * 4
    assert output_weights([(8, 8), (8, 8), (4, 4)]) == (0.5, 0.5, 0.0)
    assert math.isclose(sum(output_weights([(8, 8), (8, 8), (4, 4), (2, 2)])), 1)


def test_the_loss_sees_the_middle_of_the_labels() -> None:
    from autounet.losses.deep_supervision import DeepSupervision

    seen: list[tuple[Tensor, Tensor | None]] = []

    def keep(logits: Tensor, labels: Tensor, weight: Tensor | None, annotated: Tensor | None) -> Tensor:
        seen.append((labels, weight))
        return logits.sum()

    labels = torch.arange(100).reshape(1, 10, 10)
    loss = DeepSupervision(keep, 1)
    loss((torch.zeros(1, 2, 4, 6),), Batch(torch.zeros(1, 1, 10, 10), labels, weight=labels.float()))
    assert torch.equal(seen[0][0], labels[:, 3:7, 2:8])
    assert torch.equal(seen[0][1], labels[:, 3:7, 2:8].float())
    with pytest.raises(ValueError, match="2 outputs"):
        loss((torch.zeros(1, 2, 4, 6),) * 2, Batch(torch.zeros(1, 1, 10, 10), labels))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler calls what torch deprecates
@families
def test_networks_compile(name: str) -> None:
    """As one graph, forward and backward, so that `torch.compile` never falls back to Python inside a network.

    The graph is run by torch's own kernels: whether a machine's compiler does its part is not the family's.
    """
    family = FAMILIES[name]
    spec = small_spec(name, family.dims[0])
    size = size_of(name, spec)
    network = settled(spec, size)
    image = torch.randn(2, CHANNELS, *size)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), network(image), rtol=1e-3, atol=1e-3)
    outputs = torch.compile(network.train(), backend="aot_eager", fullgraph=True)(image)
    sum(output.square().mean() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
