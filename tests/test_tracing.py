"""The memory model: laws of traced steps, hand-computed bytes, the allocators, the fallback, the calibration."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import configuration as small_configuration
from training_cases import labels

from autounet.memory_model import Margin, TrainingMemory, inference_memory, memory_margin, training_memory
from autounet.memory_model.estimates import tracing_works
from autounet.memory_model.measured_steps import StepSetting, saved_peak
from autounet.memory_model.peak import Event, alive_peak
from autounet.memory_model.traced import Trace, trace_forward, trace_step
from autounet.nets import FAMILIES
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, Fingerprint
from autounet.schema.options import TrainOptions
from autounet.schema.plan import NetworkSpec
from autounet.schema.run import DeviceProfile, MemoryCalibration, MemoryMargin
from autounet.step import Precision
from autounet.workflow import trial_steps as calibrating
from autounet.workflow.trial_steps import MemoryTrial, calibrated, calibration_file, fit_margin

LABELS = labels(3)
NO_MARGIN = Margin(0, 0.0)


def network(dims: int = 3, stages: int = 3, features: int = 4, family: str = "plain") -> NetworkSpec:
    ones, twos = (1,) * dims, (2,) * dims
    return FAMILIES[family].propose(dims, 1, 3, [ones, *[twos] * (stages - 1)], [(3,) * dims] * stages, features)


def memory(
    precision: str = "fp32", device: str = "cpu", channels_last: bool = False, **options: object
) -> TrainingMemory:
    return TrainingMemory(LABELS, TrainOptions(**options), precision, channels_last, device, NO_MARGIN)


def profile(**changes: object) -> DeviceProfile:
    given = {
        "device": "cpu", "name": "a machine", "cores": 2, "memory_bytes": 2**33, "precision": "bf16",
        "channels_last": True,
    }  # fmt: skip
    return DeviceProfile(**{**given, **changes})


SPEC = network()
MODEL = memory()
"""shared: a network is traced once"""


@settings(max_examples=15, deadline=None)
@given(patch=st.tuples(*[st.integers(2, 8)] * 3), batch=st.integers(1, 5), axis=st.integers(0, 2))
def test_more_voxels_or_samples_never_take_less(patch, batch, axis):
    size = tuple(4 * length for length in patch)
    larger = tuple(length + 4 * (index == axis) for index, length in enumerate(size))
    here = MODEL.traced(SPEC, size, batch)
    assert here <= MODEL.traced(SPEC, size, batch + 1)
    assert here <= MODEL.traced(SPEC, larger, batch)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_traced(family, device):
    spec, patch = network(3, 2, 4, family), (32, 32, 32)
    model = memory("bf16", device, True)
    assert model.traced_fully(spec, patch, 2) > 2 * 32**3 * 4
    assert model.method == "fake tensors"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_precision_and_optimiser(device):
    spec, patch = network(), (32, 32, 32)
    full = memory(device=device).traced_fully(spec, patch, 2)
    half = memory("bf16", device).traced_fully(spec, patch, 2)
    # the loss is float32 in both, and so are the weights
    assert 0.45 * full < half < 0.8 * full
    wide = network(features=32)
    sgd, adamw = (memory(optimiser=name).traced_fully(wide, (8, 8, 8), 2) for name in ("sgd", "adamw"))
    weights = sum(4 * each.numel() for each in FAMILIES["plain"].build(wide).parameters())
    assert adamw - sgd == pytest.approx(weights, rel=0.1)
    averaged = memory(ema_decay=0.9).traced_fully(wide, (8, 8, 8), 2)
    assert averaged - sgd == pytest.approx(weights, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gpu_is_played_without_one(precision, channels_last):
    """Same code and so same numbers wherever it runs; C++ must never be asked for a device that is not there."""
    found = memory(precision, "cuda", channels_last).traced_fully(SPEC, (16, 16, 16), 2)
    full = memory("fp32", "cuda").traced_fully(SPEC, (16, 16, 16), 2)
    assert found == full if precision == "fp32" and not channels_last else found <= 1.1 * full


def test_setup_is_what_stands_in_memory_by_hand():
    """Weights, two numbers each for AdamW and its step, image and labels: all of it, and nothing else."""
    options = TrainOptions(optimiser="adamw")
    trace = trace_step(SPEC, (8, 8, 8), 2, StepSetting(LABELS, options, Precision("fp32"), "cpu"))
    parameters = list(FAMILIES["plain"].build(SPEC).parameters())
    weights = sum(4 * each.numel() for each in parameters)
    expected = 3 * weights + 4 * len(parameters) + 2 * 8**3 * (4 + 2)
    assert sum(event.size for event in trace.setup) == expected
    assert sum(event.size for event in trace.step) == 0


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="torch's own follow the processor",
)
def test_bytes_are_those_of_torchs_own_fake_tensors():
    """The oracle: the same step under FakeTensorMode, with storages alive counted by weak references."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from autounet.losses import Batch
    from autounet.memory_model.measured_steps import step_loss
    from autounet.step import build_optimiser, train_step

    alive: dict[int, object] = {}
    bytes_now = [0, 0]

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                return True
            out = func(*args, **(kwargs or {}))
            for storage in [each.untyped_storage() for each in tree_leaves(out) if isinstance(each, torch.Tensor)]:
                if storage._cdata not in alive:
                    count(storage._cdata, storage)
            return out

    def count(key, storage):
        size = storage.nbytes()

        def ended(_):
            del alive[key]
            bytes_now[0] -= size

        alive[key] = weakref.ref(storage, ended)
        bytes_now[0] += size
        bytes_now[1] = max(bytes_now)

    options, precision = TrainOptions(optimiser="adamw"), Precision("bf16", True)
    spec = network(3, 3, 8)
    with torch.device("meta"):
        model = FAMILIES["plain"].build(spec).train()
    with FakeTensorMode(), Count():
        for part in model.modules():
            for name, each in part._parameters.items():
                layout = torch.channels_last_3d if each.ndim == 5 else torch.contiguous_format
                part._parameters[name] = torch.nn.Parameter(torch.empty(each.shape, memory_format=layout))
        optimiser, loss = build_optimiser(options, model.parameters()), step_loss(spec, LABELS, options)
        image = torch.empty((2, 1, 16, 16, 16), memory_format=torch.channels_last_3d)
        batch = Batch(image, torch.empty((2, 16, 16, 16), dtype=torch.int16))
        for _ in range(2):
            bytes_now[1] = 0
            train_step(model, loss, optimiser, None, batch, precision, 12.0)
    trace = trace_step(spec, (16, 16, 16), 2, StepSetting(LABELS, options, precision, "cpu"))
    # a few numbers, such as factors that Python code made, are counted by one and not by the other
    assert alive_peak([*trace.setup, *trace.step], rounding=1) == pytest.approx(bytes_now[1], rel=1e-3)


