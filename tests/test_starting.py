"""`--pretrained` and `--init`: what weights start from, in real runs; what is noticed, kept, refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_cascade import FIRST, SECOND, packed
from test_cascade import STAGES as CASCADE
from training_cases import task

from autounet.cli.app import main
from autounet.datasets.synthetic import make_demo_dataset
from autounet.imageio import read_labels, write_image, write_labels
from autounet.inference.bundle import file_checksum
from autounet.nets import FAMILIES
from autounet.schema.errors import ModelError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions, PlannerOptions, RunOptions, StartingWeights, TrainOptions
from autounet.schema.plan import Configuration, InferenceSpec, NetworkSpec, Plan
from autounet.schema.run import DeviceProfile, RunRecord
from autounet.schema.stage_inputs import InitialWeights
from autounet.step import Precision
from autounet.store.weights import load_weights, save_weights
from autounet.training import Horizon
from autounet.training.state import new_state
from autounet.workflow.defaults import check_options, planner_options
from autounet.workflow.fine_tuning import FineTuning, known_weights
from autounet.workflow.make_plan import PlanMaker
from autounet.workflow.output_folder import with_stored
from autounet.workflow.pipeline import run_pipeline

CPU = DeviceProfile(device="cpu", name="test", cores=1, memory_bytes=2**32, precision="fp32", channels_last=False)
CLOSE = 4e-3
"""one step changes no weight by more: the learning rate of a short training is 3e-3, and it begins at 0"""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def _memory_that_is_not_traced():
    """Plans made by hand fit; tracing them would be most of the work."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("measure", "measure_fully"):
            patch.setattr(PlanMaker, name, lambda *_: 2**20)
        yield


def spec(family: str, dims: int, classes: int, **changes: object) -> NetworkSpec:
    strides = [(1,) * dims, (2,) * dims, (2,) * dims]
    network = FAMILIES[family].propose(dims, 1, classes, strides, [(3,) * dims] * 3, 4)
    return network.model_copy(update=changes)


def configuration(network: NetworkSpec, patch: tuple[int, ...]) -> Configuration:
    """Of the cascade's tests, with another network; its first stage's grid."""
    base, dims = CASCADE[FIRST], network.dims
    spacing = base.preprocess.spacing if dims == 3 else (None, 1.0, 1.0)
    changes = {
        "preprocess": base.preprocess.model_copy(update={"spacing": spacing}),
        "prepared": f"{dims}d", "network": network, "patch_size": patch, "mirror_axes": (),
        "inference": InferenceSpec(),
    }  # fmt: skip
    return base.model_copy(update=changes)


def begin(out: Path, configurations: dict[str, Configuration]) -> Path:
    """An output folder with a plan made by hand and a device that needs no probe."""
    CPU.save(out / "device.json")
    plan = Plan(configurations=configurations, options=PlannerOptions(), reasons=(), fingerprint="by hand")
    plan.save(out / "plan.json")
    return out


def run(folder: Path, out: Path, until: str = "train", **changes: object) -> None:
    given: dict[str, object] = {"device": "cpu", "workers": 0, "iterations": 1, "folds": "0"}
    run_pipeline(folder, out, RunOptions(**{**given, **changes}), until=until)


def encoder_file(path: Path | str) -> StartingWeights:
    """`--pretrained`."""
    return StartingWeights(kind="encoder", path=str(path))


def model_of(path: Path | str) -> StartingWeights:
    """`--init`."""
    return StartingWeights(kind="model", path=str(path))


NONE = StartingWeights(kind="none")


def weights(out: Path, name: str, fold: object = 0) -> Path:
    return out / "models" / name / f"fold_{fold}" / "weights.safetensors"


def record(out: Path, name: str, fold: object = 0) -> RunRecord:
    return RunRecord.load(weights(out, name, fold).with_name("record.json"))


def change(found: dict[str, torch.Tensor], before: dict[str, torch.Tensor], names: list[str]) -> float:
    """The largest change of any trained number: running statistics change as they like."""
    return max(float((found[name] - before[name]).abs().max()) for name in names if "running" not in name)


