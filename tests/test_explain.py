"""`plan --explain`: what limits a configuration, and what twice the memory changes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_records import configuration

from autounet.planning.explain import WORDS, explain, explanation, with_double_memory
from autounet.schema.options import GIB, PlannerOptions
from autounet.schema.plan import Limits, Plan, Reason

OPTIONS = PlannerOptions(memory_bytes=4 * GIB)


def limited(size=(16, 16, 16), count=2, **limits):
    return configuration(
        patch_size=size, batch_size=count, limited_by=Limits(**limits), predicted_memory_bytes=3 * GIB,
        predicted_step_seconds=0.25,
    )  # fmt: skip


def plan(options=OPTIONS, **configurations):
    return Plan(
        configurations=configurations,
        options=options,
        reasons=(Reason(configuration=None, topic="patch", text="because"),),
        fingerprint="0",
    )


def row(now, then):
    return explain(plan(it=now), {} if then is None else {"it": then}, {"it": 5 * 86400.0})[0]


def test_a_row_says_what_was_planned():
    found = row(limited(patch="memory", batch="minimum"), limited((32, 16, 16), 3))
    assert (found.patch, found.batch, found.stages, found.spacing) == ("16x16x16", "2", "3", "1.00x0.50x0.50")
    assert (found.memory, found.step, found.length) == ("3.0/4.0 GB", "250 ms", "5 days")
    assert found.limited_by == "memory (patch), smallest batch (batch)"
    assert found.doubled == "patch 16x16x16 -> 32x16x16, batch 2 -> 3"


def limited_like(limits):
    return configuration(limited_by=limits)


@pytest.mark.parametrize(
    ("limits", "limited_by", "doubled"),
    [
        (
            {"patch": "image", "batch": "data"},
            "image size (patch), data-set size (batch)",
            "nothing: the patch covers the median image and the batch covers its share of the data set "
            "(5 % by the rules)",
        ),
        (
            {"patch": "time", "batch": "time", "width": "time"},
            "time",
            "nothing: the time limits the patch, the time limits the batch and the time limits the width",
        ),
        ({"patch": "memory", "batch": "memory", "width": "time"}, "memory, time (width)", "nothing: the time limits "
            "the width"),
        ({}, "not known", "nothing"),
    ],
)  # fmt: skip
def test_nothing_changes_where_memory_is_no_limit(limits, limited_by, doubled):
    same = limited_like(Limits(**limits))
    found = row(same, same)
    assert (found.limited_by, found.doubled) == (limited_by, doubled)


def test_a_configuration_that_would_not_exist_any_more_is_said():
    assert "not make" in row(limited(), None).doubled


LIMITS = st.none() | st.sampled_from([limit for limit in WORDS if limit])


@given(patch=LIMITS, batch=LIMITS, width=LIMITS)
def test_twice_the_memory_is_planned_with_what_the_time_decided(patch, batch, width):
    now = limited_like(Limits(patch=patch, batch=batch, width=width))
    asked = []

    def make(options):
        asked.append(options)
        return plan(options, it=now, other=now)

    found = with_double_memory(plan(it=now, gone=now), make)
    assert list(found) == ["it"]
    assert len(asked) == 1
    assert asked[0].memory_bytes == 8 * GIB
    assert asked[0].patch_limit == (math.prod(now.patch_size) if patch == "time" else None)
    assert asked[0].batch_limit == (now.batch_size if batch == "time" else None)
    assert (asked[0].base_features == now.network.features[0]) == (width == "time")


def rows(count):
    names = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")[:count]
    each = limited((128, 128, 128), patch="memory", batch="minimum")
    larger = limited((160, 160, 128), 3)
    return explain(plan(**dict.fromkeys(names, each)), dict.fromkeys(names, larger), dict.fromkeys(names, 1e6))


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_table_fits_the_width_and_cuts_no_value(width, count):
    text = explanation(rows(count), width, "8.0 GB")
    assert max(map(len, text.splitlines())) <= width
    assert text.isascii()
    assert text.count("128x128x128") >= 2 * count
    for value in ("3.0/4.0 GB", "250 ms", "12 days", "1.00x0.50x0.50"):
        assert text.count(value) == count
    unwrapped = " ".join(text.split())
    assert unwrapped.count("with 8.0 GB: patch 128x128x128 -> 160x160x128, batch 2 -> 3") == count


def test_wide_terminals_show_a_row_for_each_configuration_and_narrow_ones_a_column():
    wide, narrow = explanation(rows(4), 140, "8.0 GB").splitlines(), explanation(rows(4), 80, "8.0 GB").splitlines()
    assert " ".join(wide[0].split()) == "patch batch stages features spacing mm memory step whole run"
    assert wide[4].startswith("3d_cascade_fullres")
    assert "128x128x128" in wide[4]
    assert narrow[0].split() == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    assert narrow[1].split() == ["patch", *["128x128x128"] * 4]
