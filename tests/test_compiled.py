"""Networks that torch compiles for their training: whole graphs, the same steps, and when it is done."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from test_family_contract import CHANNELS, CLASSES, LABELS, built, size_of, small_spec
from training_cases import BOTH, Training, configuration, task

from autounet.losses import Batch, build_loss
from autounet.losses.deep_supervision import output_weights
from autounet.nets import FAMILIES
from autounet.nets.blocks import CHANNELS_LAST
from autounet.schema.errors import Cancelled
from autounet.schema.options import TrainOptions
from autounet.schema.run import Compilation
from autounet.step import Precision, build_optimiser, train_step
from autounet.store.weights import load_weights
from autounet.training import Horizon, compiled, train_fold
from autounet.training.compiled import Network, compiled_forward, judge, untried
from autounet.training.schedule import CoolDown
from autounet.training.state import new_state

META, CPU = torch.device("meta"), torch.device("cpu")
GPU_LIKE, CPU_LIKE = (META, Precision()), (CPU, Precision("bf16", channels_last=True))
"""what a network computes on a device that is not the CPU, as torch's device without values lets it be followed; and
the way of a CPU with most branches of its own"""
by_the_compiler = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
"""torch's compiler warns of what it does itself with networks that have gradients of their own"""
OPTIONS = TrainOptions(learning_rate=5e-3, augmentation="light", augmented_by="torch")


@pytest.fixture(autouse=True)
def _compiler() -> Iterator[None]:
    """One thread, and nothing kept of other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.compiler.reset()


def _ways() -> Iterator[object]:
    """Every family in 2-D and 3-D, with and without deep supervision, on either device; most are slow."""
    for name, family in FAMILIES.items():
        for dims, deep, way in itertools.product(family.dims, (True, False), (GPU_LIKE, CPU_LIKE)):
            if deep and not family.deep_supervision:
                continue
            usual = deep == family.deep_supervision and (way is GPU_LIKE or (dims == 3 and name in ("plain", "swin")))
            words = f"{name}-{dims}d-{'deep' if deep else 'one'}-{way[0]}"
            yield pytest.param(name, dims, deep, *way, id=words, marks=() if usual else pytest.mark.slow)


@by_the_compiler
@pytest.mark.parametrize(("name", "dims", "deep", "device", "precision"), [*_ways()])
def test_the_graph_of_a_network_has_no_break(name, dims, deep, device, precision, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    spec = small_spec(name, dims, deep)
    network = precision.place(built(spec).train(), device)
    image = torch.zeros(2, CHANNELS, *size_of(name, spec), device=device)
    if precision.channels_last:
        image = image.contiguous(memory_format=CHANNELS_LAST[dims])
    with precision.autocast(device.type):
        outputs = compiled_forward(network)(image)
    learnt = [weight > 0 for weight in output_weights([each.shape[2:] for each in outputs])]
    assert [each.requires_grad for each in outputs] == learnt


@by_the_compiler
@pytest.mark.parametrize(
    ("name", "dims", "optimiser", "precision"),
    [
        ("plain", 3, "sgd", Precision()),
        ("plain", 2, "adamw", Precision("bf16", channels_last=True)),
        ("efficient", 2, "sgd", Precision()),
        pytest.param("residual", 3, "sgd", Precision(), marks=pytest.mark.slow),
        pytest.param("unet3d", 3, "sgd", Precision(), marks=pytest.mark.slow),
        pytest.param("original", 2, "sgd", Precision(), marks=pytest.mark.slow),
        pytest.param("nested", 2, "sgd", Precision(), marks=pytest.mark.slow),
        pytest.param("attention", 3, "sgd", Precision(), marks=pytest.mark.slow),
        pytest.param("swin", 3, "adamw", Precision(), marks=pytest.mark.slow),
        pytest.param("mednext", 3, "adamw", Precision(channels_last=True), marks=pytest.mark.slow),
    ],
)
def test_steps_change_the_weights_as_those_that_are_not_compiled(name, dims, optimiser, precision, monkeypatch):
    """Also those that no output with a weight in the loss depends on, and running statistics."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    spec, options = small_spec(name, dims, FAMILIES[name].deep_supervision), TrainOptions(optimiser=optimiser)
    size = size_of(name, spec)
    levels = len(spec.decoder_blocks) if spec.deep_supervision else 1
    torch.manual_seed(0)
    dtype = torch.float64 if precision.name == "fp32" else torch.float32  # rounding does not matter
    image = torch.randn(2, CHANNELS, *size, dtype=dtype)
    batch = Batch(image, torch.randint(CLASSES, (2, *size))).to(CPU, precision.channels_last)
    ends = []
    for way in (None, compiled_forward):
        network = precision.place(built(spec).train(), CPU).to(dtype)
        for module in network.modules():
            if hasattr(module, "rate"):
                module.rate = 0.0  # of whole branches that are left out at random
        loss, made = build_loss("dice_ce", LABELS, False, levels), build_optimiser(options, network.parameters())
        forward = way and way(network)
        step = partial(train_step, network, loss, made, None, batch, precision, 12.0, forward=forward)
        values = [float(step()) for _ in range(2)]
        without = [name for name, each in network.named_parameters() if each.grad is None]
        ends.append((values, without, {name: each for name, each in network.state_dict().items()}))
    (one, without, weights), (other, others, own) = ends
    close = {"rtol": 3e-2, "atol": 3e-2} if precision.name == "bf16" else {"rtol": 1e-4, "atol": 1e-6}
    assert other == pytest.approx(one, rel=close["rtol"])
    assert others == without
    if optimiser == "adamw":  # which makes whole steps of the rounding of gradients that are 0
        close |= {"atol": 4 * options.learning_rate}
    torch.testing.assert_close(own, weights, **close)