class _Square(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight) ** 2


def test_peak_of_three_products_by_hand():
    """x * w is kept for the square; the square, its gradient and the gradient of the product are alive together."""
    from autounet.memory_model.fake_tensors import fake_module, played

    with torch.device("meta"):
        module = _Square()
    with played("cpu") as recorder:
        model = fake_module(module, False)
        x = torch.empty(1000)
        before = sum(event.size for event in recorder.events)
        assert before == 8000
        total = model(x).sum()
        total.backward()
        after = sum(event.size for event in recorder.events)
        assert after == 8000 + 4000 + 4  # the gradient and the sum
    peak = alive_peak(recorder.events, rounding=1)
    # x, w, x * w, the square's factor, two gradients and one number at least; at most one array more
    assert 8000 + 3 * 4000 <= peak <= 8000 + 5 * 4000 + 16


@settings(max_examples=6, deadline=None)
@given(patch=st.tuples(*[st.integers(2, 7)] * 3), batch=st.integers(1, 4))
def test_scaled_traces_are_near_the_full_trace(patch, batch):
    size = tuple(4 * length for length in patch)
    assert MODEL.traced(SPEC, size, batch) == pytest.approx(MODEL.traced_fully(SPEC, size, batch), rel=0.03)


def test_scaled_traces_are_near_the_full_trace_in_2d():
    spec, model = network(2, 3, 8), memory("bf16", "cuda", True, optimiser="adamw")
    model.traced(spec, (64, 64), 2)
    for patch, batch in (((96, 32), 3), ((128, 128), 2), ((16, 16), 12)):
        assert model.traced(spec, patch, batch) == pytest.approx(model.traced_fully(spec, patch, batch), rel=0.03)


