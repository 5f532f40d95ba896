"""Laws of the planner, its agreement with nnU-Net, and what it refuses."""

from __future__ import annotations

import gzip
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autounet.planning import CONFIGURATIONS, PRESETS, plan, validate
from autounet.planning.memory import convolution_outputs
from autounet.planning.spacing import ENOUGH_CONTEXT, find_grid, find_topology, target_spacing
from autounet.schema.dataset import ChannelKind
from autounet.schema.errors import AutoUNetError, OptionError, PlanError
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import GIB, MIRRORED_STEPS, PlannerOptions, RunOptions, TrainOptions
from autounet.schema.plan import NetworkSpec, Plan
from autounet.schema.run import DeviceProfile
from autounet.workflow import defaults as recipes

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
LABELS = Labels(classes=tuple(LabelClass(name=f"class {value}", value=value) for value in range(3)))


def make_fingerprint(
    shape: tuple[int, int, int] = (36, 50, 35),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    cases: int = 20,
    cropped: tuple[int, int, int] | None = None,
    orientation: str = "ras",
    channels: tuple[ChannelFingerprint, ...] = (ChannelFingerprint(name="MRI", kind=ChannelKind.mri),),
) -> Fingerprint:
    return Fingerprint(
        dimension=2 if shape[0] == 1 else 3,
        orientation=orientation,
        channels=channels,
        cases=tuple(
            CaseFingerprint(
                identifier=f"case {index}",
                content_hash="",
                shape=shape,
                cropped_shape=cropped or shape,
                spacing=spacing,
                voxels=(1, 1, 1),
            )
            for index in range(cases)
        ),
    )