# pretrained encoders


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    geometry = Geometry(shape=(1, 20, 24), kind="png", dimension=2)
    for case in range(4):
        label = np.zeros((1, 20, 24), np.uint8)
        label[:, 5 + case : 12, 6:14] = 1
        image = (60 + 90 * label + rng.normal(0, 12, label.shape)).clip(0, 255).astype(np.uint8)
        write_image(folder / "images" / f"c{case}.png", image[None], geometry)
        write_labels(folder / "labels" / f"c{case}.png", label, geometry)
    return folder


def encoder_of(seed: int) -> dict[str, torch.Tensor]:
    """An encoder for colour images with all names that timm's has; its features are few."""
    torch.manual_seed(seed)
    state = FAMILIES["efficient"].build(spec("efficient", 2, 2, in_channels=3)).encoder.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_weights(path, encoder_of(0))
    return path


EFFICIENT = {"2d": configuration(spec("efficient", 2, 2), (16, 16))}


def test_an_encoder_starts_from_its_file_and_another_file_is_noticed(pictures, encoder, tmp_path, caplog) -> None:
    file, out = Path(shutil.copy(encoder, tmp_path / "weights.safetensors")), begin(tmp_path / "out", EFFICIENT)
    run(pictures, out, family="efficient", start=encoder_file(file))
    content = load_weights(file)
    found = {name.removeprefix("encoder."): tensor for name, tensor in load_weights(weights(out, "2d")).items()}
    same = [name for name in content if name in found and name != "conv_stem.weight"]
    assert len(same) > 200
    assert change(found, content, same) < CLOSE
    stem = content["conv_stem.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(found["conv_stem.weight"], stem, atol=CLOSE, rtol=0)

    checksum = file_checksum(file)
    assert record(out, "2d").options.start == checksum
    assert f"the encoder starts from {file} ({checksum})" in record(out, "2d").events
    assert json.loads((out / "options.json").read_text())["start"] == {
        "kind": "encoder",
        "path": str(file),
        "checksum": checksum,
    }

    before = weights(out, "2d").stat().st_mtime_ns
    run(pictures, out, start=encoder_file(encoder))  # the same weights elsewhere
    run(pictures, out, start=encoder_file(file))
    file.unlink()
    run(pictures, out)  # as stored
    assert f"--pretrained {file} does not exist any more: what was trained from it is kept" in caplog.text
    assert weights(out, "2d").stat().st_mtime_ns == before

    save_weights(file, encoder_of(1))
    run(pictures, out)
    assert f"--pretrained {file} has changed since" in caplog.text
    assert weights(out, "2d").stat().st_mtime_ns > before
    assert (out / "models" / "2d" / "fold_0.old_1").is_dir()
    assert record(out, "2d").options.start == file_checksum(file)


def refused(name: str, folder: Path) -> Path:
    """A file that does not hold the encoder."""
    content = encoder_of(0)
    if name == "lacking":
        del content["blocks.2.0.conv_dw.weight"]
    elif name == "wide":
        content["blocks.2.0.conv_dw.weight"] = torch.zeros(8, 1, 5, 5)
    path = folder / f"{name}.pth"
    if name == "text":
        path.write_text("no weights")
    elif name == "folder":
        path.mkdir()
    elif name != "absent":
        torch.save(content, path)
    return path


def checked(out: Path, configurations: dict[str, Configuration], **given: object) -> None:
    """What a run checks once there is a plan, for channels and folds that do not matter here."""
    options = known_weights(RunOptions(**{"family": "efficient", **given}), out)  # type: ignore[arg-type]
    check_options(options)
    dataset = SimpleNamespace(channels=())
    FineTuning(options, dataset, configurations, {}, out / "plan.json").check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lacking", r"--pretrained \S+: 2d: the pretrained weights lack blocks.2.0.conv_dw.weight"),
        ("wide", r"2d: blocks.2.0.conv_dw.weight is \(8, 1, 5, 5\), and \(48, 1, 5, 5\) in the network"),
        ("text", r"text.pth cannot be read"),
        ("folder", r"folder.pth is a folder. Give a file"),
        ("absent", r"--pretrained \S+ does not exist"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, name, message) -> None:
    with pytest.raises((ModelError, OptionError), match=message):
        checked(tmp_path / "out", EFFICIENT, start=encoder_file(refused(name, tmp_path)))


def test_nothing_is_trained_or_kept_of_a_refused_file(pictures, tmp_path) -> None:
    out = begin(tmp_path / "out", EFFICIENT)
    with pytest.raises(ModelError, match="the pretrained weights lack"):
        run(pictures, out, family="efficient", start=encoder_file(refused("lacking", tmp_path)))
    assert not (out / "models").exists()
    assert not (out / "options.json").exists()


def test_options_that_cannot_be_meant(encoder, tmp_path) -> None:
    checked(tmp_path, EFFICIENT, start=encoder_file(encoder))
    checked(tmp_path, EFFICIENT)
    with pytest.raises(OptionError, match="--pretrained is for --family efficient, not plain"):
        checked(tmp_path, EFFICIENT, family="plain", start=encoder_file(encoder))
    solid = {"3d_fullres": configuration(spec("efficient", 3, 3), (8, 8, 8))}
    with pytest.raises(OptionError, match=r"3d_fullres is three-dimensional.* Give --configurations 2d"):
        checked(tmp_path, solid, start=encoder_file(encoder))
    other = {"2d": configuration(spec("plain", 2, 2), (16, 16))}
    with pytest.raises(OptionError, match="2d is of the family plain, and the weights are those of an encoder"):
        checked(tmp_path, other, start=encoder_file(encoder))


def test_paths_are_kept_whole_on_the_command_line(pictures, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("run", pictures, "--out", "out", "--family", "efficient", "--pretrained", "absent.pth")
    monkeypatch.setattr(sys, "argv", ["autounet", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"--pretrained {tmp_path / 'absent.pth'} does not exist" in capsys.readouterr().err


def test_pretrained_weights_decide_on_the_width() -> None:
    asked = RunOptions(family="efficient", start=encoder_file("a"))
    assert planner_options(asked, CPU).base_features == 32
    none = asked.model_copy(update={"start": NONE})
    for other in (RunOptions(family="efficient"), with_stored(none, Path("absent.json"))):
        assert planner_options(other, CPU).base_features is None


def test_other_weights_to_start_from_are_another_training() -> None:
    assert TrainOptions(start="a").digest() != TrainOptions(start="b").digest() != TrainOptions().digest()


# models


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return make_demo_dataset(tmp_path_factory.mktemp("volumes") / "data", cases=4)


@pytest.fixture(scope="module")
def one_organ(volumes, tmp_path_factory) -> Path:
    """The same images, all organs of one class."""
    folder = Path(shutil.copytree(volumes, tmp_path_factory.mktemp("volumes") / "one"))
    for file in (folder / "labelsTr").iterdir():
        values, geometry = read_labels(file)
        write_labels(file, np.minimum(values, 1), geometry)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(
        json.dumps({**content, "name": "one", "labels": {"background": 0, "organ": 1}})
    )
    return folder


PLAIN = {"3d_fullres": configuration(spec("plain", 3, 3), (4, 12, 12))}


@pytest.fixture(scope="module")
def trained(volumes, tmp_path_factory) -> Path:
    out = begin(tmp_path_factory.mktemp("trained"), PLAIN)
    run(volumes, out, "select", folds="0,1", iterations=2)
    return out


def test_a_run_starts_from_the_folds_of_a_model(volumes, trained, tmp_path) -> None:
    out = begin(tmp_path / "out", PLAIN)
    run(volumes, out, folds="0,1,2", start=model_of(trained))
    for fold, of in ((0, 0), (1, 1), (2, 0)):
        before = load_weights(weights(trained, "3d_fullres", of))
        assert change(load_weights(weights(out, "3d_fullres", fold)), before, list(before)) < CLOSE
        events = record(out, "3d_fullres", fold).events
        assert f"the weights start from fold {of} of 3d_fullres in {trained / 'model'}" in events[0]
        assert ("the model may have been trained on validation cases" in " ".join(events)) == (fold != of)
    before = weights(out, "3d_fullres").stat().st_mtime_ns
    shutil.copytree(trained / "model", tmp_path / "elsewhere")
    run(volumes, out, start=model_of(tmp_path / "elsewhere"))
    assert weights(out, "3d_fullres").stat().st_mtime_ns == before
    run(volumes, out, start=NONE)
    assert weights(out, "3d_fullres").stat().st_mtime_ns > before
    assert record(out, "3d_fullres").options.start is None


def test_heads_of_other_classes_are_new_and_listed(one_organ, trained, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    out = begin(tmp_path / "out", {"3d_fullres": configuration(spec("plain", 3, 2), (4, 12, 12))})
    run(one_organ, out, start=model_of(trained / "model"))
    found, before = load_weights(weights(out, "3d_fullres")), load_weights(weights(trained, "3d_fullres"))
    heads = [name for name in found if found[name].shape != before[name].shape]
    assert len(heads) == 4  # weight and bias of two outputs
    assert change(found, before, [name for name in found if name not in heads]) < CLOSE
    sentence = f"new, since the classes differ: {', '.join(heads)}"
    assert sorted(sentence.partition(": ")[2].split(", ")) == sorted(heads)
    listed = next(event for event in record(out, "3d_fullres").events if event.startswith("new, "))
    assert sorted(listed.partition(": ")[2].split(", ")) == sorted(heads)
    assert listed in caplog.text


def test_other_architectures_are_refused_with_every_difference(volumes, trained, tmp_path) -> None:
    wide = spec("plain", 3, 3, features=(4, 8, 8), decoder_blocks=(1, 1))
    message = (
        r"3d_fullres cannot start from the model's 3d_fullres.*features are \(4, 8, 8\) here and \(4, 8, 16\) in the "
        r"model; decoder_blocks are \(1, 1\) here and \(2, 2\) in the model. Plan with"
    )
    with pytest.raises(ModelError, match=message):
        checked(tmp_path, {"3d_fullres": configuration(wide, (4, 12, 12))}, start=model_of(trained))
    flat = {"2d": configuration(spec("plain", 2, 3), (12, 12))}
    with pytest.raises(OptionError, match=r"no configuration 2d; it has 3d_fullres\. Give --configurations 3d_fullres"):
        checked(tmp_path, flat, start=model_of(trained))
    with pytest.raises(ModelError, match="is no model"):
        checked(tmp_path, PLAIN, start=model_of(volumes))
    with pytest.raises(OptionError, match="is the model of --out"):
        checked(trained, PLAIN, start=model_of(trained))


def test_a_plan_takes_over_the_network_and_channels_are_matched_by_name(one_organ, trained, tmp_path) -> None:
    """Without a plan of one's own; a second channel and other classes, so that only what they touch is new."""
    folder = Path(shutil.copytree(one_organ, tmp_path / "two"))
    for file in sorted((folder / "imagesTr").iterdir()):
        shutil.copy(file, file.with_name(file.name.replace("_0000", "_0001")))
    content = json.loads((folder / "dataset.json").read_text())
    before = content["channel_names"]["0"]
    content["channel_names"] = {"0": "another", "1": before}
    (folder / "dataset.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    out.mkdir()
    CPU.save(out / "device.json")
    with pytest.raises(OptionError, match=r"of the family plain, and --family is residual\. Give --family plain"):
        run(folder, out, "plan", family="residual", start=model_of(trained))
    model = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    run(folder, out, start=model_of(model))
    plan = Plan.load(out / "plan.json")
    network = plan.configurations["3d_fullres"].network
    assert list(plan.configurations) == ["3d_fullres"]
    assert network == spec("plain", 3, 2, in_channels=2)
    assert any(reason.text.startswith("the network of the model's 3d_fullres") for reason in plan.reasons)
    assert "learning rate rises to 0.001" in plan.reasons[-2].text + plan.reasons[-1].text

    made = record(out, "3d_fullres")
    assert (made.options.learning_rate, made.options.schedule) == (1e-3, "warmup_cosine")
    stem = "encoder.0.blocks.0.conv.weight"
    assert f"{stem}: trained for {before}, new for another" in made.events
    found, old = load_weights(weights(out, "3d_fullres")), load_weights(weights(trained, "3d_fullres"))
    torch.testing.assert_close(found[stem][:, 1:], old[stem], atol=CLOSE, rtol=0)
    same = [name for name in found if found[name].shape == old[name].shape]
    assert len(same) == len(found) - 5  # beside the stem, weight and bias of two heads
    assert change(found, old, same) < CLOSE

    shutil.rmtree(model)
    run(folder, out)  # as stored
    assert Plan.load(out / "plan.json") == plan
    with pytest.raises(OptionError, match="does not exist any more, and a new plan needs its network"):
        run_pipeline(folder, out, RunOptions(device="cpu"), replan=True, until="plan")


def test_both_stages_of_a_cascade_start_from_those_of_a_model(volumes, tmp_path) -> None:
    names = sorted(path.name.removesuffix(".nii.gz") for path in (volumes / "labelsTr").iterdir())
    (tmp_path / "splits.json").write_text(json.dumps({"folds": [names[:2], names[2:]]}))
    splits = DataOptions(splits=str(tmp_path / "splits.json"))
    first = begin(tmp_path / "first", CASCADE)
    run(volumes, first, folds="all", configurations=(SECOND,), data=splits)
    model = packed(first, tmp_path / "model", SECOND)
    second = begin(tmp_path / "second", CASCADE)
    run(volumes, second, "select", folds="all", configurations=(SECOND,), data=splits, start=model_of(model))
    for name in CASCADE:
        before = load_weights(weights(first, name, 1))
        assert change(load_weights(weights(second, name, 1)), before, list(before)) < CLOSE


# one training


def test_larger_kernels_start_from_smaller_ones(tmp_path) -> None:
    strides = [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
    small, large = (
        FAMILIES["mednext"].propose(3, 1, 3, strides, [(3, 3, 3)] * 3, 4, kernel=kernel)  # type: ignore[arg-type]
        for kernel in (3, 5)
    )
    before = FAMILIES["mednext"].build(small).state_dict()
    save_weights(tmp_path / "small.safetensors", before)
    base = task(tmp_path, Horizon(steps=1)).configuration
    asked = task(
        tmp_path, Horizon(steps=1), weights=tmp_path / "small.safetensors", initial=InitialWeights(trained=small),
        configuration=base.model_copy(update={"network": large}), options=TrainOptions(ema_decay=0.9, start="any"),
    )  # fmt: skip
    state = new_state(asked.inputs, asked.place.initial, Precision(), torch.device("cpu"))
    for network in (state.model, state.average):
        found = network.state_dict()
        kernel = "encoder.0.blocks.0.depthwise.weight"
        assert found[kernel].shape[2:] == (5, 5, 5)
        torch.testing.assert_close(found[kernel][..., 2, 2, 2], before[kernel][..., 1, 1, 1])
        assert torch.equal(found["decoder.0.head.weight"], before["decoder.0.head.weight"])


def test_a_damaged_file_is_named_when_a_training_needs_it(tmp_path) -> None:
    start = InitialWeights(trained=spec("plain", 3, 3))
    asked = task(tmp_path, Horizon(steps=1), weights=tmp_path / "gone.safetensors", initial=start)
    with pytest.raises(ModelError, match=r"gone\.safetensors cannot be read"):
        new_state(asked.inputs, asked.place.initial, Precision(), torch.device("cpu"))
