"""What is particular to U-Net++ and to the attention U-Net, and the blocks of the families that pool by maximum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_inference import configuration
from torch.nn import functional

from autounet.imageio import read_image
from autounet.nets import FAMILIES
from autounet.nets.attention import gated_stages
from autounet.nets.attention_modules import recorded_gates
from autounet.nets.blocks import max_pool, max_pool_planes, upsample_linear
from autounet.prediction.maps import predict_gate_maps, write_gate_maps
from autounet.schema.errors import ModelError
from autounet.schema.geometry import Geometry
from autounet.schema.plan import NetworkSpec

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def proposed(family: str, dims: int = 2, stages: int = 4, **changes: object) -> NetworkSpec:
    ones, twos = (1,) * dims, (2,) * dims
    strides, kernels = (ones, *[twos] * (stages - 1)), ((3,) * dims,) * stages
    return FAMILIES[family].propose(dims, 2, 3, strides, kernels, base_features=4).model_copy(update=changes)


def test_pruned_prediction_is_that_of_the_shallower_head() -> None:
    """Each depth gives the output that training calls its own, and needs no node or encoder stage beyond it."""
    spec = proposed("nested")
    torch.manual_seed(0)
    whole = FAMILIES["nested"].build(spec)
    image = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        trained = whole.train()(image)
        for depth in (1, 2, 3):
            pruned = FAMILIES["nested"].build(spec.model_copy(update={"options": {"prune": depth}}))
            pruned.load_state_dict(whole.state_dict())
            used: set[str] = set()
            for name, module in pruned.named_modules():
                module.register_forward_hook(lambda *_, name=name, used=used: used.add(name))
            torch.testing.assert_close(pruned.eval()(image), trained[3 - depth])
            assert {name for name in used if name.startswith("encoder.") and name.count(".") == 1} == {
                f"encoder.{stage}" for stage in range(depth + 1)
            }
            assert sum(name.startswith("nodes.") and name.count(".") == 2 for name in used) == depth * (depth + 1) // 2
        torch.testing.assert_close(whole.eval()(image), trained[0])


@pytest.mark.parametrize(("changes", "message"), [
    ({"options": {"prune": 4}}, "3 poolings"),
    ({"options": {"prune": 2}, "deep_supervision": False}, "without deep supervision"),
])  # fmt: skip
def test_impossible_pruning_is_refused(changes: dict, message: str) -> None:
    spec = proposed("nested", **changes)
    (problem,) = FAMILIES["nested"].problems(spec)
    assert message in problem
    with pytest.raises(ValueError, match=message):
        FAMILIES["nested"].build(spec)
    assert not FAMILIES["nested"].problems(proposed("nested", options={"prune": 3}, deep_supervision=False))


def test_nested_nodes_see_their_whole_row() -> None:
    """Node (i, j) has j skips of its row and one input from below, as in the paper's equation."""
    network = FAMILIES["nested"].build(proposed("nested"))
    for stage, row in enumerate(network.nodes):
        assert len(row) == 3 - stage
        for column, node in enumerate(row, start=1):
            assert node.blocks[0].conv.in_channels == (column + 1) * 4 * 2**stage


@pytest.mark.parametrize("dims", [2, 3])
def test_gates_weigh_the_skips(dims: int) -> None:
    spec = proposed("attention", dims)
    assert gated_stages(spec) == (1, 2)
    assert gated_stages(proposed("attention", dims, stages=2)) == (0,)
    network = FAMILIES["attention"].build(spec).eval()
    with torch.no_grad(), recorded_gates(network) as maps:
        network(torch.randn(2, 2, *[16] * dims))
    assert {stage: tuple(found.shape) for stage, found in maps.items()} == {
        1: (2, 1, *[8] * dims),
        2: (2, 1, *[4] * dims),
    }
    assert all((found > 0).all() and (found < 1).all() for found in maps.values())
    gate = network.decoder[1].gate
    skip, coarse = torch.randn(1, 8, *[4] * dims), torch.randn(1, 16, *[2] * dims)
    with torch.no_grad():
        gate.psi.bias.fill_(-1000)
        assert not gate(skip, coarse).any()
        gate.psi.bias.fill_(1000)
        assert torch.equal(gate(skip, coarse), skip)
        assert len(gate.map._forward_hooks) == 0


def test_gate_maps_of_a_whole_image_are_written(tmp_path: Path) -> None:
    """One map per gate over the whole image, in 0..1; tiles that do not overlap show each forward's own map."""
    plan = configuration((8, 8), overlap=0.0).model_copy(update={"network": proposed("attention", stages=3)})
    network = FAMILIES["attention"].build(plan.network).eval()
    image = np.random.default_rng(0).normal(size=(2, 1, 8, 16)).astype(np.float32)
    maps = predict_gate_maps([network], image, plan, "cpu")
    assert list(maps) == [1]
    assert maps[1].shape == (1, 8, 16)
    with torch.no_grad(), recorded_gates(network) as found:
        network(torch.from_numpy(image[:, 0, :, 8:])[None])
    expected = found[1][0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    np.testing.assert_allclose(maps[1][0, :, 8:], expected, atol=1e-5)
    geometry = Geometry(shape=(1, 8, 16), spacing=(1.0, 2.0, 2.0))
    (path,) = write_gate_maps(maps, tmp_path / "case.1", geometry, ".nii.gz")
    assert path == tmp_path / "case.1.gate1.nii.gz"
    stored, written = read_image(path)
    np.testing.assert_allclose(stored[0], maps[1], atol=1e-6)
    assert written.spacing == (1.0, 2.0, 2.0)
    (picture,) = write_gate_maps(maps, tmp_path / "case", geometry, ".png")
    np.testing.assert_allclose(read_image(picture)[0][0] / 255, maps[1], atol=0.003)
    plain = configuration((8, 8)).model_copy(update={"network": proposed("plain")})
    with pytest.raises(ModelError, match="attention"):
        predict_gate_maps([FAMILIES["plain"].build(plain.network).eval()], image, plain, "cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 3)])
def test_pooling_of_planes_equals_torchs(layout: torch.memory_format, stride: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 4, 6, 6, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    expected = functional.max_pool3d(x, stride)
    upstream = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, upstream)
    for pool in (max_pool, max_pool_planes):
        y = pool(x, stride)
        assert torch.equal(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y, x, upstream)[0], gradient)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 3), (2, 1)])
def test_interpolation_equals_torchs(factors: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *(3, 4, 1)[: len(factors)], dtype=torch.float64, requires_grad=True)
    mode = "trilinear" if len(factors) == 3 else "bilinear"
    expected = functional.interpolate(x, scale_factor=[float(factor) for factor in factors], mode=mode)
    y = upsample_linear(x, factors)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, upstream)[0], torch.autograd.grad(expected, x, upstream)[0])


def test_pruning_does_not_ask_for_another_training() -> None:
    """The key of a configuration is that of its weights; other options of a network are in it."""
    plain = configuration((8, 8)).model_copy(update={"network": proposed("nested")})
    pruned = plain.model_copy(update={"network": proposed("nested", options={"prune": 1})})
    other = plain.model_copy(update={"network": proposed("nested", options={"normalisation": "batch"})})
    assert plain.key == pruned.key != other.key
