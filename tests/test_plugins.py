"""Plug-ins: found without being loaded, used like what is built in, and part of what a result is a function of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from plugin_packages import EXAMPLE, install_example, version_here, write_metadata
from quick_runs import narrow, no_trials, one_probe  # noqa: F401 - used by the run here

import autounet
from autounet.datasets import LAYOUTS, scan
from autounet.datasets.synthetic import make_case, make_demo_dataset
from autounet.evaluation import METRICS, evaluate_case
from autounet.losses import LOSSES, LossSetting
from autounet.nets import FAMILIES
from autounet.planning import PRESETS
from autounet.schema import plugins
from autounet.schema.bundle import ModelBundle
from autounet.schema.errors import ModelError, PluginError, UsageError
from autounet.schema.labels import LabelClass, Labels
from autounet.schema.metrics import METRIC_NAMES, ClassMetrics, Metrics, chosen_metrics
from autounet.schema.options import DataOptions, RunOptions, TrainOptions
from autounet.schema.plugins import BUILT_IN, PluginUse, plugins_used
from autounet.schema.stage_inputs import plugins_of
from autounet.training.transforms import AUGMENTATIONS
from autounet.workers import INHERITED, map_parallel
from autounet.workflow.defaults import train_options

LABELS = Labels(classes=tuple(LabelClass(name=name, value=value) for value, name in enumerate(("background", "organ"))))
USES = {
    "families": PluginUse(kind="families", name="squeeze", package="autounet-example", version="1.0"),
    "losses": PluginUse(kind="losses", name="poly1", package="autounet-example", version="1.0"),
    "metrics": PluginUse(kind="metrics", name="volume_similarity", package="autounet-example", version="1.0"),
}
OTHERS = """
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from autounet.datasets import DeclaredLabels, DetectedLayout, Layout
from autounet.schema.dataset import Case

class Invert(ImageOnlyTransform):
    def get_parameters(self, **data):
        return {}
    def _apply_to_image(self, img, **parameters):
        return -img

def inverted(flat):
    return [Invert()]

def detect(folder, options):
    return (folder / "scans.txt").is_file()

def find(folder, options):
    names = (folder / "scans.txt").read_text().split()
    cases = [Case(identifier=name, images=(f"{name}-scan.nii.gz",), label=f"{name}-mask.nii.gz") for name in names]
    return DetectedLayout(cases, "*-scan.nii.gz", DeclaredLabels({}, {}, None), False)

