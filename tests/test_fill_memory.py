"""Laws of the search that fills a memory budget."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from autounet.nets import FAMILIES
from autounet.nets.family import divisible_size
from autounet.planning import fill_memory
from autounet.planning.fill_memory import MOST_WIDTH, WELL_USED, WIDTH, MemoryFillingSearch
from autounet.planning.memory import MeasuredMemory, convolution_outputs
from autounet.planning.search import LARGEST_SHARE, SearchInputs, SearchResult, start_topology
from autounet.planning.spacing import Topology
from autounet.schema.errors import PlanError
from autounet.schema.options import GIB
from autounet.schema.plan import NetworkSpec


def propose(topology: Topology, width: int) -> NetworkSpec:
    plain = FAMILIES["plain"].propose
    return plain(len(topology.patch), 1, 3, topology.strides, topology.kernel_sizes, width, True)


def weights(spec: NetworkSpec) -> int:
    """Of the convolutions of the plain U-Net."""
    inputs, total = spec.in_channels, 0
    for features, kernel, blocks in zip(spec.features, spec.kernel_sizes, spec.encoder_blocks, strict=True):
        total += math.prod(kernel) * features * (inputs + (blocks - 1) * features)
        inputs = features
    for stage in range(len(spec.decoder_blocks)):
        features = spec.features[stage]
        total += features * spec.features[stage + 1] * math.prod(spec.strides[stage + 1])
        total += 3 * math.prod(spec.kernel_sizes[stage]) * features**2
    return total


def training_bytes(spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
    """Two numbers kept per output in float32; weights with gradient, two moments and a copy; what a context takes."""
    return 8 * batch * convolution_outputs(spec, patch, 3) + 16 * weights(spec) + 300 * 2**20


def make_inputs(edges: list[int], spacing: list[float], cases: int = 20) -> SearchInputs:
    median = np.array(edges, dtype=float)
    voxels = float(np.prod(median)) * cases
    return SearchInputs("2d" if len(edges) == 2 else "3d_fullres", np.array(spacing), median, voxels, 2, None)


def find(inputs: SearchInputs, budget: int, width: int | None = None) -> SearchResult:
    return MemoryFillingSearch(
        inputs, MeasuredMemory(budget, training_bytes), propose, divisible_size, budget, width
    ).find()


@st.composite
def search_inputs(draw: st.DrawFn) -> SearchInputs:
    dims = draw(st.sampled_from([2, 3]))
    edges = [draw(st.integers(12, 400 if dims == 3 else 3000)) for _ in range(dims)]
    spacing = [round(draw(st.floats(0.3, 5)), 2) for _ in range(dims)]
    return make_inputs(edges, spacing, draw(st.integers(1, 100)))


def found_or_skip(inputs: SearchInputs, budget: int, width: int | None = None) -> SearchResult:
    try:
        return find(inputs, budget, width)
    except PlanError:
        assume(False)
        raise


@settings(deadline=None, max_examples=80)
@given(inputs=search_inputs(), gigabytes=st.floats(2, 80))
def test_a_budget_is_filled_and_never_exceeded_or_the_data_are_too_small(
    inputs: SearchInputs, gigabytes: float
) -> None:
    budget = int(gigabytes * GIB)
    found = found_or_skip(inputs, budget)
    assert found.memory_bytes == training_bytes(found.network, found.patch, found.batch) <= budget
    assert found.batch >= inputs.minimum_batch
    assert all(length % step == 0 for length, step in zip(found.patch, found.network.divisor, strict=True))
    assert all(length <= most for length, most in zip(found.patch, start_topology(inputs).patch, strict=True))
    assert found.batch <= max(2, round(inputs.voxels * LARGEST_SHARE / math.prod(found.patch)))
    if found.memory_bytes < WELL_USED * budget:
        assert found.network.features[0] in (WIDTH, MOST_WIDTH)
        small = found.network.features[0] == WIDTH
        assert any(("too small to use more" if small else "the most") in reason.text for reason in found.reasons)
        assert not (small and "memory" in found.limited_by.model_dump().values())


@settings(deadline=None, max_examples=80)
@given(inputs=search_inputs(), gigabytes=st.floats(1, 80))
def test_patches_that_cannot_win_are_not_asked_for_which_changes_nothing(
    inputs: SearchInputs, gigabytes: float
) -> None:
    """As without the rule, by the bytes of whole steps: fewer of them are traced."""
    budget = int(gigabytes * GIB)
    found, asked = [], []
    for share in (fill_memory.LEAST_SHARE, 0.0):
        steps: list[tuple[int, ...]] = []

        def measure(spec: NetworkSpec, patch: tuple[int, ...], batch: int, steps: list = steps) -> int:
            steps.append((*patch, batch))
            return training_bytes(spec, patch, batch)

        memory = MeasuredMemory(budget, measure, constant=300 * 2**20)
        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(fill_memory, "LEAST_SHARE", share)
            try:
                search = MemoryFillingSearch(inputs, memory, propose, divisible_size, budget, None)
                found.append(search.find())
            except PlanError:
                assume(False)
        asked.append(set(steps))
    assert found[0] == found[1]
    assert asked[0] <= asked[1]


def test_a_batch_that_only_the_data_limit_asks_for_no_smaller_patch() -> None:
    """Hippocampus: the largest patch holds 9 samples, and the smaller ones would need twice the memory of its 2."""
    inputs = make_inputs([36, 50, 35], [1, 1, 1], cases=260)
    asked: list[tuple[int, ...]] = []

    def measure(spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        asked.append((*patch, batch))
        return training_bytes(spec, patch, batch)

    memory = MeasuredMemory(8 * GIB, measure, constant=300 * 2**20)
    found = MemoryFillingSearch(inputs, memory, propose, divisible_size, 8 * GIB, None).find()
    assert {each[:-1] for each in asked} == {found.patch}


def test_what_a_smaller_patch_leaves_is_filled_by_width() -> None:
    """The next larger patch would hold fewer voxels: half of the budget would be idle with 32 features."""
    inputs = replace(make_inputs([49, 769], [1, 0.5]), voxels=2373903.0)
    found = find(inputs, 2 * GIB)
    assert found.patch == (48, 704)
    assert found.memory_bytes >= WELL_USED * 2 * GIB


@settings(deadline=None, max_examples=80)
@given(inputs=search_inputs(), gigabytes=st.floats(2, 60), factor=st.floats(1, 1.5))
@example(inputs=replace(make_inputs([1970, 208], [5, 0.5]), voxels=5326880.0), gigabytes=2, factor=1.5)
def test_more_memory_never_gives_a_smaller_patch_times_batch(
    inputs: SearchInputs, gigabytes: float, factor: float
) -> None:
    """Unless a larger patch's batch ends at its share of the data: whole batches of it may hold a few voxels less."""
    less, more = (
        found_or_skip(inputs, int(gigabytes * scale * GIB)) for scale in (1.0, factor)
    )  # fmt: skip
    before, after = math.prod(less.patch), math.prod(more.patch)
    share = round(inputs.voxels * LARGEST_SHARE / after)
    assert after * more.batch >= before * less.batch or (after > before and more.batch == max(2, share))


