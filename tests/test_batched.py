"""Augmentation of a batch in plain torch: the same changes as by batchgeneratorsv2, of each sample by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from test_samples import NAMES, equal, source
from training_cases import write_case

from autounet.schema.options import RunOptions
from autounet.schema.run import FIXED_AUGMENTED_BY
from autounet.time_budget.cost_model import SAMPLE_RATES
from autounet.training import batched
from autounet.training.augment import Augmentation, Excerpt, Spatial, affine_matrix, reached_size
from autounet.training.batched import change_intensities, draw_changes
from autounet.training.copies import Copies
from autounet.training.probe import quicker
from autounet.training.samples import PackedReadings
from autounet.workflow.defaults import train_options

PATCHES = [(9, 12, 10), (3, 16, 12), (17, 20)]
SIZES = st.one_of(st.tuples(*[st.integers(4, 20)] * 2), st.tuples(*[st.integers(4, 9)] * 3))


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.3


@given(size=SIZES, seed=st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_intensities_change_as_by_batchgeneratorsv2(size, seed):
    """Two channels with the same parameters; a kernel of up to 7 voxels needs an axis of 4."""
    generator = np.random.default_rng(seed)
    sigmas = generator.uniform(*batched.SIGMAS, (2, len(size))).tolist()
    scales = np.repeat(generator.uniform(batched.COARSEST, 1, (2, 1)), len(size), axis=1)
    factors = generator.uniform(0.7, 1.5, 2).tolist()
    chosen, sure = torch.arange(2), torch.ones(2, dtype=torch.bool)
    channels, given_factors = {"apply_to_channel": chosen}, torch.tensor(factors)
    gamma = {**channels, "gamma": given_factors, "retain_stats": sure}
    each = {"synchronize_channels": False}
    theirs = {
        "blur": (GaussianBlurTransform(), {"apply_to_channel": sure, "sigmas": sigmas}),
        "brightness": (MultiplicativeBrightnessTransform((0, 1), **each), {**channels, "multipliers": given_factors}),
        "contrast": (ContrastTransform((0, 1), True, **each), {**channels, "multipliers": given_factors}),
        "coarse": (
            SimulateLowResolutionTransform((0, 1), False, True, None), {**channels, "scales": torch.tensor(scales)},
        ),
        "inverted": (GammaTransform((0, 1), 1, False, 1, 1), {**gamma, "invert_image": sure}),
        "gamma": (GammaTransform((0, 1), 0, False, 1, 1), {**gamma, "invert_image": ~sure}),
    }  # fmt: skip
    left = [tuple(round(length * scale) for length, scale in zip(size, row, strict=True)) for row in scales.tolist()]
    assert list(theirs) == list(batched.CHANGES)
    for name, (transform, parameters) in theirs.items():
        image = picture(2, *size, seed=seed)
        expected = transform._apply_to_image(image.clone(), **parameters)
        arguments = {"blur": sigmas, "coarse": left}.get(name, factors)
        found = batched.CHANGES[name](image, arguments)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_constant_channel_stays_finite():
    for change in (batched.gamma_corrected, batched.inverted_gamma, batched.contrasted):
        found = change(torch.full((2, 5, 6), 3.0), [0.8, 1.3])
        torch.testing.assert_close(found, torch.full((2, 5, 6), 3.0), atol=1e-4, rtol=0)


def smooth(size) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (1, *size) of waves, and two classes where they are high."""
    axes = torch.meshgrid(*[torch.arange(length) for length in size], indexing="ij")
    image = sum(torch.sin(axis * 0.35 + number) for number, axis in enumerate(axes))
    return image[None], (image > 0).short() + (image > 1).short()


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.25), (0.0, 0.8), (0.45, 1.1), (-0.3, 0.9)])
def test_space_changes_as_by_batchgeneratorsv2(patch, angle, scale):
    theirs, ours = (Augmentation("full", patch, (), by=by) for by in ("batchgeneratorsv2", "torch"))
    axes = len(ours.plane)
    angles, scales = (angle, -angle / 2, angle)[:axes], (scale,) * axes
    read = (*patch[: len(patch) - axes], *reached_size(ours.plane, angles, scales, 2))
    image, labels = smooth(read)
    cut = Excerpt.of(Spatial(0, read, angles, scales), image, labels)
    expected, found = theirs._transform_space(cut), ours._placed(cut, ())
    in_two_steps = axes == 3 and angle != 0  # which is another linear interpolation: of waves 18 voxels long
    torch.testing.assert_close(found[0], expected[0], atol=0.03 if in_two_steps else 1e-4, rtol=0)
    assert (found[1] == expected[1]).float().mean() > (0.97 if in_two_steps else 0.999)


