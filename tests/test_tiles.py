"""Laws of tiles: they lie inside the image, overlap as asked, and cover every voxel with positive weight."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from autounet.ops.tiles import WEIGHTINGS, axis_starts, centred_padding, gaussian_weights, tile_starts, tile_windows

overlaps = st.floats(0, 0.95)


@st.composite
def images_and_patches(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An image of 2 or 3 axes and a patch that fits into it."""
    image = tuple(draw(st.lists(st.integers(1, 24), min_size=2, max_size=3)))
    return image, tuple(draw(st.integers(1, size)) for size in image)


@given(size=st.integers(1, 400), patch=st.integers(1, 200), overlap=overlaps)
def test_tiles_of_an_axis_reach_both_ends_and_leave_no_gap(size: int, patch: int, overlap: float) -> None:
    patch = min(patch, size)
    starts = axis_starts(size, patch, overlap)
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert starts[0] == 0
    assert starts[-1] == size - patch
    assert all(0 < step <= max(1, int(np.ceil(patch * (1 - overlap)))) for step in steps)


@given(shapes=images_and_patches(), overlap=overlaps, weighting=st.sampled_from(sorted(WEIGHTINGS)))
def test_every_voxel_is_covered_with_positive_weight(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], overlap: float, weighting: str
) -> None:
    image, patch = shapes
    coverage = np.zeros(image, dtype=np.float32)
    for start in tile_starts(image, patch, overlap):
        view = coverage[tile_windows(start, patch)]
        assert view.shape == patch
        view += WEIGHTINGS[weighting](patch)
    assert coverage.min() > 0


@given(shapes=images_and_patches())
def test_padding_makes_the_patch_fit_and_is_centred(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    patch, image = shapes
    for (below, above), size, length in zip(centred_padding(image, patch), image, patch, strict=True):
        assert size + below + above == max(size, length)
        assert above - below in (0, 1)


def test_known_positions() -> None:
    assert axis_starts(10, 10, 0.5) == (0,)
    assert axis_starts(128, 64, 0.5) == (0, 32, 64)
    assert axis_starts(100, 64, 0.5) == (0, 18, 36)
    assert tile_starts((4, 6), (4, 3), 0.0) == [(0, 0), (0, 3)]


@pytest.mark.parametrize("patch", [(8, 12), (16, 8, 24)])
def test_gaussian_weights_are_a_blurred_point(patch: tuple[int, ...]) -> None:
    point = np.zeros(patch)
    point[tuple(length // 2 for length in patch)] = 1
    blurred = gaussian_filter(point, [length / 8 for length in patch], mode="constant")
    np.testing.assert_allclose(gaussian_weights(patch), blurred / blurred.max(), atol=1e-6)


@pytest.mark.parametrize(("size", "patch", "overlap"), [(4, 5, 0.5), (4, 0, 0.5), (4, 2, 1.0), (4, 2, -0.1)])
def test_impossible_tilings_are_refused(size: int, patch: int, overlap: float) -> None:
    with pytest.raises(ValueError, match=r"overlap|patch"):
        axis_starts(size, patch, overlap)
