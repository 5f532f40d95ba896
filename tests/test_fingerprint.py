"""Facts of cases, the gallery of defects, and the fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autounet.datasets import complete_labels, examine, scan
from autounet.datasets.checks.case_checks import SAMPLES, count_values
from autounet.datasets.checks.set_checks import check_dataset
from autounet.datasets.synthetic import make_demo_dataset
from autounet.fingerprint import build_fingerprint
from autounet.imageio import read_geometry, read_image, read_labels, write_image, write_labels
from autounet.ops.statistics import quantiles_of_samples
from autounet.schema.dataset import CaseFacts, Finding, Severity
from autounet.schema.errors import DataError
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions

NONE = DataOptions()
IMAGE = "imagesTr/demo_001_0000.nii.gz"
LABEL = "labelsTr/demo_001.nii.gz"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return make_demo_dataset(tmp_path / "data", cases=5)


def facts_of(folder: Path, options: DataOptions = NONE) -> list[CaseFacts]:
    return examine(scan(folder, options), workers=1)


def findings_of(folder: Path, options: DataOptions = NONE) -> list[Finding]:
    dataset = scan(folder, options)
    return check_dataset(dataset, examine(dataset, workers=1))


def test_facts_of_a_sound_data_set(demo: Path) -> None:
    dataset = scan(demo, NONE)
    facts = examine(dataset, workers=1)
    assert check_dataset(dataset, facts) == []
    image, geometry = read_image(demo / IMAGE)
    values, _ = read_labels(demo / LABEL)
    fact = facts[1]
    assert fact.geometry == geometry
    assert fact.value_counts == {value: int((values == value).sum()) for value in range(3)}
    sample = fact.samples[0]
    inside = image[0][values > 0]
    np.testing.assert_array_equal(np.float32(sample.values), inside)
    assert (sample.minimum, sample.maximum) == (inside.min(), inside.max())
    assert CaseFacts.model_validate_json(fact.model_dump_json()) == fact


def test_workers_do_not_change_facts(demo: Path) -> None:
    dataset = scan(demo, NONE)
    seen: list[object] = []
    assert examine(dataset, workers=2, on_done=seen.append) == examine(dataset, workers=1)
    assert len(seen) == 5


def test_known_facts_are_kept_until_files_change(demo: Path) -> None:
    dataset = scan(demo, NONE)
    known = {fact.identifier: fact for fact in examine(dataset, workers=1)}
    again = examine(dataset, workers=1, known=known)
    assert all(fact is known[fact.identifier] for fact in again)
    values, geometry = read_labels(demo / LABEL)
    values[0, 0, 0] = 2
    write_labels(demo / LABEL, values, geometry)
    changed = examine(dataset, workers=1, known=known)
    assert [fact is known[fact.identifier] for fact in changed] == [True, False, True, True, True]
    assert changed[1].value_counts != known["demo_001"].value_counts
    ignoring = scan(demo, DataOptions(ignore=2))
    assert examine(ignoring, workers=1, known=known)[0].content_hash != known["demo_000"].content_hash


def test_sampling_depends_on_the_identifier_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    geometry = Geometry(shape=(30, 30, 30))
    for folder in ("a", "b"):
        for name in ("x", "y") if folder == "a" else ("y",):
            rng = np.random.default_rng(ord(name))
            write_image(
                tmp_path / folder / "image" / f"{name}.nii.gz",
                rng.normal(size=(1, 30, 30, 30)).astype(np.float32),
                geometry,
            )
            write_labels(tmp_path / folder / "label" / f"{name}.nii.gz", np.ones((30, 30, 30), int), geometry)
    both, alone = facts_of(tmp_path / "a"), facts_of(tmp_path / "b")
    assert len(alone[0].samples[0].values) == SAMPLES
    assert both[1] == alone[0]


# ---- the gallery of defects ----------------------------------------------------------------------------------


def truncate(folder: Path, name: str = IMAGE) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def put(folder: Path, *values: float) -> None:
    image, geometry = read_image(folder / IMAGE)
    image[0, 3, 4, 5 : 5 + len(values)] = values
    write_image(folder / IMAGE, image, geometry)


def relabel(folder: Path, value: int) -> None:
    values, geometry = read_labels(folder / LABEL)
    values[0, 0, 0] = value
    write_labels(folder / LABEL, values, geometry)


def constant(folder: Path, value: float) -> None:
    geometry = read_geometry(folder / IMAGE)
    write_image(folder / IMAGE, np.full((1, *geometry.shape), value, np.float32), geometry)


def other_shape(folder: Path) -> None:
    write_labels(folder / LABEL, np.ones((4, 5, 6), int), Geometry(shape=(4, 5, 6)))


@pytest.mark.parametrize(
    ("spoil", "code", "text", "remedy"),
    [
        (truncate, "unreadable-file", f"{IMAGE} is truncated", "again"),
        (lambda folder: truncate(folder, LABEL), "unreadable-file", f"{LABEL} is truncated", "again"),
        (
            lambda folder: (folder / IMAGE).write_bytes(b"x" * 999),
            "unreadable-file",
            f"{IMAGE} is not a NIfTI",
            "again",
        ),
        (lambda folder: (folder / IMAGE).write_bytes(b""), "unreadable-file", f"{IMAGE} is empty", "again"),
        (other_shape, "shape-mismatch", f"its label {LABEL} (4, 5, 6)", "Give the label"),
        (lambda folder: put(folder, np.nan, np.nan), "nan-voxels", f"{IMAGE} holds 2 NaN voxels of", "Replace"),
        (lambda folder: put(folder, np.nan, np.inf), "nan-voxels", "1 NaN and 1 infinite voxels", "Replace"),
        (lambda folder: put(folder, -np.inf), "infinite-voxels", "1 infinite voxels", "Replace"),
        (lambda folder: relabel(folder, 77), "undeclared-label", "value 77 is not declared", "--class NAME=77"),
        (lambda folder: constant(folder, 0), "constant-image", "the image has the value 0 in", "remove the case"),
    ],
)
def test_each_defect_is_one_message_with_case_and_remedy(
    demo: Path, spoil: Callable[[Path], None], code: str, text: str, remedy: str
) -> None:
    spoil(demo)
    (finding,) = findings_of(demo)
    assert finding.case == "demo_001"
    assert finding.code == code
    assert finding.severity == Severity.fatal
    assert text in finding.message
    assert remedy in finding.remedy
    assert str(demo) not in str(finding)
    assert "\n" not in str(finding)


def test_all_defects_are_told_at_once(demo: Path) -> None:
    put(demo, np.nan)
    relabel(demo, 9)
    truncate(demo, "imagesTr/demo_003_0000.nii.gz")
    assert [(finding.case, finding.code) for finding in findings_of(demo)] == [
        ("demo_001", "nan-voxels"),
        ("demo_003", "unreadable-file"),
        ("demo_001", "undeclared-label"),
    ]


def test_geometry_mismatch_is_an_error(demo: Path) -> None:
    values, geometry = read_labels(demo / LABEL)
    write_labels(demo / LABEL, values, geometry.model_copy(update={"origin": (0.0, 1.0, 2.0)}))
    (finding,) = findings_of(demo)
    assert (finding.code, finding.severity) == ("geometry-mismatch", Severity.fatal)
    assert "origin (0.0, 1.0, 2.0) instead of" in finding.message


def test_channels_of_different_shape_or_number(demo: Path) -> None:
    small = np.ones((1, 2, 3, 4), np.float32)
    for index in range(5):
        image, geometry = read_image(demo / f"imagesTr/demo_00{index}_0000.nii.gz")
        second = (small, Geometry(shape=(2, 3, 4))) if index == 1 else (image, geometry)
        write_image(demo / f"imagesTr/demo_00{index}_0001.nii.gz", *second)
    text = (demo / "dataset.json").read_text().replace('"0": "MRI"', '"0": "T1", "1": "T2"')
    (demo / "dataset.json").write_text(text)
    (finding,) = findings_of(demo)
    assert (finding.case, finding.code) == ("demo_001", "shape-mismatch")
    assert "imagesTr/demo_001_0001.nii.gz has shape (2, 3, 4)" in finding.message


def test_few_cases_and_absent_classes_are_warnings(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, cases=2)
    findings = findings_of(tmp_path, DataOptions(classes={"spleen": 3}))
    assert [finding.code for finding in findings] == ["absent-class", "too-few-cases"]
    assert {finding.severity for finding in findings} == {Severity.warning}
    assert "2 cases are too few for 5 folds" in findings[1].message


# ---- labels --------------------------------------------------------------------------------------------------


def loose(folder: Path, values: list[int], cases: int = 5) -> Path:
    geometry = Geometry(shape=(2, 3, 4))
    for index in range(cases):
        image = np.random.default_rng(index).normal(size=(1, 2, 3, 4)).astype(np.float32)
        write_image(folder / "images" / f"{index}.nii.gz", image, geometry)
        write_labels(folder / "labels" / f"{index}.nii.gz", np.resize(values, (2, 3, 4)), geometry)
    return folder


def test_unnamed_values_get_names(tmp_path: Path) -> None:
    dataset = scan(loose(tmp_path, [0, 255, 7]), DataOptions(classes={"cell": 255}))
    labels = complete_labels(dataset, examine(dataset, workers=1)).labels
    assert [(label.name, label.value) for label in labels.classes] == [
        ("background", 0), ("label_7", 7), ("cell", 255)
    ]  # fmt: skip


def test_ignored_value_is_no_class(tmp_path: Path) -> None:
    dataset = scan(loose(tmp_path, [0, 1, 4]), DataOptions(ignore=4))
    facts = examine(dataset, workers=1)
    assert complete_labels(dataset, facts).labels.values == (0, 1)
    assert len(facts[0].samples[0].values) == 8


@pytest.mark.parametrize(("values", "message"), [([0], "no label file holds any value besides 0"),
                                                  (list(range(24)), "")])  # fmt: skip
def test_no_foreground(tmp_path: Path, values: list[int], message: str) -> None:
    dataset = scan(loose(tmp_path, values), NONE)
    facts = examine(dataset, workers=1)
    if message:
        with pytest.raises(DataError, match=message):
            complete_labels(dataset, facts)
    else:
        assert complete_labels(dataset, facts).labels.count == 24


def test_pictures_given_as_labels(tmp_path: Path) -> None:
    folder = loose(tmp_path, [0, 1])
    geometry = Geometry(shape=(2, 3, 4))
    for index in range(5):
        values = np.arange(24).reshape(2, 3, 4) + 24 * index
        write_labels(folder / "labels" / f"{index}.nii.gz", values, geometry)
    (finding,) = findings_of(folder)
    assert finding.code == "too-many-values"
    assert "--label PATTERN" in finding.remedy


def test_undeclared_value_stops_completion(demo: Path) -> None:
    relabel(demo, 5)
    dataset = scan(demo, NONE)
    facts = examine(dataset, workers=1)
    with pytest.raises(DataError, match="case demo_001: label value 5 is not declared"):
        complete_labels(dataset, facts)


# ---- the fingerprint -----------------------------------------------------------------------------------------


def test_fingerprint_of_the_demo(demo: Path) -> None:
    dataset = scan(demo, NONE)
    facts = examine(dataset, workers=1)
    fingerprint = build_fingerprint(dataset, facts[::-1], "ras")
    assert fingerprint == build_fingerprint(dataset, facts, "ras")
    assert fingerprint.dimension == 3
    assert [case.identifier for case in fingerprint.cases] == [fact.identifier for fact in facts]
    assert all(sum(case.voxels) == np.prod(case.shape) for case in fingerprint.cases)
    channel = fingerprint.channels[0]
    means = [np.mean(fact.samples[0].values) for fact in facts]
    assert channel.mean == pytest.approx(np.mean(means))
    assert channel.minimum <= channel.percentile_00_5 <= channel.median <= channel.percentile_99_5 <= channel.maximum


def test_canonical_orientation_permutes(tmp_path: Path) -> None:
    """Stored x runs along the patient's z, so the canonical z axis is the stored x axis."""
    direction = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    geometry = Geometry(shape=(4, 5, 6), spacing=(1.0, 2.0, 3.0), direction=direction)
    image = np.zeros((1, 4, 5, 6), np.float32)
    image[0, 1:3, 1:4, 2:5] = np.arange(1, 19).reshape(2, 3, 3)
    write_image(tmp_path / "image" / "a.nii.gz", image, geometry)
    write_labels(tmp_path / "label" / "a.nii.gz", (image[0] > 0).astype(int), geometry)
    dataset = scan(tmp_path, NONE)
    facts = examine(dataset, workers=1)
    dataset = complete_labels(dataset, facts)
    stored = build_fingerprint(dataset, facts, "as_stored").cases[0]
    canonical = build_fingerprint(dataset, facts, "ras").cases[0]
    assert (stored.shape, stored.cropped_shape, stored.spacing) == ((4, 5, 6), (2, 3, 3), (1.0, 2.0, 3.0))
    assert (canonical.shape, canonical.spacing) == ((6, 4, 5), (3.0, 1.0, 2.0))
    assert canonical.cropped_shape == (3, 2, 3)
    assert stored.voxels == canonical.voxels == (102, 18)


