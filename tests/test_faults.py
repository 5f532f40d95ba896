"""Predicting when something goes wrong: what is reported, what ends the work, and that the next command continues."""

from __future__ import annotations

import os
import random
import re
import resource
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import faulty
import numpy as np
import pytest
import torch
from test_predict_options import LABELS, configuration, model

from autounet import api, workers
from autounet.api import Model
from autounet.cli.app import main
from autounet.imageio import write_image, write_labels
from autounet.inference import sliding_window as out_of_memory
from autounet.inference import sliding_window as sliding
from autounet.inference.sliding_window import predict_scores
from autounet.nets import FAMILIES
from autounet.ops.device import choose_devices
from autounet.prediction import folder as folder_prediction
from autounet.prediction.predictor import Predictor
from autounet.schema.errors import OptionError, OutOfMemory
from autounet.schema.geometry import Geometry
from autounet.schema.run import PredictedCase

SHAPE = (8, 8, 8)
GEOMETRY = Geometry(shape=SHAPE, spacing=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("model"), {"3d_fullres": configuration("plain", 3)})


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Iterator[Model]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield api.load(folder, device="cpu", mirror=False)
    torch.set_num_threads(before)


def images(folder: Path, count: int) -> Path:
    for number in range(count):
        values = np.random.default_rng(number).normal(size=(1, *SHAPE)).astype(np.float32)
        write_image(folder / f"c{number:02}.nii", values, GEOMETRY)
    return folder


def written(out: Path) -> dict[str, bytes]:
    """What a user sees; hidden names are those of records and of what is being written."""
    return {path.name: path.read_bytes() for path in out.glob("[!.]*")}


def left_behind(out: Path) -> list[str]:
    """Files that belong to work in progress."""
    hidden = [path.name for path in out.glob(".*") if path.name != ".predicted"]
    return hidden + [
        path.name for path in (out / ".predicted").iterdir() if path.suffix != ".json" and path.name != ".lock"
    ]


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["autounet", "predict", *map(str, arguments), "--device", "cpu", "--no-mirror"])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_corrupt_image_among_twenty_is_reported_and_the_others_are_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = images(tmp_path / "in", 20), tmp_path / "out"
    whole = (source / "c07.nii").read_bytes()
    (source / "c07.nii").write_bytes(whole[:500])
    assert command_line(monkeypatch, folder, source, "--out", out) == 1
    shown = capsys.readouterr().err
    assert "not predicted: case c07: " in shown
    assert "Traceback" not in shown
    first = written(out)
    assert sorted(first) == [f"c{number:02}.nii" for number in range(20) if number != 7]
    (source / "c07.nii").write_bytes(whole)
    times = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    assert command_line(monkeypatch, folder, source, "--out", out) == 0
    assert len(written(out)) == 20
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert left_behind(out) == []


