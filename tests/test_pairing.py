"""Which label belongs to which image."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autounet.datasets import pair
from autounet.datasets.layouts.files import strip_channel
from autounet.schema.errors import DataError


def pairs(first: list[str], second: list[str]) -> list[tuple[str, str, str]]:
    return [
        (match.case, match.first.name, match.second.name)
        for match in pair([Path("images") / name for name in first], [Path("labels") / name for name in second])
    ]


def test_drive_names() -> None:
    first = [f"{number}_training.tif" for number in range(21, 41)]
    second = [f"{number}_manual1.gif" for number in range(21, 41)]
    assert pairs(first, second) == [(f"{n}_training", f"{n}_training.tif", f"{n}_manual1.gif") for n in range(21, 41)]


@pytest.mark.parametrize(
    ("first", "second", "case"),
    [
        (["a.nii.gz", "b.nii.gz"], ["b.nrrd", "a.nrrd"], "a"),
        (["a_0000.nii.gz", "b_0000.nii.gz"], ["a.nii.gz", "b.nii.gz"], "a"),
        (["p1_f1.png", "p1_f2.png", "p2_f1.png"], ["p1_f1_seg.png", "p1_f2_seg.png", "p2_f1_seg.png"], "p1_f1"),
        (["img001.png", "img002.png"], ["mask001.png", "mask002.png"], "img001"),
        (["img1.png", "img2.png", "img10.png"], ["m01.png", "m02.png", "m10.png"], "img1"),
        (["001_20200101.png", "002_20200202.png"], ["001_20211231.png", "002_20211230.png"], "001_20200101"),
    ],
)
def test_rules(first: list[str], second: list[str], case: str) -> None:
    found = pairs(first, second)
    assert len(found) == len(first)
    assert found[0][0] == case
    assert [name for _, name, _ in found] == first
    digits = [["".join(filter(str.isdigit, name))[-1:] for name in match[1:]] for match in found]
    if not case.startswith("001") and "0000" not in first[0]:
        assert all(one[:1] == other[:1] for one, other in digits)


def test_files_without_partner_are_left_out() -> None:
    assert [match[0] for match in pairs(["a.png", "b.png", "c.png"], ["c.png", "a.png", "z.png"])] == ["a", "c"]
    assert len(pairs([f"{n}_x.png" for n in range(5)], [f"{n}_y.png" for n in range(4)])) == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["cat.png", "dog.png"], ["x.png", "y.png"]),
        (["a1_b2.png", "a2_b1.png"], ["a1_b1.png", "a2_b2.png"]),
        (["a.png"], []),
        (["p1.png"], ["p2.png"]),  # one file each, of two patients
        (["p1_t1.png"], ["p2_t2.png"]),
        (["anna_flair.png"], ["bob_flair_seg.png"]),
    ],
)
def test_what_cannot_be_paired_is_an_error(first: list[str], second: list[str]) -> None:
    with pytest.raises(DataError):
        pairs(first, second)


def test_one_folder_per_case() -> None:
    first = [Path(f"data/patient_{n}/flair.nii.gz") for n in range(3)]
    second = [Path(f"data/patient_{n}/truth.nii.gz") for n in range(3)]
    assert [(m.case, m.second) for m in pair(first, second)] == [(f"patient_{n}", second[n]) for n in range(3)]


@given(st.lists(st.integers(0, 500), min_size=2, max_size=12, unique=True), st.randoms(use_true_random=False))
def test_pairing_is_a_bijection_whatever_the_order(numbers: list[int], random: object) -> None:
    first = [f"{number:03d}_scan.png" for number in numbers]
    second = [f"{number:03d}_label.png" for number in numbers]
    random.shuffle(second)  # type: ignore[attr-defined]
    assert [(a[:3], b[:3]) for _, a, b in pairs(first, second)] == [(name[:3], name[:3]) for name in first]


def test_a_number_is_part_of_the_name_unless_the_second_name_lacks_it() -> None:
    assert pairs(["amos_0101.png", "bmos_0102.png"], ["amos_0101_seg.png", "bmos_0102_seg.png"])[0][0] == "amos_0101"
    assert pairs(["a_0001.png", "b_0001.png"], ["a.png", "b.png"])[0][0] == "a"
    assert pairs(["img001.png"], ["mask001.png"]) == [("img001", "img001.png", "mask001.png")]


@given(st.integers(0, 20), st.lists(st.integers(0, 20), min_size=2, unique=True))
def test_a_number_of_the_folder_hides_none_of_a_file(folder: int, numbers: list[int]) -> None:
    first = [Path(f"run_{folder}") / f"x{number}.png" for number in numbers]
    second = [Path("labels") / f"p{number}.png" for number in numbers]
    assert [match[1:] for match in pair(first, second)] == list(zip(first, second, strict=True))


def test_a_line_feed_in_a_name_hides_no_channel_number() -> None:
    assert strip_channel("new\nline_0001") == ("new\nline", "0001")
    assert strip_channel("line_0001\n") == ("line_0001\n", None)