def trained(given: Training) -> tuple[Compilation, dict[str, torch.Tensor]]:
    record = train_fold(*given)
    assert record.compilation is not None
    return record.compilation, load_weights(given.folder / "weights.safetensors")


def test_a_training_by_a_compiled_network_continues_by_one_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    make = partial(task, horizon=Horizon(steps=4), options=OPTIONS)
    expected = trained(make(tmp_path / "off", compile="off"))
    assert expected[0] == Compilation(compiled=False, reason="--compile off")
    whole = trained(make(tmp_path / "on", compile="on"))
    assert whole[0].compiled
    assert whole[0].reason.startswith("--compile on (forward and backward pass ")
    assert None not in (whole[0].eager_seconds, whole[0].compiled_seconds, whole[0].compiling_seconds)
    torch.testing.assert_close(whole[1], expected[1], rtol=1e-3, atol=1e-4)

    def stop(progress: float) -> None:
        if progress > 0.5:
            raise Cancelled("stopped")

    for first, then in (("on", "off"), ("off", "on")):
        part = make(tmp_path / first / "part", compile=first)
        with pytest.raises(Cancelled):
            train_fold(*part, on_step=stop)
        told, weights = trained(make(tmp_path / first / "part", compile=then))
        assert told.compiled == (then == "on")
        torch.testing.assert_close(weights, expected[1], rtol=1e-3, atol=1e-4)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is too short to be tried, and compiling takes nothing."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(compiled, "LEAST_STEPS", 1)
    monkeypatch.setattr(compiled, "COMPILING_SECONDS", {"cpu": 0.0})
    monkeypatch.setattr(compiled, "COMPILER_BYTES", 0)


