"""The challenge's measures: small cases by hand, laws, and scikit-image where its definitions are the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error, variation_of_information
from skimage.segmentation import watershed

from autounet.evaluation.membrane_scores import count, entropy, overlap, pooled, segments, thin_borders
from autounet.evaluation.overlap_metrics import EMPTY_IN_REFERENCE, Undefined
from autounet.schema.errors import DataError

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
MASKS = arrays(bool, SHAPES)
CLUSTERINGS = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(1, 5)), arrays(np.int64, n, elements=st.integers(1, 5))
    )
)
ALPHAS = st.integers(0, 64).map(lambda part: part / 64)  # so that 1 - alpha is exact
FEW = settings(max_examples=40, deadline=None)


def mask(*rows: str) -> np.ndarray:
    """`#` is a border, anything else inside an object."""
    return np.array([[letter != "#" for letter in row] for row in rows])


def touching(labels: np.ndarray) -> bool:
    """Whether two segments share an edge of a pixel."""
    pairs = ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1]))
    return any(((a != b) & (a > 0) & (b > 0)).any() for a, b in pairs)


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    names = {tuple(pair) for pair in np.stack([first.ravel(), second.ravel()], axis=1)}
    return len(names) == len(np.unique(first)) == len(np.unique(second))


def test_corners_do_not_join_objects():
    assert segments(mask(".#", "#.")).tolist() == [[1, 0], [0, 2]]


def test_a_volume_is_refused():
    with pytest.raises(DataError, match="two axes"):
        segments(np.ones((1, 4, 4), bool))


def test_a_wide_border_becomes_a_line():
    labels = thin_borders(mask(".#####.", ".#####."))
    assert (labels == 0).tolist() == [[False, False, False, True, False, False, False]] * 2
    assert labels[0, 0] != labels[0, 6]


def test_a_border_of_even_width_becomes_one_pixel_per_row():
    labels = thin_borders(mask(*["..####.."] * 6))
    assert ((labels == 0).sum(axis=1) == 1).all()
    assert not touching(labels)
    assert len(np.unique(labels)) == 3


def test_a_border_that_separates_nothing_vanishes():
    assert (thin_borders(mask("....", ".##.", "....")) == 1).all()


def test_all_border_is_one_segment():
    assert (thin_borders(np.zeros((3, 4), bool)) == 1).all()


@FEW
@given(MASKS)
def test_thinning_grows_segments_and_keeps_them_apart(foreground):
    before, after = segments(foreground), thin_borders(foreground)
    assert after.shape == before.shape
    assert not touching(after)
    if foreground.any():
        assert (after[foreground] == before[foreground]).all()
        assert set(np.unique(after)) - {0} == set(np.unique(before)) - {0}
        assert same_partition(segments(after > 0), after)


@FEW
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_lines_lie_where_scikit_images_watershed_draws_them(stripes, before, after):
    """Where borders are of odd width: on even ones the pixel in the middle is free."""
    row = "#" * before + "".join("." * width + "#" * (2 * border + 1) for width, border in stripes) + "." + "#" * after
    foreground = mask(row, row, row)
    theirs = watershed(~foreground, segments(foreground), connectivity=1, watershed_line=True)
    assert (thin_borders(foreground) == theirs).all()


@FEW
@given(MASKS)
def test_a_perfect_prediction_has_the_score_1(foreground):
    if not foreground.any():
        with pytest.raises(Undefined, match=EMPTY_IN_REFERENCE):
            overlap(foreground, foreground)
        return
    found = overlap(foreground, foreground)
    assert found.rand_score() == 1
    assert found.information_score() == pytest.approx(1)


def test_the_width_of_borders_does_not_matter():
    reference = mask(*["....#...."] * 5)
    assert overlap(mask(*["..#####.."] * 5), reference).rand_score() == 1


def test_a_merged_pair_by_hand():
    """Two objects of 4 pixels seen as one: p = (1/2, 1/2), s = (1), t = (1/2, 1/2)."""
    found = overlap(mask("....."), mask("..#.."))
    assert found.rand_score() == pytest.approx(0.5 / (0.5 * 1 + 0.5 * 0.5))
    assert (found.rand_score(alpha=0), found.rand_score(alpha=1)) == (1, 0.5)
    assert found.information_score() == 0
    assert (found.information_score(alpha=0), found.information_score(alpha=1)) == (1, 0)


def test_a_split_object_by_hand():
    """One object of 5 pixels seen as two of 2 with a line of 1: p = s = (2/5, 2/5, 1/5), t = (1)."""
    found = overlap(mask("..#.."), mask("....."))
    squares = (2 * 2**2 + 1) / 5**2
    assert found.rand_score() == pytest.approx(squares / (0.5 * squares + 0.5))
    assert (found.rand_score(alpha=0), found.rand_score(alpha=1)) == (pytest.approx(squares), 1)
    assert found.information_score(alpha=0) == 0
    assert found.information_score(alpha=1) == 1


def test_information_by_hand():
    """Predicted {0,1,2} {3}, reference {0,1} {2,3}: H(S) = 0.811, H(T) = 1 and H(S, T) = 1.5 bits."""
    found = count(np.array([1, 1, 1, 2]), np.array([1, 1, 2, 2]))
    predicted = 2 - 0.75 * math.log2(3)
    assert entropy(found.predicted) / math.log(2) == pytest.approx(predicted)
    assert found.information_score() == pytest.approx((predicted + 1 - 1.5) / (0.5 * predicted + 0.5))
    assert found.rand_score() == pytest.approx((2**2 + 1 + 1) / (0.5 * (3**2 + 1) + 0.5 * (2**2 + 2**2)))


def test_only_the_references_foreground_counts():
    reference = mask("..##")
    assert overlap(mask("...#"), reference).rand_score() == overlap(mask("..##"), reference).rand_score() == 1


def test_different_shapes_are_refused():
    with pytest.raises(DataError, match="shape"):
        overlap(np.ones((2, 3), bool), np.ones((3, 2), bool))


@FEW
@given(CLUSTERINGS, ALPHAS)
def test_exchanging_the_two_exchanges_split_and_merge(clusterings, alpha):
    first, second = clusterings
    one, other = count(first, second), count(second, first)
    assert one.rand_score(alpha) == pytest.approx(other.rand_score(1 - alpha))
    assert one.information_score(alpha) == pytest.approx(other.information_score(1 - alpha), abs=1e-9)


@FEW
@given(CLUSTERINGS, ALPHAS)
def test_scores_lie_between_0_and_1_and_names_do_not_matter(clusterings, alpha):
    first, second = clusterings
    found, renamed = count(first, second), count(17 - 3 * first, second)
    for score, again in (
        (found.rand_score(alpha), renamed.rand_score(alpha)),
        (found.information_score(alpha), renamed.information_score(alpha)),
    ):
        assert -1e-9 <= score <= 1 + 1e-9
        assert score == pytest.approx(again, abs=1e-9)


@FEW
@given(CLUSTERINGS)
def test_rand_is_scikit_images_but_for_pairs_of_a_pixel_with_itself(clusterings):
    """Theirs is over the N (N - 1) pairs of two pixels, the challenge's over N^2: without the N more they are equal.

    What theirs calls precision and recall differs between its versions, so they are compared as a pair.
    """
    predicted, reference = clusterings
    found = count(predicted, reference)
    size = len(predicted)
    joint, ours, true = (float(np.sum(n**2)) - size for n in (found.common, found.predicted, found.reference))
    if not ours or not true:
        return  # theirs divides by zero where no two pixels are together
    error, *precision_and_recall = adapted_rand_error(reference, predicted)
    assert joint / (0.5 * ours + 0.5 * true) == pytest.approx(1 - error)
    assert sorted([joint / ours, joint / true]) == pytest.approx(sorted(precision_and_recall))
    assert found.rand_score() == pytest.approx((joint + size) / (0.5 * (ours + true) + size))


@FEW
@given(CLUSTERINGS)
def test_entropies_are_scikit_images(clusterings):
    predicted, reference = clusterings
    found = count(predicted, reference)
    splits_and_merges = sorted(variation_of_information(reference, predicted))
    joint = entropy(found.common)
    ours = sorted((joint - entropy(found.predicted), joint - entropy(found.reference)))
    assert [each / math.log(2) for each in ours] == pytest.approx(splits_and_merges, abs=1e-9)


@FEW
@given(MASKS, st.integers(0, 2**32 - 1))
def test_predicted_borders_count_pixel_by_pixel(reference, seed):
    """As scikit-image counts them when each gets a label of its own, over the reference's foreground."""
    if not reference.any():
        return
    prediction = np.random.default_rng(seed).random(reference.shape) < 0.6
    thinned = thin_borders(prediction)
    own = np.where(thinned == 0, 1000 + np.arange(thinned.size).reshape(thinned.shape), thinned)
    found = overlap(prediction, reference)
    assert found.common.sum() == found.predicted.sum() == found.reference.sum() == reference.sum()
    total = variation_of_information(segments(reference), own, ignore_labels=(0,)).sum() * math.log(2)
    ours = 2 * entropy(found.common) - entropy(found.predicted) - entropy(found.reference)
    assert ours == pytest.approx(total, abs=1e-9)


def test_slices_pooled_are_one_image():
    first, second = (np.array([1, 1, 2]), np.array([1, 1, 1])), (np.array([4, 4]), np.array([7, 8]))
    both = count(np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]]))
    together = pooled([count(*first), count(*second)])
    assert together.rand_score() == both.rand_score()
    assert together.information_score() == pytest.approx(both.information_score())
