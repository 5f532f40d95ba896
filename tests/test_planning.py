"""Laws of the planner, its agreement with nnU-Net, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autounet.planning import plan, validate
from autounet.planning.memory import convolution_outputs
from autounet.planning.spacing import find_grid, target_spacing
from autounet.planning.topology import find_topology
from autounet.schema.dataset import ChannelKind
from autounet.schema.errors import AutoUNetError, OptionError, PlanError
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.options import GIB, PlannerOptions, TrainOptions
from autounet.schema.plan import Plan
from autounet.schema.run import DeviceProfile

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
LABELS = Labels(classes=tuple(LabelClass(name=f"class {value}", value=value) for value in range(3)))


def make_fingerprint(
    shape: tuple[int, int, int] = (36, 50, 35),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    cases: int = 20,
    cropped: tuple[int, int, int] | None = None,
    orientation: str = "canonical",
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
)
def test_laws(fingerprint: Fingerprint, gigabytes: int, base: int, limit: int | None) -> None:
    options = {"memory_bytes": gigabytes * GIB, "base_features": base, "batch_limit": limit}
    made = make_plan(fingerprint, **options)
    assert made == make_plan(fingerprint, **options)
    validate(made, fingerprint, LABELS)
    assert Plan.model_validate(json.loads(made.model_dump_json())) == made
    grid = find_grid(fingerprint)
    assert set(made.configurations) == ({"2d"} if fingerprint.dimension == 2 else {"2d", "3d_fullres"})
    for configuration in made.configurations.values():
        network, patch = configuration.network, configuration.patch_size
        median = grid.median[-network.dims :]
        for length, step, whole in zip(patch, network.divisor, median, strict=True):
            assert length % step == 0
            assert length <= math.ceil(whole / step) * step
        assert configuration.batch_size >= min(2, limit or 2)
        assert limit is None or configuration.batch_size <= limit
        assert configuration.predicted_memory_bytes <= gigabytes * GIB
        assert len(network.features) >= 2
        assert network.features[0] == base


def test_golden_plan_of_task04() -> None:
    fingerprint = Fingerprint.load(GOLDEN / "task04_fingerprint.json")
    made = make_plan(fingerprint, preset="nnunet")
    assert json.loads(made.model_dump_json()) == json.loads(Plan.load(GOLDEN / "task04_plan.json").model_dump_json())
    volume, slices = made.configurations["3d_fullres"], made.configurations["2d"]
    assert (volume.patch_size, volume.batch_size) == ((40, 56, 40), 9)
    assert volume.network.features == (32, 64, 128, 256)
    assert (slices.patch_size, slices.batch_size) == ((56, 40), 366)


def parity_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", HERE.parent / "benchmarks" / "planning_parity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_preset_equals_nnunets_plans() -> None:
    """Answers of nnU-Net 2.8.1 to random data sets; benchmarks/planning_parity.py --save made the file."""
    script = parity_script()
    questions, answers = json.loads((GOLDEN / "nnunet_plans.json").read_text())
    different = {
        index: differences
        for index, (question, answer) in enumerate(zip(questions, answers, strict=True))
        if (differences := script.compare(question, answer))
    }
    assert not different
    assert len(answers) >= 100
    assert sum(answer is not None for answer in answers) >= 95


def test_anisotropic_axis_takes_its_tenth_percentile() -> None:
    spacings = np.array([[5.0 + step, 1.0, 1.0] for step in range(11)])
    sizes = np.full((11, 3), (10, 200, 200))
    target, reasons = target_spacing(spacings, sizes)
    assert target.tolist() == [6.0, 1.0, 1.0]
    assert "10th percentile" in reasons[0]
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
    assert any("reordered" in reason for reason in made.reasons)


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


def test_left_and_right_classes_are_not_mirrored_onto_each_other() -> None:
    labels = LABELS.model_copy(update={"pairs": (("class 1", "class 2"),)})
    made = make_plan(make_fingerprint((100, 90, 20), (1.0, 1.0, 6.0)), labels)
    assert made.configurations["3d_fullres"].preprocess.transpose == (2, 0, 1)
    assert made.configurations["3d_fullres"].mirror_axes == (1, 2)
    assert made.configurations["2d"].mirror_axes == (0, 1)
    made = make_plan(make_fingerprint(), labels)
    assert made.configurations["2d"].mirror_axes == (0,)


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


def test_a_measure_decides_when_it_is_given() -> None:
    def measure(spec: object, patch: tuple[int, ...], batch: int) -> int:
        return 1000 * math.prod(patch) * batch

    fingerprint = make_fingerprint((64, 64, 64), cases=1000)
    options = PlannerOptions(memory_bytes=1000 * 64**3 * 7, configurations=("3d_fullres",))
    made = plan(fingerprint, LABELS, options, TrainOptions(), None, measure)
    configuration = made.configurations["3d_fullres"]
    assert (configuration.patch_size, configuration.batch_size) == ((64, 64, 64), 7)
    assert configuration.predicted_memory_bytes == 1000 * 64**3 * 7


@pytest.mark.parametrize(
    "shape", [(1500, 2000, 1), (1, 256, 256), (256, 256, 2), (1, 2, 2), (1, 1, 4), (2000, 2000, 2000)]
)
@pytest.mark.parametrize("spacing", [(0.01, 0.01, 50.0), (1.0, 1.0, 1.0), (50.0, 50.0, 0.01)])
def test_extreme_data_are_planned_or_refused(shape: tuple, spacing: tuple) -> None:
    fingerprint = make_fingerprint(shape, spacing, cases=3)
    refused = ""
    try:
        validate(make_plan(fingerprint), fingerprint, LABELS)
    except PlanError as error:
        refused = str(error)
    assert not refused or "too small" in refused


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