@pytest.mark.parametrize("kind", ["slower", "failing"])
def test_a_trial_that_ends_without_a_compiled_network_leaves_no_trace(tmp_path, monkeypatch, eager, caplog, kind):
    """Also where random numbers and running statistics are in the network."""
    network = FAMILIES["mednext"].propose(2, 1, 3, [(1, 1), (2, 2)], [(3, 3)] * 2, base_features=4)
    planned = configuration((16, 16)).model_copy(update={"network": network})
    make = partial(task, horizon=Horizon(steps=2), options=OPTIONS, configuration=planned)
    _, expected = trained(make(tmp_path / "off", compile="off"))

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        if kind == "failing":
            raise RuntimeError("no C++ compiler\nand more lines")
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    monkeypatch.setattr(compiled, "QUICKER", 0.0)
    with caplog.at_level(logging.INFO, "autounet.training.compiled"):
        told, weights = trained(make(tmp_path / "auto"))
    assert not told.compiled
    assert told.eager_seconds is not None
    assert (told.compiled_seconds is None) == (kind == "failing")
    expected_words = {"slower": "it would not be quicker (", "failing": "compiling failed: "}[kind]
    assert expected_words in told.reason
    assert ("no C++ compiler" in told.reason) == (kind == "failing")
    assert "\n" not in told.reason
    assert [record.levelname for record in caplog.records] == [{"slower": "INFO", "failing": "WARNING"}[kind]]
    assert [record.message for record in caplog.records] == [f"the network is not compiled: {told.reason}"]
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_a_network_that_fails_later_is_not_compiled_any_more(caplog):
    network, image, calls = torch.nn.Conv2d(1, 2, 1), torch.randn(1, 1, 4, 4), []

    def forward(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("it cannot be compiled again")
        return (network(image),)

    both = Network(network, Compilation(compiled=True, reason="it is quicker"), forward)
    assert torch.equal(both(image)[0], network(image))
    for _ in range(2):
        assert torch.equal(both(image), network(image))
    assert len(calls) == 2
    assert (both.told.compiled, both.told.reason) == (
        False, "it was, until it failed: ValueError: it cannot be compiled again"
    )  # fmt: skip
    assert len(caplog.records) == 1

    def full(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise torch.OutOfMemoryError("the GPU is full")

    with pytest.raises(torch.OutOfMemoryError):
        Network(network, Compilation(compiled=True, reason="it is quicker"), full)(image)


GIB = 1024**3


@pytest.mark.parametrize(
    ("changes", "horizon", "reason"),
    [
        ({}, Horizon(steps=100_000), ""),
        ({"compile": "on", "planned_bytes": 0, "device": "meta"}, Horizon(steps=1), ""),
        ({"compile": "off"}, Horizon(steps=100_000), "--compile off"),
        ({"options": TrainOptions(deterministic=True)}, Horizon(steps=100_000), "the same weights each time"),
        ({"device": "meta"}, Horizon(steps=100_000), "it is tried on CPUs and with CUDA, and this is meta"),
        ({"planned_bytes": GIB}, Horizon(steps=100_000), "the compiler takes about 300 MB of the memory"),
        ({}, Horizon(steps=1002), "fewer than 1000 steps are left"),
        ({}, Horizon(seconds=3600), "the training is too short: compiling is tried where 2 h 4"),
        ({}, Horizon(seconds=6 * 3600), ""),
    ],
)
def test_what_is_known_before_any_step_is_timed(tmp_path, changes, horizon, reason):
    given = task(tmp_path, horizon, **{"planned_bytes": 8 * GIB, **changes})
    state = new_state(given.inputs, None, Precision(), CPU)
    state.step = 3
    why = untried(given.inputs, given.place, state, horizon)
    assert why.startswith(reason)
    assert bool(why) == bool(reason)
    if not reason and "compile" not in changes:
        state.cool_down = CoolDown(1, 2, 900)
        assert untried(given.inputs, given.place, state, horizon).startswith("fewer than 1000 steps are left")
        state.exchange = lambda gradients: None
        assert untried(given.inputs, given.place, state, horizon).startswith("devices share each batch")


def test_a_step_that_is_short_is_not_compiled_for(tmp_path, monkeypatch, eager):
    monkeypatch.setattr(compiled, "COMPILING_SECONDS", {"cpu": 120.0})
    told, _ = trained(task(tmp_path, Horizon(steps=2), options=OPTIONS))
    assert not told.compiled
    assert told.compiled_seconds is None
    assert told.reason.startswith("the training is too short: ")


@pytest.mark.parametrize(
    ("setting", "seconds", "more", "kept", "words"),
    [
        (
            "auto",
            0.5,
            0,
            True,
            "it is quicker (forward and backward pass 500 ms compiled, 1.0 s not; compiling",
        ),
        ("auto", 0.98, 0, False, "it would not be quicker ("),
        ("auto", 0.5, GIB, False, "it would need 1.0 GB more memory ("),
        ("auto", 0.5, GIB // 4, True, "it is quicker ("),
        ("on", 2.0, GIB, True, "--compile on ("),
    ],
)
def test_what_a_trial_decides(setting, seconds, more, kept, words):
    told = Compilation(compiled=False, reason="", eager_seconds=1.0, compiled_seconds=seconds, compiling_seconds=120.0)
    decided, reason = judge(told, setting, more, 8 * GIB)
    assert decided == kept
    assert reason.startswith(words)


def test_devices_that_share_a_batch_say_that_they_do_not_compile(tmp_path):
    given = task(tmp_path, Horizon(steps=1), options=OPTIONS, devices=BOTH, compile="on")
    told, _ = trained(given)
    assert told == Compilation(
        compiled=False, reason="devices share each batch, which works with networks that are not compiled"
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="a C++ compiler is needed")
@pytest.mark.parametrize("patch", [(8, 12, 8), (8, 12)])
def test_the_compiler_of_torch_makes_a_network_that_trains_alike(tmp_path, patch):
    make = partial(task, horizon=Horizon(steps=3), options=OPTIONS, configuration=configuration(patch))
    _, expected = trained(make(tmp_path / "off", compile="off"))
    told, weights = trained(make(tmp_path / "on", compile="on"))
    assert told.compiled
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