@settings(deadline=None, max_examples=30)
@given(inputs=search_inputs(), gigabytes=st.floats(2, 40))
def test_the_same_question_has_the_same_answer(inputs: SearchInputs, gigabytes: float) -> None:
    assert found_or_skip(inputs, int(gigabytes * GIB)) == find(inputs, int(gigabytes * GIB))


@settings(deadline=None, max_examples=30)
@given(inputs=search_inputs(), gigabytes=st.floats(2, 40), width=st.sampled_from([8, 16, 48]))
def test_a_given_width_is_kept(inputs: SearchInputs, gigabytes: float, width: int) -> None:
    assert found_or_skip(inputs, int(gigabytes * GIB), width).network.features[0] == width


def test_steps_of_the_budget_that_change_the_depth_stay_monotone() -> None:
    """Every budget in small steps, where greedily taking the larger patch would lose voxels."""
    inputs = make_inputs([300, 280, 120], [0.8, 0.8, 1.5])
    held = [math.prod(found.patch) * found.batch for found in (find(inputs, int(b * 2**27)) for b in range(10, 160))]
    assert held == sorted(held)
    assert len(set(held)) >= 20


def test_the_limits_given_win() -> None:
    inputs = replace(make_inputs([128, 128, 128], [1, 1, 1]), batch_limit=1, patch_limit=64**3)
    found = find(inputs, 8 * GIB)
    assert found.batch == 1
    assert math.prod(found.patch) <= 64**3
    assert (found.limited_by.patch, found.limited_by.batch) == ("option", "option")


def test_too_small_a_budget_names_the_remedy() -> None:
    with pytest.raises(PlanError, match="--memory"):
        find(make_inputs([128, 128, 128], [1, 1, 1]), 2**20)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(PlanError, match="too small for a U-Net"):
        find(make_inputs([4, 4, 4], [1, 1, 1]), GIB)


@given(
    st.integers(0, 50), st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(0, 1500), st.integers(0, 60)
)
def test_the_largest_batch_that_fits_is_found_with_any_growth(start, growth, budget, most):
    used = [start + sum(growth[:batch]) for batch in range(len(growth) + 1)]
    most = min(most, len(growth))
    memory = MeasuredMemory(budget, lambda spec, patch, batch: used[batch])
    network = FAMILIES["plain"].propose(2, 1, 3, [(1, 1), (2, 2)], [(3, 3)] * 2, 4)
    fitting = [batch for batch in range(1, most + 1) if used[batch] <= budget]
    assert memory.largest_batch(network, (8, 8), most) == max(fitting, default=0)
