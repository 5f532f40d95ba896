"""Networks whose output is smaller than their input: sizes, samples, tiles, and a training from end to end.

The law of the overlap-tile strategy: a network that is one unpadded convolution, predicted tile by tile over a whole
image, gives what that convolution gives on the image with mirrored borders.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inference import CHANNELS, CLASSES, configuration, random_image
from test_planning import LABELS, make_fingerprint
from torch import Tensor, nn
from torch.nn import functional
from training_cases import task, write_case

from autounet.inference.sliding_window import output_field, predict_scores
from autounet.nets import FAMILIES
from autounet.ops.tiles import mirrored_indices
from autounet.planning import plan, validate
from autounet.schema.errors import PlanError
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.options import GIB, PlannerOptions, TrainOptions
from autounet.schema.plan import Configuration, NetworkSpec, Plan
from autounet.training.augment import Augmentation
from autounet.training.cases import CaseStore
from autounet.training.loop import train_fold
from autounet.training.monitor import PatchMonitor
from autounet.training.samples import SampleSource
from autounet.training.schedule import Horizon
from autounet.training.sources import smaller_output


@given(length=st.integers(1, 9), start=st.integers(-40, 40), count=st.integers(1, 40))
def test_mirrored_lines_are_numpys(length: int, start: int, count: int) -> None:
    indices = mirrored_indices(start, start + count, length)
    expected = np.pad(np.arange(length), (80, 80), mode="reflect" if length > 1 else "edge")
    np.testing.assert_array_equal(indices, expected[80 + start : 80 + start + count])


def spec_2015(dims: int, stages: int = 2, channels: int = CHANNELS, family: str = "original") -> NetworkSpec:
    """In 3-D the first axis is neither convolved nor halved, so it loses nothing."""
    ones, kernel = (1,) * dims, (1,) * (dims - 2) + (3, 3)
    twos = (1,) * (dims - 2) + (2, 2)
    return FAMILIES[family].propose(
        dims, channels, CLASSES, (ones, *[twos] * (stages - 1)), (kernel,) * stages, base_features=4
    )


class Convolution(nn.Module):
    """One convolution that takes off as much of each axis as the network of `plan` does."""

    def __init__(self, plan: Configuration) -> None:
        super().__init__()
        patch, field = plan.patch_size, output_field(plan)
        kernel = [large - small + 1 for large, small in zip(patch, field, strict=True)]
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CLASSES, CHANNELS, *kernel, generator=generator), requires_grad=False)
        self.shapes: set[tuple[int, ...]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.add(tuple(x.shape[2:]))
        return (functional.conv2d if x.ndim == 4 else functional.conv3d)(x, self.weight)

    def of_whole_image(self, image: np.ndarray) -> np.ndarray:
        """Of (C, *S) with numpy's mirrored borders; in 2d of each slice."""
        dims = self.weight.ndim - 2
        margins = [(size // 2, size // 2) for size in self.weight.shape[2:]]
        padded = np.pad(image, [(0, 0)] * (4 - dims) + margins, mode="reflect")
        batch = torch.from_numpy(padded).movedim(1, 0) if dims == 2 else torch.from_numpy(padded)[None]
        scores = self.forward(batch)
        return (scores.movedim(0, 1) if dims == 2 else scores[0]).numpy()


@settings(max_examples=25)
@given(
    dims=st.sampled_from([2, 3]),
    depth=st.integers(1, 4),
    plane=st.tuples(st.integers(14, 40), st.integers(14, 40)),
    wish=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    overlap=st.sampled_from([0.0, 0.3, 0.5]),
    weighting=st.sampled_from(["gaussian", "uniform"]),
    batch=st.none() | st.integers(1, 5),
)
def test_tiles_give_what_the_whole_image_gives(
    dims: int, depth: int, plane: tuple[int, int], wish: tuple[int, int], overlap: float, weighting: str, batch: int
) -> None:
    """Images larger and smaller than the output, and smaller than the input."""
    network = spec_2015(dims)
    patch = FAMILIES["original"].valid_size(network, (min(depth, 2), *wish)[-dims:])
    plan = configuration(patch, overlap=overlap, weighting=weighting).model_copy(update={"network": network})
    assert any(small < large for small, large in zip(output_field(plan), patch, strict=True))
    image = random_image((depth, *plane))
    convolution = Convolution(plan).eval()
    scores = predict_scores([convolution], image, plan, CLASSES, "cpu", tile_batch=batch)
    assert convolution.shapes == {patch}
    assert scores.shape == (CLASSES, depth, *plane)
    np.testing.assert_allclose(scores, convolution.of_whole_image(image), rtol=1e-3, atol=1e-3)


def test_mirrored_views_of_unpadded_networks() -> None:
    """Views are turned back: averaging over them equals averaging the convolution over its mirrored kernels."""
    plan = configuration((28, 32), mirror_axes=(0, 1)).model_copy(update={"network": spec_2015(2)})
    patch = FAMILIES["original"].valid_size(plan.network, plan.patch_size)
    plan = plan.model_copy(update={"patch_size": patch})
    convolution, image = Convolution(plan).eval(), random_image((2, 40, 33))
    expected = []
    original = convolution.weight.clone()
    for axes in ((), (2,), (3,), (2, 3)):
        convolution.weight.copy_(original.flip(axes))
        expected.append(convolution.of_whole_image(image))
    convolution.weight.copy_(original)
    scores = predict_scores([convolution], image, plan, CLASSES, "cpu")
    np.testing.assert_allclose(scores, np.mean(expected, 0), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for number, name in enumerate(("a", "b")):
        write_case(folder, name, (6, 40 + number, 30), number)
    return folder


def source(folder: Path, patch: tuple[int, ...], output: tuple[int, ...] | None, kind: str = "none") -> SampleSource:
    augmentation = Augmentation(kind, patch, tuple(range(len(patch))))
    return SampleSource(CaseStore(folder, ("a", "b"), 2**20), patch, 3, 0, 0, 1 / 3, augmentation, output=output)


@pytest.mark.parametrize(("patch", "output"), [((24, 28), (8, 12)), ((6, 28, 28), (6, 12, 12)), ((24, 28), (24, 40))])
def test_foreground_lies_in_the_output(folder: Path, patch: tuple[int, ...], output: tuple[int, ...]) -> None:
    """And the output inside the image wherever it fits, so that all of an image is seen, borders included."""
    patch = tuple(max(a, b) for a, b in zip(patch, output, strict=True))
    drawn = source(folder, patch, output)
    cut = tuple(slice((a - b) // 2, (a + b) // 2) for a, b in zip(patch, output, strict=True))
    seen = set()
    for step in range(12):
        batch = drawn.batch(step)
        assert batch.image.shape[2:] == batch.labels.shape[1:] == patch
        assert (batch.labels[2][cut] > 0).any()
    for case in (drawn.cases[0], drawn.cases[1]):
        for step in range(60):
            shown = drawn._shown(case) if step % 2 == 0 else []
            corner = drawn._corner(np.random.default_rng(step), case, shown)[-len(output) :]
            shape = case.labels.shape[-len(output) :]
            for first, large, small, length in zip(corner, patch, output, shape, strict=True):
                start = first + (large - small) // 2
                assert (start >= 0 and start + small <= length) or (start <= 0 and start + small >= length)
                seen.add((start == 0, start + small == length))
    assert (True, False) in seen or (True, True) in seen


def test_samples_go_on_as_in_a_mirror(folder: Path) -> None:
    """Image and labels beyond the borders are what numpy's mirrored padding gives."""
    drawn = source(folder, (40, 40), (8, 8))
    padded = {
        case.identifier: [np.pad(array[:], [(0, 0)] * (array.ndim - 2) + [(40, 40)] * 2, mode="reflect")
                          for array in (case.image, case.labels)]
        for case in (drawn.cases[0], drawn.cases[1])
    }  # fmt: skip
    for step in range(6):
        batch = drawn.batch(step)
        for image, labels, name in zip(batch.image, batch.labels, batch.cases, strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(padded[name][0][0], (40, 40), axis=(1, 2))
            where = np.argwhere(np.all(windows[..., ::13, ::13] == image[0, ::13, ::13].numpy(), axis=(-1, -2)))
            assert len(where) >= 1
            plane, row, column = where[0]
            np.testing.assert_array_equal(padded[name][0][0, plane, row : row + 40, column : column + 40], image[0])
            np.testing.assert_array_equal(padded[name][1][plane, row : row + 40, column : column + 40], labels)


@pytest.mark.parametrize("kind", ["light", "full"])
def test_augmented_samples_keep_their_size_and_repeat(folder: Path, kind: str) -> None:
    first, second = (source(folder, (6, 28, 28), (6, 12, 12), kind) for _ in range(2))
    for step in range(4):
        one, two = first.batch(step), second.batch(step)
        assert one.image.shape == (3, 1, 6, 28, 28)
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.labels, two.labels)


def unpadded_task(root: Path, family: str, dims: int, steps: int):
    given = task(root, Horizon(steps=steps))
    network = spec_2015(dims, channels=1, family=family)
    patch = FAMILIES[family].valid_size(network, (4, 20, 20)[-dims:])
    changed = given.configuration.model_copy(
        update={"network": network, "patch_size": patch, "mirror_axes": tuple(range(dims))}
    )
    return task(root, Horizon(steps=steps), configuration=changed)


@pytest.mark.parametrize(("family", "dims"), [("original", 2), ("original", 3), ("unet3d", 3)])
def test_unpadded_networks_train_and_predict(tmp_path: Path, family: str, dims: int) -> None:
    """A whole fold: steps, the monitor's score, weights that predict an image smaller than the patch."""
    from autounet.inference.bundle import load_network

    given = unpadded_task(tmp_path, family, dims, steps=12)
    output = smaller_output(given.configuration)
    assert output is not None
    assert output == output_field(given.configuration)
    record = train_fold(*given)
    assert record.curve[-1].validation_dice
    network = load_network(given.configuration, given.folder / "weights.safetensors", "cpu")
    image = np.random.default_rng(0).normal(size=(1, 5, 14, 11)).astype(np.float32)
    scores = predict_scores([network], image, given.configuration, CLASSES, "cpu")
    assert scores.shape == (CLASSES, 5, 14, 11)
    assert np.isfinite(scores).all()


def test_the_monitor_sees_the_output_alone(folder: Path) -> None:
    """A network that finds every voxel of the middle gets Dice 1, whatever lies around it."""

    class Oracle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            labels = self.labels[:, 8:-8, 8:-8]
            return functional.one_hot(labels.long(), CLASSES).movedim(-1, 1).float()

    oracle, drawn = Oracle(), source(folder, (24, 28), (8, 12))
    batch = drawn.batch

    def remembered(step: int):
        found = batch(step)
        oracle.labels = found.labels
        return found

    drawn.batch = remembered  # type: ignore[method-assign]
    from training_cases import labels

    from autounet.step import Precision

    dice = PatchMonitor(drawn, labels(), Precision(), torch.device("cpu")).measure(oracle)
    assert dice
    assert all(value == 1 for value in dice.values())


def planned(family: str, shape: tuple[int, int, int]) -> tuple[Plan, Fingerprint]:
    fingerprint = make_fingerprint(shape=shape)
    options = PlannerOptions(family=family, memory_bytes=4 * GIB)
    return plan(fingerprint, LABELS, options, TrainOptions()), fingerprint


@pytest.mark.parametrize(("family", "shape"), [("original", (1, 200, 240)), ("unet3d", (36, 50, 35))])
def test_planned_patches_are_inputs(family: str, shape: tuple[int, int, int]) -> None:
    """The patch is what the network reads; small images are covered by its output."""
    made, fingerprint = planned(family, shape)
    validate(made, fingerprint, LABELS)
    for found in made.configurations.values():
        network = found.network
        assert FAMILIES[family].valid_size(network, found.patch_size) == found.patch_size
        output = FAMILIES[family].output_size(network, found.patch_size)
        assert all(small < large for small, large in zip(output, found.patch_size, strict=True))
        if found.limited_by.patch == "image" and family == "original":
            assert all(small >= length for small, length in zip(output, shape[-network.dims :], strict=True))


@pytest.mark.parametrize(
    ("family", "shape", "change", "message"),
    [
        ("original", (1, 200, 240), {"deep_supervision": True}, "has one output"),
        ("original", (1, 200, 240), {"family": "unet3d", "options": {}}, "it must be 3"),
        ("original", (1, 200, 240), {"options": {"padded": "perhaps"}}, "options do not fit"),
        ("nested", (1, 200, 240), {"options": {"prune": 9}}, "prune is 9"),
    ],
)
def test_networks_that_a_family_cannot_have_are_refused(
    family: str, shape: tuple[int, int, int], change: dict, message: str
) -> None:
    made, fingerprint = planned(family, shape)
    found = made.configurations["2d"]
    edited = found.model_copy(update={"network": found.network.model_copy(update=change)})
    with pytest.raises(PlanError, match=message):
        validate(made.model_copy(update={"configurations": {"2d": edited}}), fingerprint, LABELS)