SCANS = Layout(detect, find)
NOT_A_LAYOUT = (detect, find)
"""
"""a module with an augmentation and a layout"""


@pytest.fixture(autouse=True)
def nothing_stays_registered() -> Iterator[None]:
    yield
    plugins._registered.clear()
    INHERITED.clear()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example(tmp_path_factory.mktemp("site"))


@pytest.fixture
def example(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(installed)
    return installed


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The module of `OTHERS`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "other_plugins.py").write_text(OTHERS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield "other_plugins"
    sys.modules.pop("other_plugins", None)


def test_names_that_are_built_in_are_those_there_are() -> None:
    for kind, registry in (("losses", LOSSES), ("families", FAMILIES), ("metrics", METRICS)):
        assert set(BUILT_IN[kind]) == set(registry)  # type: ignore[index]
    assert set(BUILT_IN["augmentations"]) == {*AUGMENTATIONS, "none"}
    assert BUILT_IN["metrics"] == METRIC_NAMES
    assert set(BUILT_IN["layouts"]) == set(LAYOUTS)
    assert {each.family for each in PRESETS.values()} <= set(BUILT_IN["families"])


def test_the_names_of_plug_ins_are_known_without_loading_them(installed: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(installed)!r})
from autounet.schema.options import RunOptions
RunOptions(family="squeeze", loss="poly1", metrics=("volume_similarity",))
assert not {{"torch", "autounet_example"}} & set(sys.modules), "loaded"
from autounet.nets import FAMILIES
FAMILIES["squeeze"].propose(2, 1, 2, [(1, 1), (2, 2)], [(3, 3)] * 2, 4)
assert "autounet_example" in sys.modules and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_built_in_names_do_not_even_look_for_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(paths: object) -> None:
        raise AssertionError("looked")

    monkeypatch.setattr(plugins, "_installed", refuse)
    RunOptions(family="plain", loss="dice_ce", augmentation="none", metrics=("dice", "assd"))
    assert LOSSES["dice_ce"]
    assert FAMILIES["plain"].name == "plain"
    assert chosen_metrics(["default"])
    assert not plugins_used(families=["plain"], losses=["dice"])


def test_an_unknown_name_lists_plug_ins_too(example: Path) -> None:
    with pytest.raises(UsageError, match=r"Did you mean squeeze\?.*mednext, squeeze, or install"):
        RunOptions(family="squeze")
    with pytest.raises(UsageError, match="count_error, volume_similarity, or default"):
        chosen_metrics(["volume_similarty"])
    assert chosen_metrics(["all"]) == (*METRIC_NAMES, "volume_similarity")


def test_the_first_of_two_installed_versions_counts(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plugins.plugins("losses")["poly1"].use == USES["losses"]
    monkeypatch.syspath_prepend(install_example(tmp_path, "2.0rc1"))
    assert plugins.plugins("losses")["poly1"].use.version == "2.0rc1"


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "entry", "message"),
    [
        ("losses", {"dice": "x:y"}, "the loss dice of bad 1 has the name of one that AutoUNet has itself"),
        ("losses", {"poly1": "x:y"}, "the loss poly1 of .* has the same name as the loss poly1 of"),
        ("families", {"two-words": "x:y"}, "other characters than letters"),
        ("families", {"absent": "no_such_module:y"}, "cannot be loaded from no_such_module:y: ModuleNotFoundError"),
        ("families", {"other": "autounet_example.families:SQUEEZE"}, "is a family called squeeze, not other"),
        ("families", {"text": "string:digits"}, "is no autounet.nets.Family"),
        ("losses", {"text": "string:digits"}, "cannot be called"),
        ("metrics", {"text": "string:nothing"}, "cannot be loaded from string:nothing: AttributeError"),
    ],
)
def test_bad_entry_points_are_named(
    group: str, entry: dict[str, str], message: str, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_metadata(tmp_path, "bad", "1", {f"autounet.{group}": entry})
    monkeypatch.syspath_prepend(tmp_path)
    registry: Any = {"losses": LOSSES, "families": FAMILIES, "metrics": METRICS}[group]
    (name,) = entry
    with pytest.raises(PluginError, match=message):
        registry[name if name not in ("dice", "poly1", "two-words") else "something"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("loss", "a", "string:digits", "1"), "Did you mean losses"),
        (("losses", "a", "__main__:a", "1"), "'__main__:a' cannot be imported by its name"),
        (("losses", "a", len, "1"), "cannot be imported by its name"),
        (("losses", "a", "string:digits", ""), "the version '' is no text"),
        (("losses", "dice", "string:digits", "1"), "has the name of one that AutoUNet has itself"),
        (("losses", "a", "string:nothing", "1"), "cannot be loaded"),
    ],
)
def test_what_cannot_be_registered(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises((UsageError, PluginError), match=message):
        autounet.register(*given)
    assert not plugins._registered


# ---- registered from Python ---------------------------------------------------------------------------------------


def test_worker_processes_have_what_is_registered(others: str) -> None:
    autounet.register("augmentations", "inverted", f"{others}:inverted", version="3")
    assert map_parallel(version_here, ["inverted"] * 2, 2) == ["3", "3"]


def test_an_augmentation_replaces_the_changes_of_intensity(others: str) -> None:
    from autounet.training.augment import Augmentation, Excerpt

    autounet.register("augmentations", "inverted", f"{others}:inverted", version="3")
    options = train_options(RunOptions(augmentation="inverted"), 10_000, 3, augmented_by="torch")
    assert (options.augmentation, options.augmented_by) == ("inverted", "batchgeneratorsv2")
    assert train_options(RunOptions(augmentation="full"), 10_000, 3, augmented_by="torch").augmented_by == "torch"
    augmentation = Augmentation(options.augmentation, (4, 4, 4), (), by=options.augmented_by)
    image, labels = torch.rand(1, 4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.int16)
    generator = np.random.default_rng(0)
    spatial = next(each for each in iter(lambda: augmentation.draw(generator), None) if not each.moves)
    changed = augmentation.apply([Excerpt.of(spatial, image.clone(), labels)])
    assert torch.equal(changed.images[0], -image)


def test_a_layout_is_tried_before_those_built_in(others: str, tmp_path: Path) -> None:
    made = make_demo_dataset(tmp_path / "demo", cases=2)
    data = tmp_path / "data"
    data.mkdir()
    for name in ("demo_000", "demo_001"):
        shutil.copy(made / "imagesTr" / f"{name}_0000.nii.gz", data / f"{name}-scan.nii.gz")
        shutil.copy(made / "labelsTr" / f"{name}.nii.gz", data / f"{name}-mask.nii.gz")
    (data / "scans.txt").write_text("demo_000 demo_001", encoding="utf-8")
    autounet.register("layouts", "broken", f"{others}:NOT_A_LAYOUT", version="1")
    with pytest.raises(PluginError, match=r"is no autounet\.datasets\.Layout"):
        scan(data, DataOptions())
    plugins._registered.clear()
    autounet.register("layouts", "scans", f"{others}:SCANS", version="1")
    found = scan(data, DataOptions())
    assert [case.identifier for case in found.cases] == ["demo_000", "demo_001"]
    assert found.layout == "scans"
    assert scan(made, DataOptions()).layout == "nnunet"


# ---- the example ---------------------------------------------------------------------------------------------------


def test_the_examples_loss_is_its_formula(example: Path) -> None:
    logits, labels = torch.randn(2, 2, 5, 6), torch.randint(0, 2, (2, 5, 6))
    true = logits.softmax(1).gather(1, labels[:, None])
    assert LOSSES["poly1"](LossSetting(LABELS))(logits, labels, None, None).item() == pytest.approx(
        (-true.log() + 1 - true).mean().item(), rel=1e-5
    )


def test_the_examples_metric_has_its_values(example: Path) -> None:
    prediction, reference = np.zeros((2, 1, 4, 4), np.uint8)
    prediction[0, :2], reference[0, :1] = 1, 1
    metrics = chosen_metrics(["volume_similarity"])
    found = evaluate_case(prediction, reference, (1, 1, 1), LABELS, metrics=metrics)["organ"]
    assert found.value("volume_similarity") == pytest.approx(1 - 4 / 12)
    assert json.loads(found.model_dump_json())["plugins"] == {"volume_similarity": pytest.approx(2 / 3)}
    assert ClassMetrics.model_validate_json(found.model_dump_json()) == found
    empty = evaluate_case(np.zeros_like(prediction), np.zeros_like(reference), (1, 1, 1), LABELS, metrics=metrics)
    assert empty["organ"].undefined["volume_similarity"] == "empty in both"


@pytest.mark.parametrize("dims", [2, 3])
def test_the_examples_family_keeps_the_contract(dims: int, example: Path) -> None:
    family = FAMILIES["squeeze"]
    strides = [(1,) * dims, (2,) * dims, (2,) * dims]
    spec = family.propose(dims, 1, 3, strides, [(3,) * dims] * 3, 4)
    network, image = family.build(spec).train(), torch.randn(2, 1, *(8,) * dims)
    assert [tuple(each.shape) for each in network(image)] == [(2, 3, *(8 // step,) * dims) for step in (1, 2)]
    assert network.eval()(image).shape == (2, 3, *(8,) * dims)
    wider = spec.model_copy(update={"options": {"reduction": 1}})
    assert sum(each.numel() for each in family.build(wider).parameters()) > sum(
        each.numel() for each in network.parameters()
    )


def test_the_version_of_a_plug_in_changes_what_a_training_is_keyed_by(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = FAMILIES["squeeze"].propose(2, 1, 2, [(1, 1), (2, 2)], [(3, 3)] * 2, 4)
    before = plugins_of(spec, TrainOptions(loss="poly1"))
    assert before == (USES["losses"], USES["families"])
    monkeypatch.syspath_prepend(install_example(tmp_path, "1.1"))
    assert [use.version for use in plugins_of(spec, TrainOptions(loss="poly1"))] == ["1.1", "1.1"]
    assert plugins_of(FAMILIES["plain"].propose(2, 1, 2, [(1, 1), (2, 2)], [(3, 3)] * 2, 4), TrainOptions()) == ()


BUDGET = 450 * 2**20


@pytest.fixture(scope="module")
def trained(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> autounet.RunResult:
    data = tmp_path_factory.mktemp("pictures") / "data"
    for index in range(4):
        image, labels, _ = make_case(np.random.default_rng(index), (12, 48, 48))
        for kind, array in (("images", np.clip(image[0, 6] / 5, 0, 255)), ("labels", labels[6])):
            (data / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(data / kind / f"case{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(installed)
        return autounet.run(
            data, tmp_path_factory.mktemp("run") / "out", family="squeeze", loss="poly1", metrics=["volume_similarity"],
            iterations=2, folds=0, device="cpu", workers=0, memory="450MB",
        )  # fmt: skip


def test_a_run_with_the_example_records_it(trained: autounet.RunResult) -> None:
    configuration = trained.plan.configurations["2d"]
    assert configuration.network.family == "squeeze"
    assert 0 < configuration.predicted_memory_bytes <= BUDGET
    (fold,) = trained.folds
    assert fold.record.plugins == (USES["losses"], USES["families"])
    assert fold.record.versions["autounet-example"] == "1.0"
    metrics = Metrics.load(trained.out / "metrics.json")
    assert {name: set(each.plugins) | set(each.undefined) for name, each in metrics.per_class.items()} == {
        name: {"volume_similarity", *each.undefined} for name, each in metrics.per_class.items()
    }
    assert "volume_similarity" in trained.report.read_text(encoding="utf-8")
    bundle = ModelBundle.load(trained.model / "bundle.json")
    assert bundle.plugins == (USES["families"],)
    assert "autounet-example 1.0" in (trained.model / "model_card.md").read_text(encoding="utf-8")


def test_a_bundle_says_which_plug_in_it_needs(
    trained: autounet.RunResult, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    message = r"needs the network family squeeze of autounet-example 1\.0, which is not installed\. Install autounet-ex"
    with pytest.raises(ModelError, match=message):
        autounet.load(trained.model, device="cpu")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(installed)
        assert autounet.load(trained.model, device="cpu").models
        assert not caplog.records
    monkeypatch.syspath_prepend(install_example(tmp_path, "1.2"))
    assert autounet.load(trained.model, device="cpu").models
    assert "was made with the network family squeeze of autounet-example 1.0; installed is autounet-example 1.2" in (
        caplog.text
    )


def test_the_same_options_need_the_plug_in_again(trained: autounet.RunResult) -> None:
    with pytest.raises(UsageError, match=r"--metrics volume_similarity is unknown"):
        RunOptions.load(trained.out / "options.json")


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (EXAMPLE.parent / "plugins.md").read_text(encoding="utf-8")
    for name in ("losses", "families", "metrics"):
        text = (EXAMPLE / "autounet_example" / f"{name}.py").read_text(encoding="utf-8")
        code = text.partition("\n\n\n")[2].strip()
        assert code in page, name
