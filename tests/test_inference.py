"""Sliding-window prediction: laws that hold whatever the network computes, with tiny modules that make them visible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autounet.inference.sliding_window import default_batch, predict_scores
from autounet.schema.plan import ChannelNormalisation, Configuration, InferenceSpec, NetworkSpec, PreprocessSpec

CHANNELS, CLASSES = 2, 3


def configuration(patch: tuple[int, ...], **options: object) -> Configuration:
    """A configuration for a patch of 2 or 3 axes; `options` are fields, those of InferenceSpec included."""
    dims = len(patch)
    inference = {key: options.pop(key) for key in ("overlap", "weighting", "mirror_axes") if key in options}
    content = {
        "preprocess": PreprocessSpec(
            spacing=(1.0 if dims == 3 else None, 1.0, 1.0),
            normalisation=(ChannelNormalisation(scheme="zscore"),) * CHANNELS,
        ),
        "prepared": "p",
        "patch_size": patch,
        "batch_size": 2,
        "network": NetworkSpec(
            dims=dims,
            in_channels=CHANNELS,
            out_channels=CLASSES,
            features=(4,),
            strides=((1,) * dims,),
            kernel_sizes=((3,) * dims,),
            encoder_blocks=(1,),
            decoder_blocks=(),
        ),
        "inference": InferenceSpec(**inference),
        "median_shape": (8, 8, 8),
        "predicted_memory_bytes": 0,
    }
    return Configuration(**(content | options))


class Pointwise(nn.Module):
    """Each voxel's logits depend on that voxel alone: tiles, views and padding must not be visible in the result."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.matrix = nn.Parameter(factor * torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -0.7]]), requires_grad=False)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return torch.einsum("kc,bc...->bk...", self.matrix, x)


class Position(nn.Module):
    """Logits that depend on the place in the input, not on its content."""

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(x.shape[-1], dtype=x.dtype).expand(x.shape[0], CLASSES, *x.shape[2:])
        return ramp.contiguous()


def expected(image: np.ndarray, factor: float = 1.0) -> np.ndarray:
    return np.einsum("kc,c...->k...", Pointwise(factor).matrix.numpy(), image)


def random_image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(CHANNELS, *shape)).astype(np.float32)


@given(data=st.data(), dims=st.sampled_from([2, 3]), overlap=st.floats(0, 0.8))
@settings(max_examples=60, deadline=None)
def test_the_way_of_tiling_does_not_show(data: st.DataObject, dims: int, overlap: float) -> None:
    """For a pointwise network any patch, overlap, weighting, mirroring and tile batch gives its own output."""
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
    patch = tuple(data.draw(st.lists(st.integers(1, 7), min_size=dims, max_size=dims)))
    plan = configuration(
        patch,
        overlap=overlap,
        weighting=data.draw(st.sampled_from(["gaussian", "uniform"])),
        mirror_axes=tuple(data.draw(st.sets(st.integers(0, dims - 1)))),
        channels_last=data.draw(st.booleans()),
    )
    image, network = random_image(shape), Pointwise().eval()
    batch = data.draw(st.none() | st.integers(1, 9))
    scores = predict_scores([network], image, plan, CLASSES, "cpu", tile_batch=batch)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected(image), rtol=1e-4, atol=1e-4)
    assert {shape[2:] for shape in network.shapes} == {patch}
    assert batch is None or max(shape[0] for shape in network.shapes) <= batch


def test_models_are_averaged_as_logits() -> None:
    image = random_image((3, 4, 5))
    models = [Pointwise(factor).eval() for factor in (1.0, 2.0, 6.0)]
    scores = predict_scores(models, image, configuration((2, 3, 3)), CLASSES, "cpu")
    np.testing.assert_allclose(scores, expected(image, 3.0), rtol=1e-5, atol=1e-5)