@given(angles=st.tuples(*[st.floats(-0.52, 0.52)] * 3), scale=st.floats(0.7, 1.4), axis=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_what_is_linear_is_interpolated_exactly(angles, scale, axis):
    """A ramp along one axis of the source: each voxel holds the place that the matrix takes it to."""
    patch, scales = (7, 9, 8), (scale,) * 3
    size, matrix = reached_size(patch, angles, scales, 2), affine_matrix(angles, scales)
    places = [torch.arange(length, dtype=torch.float32) - (length - 1) / 2 for length in size]
    ramp = torch.meshgrid(*places, indexing="ij")[axis][None].contiguous()
    found = batched.rotation(patch, size, matrix, torch.device("cpu"))(ramp)[0]
    around = torch.meshgrid(*[torch.arange(length) - (length - 1) / 2 for length in patch], indexing="ij")
    expected = sum(weight * place for weight, place in zip(matrix[axis].tolist(), around, strict=True))
    torch.testing.assert_close(found, expected.float(), atol=2e-3, rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for number, name in enumerate(NAMES):
        write_case(folder, name, (10, 12 + number, 9), number)
    return folder


@pytest.mark.parametrize("patch", [(8, 8, 8), (2, 8, 8), (12, 8)])
@given(step=st.integers(0, 10**6), elastic=st.booleans())
@settings(max_examples=8, deadline=None)
def test_a_sample_is_the_same_alone_and_in_every_batch(folder, patch, step, elastic):
    drawn = source(folder, patch, batch=4, elastic=elastic, by="torch")
    whole = drawn.batch(step)
    for index in (0, 3):
        alone = drawn.collated([drawn.reading(step, index)])
        assert torch.equal(alone.image[0], whole.image[index])
        assert torch.equal(alone.labels[0], whole.labels[index])


@pytest.mark.parametrize("patch", [(8, 8, 8), (12, 8)])
def test_what_travels_packed_gives_the_same_batch(folder, patch):
    drawn = source(folder, patch, batch=5, by="torch")
    assert drawn.on_device
    assert not source(folder, patch).on_device
    for step in range(4):
        packed = drawn.packed(step)
        assert sum(each.cut.image.numel() for each in packed.readings) == 0
        assert equal(drawn.collated(packed.on(Copies(torch.device("cpu")))), drawn.batch(step))


def test_nothing_is_left_on_the_cpu(folder, monkeypatch):
    """On torch's device without memory; it has no generator for noise."""
    monkeypatch.setattr(batched, "P_NOISE", 0)
    drawn = source(folder, (8, 8, 8), batch=40, elastic=True, by="torch")
    meta = torch.device("meta")
    batch = drawn.collated(PackedReadings.of(drawn.readings(0)).on(Copies(meta)))
    assert batch.image.device == batch.labels.device == meta
    assert (batch.image.shape, batch.labels.shape) == ((40, 1, 8, 8, 8), (40, 8, 8, 8))


@pytest.mark.parametrize("patch", PATCHES)
def test_channels_together_and_one_by_one(patch):
    flat = len(patch) == 3 and max(patch) > 3 * patch[0]
    changes = [draw_changes(np.random.default_rng(seed), "full", 2, patch, flat, ()) for seed in range(40)]
    one_by_one, together = (picture(40, 2, *patch) for _ in range(2))
    change_intensities(one_by_one, changes, together=False)
    change_intensities(together, changes, together=True)
    torch.testing.assert_close(one_by_one, together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["light", "full"])
def test_as_many_samples_are_changed_as_by_batchgeneratorsv2(kind):
    """Shares of samples that stay as they are, and the means and deviations of the others, of two channels."""
    patch, count = (6, 6), 1500
    found = {}
    for by in ("batchgeneratorsv2", "torch"):
        augmentation = Augmentation(kind, patch, (), by=by)
        images = []
        for start in range(0, count, 100):
            cuts = [Excerpt.of(Spatial(seed, patch), picture(2, *patch), torch.zeros(patch, dtype=torch.int16))
                    for seed in range(start, start + 100)]  # fmt: skip
            images.append(augmentation.apply(cuts).images)
        found[by] = torch.cat(images).flatten(2)
    theirs, ours = found["batchgeneratorsv2"], found["torch"]
    plain = picture(2, *patch).flatten(1)

    def facts(images: torch.Tensor) -> torch.Tensor:
        kept = (images == plain).all(2).float().mean(0)  # per channel
        deviation = images.std(2)
        return torch.stack(
            (kept, images.mean((0, 2)), deviation.mean(0), deviation.std(0), (images - plain).std((0, 2)))
        )

    error = 4 * (0.25 / count) ** 0.5 * 2**0.5  # four standard errors of a difference of two shares
    torch.testing.assert_close(facts(ours), facts(theirs), atol=error, rtol=0)


def test_what_is_drawn_has_nnunets_ranges():
    drawn = [draw_changes(np.random.default_rng(seed), "full", 1, (2, 8, 8), True, (0, 2)) for seed in range(2000)]

    def values(name: str) -> list:
        return [getattr(each, name)[0] for each in drawn if getattr(each, name)[0] is not None]

    shares = {"blur": 0.1, "brightness": 0.15, "contrast": 0.15, "coarse": 0.125, "inverted": 0.1, "gamma": 0.3}
    for name, share in shares.items():
        assert len(values(name)) / 2000 == pytest.approx(share, abs=4 * (share / 2000) ** 0.5)
    noise = [each.noise for each in drawn if each.noise is not None]
    assert len(noise) / 2000 == pytest.approx(0.1, abs=0.03)
    assert 0 < min(noise) < 0.01 < 0.09 < max(noise) < 0.1
    assert all(each[0] == 0 and 0.5 <= min(each[1:]) <= max(each[1:]) <= 1 for each in values("blur"))
    assert all(each[0] == 2 and each[1] == each[2] >= 4 for each in values("coarse"))
    for name, (low, high) in {"brightness": (0.75, 1.25), "gamma": (0.7, 1.5)}.items():
        assert low <= min(values(name)) < 1 < max(values(name)) <= high
        assert np.mean([each < 1 for each in values(name)]) == pytest.approx(0.5, abs=0.12)
    mirrored = [each.mirrored for each in drawn]
    assert {axis for axes in mirrored for axis in axes} == {0, 2}
    assert np.mean([2 in axes for axes in mirrored]) == pytest.approx(0.5, abs=0.05)


def test_the_choice_is_measured_except_where_the_same_weights_are_promised():
    rates = dict.fromkeys(SAMPLE_RATES, 1e7)
    assert quicker({**rates, "torch_full_3d": 5e6}) == "batchgeneratorsv2"
    assert quicker({**rates, "torch_full_3d": 2e7}) == "torch"
    chosen = train_options(RunOptions(), 1000, 3, augmented_by="batchgeneratorsv2")
    fixed = train_options(RunOptions(deterministic=True), 1000, 3, augmented_by="batchgeneratorsv2")
    assert (chosen.augmented_by, fixed.augmented_by) == ("batchgeneratorsv2", FIXED_AUGMENTED_BY)
