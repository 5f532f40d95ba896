"""The training step, the schedule, and a whole small training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_cases import configuration, labels, task

from autounet.losses import Batch, build_loss
from autounet.nets import FAMILIES
from autounet.ops.device import free_memory, peak_memory
from autounet.schema.errors import BudgetExceeded, ModelError, OptionError
from autounet.schema.options import TrainOptions
from autounet.schema.run import EpochLog, RunRecord, read_log
from autounet.step import Precision, algorithms, build_optimiser, clip_gradients, train_step
from autounet.store.weights import load_weights, save_weights
from autounet.system_memory import ControlGroup, group_available
from autounet.training import Horizon, probe_device, train_fold
from autounet.training.journal import Journal
from autounet.training.probe import best_measured, usual_precision
from autounet.training.schedule import SCHEDULES, learning_rate
from autounet.training.state import TrainState
from autounet.workers import keep_freed_memory


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@given(steps=st.integers(1, 10**6), seconds=st.floats(0.1, 1e6), step=st.integers(0, 10**6), elapsed=st.floats(0, 1e6))
def test_progress_is_a_share_and_the_nearer_end_counts(steps, seconds, step, elapsed):
    both = Horizon(steps, seconds).progress(step, elapsed)
    assert 0 <= both <= 1
    assert both == max(Horizon(steps).progress(step, elapsed), Horizon(None, seconds).progress(step, elapsed))


@pytest.mark.parametrize("wrong", [(None, None), (0, None), (None, 0.0), (10, -1.0)])
def test_an_empty_horizon_is_refused(wrong):
    with pytest.raises(OptionError):
        Horizon(*wrong)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_end_at_zero_and_never_exceed_the_highest_rate(name):
    options = TrainOptions(schedule=name, learning_rate=0.01)
    rates = [learning_rate(options, Horizon(steps=1000), step, 0.0) for step in range(1001)]
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert all(0 <= rate <= 0.01 + 1e-12 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", [Precision(), Precision("bf16", True)])
@pytest.mark.parametrize("patch", [(8, 12, 8), (8, 12)])
def test_the_step_learns_one_batch_by_heart(optimiser, precision, patch):
    torch.manual_seed(0)
    spec = configuration(patch).network
    device = torch.device("cpu")
    model = precision.place(FAMILIES["plain"].build(spec), device).train()
    options = TrainOptions(optimiser=optimiser, learning_rate=1e-2 if optimiser == "sgd" else 3e-3, momentum=0.9)
    updates = build_optimiser(options, model.parameters())
    target = torch.zeros(2, *patch, dtype=torch.int16)
    target[:, :4, :6], target[:, 4:, 6:] = 1, 2
    batch = Batch(torch.randn(2, 1, *patch) * 0.1 + target[:, None], target).to(device, precision.channels_last)
    loss = build_loss("dice_ce", labels(), False, 2)
    values = [float(train_step(model, loss, updates, None, batch, precision, 12.0)) for _ in range(30)]
    assert values[-1] < values[0] - 0.5


@given(scale=st.floats(0, 100), clip=st.floats(0.1, 50))
def test_clipping_is_torchs(scale, clip):
    ours, theirs = ([torch.nn.Parameter(torch.zeros(n)) for n in (3, 5)] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        one.grad = torch.linspace(-1, 1, len(one)) * scale
        other.grad = one.grad.clone()
    clip_gradients(ours, clip)
    torch.nn.utils.clip_grad_norm_(theirs, clip)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_training_writes_what_it_promises(tmp_path):
    lines: list[EpochLog] = []
    options = TrainOptions(optimiser="adamw", learning_rate=5e-3, ema_decay=0.9, augmentation="light")
    given_task = task(tmp_path, Horizon(steps=40), options=options)
    record = train_fold(*given_task, lines.append)
    folder = given_task.folder
    assert {path.name for path in folder.iterdir()} == {
        "weights.safetensors", "record.json", "log.jsonl", "progress.png",
    }  # fmt: skip
    assert record == RunRecord.load(folder / "record.json")
    assert record.curve == tuple(lines) == tuple(read_log(folder / "log.jsonl"))
    assert record.steps == 40
    assert record.configuration == given_task.configuration.key
    assert [line.step for line in lines] == list(range(1, 41))
    assert lines[-1].progress == 1
    assert lines[-1].validation_dice.keys() == {"organ1", "organ2"}
    assert lines[-1].loss < lines[0].loss - 0.3
    assert (folder / "progress.png").read_bytes().startswith(b"\x89PNG")
    network = FAMILIES["plain"].build(given_task.configuration.network)
    network.load_state_dict(load_weights(folder / "weights.safetensors"))


def test_a_2d_training_on_slices(tmp_path):
    record = train_fold(*task(tmp_path, Horizon(steps=8), configuration=configuration((12, 16)), fold=None))
    assert record.steps == 8
    assert record.fold is None


def test_a_training_ends_in_time(tmp_path):
    record = train_fold(*task(tmp_path, Horizon(seconds=1.0)))
    assert 1.0 <= record.seconds < 2.0
    assert record.curve[-1].progress == 1


def test_without_validation_cases_nothing_is_measured(tmp_path):
    record = train_fold(*task(tmp_path, Horizon(steps=2), validation_cases=()))
    assert all(line.validation_dice is None for line in record.curve)


def test_deterministic_trainings_agree_and_leave_the_switch(tmp_path):
    options = TrainOptions(deterministic=True)
    weights = []
    for name in ("a", "b"):
        given_task = task(tmp_path, Horizon(steps=3), options=options, folder=tmp_path / name)
        train_fold(*given_task)
        weights.append(load_weights(given_task.folder / "weights.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.are_deterministic_algorithms_enabled()


def test_algorithms_are_chosen_inside_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.benchmark
    with algorithms(deterministic=False):
        assert torch.backends.cudnn.benchmark
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with algorithms(deterministic=True):
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with algorithms(deterministic=False):
            assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark == before


def test_a_full_gpu_is_said_with_a_remedy(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("autounet.training.ranks.train_step", full)
    monkeypatch.setattr("autounet.training.loop.peak_memory", lambda device: 3 * 1024**3)
    with pytest.raises(BudgetExceeded, match=r"3\.0 GB were in use.*smaller --memory") as caught:
        train_fold(*task(tmp_path, Horizon(steps=2)))
    assert (caught.value.configuration, caught.value.measured_bytes) == ("3d_fullres", None)


@pytest.mark.skipif(sys.platform == "darwin", reason="only Linux and Windows say it without the module")
def test_peak_memory_needs_no_resource_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) > 2**24


def test_the_average_follows_running_statistics():
    model, average = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2).requires_grad_(False)
    model(torch.randn(8, 2) + 5)
    state = TrainState(model, torch.optim.SGD(model.parameters()), None, average, step=1)
    state.update_average(0.9, torch.tensor(1.0))
    assert torch.equal(average.running_mean, model.running_mean)
    assert average.num_batches_tracked == 1


def test_the_journal_survives_a_cut_line_and_drops_what_is_run_again(tmp_path):
    line = EpochLog(
        step=1, progress=0.1, seconds=1.0, learning_rate=0.1, loss=1.0, step_seconds=1.0, data_wait_seconds=0.0
    )
    text = [line.model_copy(update={"step": step}).model_dump_json() for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(text) + '\n{"step": 4, "prog')
    assert [entry.step for entry in Journal(tmp_path, 2, None).curve] == [1, 2]
    assert [json.loads(entry)["step"] for entry in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_weights_round_trip_and_damage_is_named(tmp_path):
    state = {"a.weight": torch.randn(2, 3, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d)}
    path = tmp_path / "weights.safetensors"
    save_weights(path, state)
    assert torch.equal(load_weights(path)["a.weight"], state["a.weight"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"weights\.safetensors cannot be read"):
        load_weights(path)
    with pytest.raises(ModelError):
        load_weights(tmp_path / "missing.safetensors")


def test_the_probe_measures(monkeypatch):
    monkeypatch.setattr("autounet.training.probe.PROBE_SECONDS", 0.02)
    profile = probe_device("cpu")
    assert set(profile.throughput) == {"fp32", "fp32_channels_last", "bf16", "bf16_channels_last"}
    assert profile.cores >= 1
    assert 2**27 < profile.memory_bytes <= 2**45
    assert free_memory(torch.device("cpu")) > 0


FP32, BF16, ORDERED = Precision(), Precision("bf16"), Precision("fp32", channels_last=True)


@pytest.mark.parametrize(
    ("gflops", "chosen"),
    [
        ({FP32: 100.0, BF16: 119.0}, FP32),
        ({FP32: 100.0, BF16: 121.0}, BF16),
        ({FP32: 100.0, ORDERED: 110.0, BF16: 121.0}, ORDERED),
        ({FP32: 100.0, BF16: 0.0}, FP32),
    ],
)
def test_bf16_has_to_be_worthwhile(gflops, chosen):
    assert best_measured(gflops) == chosen


@pytest.mark.parametrize(("native", "name"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_is_not_timed(monkeypatch, native, name):
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    assert usual_precision(torch.device("cuda:1")) == Precision(name, channels_last=False)
    assert usual_precision(torch.device("mps")) == Precision("fp32")


def test_pages_of_files_count_as_free(tmp_path):
    group = ControlGroup(tmp_path, "memory.max", "memory.current", ("inactive_file", "active_file"))
    assert group_available(group) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert group_available(group) == 100
    (tmp_path / "memory.stat").write_text("anon 300\nfile 600\ninactive_file 200\nactive_file 250\n")
    assert group_available(group) == 550
    (tmp_path / "memory.current").write_text("100\n")
    assert group_available(group) == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert group_available(group) is None


def test_freed_memory_is_kept_on_linux():
    script = "from autounet.workers import keep_freed_memory; print(keep_freed_memory())"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() in {"True", "False"}
    assert callable(keep_freed_memory)
