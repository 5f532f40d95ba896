"""Samples: pure functions of the step, inside the image, and with foreground where it is promised."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import write_case

from autounet.schema.errors import RecordError
from autounet.training.augment import Augmentation, Excerpt, Spatial, reached_size, seeded
from autounet.training.cases import CaseStore, corner_limits
from autounet.training.loader import BatchLoader
from autounet.training.samples import SampleSource

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for number, name in enumerate(NAMES):
        write_case(folder, name, (10, 12 + number, 9), number)
    return folder


def source(
    folder: Path, patch=(8, 8, 8), kind="full", batch: int = 3, memory: int = 2**20, elastic=False,
    by="batchgeneratorsv2", **changes,
):  # fmt: skip
    augmentation = Augmentation(kind, patch, tuple(range(len(patch))), elastic=elastic, by=by)
    return SampleSource(CaseStore(folder, NAMES, memory), patch, batch, 0, 0, 1 / 3, augmentation, **changes)


def equal(a, b) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.labels, b.labels) and a.cases == b.cases


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("kind", ["full", "light", "none"])
@pytest.mark.parametrize("patch", [(8, 8, 8), (2, 8, 8), (16, 16, 16), (8, 8), (20, 8)])
@pytest.mark.parametrize("by", ["batchgeneratorsv2", "torch"])
def test_a_batch_is_a_function_of_the_step_alone(folder, kind, patch, elastic, by):
    first, second = (source(folder, patch, kind, elastic=elastic, by=by) for _ in range(2))
    later = [second.batch(step) for step in (3, 0, 2)]
    np.random.random(5)
    torch.rand(5)
    assert all(equal(first.batch(step), batch) for step, batch in zip((3, 0, 2), later, strict=True))
    batch = first.batch(1)
    assert batch.image.shape == (3, 1, *patch)
    assert batch.labels.shape == (3, *patch)
    assert batch.image.dtype == torch.float32
    assert set(batch.labels.unique().tolist()) <= {0, 1, 2}
    assert torch.isfinite(batch.image).all()


@pytest.mark.parametrize("patch", [(2, 8, 8), (8, 8)])
def test_bending_bends_every_sample(folder, patch):
    plain, bent = (source(folder, patch, "light", batch=8, elastic=elastic).batch(0) for elastic in (False, True))
    assert plain.cases == bent.cases
    assert all(not torch.equal(a, b) for a, b in zip(plain.image, bent.image, strict=True))


@pytest.mark.parametrize("by", ["batchgeneratorsv2", "torch"])
def test_threads_change_nothing(folder, by):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = [source(folder, (16, 64, 64), by=by).batch(step) for step in range(3)]
        torch.set_num_threads(2)
        two = [source(folder, (16, 64, 64), by=by).batch(step) for step in range(3)]
    finally:
        torch.set_num_threads(threads)
    assert all(equal(a, b) for a, b in zip(one, two, strict=True))


def test_workers_change_nothing(folder):
    alone, together = BatchLoader(source(folder), 4, 0), BatchLoader(source(folder), 4, 2)
    for _ in range(4):
        assert equal(next(alone), next(together))


def test_global_generators_are_left_alone(folder):
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.random(), torch.rand(1)
    np.random.seed(1)
    torch.manual_seed(1)
    source(folder).batch(0)
    assert (np.random.random(), torch.rand(1)) == expected
    with pytest.raises(ZeroDivisionError), seeded(3):
        1 / 0  # noqa: B018


def test_every_case_comes_once_before_any_comes_again(folder):
    order = [name for step in range(10) for name in source(folder, batch=3).batch(step).cases]
    assert all(set(order[start : start + 3]) == set(NAMES) for start in range(0, 30, 3))
    assert len({tuple(order[start : start + 3]) for start in range(0, 30, 3)}) > 1


@pytest.mark.parametrize("patch", [(4, 4, 4), (4, 4)])
def test_the_last_samples_show_foreground(folder, patch):
    batches = [source(folder, patch, "none").batch(step) for step in range(20)]
    assert all((batch.labels[2] > 0).any() for batch in batches)


@pytest.mark.parametrize("by", ["batchgeneratorsv2", "torch"])
def test_images_show_their_labels(folder, by):
    """The image of a test case is its labels plus noise of 0.2: space is transformed alike for both."""
    plain = source(folder, (10, 12, 9), "none")
    full = source(folder, (10, 12, 9), "full", by=by)
    for drawn in (plain, full):
        error = []
        for step in range(6):
            batch = drawn.batch(step)
            image, target = batch.image[:, 0].flatten(), batch.labels.flatten().float()
            error.append(torch.corrcoef(torch.stack((image, target)))[0, 1])
        assert np.mean(error) > 0.6


def test_sparse_labels_are_looked_for(folder, tmp_path):
    store = CaseStore(folder, NAMES, 2**20)
    for case in map(store.__getitem__, range(len(store))):
        case.labels[:] = -1
        case.labels[0, 0, 0] = 1
        case.locations.clear()
    drawn = source(folder, (6, 6, 6), "none", sparse=True)
    drawn.cases = store
    found = [(drawn.batch(step).labels >= 0).flatten(1).any(1) for step in range(20)]
    blind = source(folder, (6, 6, 6), "none")
    blind.cases = store
    by_chance = [(blind.batch(step).labels >= 0).flatten(1).any(1) for step in range(20)]
    assert torch.stack(found).float().mean() > 2 * torch.stack(by_chance).float().mean()


@given(
    shape=st.lists(st.integers(1, 50), min_size=3, max_size=3),
    size=st.lists(st.integers(1, 50), min_size=3, max_size=3),
)
def test_patches_stay_inside_or_hold_the_whole_axis(shape, size):
    lowest, highest = corner_limits(shape, size)
    for length, patch, low, high in zip(shape, size, lowest, highest, strict=True):
        assert low <= high
        for corner in (low, high):
            inside = corner >= 0 and corner + patch <= length
            assert inside or (corner <= 0 and corner + patch >= length)


@settings(max_examples=50)
@given(
    patch=st.lists(st.integers(1, 64), min_size=2, max_size=3),
    angle=st.floats(-3.2, 3.2),
    scale=st.floats(0.7, 1.4),
)
def test_what_is_read_holds_the_rotated_patch(patch, angle, scale):
    axes = len(patch)
    size = reached_size(patch, (angle,) * axes, (scale,) * axes)
    assert all(s >= p and (s - p) % 2 == 0 for s, p in zip(size, patch, strict=True))
    assert reached_size(patch, (0.0,) * axes, (1.0,) * axes) >= tuple(patch)
    diagonal = 1.4 * float(np.linalg.norm(patch)) + 4
    assert max(size) <= max(diagonal, max(patch) + 2)


@pytest.mark.parametrize("by", ["batchgeneratorsv2", "torch"])
def test_reading_more_than_is_reached_changes_nothing(by):
    """A rotated patch from exactly the box it reaches equals the same patch from a larger image."""
    patch, angles, scales = (6, 7, 8), (0.4, -0.3, 0.2), (1.2,) * 3
    augmentation = Augmentation("full", patch, (), by=by)
    size = reached_size(patch, angles, scales, 2 if by == "torch" else 1)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *(length + 8 for length in size), generator=generator)
    labels = torch.randint(-1, 3, image.shape[1:], generator=generator).short()
    cut = tuple(slice(4, -4) for _ in size)
    spatial = Spatial(0, size, angles, scales)
    wide = spatial._replace(source_size=image.shape[1:])

    def moved(spatial, image, labels):
        cut = Excerpt.of(spatial, image, labels)
        return augmentation._placed(cut, ()) if by == "torch" else augmentation._transform_space(cut)

    large = moved(wide, image, labels)
    small = moved(spatial, image[(slice(None), *cut)], labels[cut])
    torch.testing.assert_close(large[0], small[0], atol=1e-4, rtol=0)
    assert (large[1] == small[1]).float().mean() > 0.99


def test_a_source_travels_without_its_arrays(folder):
    drawn = source(folder)
    drawn.batch(0)
    sent = pickle.dumps(drawn)
    assert len(sent) < 5000
    assert equal(pickle.loads(sent).batch(2), drawn.batch(2))


def test_large_cases_are_read_where_they_are_cut(folder, monkeypatch):
    monkeypatch.setattr("autounet.training.cases.OPEN_CASES", 2)
    in_memory, on_disk = source(folder), source(folder, memory=0)
    assert all(equal(in_memory.batch(step), on_disk.batch(step)) for step in range(3))
    assert all(isinstance(in_memory.cases[index].image, np.ndarray) for index in range(3))
    assert not isinstance(on_disk.cases[0].image, np.ndarray)
    assert len(on_disk.cases._cases) == 2
    assert list(on_disk.cases._cases)[-1] == 0


def test_the_size_of_cases_is_known_from_their_properties(folder):
    needed = sum(6 * 10 * (12 + number) * 9 for number in range(3))
    assert CaseStore(folder, NAMES, needed).in_memory
    assert not CaseStore(folder, NAMES, needed - 1).in_memory
    with pytest.raises(RecordError, match=r"missing.json does not exist\. Give the same command again"):
        CaseStore(folder, ("a", "missing"), needed)


@pytest.mark.parametrize("memory", [0, 2**30])
def test_more_cases_than_open_files(folder, memory):
    resource = pytest.importorskip("resource")
    store = CaseStore(folder, NAMES * 100, memory)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        assert all(store[index].labels.shape[0] == 10 for index in range(len(store)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("kind", ["none", "full"])
def test_beyond_the_image_nothing_is_annotated_where_labels_are_sparse(folder, kind):
    """Patches of 16 voxels on images of 10 x 12 x 9: with every voxel labelled, the rest is background."""
    sparse, dense = (source(folder, (16, 16, 16), kind, sparse=given).batch(0).labels for given in (True, False))
    assert (sparse == -1).any()
    assert (dense >= 0).all()
    assert torch.equal(sparse.clamp(min=0), dense) or kind == "full"