@pytest.mark.parametrize(("precision", "channels_last"), [("fp32", False), ("bf16", True)])
def test_narrower_networks_never_take_more_than_wider_ones_let_expect(precision, channels_last):
    model = memory(precision, "cpu", channels_last, optimiser="adamw")
    narrow = [network(features=width) for width in (8, 16, 24)]
    assert model.at_most(narrow[0], (32, 32, 32), 2) is None
    model.traced(network(features=32), (32, 32, 32), 2)
    assert model.at_most(network(features=36), (32, 32, 32), 2) is None
    assert model.at_most(network(stages=2, features=8), (32, 32, 32), 2) is None
    sizes = [((32, 32, 32), 2), ((16, 16, 16), 9), ((32, 32, 32), 5), ((48, 32, 16), 3)]
    limits = {(spec.digest(), *size): model.at_most(spec, *size) for spec in narrow for size in sizes}
    for spec in narrow:
        for size in sizes:
            assert model.traced_fully(spec, *size) <= limits[spec.digest(), *size]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_fallback_is_near(dims):
    spec, patch = network(dims, 3, 8), (128, 128) if dims == 2 else (32, 32, 32)
    setting = StepSetting(LABELS, TrainOptions(), Precision("fp32"), "cpu")
    trace = trace_step(spec, patch, 2, setting)
    alive = alive_peak([*trace.setup, *trace.step])
    assert saved_peak(spec, patch, 2, setting) == pytest.approx(alive, rel=0.2)


def test_the_fallback_takes_over_and_says_so(monkeypatch, caplog):
    def fails(*_: object) -> Trace:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("autounet.memory_model.traced.trace_step", fails)
    tracing_works.cache_clear()
    try:
        model = memory()
        assert model.traced(network(2, 2), (16, 16), 2) > 0
        assert model.method == "saved tensors"
        assert "no such thing" in caplog.text
        assert inference_memory(small_configuration(), fingerprint((8, 12, 8)), 3, "cpu", 4) is None
    finally:
        tracing_works.cache_clear()
    assert memory().method is None


def test_an_error_in_tracing_is_an_error(monkeypatch):
    """After the self-test nothing is caught: a wrong prediction would go unnoticed."""
    assert tracing_works()

    def fails(*_: object) -> Trace:
        raise TypeError("a bug")

    monkeypatch.setattr("autounet.memory_model.traced.trace_step", fails)
    with pytest.raises(TypeError, match="a bug"):
        memory().traced(network(2, 2), (16, 16), 2)


def test_method_is_said():
    model = memory()
    model.traced(network(2, 2), (16, 16), 2)
    assert model.method == "fake tensors"