def synthetic_measure(spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
    """Grows with voxels, batch, width and input channels, beside a constant for the weights."""
    return 1000 * sum(spec.features) + math.prod(patch) * batch * (60 * spec.features[0] + 8 * spec.in_channels)


def make_plan(fingerprint: Fingerprint, labels: Labels = LABELS, **options: object) -> Plan:
    return plan(fingerprint, labels, PlannerOptions(**options), TrainOptions())  # type: ignore[arg-type]


@st.composite
def fingerprints(draw: Callable) -> Fingerprint:
    flat = draw(st.booleans())
    shape = tuple(draw(st.integers(16, 400)) for _ in range(3))
    spacing = tuple(round(draw(st.floats(0.2, 5)), 3) for _ in range(3))
    return make_fingerprint((1, *shape[1:]) if flat else shape, spacing, draw(st.integers(1, 40)))


@settings(deadline=None, max_examples=40)
@given(
    fingerprint=fingerprints(),
    gigabytes=st.sampled_from([2, 8, 40]),
    base=st.sampled_from([8, 32]),
    limit=st.sampled_from([None, 1, 3]),
    family=st.sampled_from(["plain", "residual"]),
)
def test_laws(fingerprint: Fingerprint, gigabytes: int, base: int, limit: int | None, family: str) -> None:
    options = {"memory_bytes": gigabytes * GIB, "base_features": base, "batch_limit": limit, "family": family}
    made = make_plan(fingerprint, **options)
    assert made == make_plan(fingerprint, **options)
    validate(made, fingerprint, LABELS)
    assert Plan.model_validate(json.loads(made.model_dump_json())) == made
    assert_laws(made, fingerprint, limit)
    for configuration in made.configurations.values():
        assert configuration.network.features[0] == base
        assert configuration.network.family == family


def reasons_of(made: Plan, name: str | None) -> str:
    """Those of one configuration, or of all configurations, a line each."""
    return "\n".join(reason.text for reason in made.reasons if reason.configuration == name)


def assert_laws(made: Plan, fingerprint: Fingerprint, limit: int | None = None) -> None:
    """Divisible, not larger than the image rounded up, within memory; and which configurations there are."""
    names = tuple(made.configurations)
    volumes = () if find_grid(fingerprint).median[0] == 1 else ("3d_fullres",)
    slices_too_small = "not planned" in reasons_of(made, "2d")
    possible = (("2d", *volumes), CONFIGURATIONS)
    assert names in (tuple(each[1:] for each in possible) if slices_too_small else possible)
    for name, configuration in made.configurations.items():
        network, patch = configuration.network, configuration.patch_size
        median = configuration.median_shape[-network.dims :]
        for length, step, whole in zip(patch, network.divisor, median, strict=True):
            assert length % step == 0
            assert length <= math.ceil(whole / step) * step
        assert configuration.batch_size >= min(2, limit or 2)
        assert limit is None or configuration.batch_size <= limit
        assert configuration.predicted_memory_bytes <= made.options.memory_bytes
        assert len(network.features) >= 2
        handed = LABELS.count - 1 if name == "3d_cascade_fullres" else 0
        assert network.in_channels == len(fingerprint.channels) + handed
        assert configuration.previous_stage == ("3d_lowres" if handed else None)
        assert reasons_of(made, name)
    assert_cascade(made, np.prod(find_grid(fingerprint).median, dtype=np.float64))


def assert_cascade(made: Plan, voxels: float) -> None:
    """`voxels` of the median image at full resolution."""
    fullres = made.configurations.get("3d_fullres")
    if "3d_lowres" not in made.configurations:
        assert fullres is None or not fullres.batch_dice
        return
    lowres, cascade = made.configurations["3d_lowres"], made.configurations["3d_cascade_fullres"]
    assert fullres is not None
    coarser = np.divide(lowres.spacing, fullres.spacing)
    assert min(coarser) >= 1
    assert np.prod(coarser) >= 2
    assert math.prod(lowres.patch_size) >= ENOUGH_CONTEXT * voxels / np.prod(coarser) * (1 - 1e-9)
    assert (fullres.batch_dice, lowres.batch_dice, cascade.batch_dice) == (True, False, True)
    assert cascade.preprocess == fullres.preprocess
    assert cascade.prepared == fullres.prepared == "3d_fullres"


def test_golden_plan_of_task04() -> None:
    fingerprint = Fingerprint.load(GOLDEN / "task04_fingerprint.json")
    made = make_plan(fingerprint, preset="nnunet")
    assert json.loads(made.model_dump_json()) == json.loads(Plan.load(GOLDEN / "task04_plan.json").model_dump_json())
    volume, slices = made.configurations["3d_fullres"], made.configurations["2d"]
    assert (volume.patch_size, volume.batch_size) == ((40, 56, 40), 9)
    assert volume.network.features == (32, 64, 128, 256)
    assert (slices.patch_size, slices.batch_size) == ((56, 40), 366)


def test_presets_equal_nnunets_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of four planners of nnU-Net 2.8.1; benchmarks/planning_parity.py --save made the file."""
    monkeypatch.syspath_prepend(HERE.parent / "benchmarks")
    compare = importlib.import_module("planning_parity").compare
    pairs = json.loads(gzip.decompress((GOLDEN / "nnunet_plans.json.gz").read_bytes()))
    assert len(pairs) >= 200
    made: dict[str, int] = {}
    for index, (question, answer) in enumerate(pairs):
        assert set(answer) == set(PRESETS)
        for preset, expected in answer.items():
            assert not compare(question, preset, expected), index
            for name in expected:
                made[name] = made.get(name, 0) + 1
    assert set(made) == set(CONFIGURATIONS)
    assert made["3d_cascade_fullres"] >= 100


LARGE = (400, 512, 512)
"""voxels; a patch for 8 GB sees far less than a quarter"""


def test_large_images_get_a_cascade() -> None:
    fingerprint = make_fingerprint(LARGE, (1.0, 0.8, 0.8))
    made = make_plan(fingerprint)
    assert tuple(made.configurations) == CONFIGURATIONS
    assert_laws(made, fingerprint)
    assert "spacing" in reasons_of(made, "3d_lowres")
    assert "3d_lowres" not in make_plan(make_fingerprint((64, 64, 64))).configurations


def test_a_cascade_alone_brings_its_previous_stage() -> None:
    made = make_plan(make_fingerprint(LARGE), configurations=("3d_cascade_fullres",))
    assert tuple(made.configurations) == ("3d_lowres", "3d_cascade_fullres")
    assert made.configurations["3d_cascade_fullres"].prepared == "3d_fullres"
    assert "planned too" in reasons_of(made, "3d_lowres")
    alone = make_plan(make_fingerprint(LARGE), configurations=("3d_lowres",))
    assert alone.configurations == {"3d_lowres": made.configurations["3d_lowres"]}


@pytest.mark.parametrize("name", ["3d_lowres", "3d_cascade_fullres"])
@pytest.mark.parametrize(
    ("shape", "words"),
    [((64, 64, 64), "at least a quarter"), ((1, 64, 64), "two-dimensional"), ((210, 210, 210), "too similar")],
)
def test_a_cascade_is_refused_where_the_rules_make_none(name: str, shape: tuple, words: str) -> None:
    with pytest.raises(PlanError, match=f"{name} cannot be planned: .*{words}"):
        make_plan(make_fingerprint(shape), configurations=(name,))


def test_a_cascade_keeps_to_the_budget_with_its_further_channels() -> None:
    """Here the segmentation's channels cost so much that 3d_fullres's batch no longer fits."""

    def measure(spec: NetworkSpec, patch: tuple[int, ...], batch: int) -> int:
        return math.prod(patch) * batch * 100 * spec.in_channels

    fingerprint = make_fingerprint(LARGE)
    options = PlannerOptions(memory_bytes=2 * 100 * 100**3)
    made = plan(fingerprint, LABELS, options, TrainOptions(), None, measure)
    assert_laws(made, fingerprint)
    cascade, fullres = made.configurations["3d_cascade_fullres"], made.configurations["3d_fullres"]
    assert math.prod(cascade.patch_size) < math.prod(fullres.patch_size)
    assert "would exceed" in reasons_of(made, "3d_cascade_fullres")


@pytest.mark.parametrize(("bytes_", "warned"), [(20 * GIB, True), (GIB, False)])
def test_a_preset_reports_the_measured_peak_and_keeps_its_plan(bytes_: int, warned: bool) -> None:
    fingerprint = make_fingerprint(orientation="as_stored")
    options = PlannerOptions(preset="residual-m")
    nominal = plan(fingerprint, LABELS, options, TrainOptions())
    traced = plan(fingerprint, LABELS, options, TrainOptions(), None, lambda spec, patch, batch: bytes_)
    for name, configuration in traced.configurations.items():
        assert configuration.predicted_memory_bytes == bytes_
        assert configuration.key == nominal.configurations[name].key
        assert configuration.network.family == "residual"
    assert all(("more than the nominal" in reasons_of(traced, name)) == warned for name in traced.configurations)


def test_presets_bring_their_memory_and_family() -> None:
    profile = DeviceProfile(
        device="cpu", name="a machine", cores=2, memory_bytes=2 * GIB, precision="fp32", channels_last=False
    )
    made = {preset: recipes.planner_options(RunOptions(preset=preset), profile) for preset in PRESETS}
    assert [options.memory_bytes // GIB for options in made.values()] == [8, 8, 24, 40]
    assert [options.family for options in made.values()] == ["plain", "residual", "residual", "residual"]
    assert recipes.planner_options(RunOptions(preset="nnunet", memory_bytes=GIB), profile).memory_bytes == GIB
    recipes.check_options(RunOptions(preset="residual-l", family="residual"))
    with pytest.raises(OptionError, match="family residual"):
        recipes.check_options(RunOptions(preset="residual-l", family="plain"))


def test_anisotropic_axis_takes_its_tenth_percentile() -> None:
    spacings = np.array([[5.0 + step, 1.0, 1.0] for step in range(11)])
    sizes = np.full((11, 3), (10, 200, 200))
    target, reasons = target_spacing(spacings, sizes)
    assert target.tolist() == [6.0, 1.0, 1.0]
    assert "10th percentile" in reasons[0].text
    assert target_spacing(spacings, np.full((11, 3), 200))[0].tolist() == [10.0, 1.0, 1.0]


def test_axis_of_largest_spacing_comes_first() -> None:
    fingerprint = make_fingerprint((256, 300, 20), (1.0, 1.0, 6.0))
    made = make_plan(fingerprint)
    volume, slices = made.configurations["3d_fullres"], made.configurations["2d"]
    assert volume.preprocess.transpose == (2, 0, 1)
    assert volume.preprocess.spacing == (6.0, 1.0, 1.0)
    assert slices.preprocess.spacing == (None, 1.0, 1.0)
    assert slices.median_shape == (20, 256, 300)
    assert volume.network.kernel_sizes[0] == (1, 3, 3)
    assert volume.network.strides[1] == (1, 2, 2)
    assert "reordered" in reasons_of(made, None)


def test_photographs_are_never_turned() -> None:
    made = make_plan(make_fingerprint((1, 100, 90), (1.0, 2.0, 3.0)))
    assert made.configurations["2d"].preprocess.transpose == (0, 1, 2)
    assert made.configurations["2d"].preprocess.spacing == (None, 2.0, 3.0)


def test_topology_halves_what_is_large_and_fine() -> None:
    found = find_topology((3.0, 1.0, 1.0), (16, 128, 128))
    assert found.strides[:3] == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert found.kernel_sizes[:2] == ((1, 3, 3), (3, 3, 3))
    assert found.kernel_sizes[-1] == (3, 3, 3)
    assert all(length // step >= 4 for length, step in zip(found.patch, found.divisor, strict=True))
    assert find_topology((1.0, 1.0), (7.5, 7.0)).strides == ((1, 1),)


def test_spacing_scale_leaves_pictures_one_slice() -> None:
    made = make_plan(make_fingerprint((1, 600, 500)), spacing_scale=2.0)
    assert made.configurations["2d"].preprocess.spacing == (None, 2.0, 2.0)
    assert made.configurations["2d"].median_shape == (1, 300, 250)


def test_spacing_scale_makes_images_smaller() -> None:
    fingerprint = make_fingerprint((100, 100, 100))
    fine = make_plan(fingerprint).configurations["3d_fullres"]
    coarse = make_plan(fingerprint, spacing_scale=2.0).configurations["3d_fullres"]
    assert coarse.preprocess.spacing == (2.0, 2.0, 2.0)
    assert coarse.median_shape == (50, 50, 50)
    assert fine.median_shape == (100, 100, 100)


def test_options_reach_the_configurations() -> None:
    profile = DeviceProfile(
        device="cpu", name="a machine", cores=2, memory_bytes=1, precision="bf16", channels_last=True
    )
    options = PlannerOptions(overlap=0.25, mirror=False, configurations=("3d_fullres",))
    made = plan(make_fingerprint(), LABELS, options, TrainOptions(), profile)
    (configuration,) = made.configurations.values()
    assert configuration.precision == "bf16"
    assert configuration.channels_last
    assert configuration.mirror_axes == (0, 1, 2)
    assert configuration.inference.mirror_axes == ()
    assert configuration.inference.overlap == 0.25


def test_samples_that_are_not_mirrored_are_not_predicted_so_either() -> None:
    labels = LABELS.model_copy(update={"pairs": (("class 1", "class 2"),)})
    for known in (LABELS, labels):
        made = plan(make_fingerprint(), known, PlannerOptions(mirror_samples=False), TrainOptions())
        for name, each in made.configurations.items():
            assert (each.mirror_axes, each.inference.mirror_axes, each.swap_axis) == ((), (), None)
            assert "nothing is mirrored in fewer than" in reasons_of(made, name)


def test_few_steps_are_not_mirrored_but_with_a_preset_or_a_model() -> None:
    profile = DeviceProfile(
        device="cpu", name="a machine", cores=2, memory_bytes=2**33, precision="fp32", channels_last=False
    )

    def mirrored(**options: object) -> bool:
        return recipes.planner_options(RunOptions(**options), profile).mirror_samples

    assert not mirrored(iterations=MIRRORED_STEPS - 1)
    assert not mirrored(epochs=2)
    assert mirrored(iterations=MIRRORED_STEPS)
    assert mirrored()
    assert mirrored(iterations=9, preset="nnunet")


def test_left_and_right_classes_change_places_in_a_mirror() -> None:
    labels = LABELS.model_copy(update={"pairs": (("class 1", "class 2"),)})
    made = make_plan(make_fingerprint((100, 90, 20), (1.0, 1.0, 6.0)), labels)
    assert made.configurations["3d_fullres"].preprocess.transpose == (2, 0, 1)
    volume, slices = made.configurations["3d_fullres"], made.configurations["2d"]
    assert (volume.mirror_axes, volume.swap_axis, volume.inference.mirror_axes) == ((0, 1, 2), 0, (0, 1, 2))
    assert (slices.mirror_axes, slices.swap_axis) == ((0, 1), None)  # no slice shows both sides
    assert "mirrored from left to right, class 1 and class 2 change places" in reasons_of(made, "3d_fullres")
    assert make_plan(make_fingerprint(), labels).configurations["2d"].swap_axis == 1


def test_where_left_is_not_known_that_axis_is_left_out() -> None:
    labels = LABELS.model_copy(update={"pairs": (("class 1", "class 2"),)})
    pictures = make_fingerprint().model_copy(update={"oriented": False})
    configuration = make_plan(pictures, labels).configurations["2d"]
    assert (configuration.mirror_axes, configuration.swap_axis) == ((0,), None)
    preset = make_plan(make_fingerprint(orientation="as_stored"), labels, preset="nnunet")
    assert preset.configurations["2d"].mirror_axes == (0, 1)
    assert preset.configurations["2d"].swap_axis is None
    assert "as nnU-Net does, although" in reasons_of(preset, "2d")


STATISTICS = {"mean": 40.0, "std": 0.0, "percentile_00_5": -50.0, "percentile_99_5": 200.0}


@pytest.mark.parametrize(
    ("channel", "cropped", "expected"),
    [
        ({"kind": "ct", **STATISTICS}, None, {"scheme": "ct", "lower": -50.0, "upper": 200.0, "std": 1e-8}),
        ({"kind": "ct"}, None, {"scheme": "zscore"}),
        ({"kind": "mri"}, None, {"scheme": "zscore", "nonzero_only": False}),
        ({"kind": "mri"}, (20, 40, 30), {"scheme": "zscore", "nonzero_only": True}),
        ({"kind": "photo", "maximum": 200.0}, None, {"scheme": "unit", "upper": 255.0}),
        ({"kind": "photo", "maximum": 4000.0}, None, {"scheme": "unit", "upper": 65535.0}),
        ({"kind": "photo", "maximum": 0.9}, None, {"scheme": "unit", "upper": 1.0}),
    ],
)
def test_normalisation_follows_the_kind(channel: dict, cropped: tuple | None, expected: dict) -> None:
    fingerprint = make_fingerprint(channels=(ChannelFingerprint(name="a", **channel),), cropped=cropped)
    (scheme,) = make_plan(fingerprint).configurations["3d_fullres"].preprocess.normalisation
    assert expected.items() <= scheme.model_dump().items()


def test_proxy_counts_every_convolution_output() -> None:
    network = make_plan(make_fingerprint(), base_features=8).configurations["3d_fullres"].network
    network = network.model_copy(
        update={
            "features": (8, 16),
            "strides": ((1, 1, 1), (2, 2, 2)),
            "kernel_sizes": ((3, 3, 3),) * 2,
            "encoder_blocks": (2, 2),
            "decoder_blocks": (2,),
        }
    )
    assert convolution_outputs(network, (4, 4, 4), 3) == 64 * (8 * 2 + 8 * 3 + 3) + 8 * 16 * 2
    residual = network.model_copy(update={"family": "residual", "decoder_blocks": (1,)})
    assert convolution_outputs(residual, (4, 4, 4), 3) == 64 * (8 * 5 + 8 * 2 + 3) + 8 * 16 * 5


def test_a_measure_decides_when_it_is_given() -> None:
    def measure(spec: object, patch: tuple[int, ...], batch: int) -> int:
        return 1000 * math.prod(patch) * batch

    fingerprint = make_fingerprint((64, 64, 64), cases=1000)
    options = PlannerOptions(memory_bytes=1000 * 64**3 * 7, configurations=("3d_fullres",))
    made = plan(fingerprint, LABELS, options, TrainOptions(), None, measure)
    configuration = made.configurations["3d_fullres"]
    assert (configuration.patch_size, configuration.batch_size) == ((64, 64, 64), 7)
    assert configuration.predicted_memory_bytes == 1000 * 64**3 * 7


EXTREME_SHAPES = [(1500, 2000, 1), (1, 256, 256), (256, 256, 2), (1, 2, 2), (1, 1, 4), (2000, 2000, 2000)]
extremes = st.builds(
    make_fingerprint,
    shape=st.sampled_from(EXTREME_SHAPES) | st.tuples(*[st.integers(1, 3000)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.01, 0.3, 1.0, 50.0]) | st.floats(0.01, 50)] * 3),
    cases=st.integers(1, 500),
)


@settings(deadline=None, max_examples=30)
@given(fingerprint=extremes, gigabytes=st.sampled_from([1, 8, 80]), measured=st.booleans())
@example(make_fingerprint((1500, 2000, 1)), 8, False)
@example(make_fingerprint((256, 256, 2), (50.0, 50.0, 0.01)), 8, True)
@example(make_fingerprint((1, 2, 2)), 8, False)
@example(make_fingerprint((1, 1, 4)), 8, True)
@example(make_fingerprint((2000, 2000, 2000), (0.01, 0.01, 50.0)), 80, True)
@example(make_fingerprint((1500, 2000, 1), (0.3, 0.3, 0.01), cases=168), 80, True)
@example(make_fingerprint((35, 148, 1), (0.3, 38.0, 2.0), cases=11), 1, False)
def test_any_data_set_is_planned_or_refused(fingerprint: Fingerprint, gigabytes: int, measured: bool) -> None:
    options = PlannerOptions(memory_bytes=gigabytes * GIB)
    refused = ""
    try:
        made = plan(fingerprint, LABELS, options, TrainOptions(), None, synthetic_measure if measured else None)
        validate(made, fingerprint, LABELS)
        assert_laws(made, fingerprint)
    except PlanError as error:
        refused = str(error)
    assert not refused or "too small" in refused or "no patch fits" in refused


def test_spacings_that_leave_no_voxel_are_refused() -> None:
    fine = make_fingerprint((4, 4, 4), (0.01, 0.01, 0.01), cases=2)
    coarse = make_fingerprint((4, 4, 4), (50.0, 50.0, 50.0), cases=1)
    with pytest.raises(PlanError, match="differ too much"):
        make_plan(fine, spacing_scale=100.0)
    with pytest.raises(PlanError, match="too small"):
        make_plan(coarse)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"family": "none"}, OptionError, "plain"),
        ({"configurations": ("4d",)}, OptionError, "3d_fullres"),
        ({"memory_bytes": 1000}, PlanError, "--memory"),
        ({"preset": "nnunet"}, PlanError, "orientation"),
    ],
)
def test_refusals(options: dict, error: type[AutoUNetError], words: str) -> None:
    with pytest.raises(error, match=words):
        make_plan(make_fingerprint(), **options)


def test_a_family_is_planned_where_it_exists() -> None:
    assert tuple(make_plan(make_fingerprint(), family="unet3d").configurations) == ("3d_fullres",)
    with pytest.raises(PlanError, match="three-dimensional only"):
        make_plan(make_fingerprint((1, 64, 64)), family="unet3d")


def test_volumes_are_refused_for_pictures() -> None:
    with pytest.raises(PlanError, match="two-dimensional"):
        make_plan(make_fingerprint((1, 64, 64)), configurations=("3d_fullres",))


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"patch_size": (40, 60, 40)}, "40 x 56 x 40 and 40 x 64 x 40"),
        ({"patch_size": (3, 56, 40)}, "8 x 56 x 40"),
        ({"mirror_axes": (3,)}, "mirror_axes"),
        ({"network": {"in_channels": 2}}, "1 channels"),
        ({"network": {"out_channels": 5}}, "3 classes"),
        ({"network": {"family": "none"}}, "family"),
        ({"network": {"options": {"unknown": 1}}}, "unknown"),
        ({"network": {"kernel_sizes": ((2, 3, 3),) * 4}}, "odd"),
        ({"preprocess": {"transpose": (0, 0, 1)}}, "transpose"),
        ({"preprocess": {"spacing": (1.0, -1.0, 1.0)}}, "greater than 0"),
        ({"preprocess": {"normalisation": ()}}, "normalisation"),
    ],
)
def test_edited_plans_are_checked(update: dict, words: str) -> None:
    fingerprint = make_fingerprint()
    made = make_plan(fingerprint)
    configuration = made.configurations["3d_fullres"]
    for field, value in update.items():
        inner = value if not isinstance(value, dict) else getattr(configuration, field).model_copy(update=value)
        configuration = configuration.model_copy(update={field: inner})
    edited = made.model_copy(update={"configurations": {"3d_fullres": configuration}})
    with pytest.raises(PlanError, match=words):
        validate(edited, fingerprint, LABELS)


def test_planning_loads_no_torch() -> None:
    code = "import sys, autounet.planning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


WIDE = make_fingerprint((400, 400, 400), (0.8, 0.8, 0.8), cases=10)


def test_a_given_grid_of_the_coarse_configuration_is_kept_with_a_smaller_network() -> None:
    whole = make_plan(WIDE, memory_bytes=4 * GIB).configurations
    coarse = whole["3d_lowres"].preprocess.spacing
    small = make_plan(WIDE, memory_bytes=40 * GIB, base_features=8, lowres_spacing=coarse)
    assert small.configurations["3d_lowres"].preprocess == whole["3d_lowres"].preprocess
    assert small.configurations["3d_lowres"].median_shape == whole["3d_lowres"].median_shape
    assert "3d_cascade_fullres" in small.configurations


def test_slices_too_small_for_a_network_leave_the_volumes() -> None:
    made = make_plan(make_fingerprint((256, 6, 6)))
    assert list(made.configurations) == ["3d_fullres"]
    assert "not planned" in reasons_of(made, "2d")
    with pytest.raises(PlanError, match="too small for a U-Net"):
        make_plan(make_fingerprint((256, 6, 6)), configurations=("2d",))


def test_the_cascade_says_why_it_uses_less_than_its_budget() -> None:
    def said(shape: tuple[int, int, int]) -> bool:
        made = make_plan(make_fingerprint(shape, cases=10), memory_bytes=80 * GIB)
        assert "3d_cascade_fullres" in made.configurations
        return "of the budget is left, since" in reasons_of(made, "3d_cascade_fullres")

    assert said((2000, 64, 64))
    assert not said((600, 600, 600))


def test_a_preset_counts_the_entries_of_labels_as_nnunet_does() -> None:
    """Of OpenKBP, whose dataset.json lists five organs and no background, nnU-Net 2.8.1 plans `2d` with batch 197."""
    organs = Labels(classes=tuple(LabelClass(name=str(value), value=value) for value in range(6)), entries=5)
    fingerprint = make_fingerprint((128, 128, 128), (2.0, 3.0, 3.0), 40, orientation="as_stored")
    batches = {
        entries: make_plan(fingerprint, organs.model_copy(update={"entries": entries}), preset="nnunet")
        for entries in (5, 6, None)
    }
    assert batches[6] == batches[None]
    flat = {entries: made.configurations["2d"].batch_size for entries, made in batches.items()}
    assert flat[5] > flat[6]
