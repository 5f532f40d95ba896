"""Left and right classes: confirmed as mirror images, and on the sides that they are called by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from broken_sets import NONE, describe, label_file, volumes
from orientations import ALL_48, direction_of

from autounet.datasets import complete_labels, examine, scan
from autounet.datasets.checks.left_right import describe_pairs
from autounet.fingerprint import build_fingerprint
from autounet.imageio import write_labels
from autounet.planning import plan
from autounet.schema.geometry import Geometry
from autounet.schema.options import PlannerOptions, TrainOptions
from autounet.workflow import dataset_stage as reading
from autounet.workflow.dataset_stage import check_data

SHAPE = (6, 10, 8)
LEFT, RIGHT = 1, 2


def sides(unlike: bool = False) -> np.ndarray:
    """(Z, Y, X), canonical orientation, x to the patient's left: a step on either side; `unlike`: on one side a bar."""
    values = np.zeros(SHAPE, np.int32)
    for value, columns in ((LEFT, (7, 6)), (RIGHT, (0, 1))):
        values[1:4, 2:8, columns[0]] = value
        values[1:4, 2:4, columns[1]] = value
    if unlike:
        values[values == RIGHT] = 0
        values[:, 4:6, :4] = RIGHT
    return values


@pytest.mark.parametrize(("axes", "signs"), ALL_48)
def test_how_a_pair_lies_is_the_same_however_it_is_stored(axes: tuple[int, ...], signs: tuple[float, ...]) -> None:
    """World axis `axes[j]` runs along stored axis j (x, y, z), backwards where its sign is -1."""
    spacing = np.array([1.5, 1.0, 2.0])  # world x, y, z
    stored = np.transpose(sides(), [2 - axes[2 - place] for place in range(3)])
    flips = tuple(slice(None, None, -1) if signs[2 - place] < 0 else slice(None) for place in range(3))
    stored = stored[flips]
    geometry = Geometry(
        shape=stored.shape, spacing=tuple(spacing[axes[2 - place]] for place in range(3)),
        direction=direction_of(axes, signs),
    )  # fmt: skip
    counts = {LEFT: 24, RIGHT: 24}
    (found,) = describe_pairs(stored, counts, [(LEFT, RIGHT)], geometry)
    assert found.overlap == 1.0
    assert found.apart == pytest.approx(1.5 * (6.75 - 0.25))
    (found,) = describe_pairs(stored, counts, [(RIGHT, LEFT)], geometry)
    assert found.apart == pytest.approx(-1.5 * (6.75 - 0.25))
    (found,) = describe_pairs(stored, counts, [(LEFT, 3)], geometry)
    assert (found.apart, found.overlap) == (None, None)
    (found,) = describe_pairs(stored, counts, [(LEFT, RIGHT)], geometry.model_copy(update={"kind": "png"}))
    assert (found.apart, found.overlap) == (None, None)


def data_set(folder: Path, values: np.ndarray) -> Path:
    volumes(folder)
    describe(folder, organ=3, left_part=LEFT, right_part=RIGHT)
    for case in range(6):
        write_labels(label_file(folder, f"c{case}"), values + 3 * (sides() + values == 0), GEOMETRY)
    return folder


GEOMETRY = Geometry(shape=SHAPE, spacing=(2.0, 1.0, 1.5), origin=(-10.0, 20.0, 5.0))


def test_an_exchange_in_one_case_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "available_cores", lambda: 1)
    data_set(tmp_path, sides())
    assert check_data(tmp_path, NONE).findings == ()
    exchanged = np.array([3, RIGHT, LEFT, 3])[sides()]
    write_labels(label_file(tmp_path, "c2"), exchanged, GEOMETRY)
    (found,) = check_data(tmp_path, NONE).findings
    assert (found.case, found.code, found.severity) == ("c2", "swapped-sides", "warning")
    assert found.message == "left_part lies 10 mm to the patient's right of right_part"


def test_names_alone_make_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the left and the right ventricle of a heart."""
    monkeypatch.setattr(reading, "available_cores", lambda: 1)
    data_set(tmp_path, sides(unlike=True))
    (found,) = check_data(tmp_path, NONE).findings
    assert (found.case, found.code) == (None, "unlike-pair")
    assert "left_part and right_part are not mirror images of each other: with one mirrored" in found.message
    scanned = scan(tmp_path, NONE)
    facts = examine(scanned, workers=1)
    dataset = complete_labels(scanned, facts)
    fingerprint = build_fingerprint(dataset, facts, "ras")
    assert fingerprint.unlike == (("left_part", "right_part"),)
    made = plan(fingerprint, dataset.labels, PlannerOptions(), TrainOptions())
    volume = made.configurations["3d_fullres"]
    assert (volume.mirror_axes, volume.swap_axis, volume.inference.mirror_axes) == ((0, 1), None, (0, 1))
    assert any("left_part and right_part are no mirror images of each other" in reason.text for reason in made.reasons)
    alike = fingerprint.model_copy(update={"unlike": ()})
    assert plan(alike, dataset.labels, PlannerOptions(), TrainOptions()).configurations["3d_fullres"].swap_axis == 2
    assert fingerprint.digest() != alike.digest()


def test_facts_are_read_again_when_a_pair_is_named(tmp_path: Path) -> None:
    data_set(tmp_path, sides())
    scanned = scan(tmp_path, NONE)
    before = {fact.identifier: fact for fact in examine(scanned, workers=1)}
    done: list[object] = []
    examine(scanned, workers=1, known=before, on_done=done.append)
    assert done == [None] * 6
    unnamed = scanned.model_copy(update={"labels": scanned.labels.model_copy(update={"pairs": ()})})
    after = examine(unnamed, workers=1, known=before)
    assert all(fact.pairs == () and fact.content_hash == before[fact.identifier].content_hash for fact in after)