def test_views_are_turned_back_before_averaging() -> None:
    """A ramp averaged with its mirror image is flat; mirrored along another axis it stays a ramp."""
    image = random_image((4, 4, 6))
    flat = predict_scores([Position().eval()], image, configuration((4, 4, 6), mirror_axes=(2,)), CLASSES, "cpu")
    np.testing.assert_allclose(flat, 2.5)
    ramp = predict_scores([Position().eval()], image, configuration((4, 4, 6), mirror_axes=(0, 1)), CLASSES, "cpu")
    np.testing.assert_allclose(ramp, np.broadcast_to(np.arange(6), ramp.shape))


def test_overlapping_tiles_are_blended_by_the_gaussian() -> None:
    """Two tiles of a ramp: in their overlap the result is the weighted mean of both positions."""
    from autounet.ops.tiles import gaussian_weights

    scores = predict_scores([Position().eval()], random_image((1, 1, 12)), configuration((1, 1, 8)), CLASSES, "cpu")
    weights = gaussian_weights((8,)).astype(np.float64)
    mean = (weights[4:] * np.arange(4, 8) + weights[:4] * np.arange(4)) / (weights[4:] + weights[:4])
    np.testing.assert_allclose(scores[0, 0, 0], [*range(4), *mean, *range(4, 8)], rtol=1e-5)


def test_a_small_image_is_padded_with_zeros_around_it() -> None:
    network = Pointwise().eval()
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    image = random_image((1, 2, 3))
    scores = predict_scores([network], image, configuration((2, 5, 3)), CLASSES, "cpu")
    assert scores.shape == (CLASSES, 1, 2, 3)
    np.testing.assert_array_equal(seen[0][0, :, :1, 1:3], image)
    assert seen[0].count_nonzero() == image.size


def test_slices_are_predicted_one_by_one_and_batched() -> None:
    network = Pointwise().eval()
    image = random_image((5, 4, 4))
    plan = configuration((4, 4), mirror_axes=(0, 1))
    calls: list[tuple[int, int]] = []
    predict_scores([network], image, plan, CLASSES, "cpu", tile_batch=8, on_done=lambda *count: calls.append(count))
    assert network.shapes == [(8, CHANNELS, 4, 4), (8, CHANNELS, 4, 4), (4, CHANNELS, 4, 4)]
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_bf16_runs_the_network_in_bf16_and_accumulates_in_float32() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convolution = nn.Conv3d(CHANNELS, CLASSES, 3, padding=1).requires_grad_(False)
            self.dtypes: set[torch.dtype] = set()

        def forward(self, x: Tensor) -> Tensor:
            y = self.convolution(x)
            self.dtypes.add(y.dtype)
            return y

    image = random_image((6, 7, 8))
    results = {}
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float32), ("fp32", torch.float32)):
        network = Convolution().eval()
        plan = configuration((4, 6, 6), precision=precision, channels_last=True, mirror_axes=(0, 1, 2))
        results[precision] = predict_scores([network], image, plan, CLASSES, "cpu")
        assert network.dtypes == {dtype}
    assert results["bf16"].dtype == np.float32
    np.testing.assert_allclose(results["bf16"], results["fp32"], atol=0.05)
    np.testing.assert_array_equal(results["fp16"], results["fp32"])


def test_a_forward_is_bounded() -> None:
    small, large = configuration((8, 8, 8)), configuration((128, 128, 128))
    assert default_batch(small, torch.device("cpu")) > 8
    assert default_batch(large, torch.device("cpu")) == 1
    assert default_batch(large, torch.device("cuda")) == 2


def test_what_cannot_be_predicted_is_refused() -> None:
    image, plan = random_image((4, 4, 4)), configuration((4, 4, 4))
    for models, array in (([], image), ([Pointwise().train()], image), ([Pointwise().eval()], image[0])):
        with pytest.raises(ValueError, match="eval mode"):
            predict_scores(models, array, plan, CLASSES, "cpu")
