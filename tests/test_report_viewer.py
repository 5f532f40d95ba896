"""The viewer's slices: packed within their budget whatever the case, and read back as they were."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from autounet.figures import MAX_BITMAP_BYTES, MAX_VECTOR_POINTS, as_bitmap, as_svg, box_rows, chart
from autounet.report import results_section
from autounet.report.data_section import MAX_FINDINGS, group_findings
from autounet.report.results_section import RankedCase
from autounet.report.shown_cases import largest_disagreement, least_certain
from autounet.report.viewer import MAX_SHEET_WIDTH, MAX_SIDE, _sheet, pack_case, strides
from autounet.report.volumes import CaseVolume, whole
from autounet.schema.dataset import Finding
from autounet.schema.metrics import CaseMetrics, ClassMetrics

SIZES = st.tuples(*[st.integers(1, 5000)] * 3)
SPACINGS = st.tuples(*[st.floats(0.1, 10)] * 3)


@given(SIZES, SPACINGS, st.integers(1000, 3_000_000))
def test_strides_keep_any_case_small_and_no_more_than_needed(shape, spacing, most):
    steps = strides(shape, spacing, most)
    sizes = [-(-size // step) for size, step in zip(shape, steps, strict=True)]
    assert np.prod(sizes) <= most
    assert max(sizes) <= MAX_SIDE
    if np.prod(shape) <= most and max(shape) <= MAX_SIDE:
        assert steps == (1, 1, 1)


@given(st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from([1, 3]))
@settings(max_examples=25)
def test_a_sheet_holds_every_slice(shape, channels):
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels)).astype(np.uint8)
    sheet, columns, (tall, wide) = _sheet(image)
    assert max(sheet.size) <= max(MAX_SHEET_WIDTH, wide, tall)
    pixels = np.asarray(sheet).reshape(sheet.height, sheet.width, channels)
    for z, flat in enumerate(image):
        top, left = (z // columns) * tall, (z % columns) * wide
        np.testing.assert_array_equal(pixels[top : top + shape[1], left : left + shape[2]], flat)


def volume(shape, channels=1, spacing=(2.0, 1.0, 1.0), seed=0) -> CaseVolume:
    """Noise, which nothing compresses."""
    random = np.random.default_rng(seed)
    labels = [random.choice([0, 7, 900], shape).astype(np.int32) for _ in range(2)]
    image = random.random((*shape, channels), dtype=np.float32)
    return CaseVolume("c", image, *labels, spacing, (7, 900), whole(shape), anatomical=True, flat=shape[0] == 1)


def unpacked(text: str, shape) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


def test_labels_come_back_as_classes():
    found = volume((5, 9, 8))
    packed = pack_case(found, "words")
    assert packed.shape == (5, 9, 8)
    assert packed.steps == (1, 1, 1)
    for name in ("reference", "prediction"):
        own = getattr(found, name)
        np.testing.assert_array_equal(
            unpacked(getattr(packed, name), own.shape), np.select([own == 7, own == 900], [1, 2])
        )
    wrong = found.reference != found.prediction
    assert wrong[packed.start[0]].sum() == wrong.sum(axis=(1, 2)).max()


@pytest.mark.parametrize("shape", [(12, 40, 50), (1, 150, 160)])
def test_no_case_is_larger_than_its_budget(shape):
    limit = 12_000
    packed = pack_case(volume(shape, channels=3), "words", limit)
    assert sum(len(getattr(packed, name)) for name in ("image", "reference", "prediction")) <= limit
    assert np.prod(packed.steps) > 1
    assert unpacked(packed.reference, packed.shape).max() == 2
    size = np.array(packed.shape) * packed.spacing
    assert (size >= np.array(shape) * (2.0, 1.0, 1.0) - 1e-9).all()


def test_no_picture_is_larger_than_its_budget():
    figure = Figure(figsize=(4, 4))
    noise = np.random.default_rng(0).random((640, 640, 3))
    figure.add_axes((0, 0, 1, 1)).imshow(noise, interpolation="nearest")
    assert len(as_bitmap(figure, 160)) <= MAX_BITMAP_BYTES * 4 / 3 + 40


def case(name: str, dice: float, uncertainty: float | None = None) -> CaseMetrics:
    return CaseMetrics(case=name, fold=0, per_class={"a": ClassMetrics(dice=dice)}, uncertainty=uncertainty)


def test_the_least_certain_cases_are_found():
    ranked = [RankedCase(case(name, dice, unsure), dice) for name, dice, unsure in
              (("x", 0.5, 0.1), ("y", 0.6, None), ("z", 0.7, 0.3))]  # fmt: skip
    sure = least_certain(ranked)
    assert sure is not None
    assert sure.case == "z"
    assert least_certain(ranked[1:2]) is None
    singles = {"2d": [case("x", 0.5), case("y", 0.2)], "3d_fullres": [case("x", 0.6), case("y", 0.8), case("z", 0.1)]}
    contested = largest_disagreement(ranked, singles, ["a"])
    assert contested is not None
    assert (contested[0].case, contested[1]) == ("y", {"2d": 0.2, "3d_fullres": 0.8})
    assert largest_disagreement(ranked, {"2d": singles["2d"]}, ["a"]) is None


def test_a_table_of_very_many_cases_keeps_the_worst_and_says_so(monkeypatch):
    monkeypatch.setattr(results_section, "MAX_CELLS", 1000)
    ranked = [RankedCase(case(f"c{index}", 0.5), 0.5) for index in range(400)]
    table = results_section.case_table(ranked, ["a"], {"c0": "#c0"})
    assert len(table.rows) * len(table.head) <= 1000
    assert table.rows[0][0] == "c0"
    assert "The 200 worst of 400 cases" in table.notes[0]


def test_very_many_findings_of_a_kind_are_cut_and_counted():
    many = [
        Finding(case=f"c{index}", code="origin", severity="warning", message="m", remedy="r") for index in range(900)
    ]
    (group,) = group_findings(many)
    assert (len(group.lines), group.total, group.open) == (MAX_FINDINGS, 900, False)


@pytest.mark.parametrize("points", [MAX_VECTOR_POINTS, 20_000])
def test_a_chart_of_very_many_points_stays_small(points):
    figure, axes = chart()
    box_rows(axes, {"a": np.linspace(0.2, 0.9, points).tolist()})
    assert len(as_svg(figure)) < 600_000