def test_tracing_leaves_torch_as_it_was():
    state = torch.get_rng_state()
    trace_forward(SPEC, (8, 8, 8), 1, Precision("bf16"), "cuda")
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.is_autocast_enabled("cpu")
    x = torch.ones(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.layer_norm(x.bfloat16(), (4,)).dtype == torch.bfloat16


def test_blocks_are_rounded_as_on_a_gpu():
    events = [Event(1, 1), Event(2, 513), Event(1, -1), Event(3, 512), Event(2, -513), Event(3, -512)]
    assert alive_peak(events) == 512 + 1024 + 0 * 512
    assert alive_peak(events, rounding=1) == 513 + 512


def test_margins():
    assert memory_margin(profile()) != memory_margin(profile(device="cuda:0"))
    own = profile(memory_margin_bytes=5, memory_margin_fraction=0.5)
    assert memory_margin(own).on(100) == 155
    model = training_memory(LABELS, TrainOptions(), own)
    spec = network(2, 2)
    assert model(spec, (16, 16), 2) == memory_margin(own).on(model.traced(spec, (16, 16), 2))
    assert model.verify(spec, (16, 16), 2) == memory_margin(own).on(model.traced_fully(spec, (16, 16), 2))


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100)), min_size=2, max_size=5, unique_by=lambda x: x[0]))
def test_no_trial_lies_above_the_fitted_margin(pairs):
    found = [MemoryTrial(1000 * traced, 1000 * (traced + more)) for traced, more in pairs]
    margin = fit_margin(found)
    assert all(margin.on(each.traced) >= each.measured - 1 for each in found)
    assert margin.bytes >= 0
    assert margin.fraction >= 0


def test_calibration_is_kept_per_device(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(calibrating, "_try", lambda trial, _: MemoryTrial(trial.batch * math.prod(trial.patch), 10**6))
    monkeypatch.setattr("autounet.ops.device.choose_device", lambda asked: asked)
    monkeypatch.setattr("autounet.training.probe.probe_device", lambda device: profile(device=device))
    other = MemoryMargin(memory_margin_bytes=1, memory_margin_fraction=0.1, torch="0.0")
    assert calibrated(profile()) == profile()
    calibration_file().parent.mkdir(parents=True)
    MemoryCalibration(devices={"another": other}).save(calibration_file())
    margin, path = calibrating.calibrate("cpu")
    assert path == tmp_path / "autounet" / "calibration.json"
    assert memory_margin(calibrated(profile())) == margin
    assert MemoryCalibration.load(path).devices["another"] == other
    assert calibrated(profile(name="another")) == profile(name="another")  # of another torch
    assert calibrated(profile(name="a third")) == profile(name="a third")


def fingerprint(*shapes: tuple[int, int, int]) -> Fingerprint:
    cases = [
        CaseFingerprint(
            identifier=str(number), content_hash="", shape=shape, cropped_shape=shape, spacing=(1, 1, 1), voxels=(1, 1)
        )
        for number, shape in enumerate(shapes)
    ]
    channel = ChannelFingerprint(name="CT", kind="ct")
    return Fingerprint(dimension=3, orientation="ras", channels=(channel,), cases=tuple(cases))


def test_inference_counts_the_largest_case():
    chosen, size = small_configuration(), (64, 80, 48)
    small, large = fingerprint((8, 12, 8)), fingerprint((8, 12, 8), size)
    one = inference_memory(chosen, small, 3, "cpu", 4)
    two = inference_memory(chosen, large, 3, "cpu", 4)
    voxels = math.prod(size)
    assert two.shared
    assert two.device_bytes == two.host_bytes > one.host_bytes
    assert two.host_bytes >= 4 * (3 + 2) * voxels  # scores, the image and its padded copy
    gpu = inference_memory(chosen, large, 3, "cuda:0", 4)
    beside = inference_memory(chosen, large, 3, "cuda:0", 4, free_bytes=4 * 3 * voxels)
    assert gpu.device_bytes - beside.device_bytes >= 4 * 3 * voxels
    many = inference_memory(chosen, large, 3, "cuda:0", 4, networks=5)
    assert many.device_bytes > gpu.device_bytes
    assert inference_memory(chosen, large, 3, "cuda:0", 4, margin=Margin(7, 0.0)).device_bytes == gpu.device_bytes + 7