def test_memory_does_not_grow_with_the_number_of_images(
    predictor: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time the arrays of two images live: the one that is predicted and the one that is read ahead."""
    live: list[weakref.ref[np.ndarray]] = []
    counts: dict[int, list[int]] = {}

    def watched(function):  # type: ignore[no-untyped-def]
        def call(*arguments, **options):  # type: ignore[no-untyped-def]
            found = function(*arguments, **options)
            live.append(weakref.ref(found[0] if isinstance(found, tuple) else found))
            return found

        return call

    monkeypatch.setattr(folder_prediction, "load_input", watched(folder_prediction.load_input))
    monkeypatch.setattr(sliding, "predict_scores", watched(sliding.predict_scores))
    monkeypatch.setattr(Predictor, "decide", watched(Predictor.decide))
    for count in (5, 20):
        seen = counts.setdefault(count, [])

        def look(_: str, seen: list[int] = seen) -> None:
            seen.append(sum(reference() is not None for reference in live))

        predictor.predict_files(images(tmp_path / str(count), count), tmp_path / f"out{count}", look)
    assert [len(seen) for seen in counts.values()] == [5, 20]
    assert max(counts[20]) <= max(max(counts[5]), 2)


def test_a_mistake_in_the_program_ends_the_work_as_what_it_is(
    predictor: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = images(tmp_path / "in", 5), tmp_path / "out"
    for place in ("decide", "prepare"):  # in this thread, and in the one that reads ahead
        with monkeypatch.context() as patch:
            original, calls = getattr(Predictor, place), iter(range(9))

            def third_fails(*arguments, original=original, calls=calls, **options):  # type: ignore[no-untyped-def]
                if next(calls) == 2:
                    raise KeyError("a mistake")
                return original(*arguments, **options)

            patch.setattr(Predictor, place, third_fails)
            with pytest.raises(KeyError, match="a mistake") as raised:
                predictor.predict_files(source, out / place)
        assert raised.value.__notes__ == ["case c02 was being predicted"]
        assert sorted(written(out / place)) == ["c00.nii", "c01.nii"]
        assert left_behind(out / place) == []
    done: list[str] = []
    assert predictor.predict_files(source, out / "decide", done.append) == []
    assert done == ["c02", "c03", "c04"]


def test_only_what_may_differ_is_predicted_again(folder: Path, predictor: Model, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in", 3), tmp_path / "out"

    def again(by: Model = predictor, **options: bool) -> list[str]:
        done: list[str] = []
        assert by.predict_files(source, out, done.append, **options) == []  # type: ignore[arg-type]
        return done

    every = ["c00", "c01", "c02"]
    assert again() == every
    assert again() == []
    assert again(overwrite=True) == every
    images(source, 1)  # written again
    assert again() == ["c00"]
    (out / "c01.nii").write_bytes((out / "c01.nii").read_bytes()[:-9])
    (out / "c02.nii").unlink()
    assert again() == ["c01", "c02"]
    status, content = (out / "c00.nii").stat(), bytearray((out / "c00.nii").read_bytes())
    content[-1] ^= 1
    (out / "c00.nii").write_bytes(content)
    assert again() == [], "somebody has changed it"
    assert (out / "c00.nii").read_bytes() == content
    with pytest.raises(OptionError, match=r"c00.nii was changed since it was predicted, and would be replaced"):
        again(api.load(folder, device="cpu", mirror=False, folds=[1]))
    os.utime(out / "c00.nii", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert again() == ["c00"], "damaged"
    assert again(probabilities=True) == every
    (out / "c01.probabilities.nii.gz").unlink()
    assert again(probabilities=True) == ["c01"]
    assert again(api.load(folder, device="cpu", mirror=False, folds=[1])) == every
    assert again() == every
    (out / ".predicted" / "c01.json").write_text("{")
    assert again() == ["c01"]
    swapped = [(out / ".predicted" / f"{name}.json").read_bytes() for name in ("c01", "c00")]
    for name, content in zip(("c00", "c01"), swapped, strict=True):
        (out / ".predicted" / f"{name}.json").write_bytes(content)
    assert again() == ["c00", "c01"], "records of other cases"


def test_killed_at_a_random_moment_the_next_command_completes(folder: Path, predictor: Model, tmp_path: Path) -> None:
    source, out = images(tmp_path / "in", 12), tmp_path / "out"
    code = (
        "import autounet;"
        f"autounet.load({str(folder)!r}, device='cpu', mirror=False).predict_files({str(source)!r}, {str(out)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    while process.poll() is None and not list(out.glob("[!.]*")):
        time.sleep(0.005)
    time.sleep(random.Random().uniform(0, 0.2))
    process.kill()
    process.wait()
    records = map(PredictedCase.load, (out / ".predicted").glob("*.json"))
    before = sum(bool(record.files) for record in records)
    done: list[str] = []
    assert predictor.predict_files(source, out, done.append) == []
    assert len(done) == 12 - before
    predictor.predict_files(source, tmp_path / "alone")
    assert written(out) == written(tmp_path / "alone")
    assert left_behind(out) == []


def test_devices_are_named_in_a_row() -> None:
    assert choose_devices("cpu, cpu") == ["cpu", "cpu"]
    with pytest.raises(OptionError, match="--device cuda:99 is not here; there is cpu"):
        choose_devices("cpu,cuda:99")


def test_a_worker_that_dies_or_fails_ends_the_pool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [("c0", str(tmp_path / "died")), ("c1", str(tmp_path / "died")), ("c2", str(tmp_path / "died"))]
    with pytest.raises(BrokenProcessPool, match=r"killed by SIGKILL, most likely because memory .* at case c1; .* GB"):
        workers.map_parallel(faulty.killed_at_case_one, cases, 2)
    assert "killed by SIGKILL" in caplog.text
    assert re.search(r"at (case|one of the cases) .*c1.*; [\d.]+ of [\d.]+ GB \(.*\) are free now", caplog.text)
    assert "done by 1 instead" in caplog.text
    (tmp_path / "died").touch()
    done: list[str] = []
    assert workers.map_parallel(faulty.killed_once, cases, 2, done.append) == ["c0", "c1", "c2"]
    assert sorted(done) == ["c0", "c1", "c2"]
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.1)
    with pytest.raises(ZeroDivisionError, match="number one"):
        workers.map_parallel(faulty.raises_at_one, range(3), 2)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file grows beyond so many bytes: writing fails in the middle of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".tif", ".png"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, ending: str) -> None:
    flat = ending == ".png"
    shape = (1, 100, 100) if flat else (10, 30, 30)
    geometry = Geometry(shape=shape, kind="png" if flat else "nifti", dimension=2 if flat else 3)
    values = np.random.default_rng(0).integers(0, 250, shape)
    write_labels(tmp_path / f"old{ending}", values, geometry)
    before = (tmp_path / f"old{ending}").read_bytes()
    with full_disk(4000):
        for name in ("old", "new"):
            with pytest.raises(OSError):  # noqa: PT011
                write_labels(tmp_path / f"{name}{ending}", values, geometry)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {f"old{ending}": before}


def test_a_full_disk_ends_the_command_with_nothing_half_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = images(tmp_path / "in", 3), tmp_path / "out"
    with full_disk(800):  # 512 voxels and their header are more
        assert command_line(monkeypatch, folder, source, "--out", out) == 1
    said = capsys.readouterr().err
    assert str(out / "c0") in said
    assert "cannot be written: File too large" in said
    assert "Free space there" in said
    assert (written(out), left_behind(out)) == ({}, [])
    assert command_line(monkeypatch, folder, source, "--out", out) == 0
    assert len(written(out)) == 3


MEMORY_RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.92 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


class Failing(torch.nn.Module):
    """A network that fails at one call, or whenever it gets more inputs than `most`."""

    def __init__(self, network: torch.nn.Module, error: Exception, call: int | None = None, most: int = 99) -> None:
        super().__init__()
        self.network, self.error, self.call, self.most = network, error, call, most
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(self.sizes) == self.call or len(x) > self.most:
            raise self.error
        return self.network(x)


def scores(network: torch.nn.Module, tile_batch: int = 4) -> np.ndarray:
    image = np.random.default_rng(1).normal(size=(1, 12, 14, 20)).astype(np.float32)
    return predict_scores([network.eval()], image, configuration("plain", 3), LABELS.count, "cpu", tile_batch)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    plan = configuration("plain", 3)
    return FAMILIES["plain"].build(plan.network).eval().requires_grad_(False)


@pytest.mark.parametrize("error", MEMORY_RAN_OUT, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_at_the_third_tile_changes_nothing(
    network: torch.nn.Module, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    out_of_memory.warn_once.cache_clear()
    expected = scores(network)
    once, always = Failing(network, error, call=3), Failing(network, error, most=1)
    for failing in (once, always):
        np.testing.assert_allclose(scores(failing), expected, atol=1e-5)
    assert once.sizes[:4] == [4, 4, 4, 2]
    assert always.sizes[:4] == [4, 2, 1, 1]
    said = [record.message for record in caplog.records if "memory ran out" in record.message]
    assert said == [f"memory ran out on cpu with {size} inputs at a time: {size // 2} are tried" for size in (4, 2)]


def test_what_is_no_lack_of_memory_is_shown_as_what_it_is(network: torch.nn.Module) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2") as raised:
        scores(Failing(network, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), call=3))
    assert type(raised.value) is RuntimeError
    with pytest.raises(OutOfMemory, match="one input of 8x8x8 at a time, the least there is"):
        scores(Failing(network, MEMORY_RAN_OUT[0], most=0))


def test_scores_move_to_the_memory_of_the_cpu(network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose memory is full of scores, as the CPU's tensors show it: those of other devices are not here."""
    expected = scores(network)

    class OnDevice(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda:0")

        def cpu(self, *_: object, **__: object) -> torch.Tensor:  # type: ignore[override]
            moved.append(True)
            return self.as_subclass(torch.Tensor)

    moved: list[bool] = []

    def accumulators(whole, spatial, device):  # type: ignore[no-untyped-def]
        return torch.zeros(whole).as_subclass(OnDevice), torch.zeros(spatial)

    class Full(Failing):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.most = 99 if moved else 0
            return super().forward(x)

    original, away = torch.Tensor.to, torch.device("cuda:0")

    def to(self: torch.Tensor, place: object, *rest: object, **more: object) -> torch.Tensor:
        return self if place == away else original(self, place, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(sliding, "accumulators", accumulators)
    found = scores(Full(network, MEMORY_RAN_OUT[0]))
    assert moved == [True]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_case_that_is_too_large_for_the_memory_is_skipped(
    predictor: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images(tmp_path / "in", 3)
    original = predictor.predict_scores
    for number, error in enumerate((OutOfMemory("memory ran out on cuda:0"), MEMORY_RAN_OUT[2])):
        calls = iter(range(3))

        def second_fails(*arguments, error=error, calls=calls, **options):  # type: ignore[no-untyped-def]
            if next(calls) == 1:
                raise error
            return original(*arguments, **options)

        monkeypatch.setattr(predictor, "predict_scores", second_fails)
        failures = predictor.predict_files(source, tmp_path / str(number))
        assert len(failures) == 1
        assert failures[0].startswith("case c01: memory ran out")
        assert sorted(written(tmp_path / str(number))) == ["c00.nii", "c02.nii"]