@given(st.lists(st.one_of(st.integers(-5, 5), st.integers(-(2**31), 2**31 - 1)), min_size=1, max_size=30))
def test_counts(values: list[int]) -> None:
    array = np.array(values, np.int32)
    found, counts = np.unique(array, return_counts=True)
    assert count_values(array.reshape(1, 1, -1)) == dict(zip(found.tolist(), counts.tolist(), strict=True))


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, quantiles: Sequence[float]) -> list[float]:
    """Quantiles of a weighted sample (weights sum to 1); with equal weights those of `np.quantile`."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    position = np.cumsum(weights) - weights
    return [float(np.interp(quantile * position[-1], position, values)) for quantile in quantiles]


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50), st.floats(0, 1))
def test_equal_weights_give_plain_quantiles(values: list[float], quantile: float) -> None:
    array = np.array(values, np.float32)
    (found,) = quantiles_of_samples([array.copy()], (quantile,))
    assert found == pytest.approx(np.quantile(array.astype(float), quantile), abs=1e-6)


@given(
    st.lists(
        st.lists(st.one_of(st.floats(-100, 100, width=32), st.integers(-3, 3)), min_size=1, max_size=9),
        min_size=1, max_size=6,
    ),
    st.floats(0, 1),
)  # fmt: skip
def test_quantiles_without_joining_the_samples(samples: list[list[float]], quantile: float) -> None:
    arrays = [np.array(sample, np.float32) for sample in samples]
    joined = np.concatenate(arrays).astype(np.float64)
    weights = np.concatenate([np.full(len(each), 1 / len(each) / len(arrays)) for each in arrays])
    quantiles = (0.005, 0.5, quantile)
    found = quantiles_of_samples([each.copy() for each in arrays], quantiles)
    assert found == pytest.approx(weighted_quantiles(joined, weights, quantiles), abs=1e-6)
