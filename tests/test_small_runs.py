"""Short runs in this process: 2-D images, two configurations and their ensemble, all cases at once."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from quick_runs import narrow, no_trials, one_probe  # noqa: F401 - used by every test here

from autounet import api
from autounet.datasets.synthetic import make_demo_dataset
from autounet.evaluation import DEFAULT_METRICS
from autounet.imageio import read_labels, write_image, write_labels
from autounet.schema.errors import DeadlineError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.metrics import CaseMetrics, Metrics
from autounet.schema.options import DataOptions, RunOptions
from autounet.schema.plan import Plan
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection
from autounet.store.prepared import read_scores
from autounet.store.run_folder import RunFolder
from autounet.time_budget import shape
from autounet.time_budget.deadline import Clock
from autounet.time_budget.expected_error import EASY, HARD
from autounet.workflow import plan_stage
from autounet.workflow.cache import keep_result
from autounet.workflow.pipeline import run_pipeline
from autounet.workflow.plan_stage import PlanFile


def options(**changes):
    return RunOptions(**{"device": "cpu", "workers": 0, "memory_bytes": 440 * 2**20, **changes})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Bright discs on noise: TIFF images, PNG labels with the values 0 and 255, an odd size."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    geometry = Geometry(shape=(1, 37, 50), kind="png", dimension=2)
    y, x = np.mgrid[:37, :50]
    for case in range(6):
        disc = (y - rng.uniform(12, 25)) ** 2 + (x - rng.uniform(14, 36)) ** 2 < rng.uniform(6, 11) ** 2
        image = (60 + 90 * disc + rng.normal(0, 12, disc.shape)).clip(0, 255).astype(np.uint8)
        kind = geometry.model_copy(update={"kind": "tiff"})
        write_image(folder / "images" / f"{case:02d}_slide.tif", image[None, None], kind)
        write_labels(folder / "masks" / f"{case:02d}_drawn.png", disc[None] * 255, geometry)
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return make_demo_dataset(tmp_path_factory.mktemp("volumes") / "data", cases=4)


def test_pictures_train_and_come_back_with_their_values(pictures, tmp_path):
    data = DataOptions(classes={"disc": 255})
    run_pipeline(pictures, tmp_path, options(iterations=45, folds="0,1", data=data), until="select")
    records = [RunRecord.load(RunFolder(tmp_path).fold("2d", fold).record) for fold in (0, 1)]
    assert {record.options.augmentation for record in records} == {"light"}  # 60 steps show each picture often
    metrics = Metrics.load(tmp_path / "metrics.json")
    assert set(metrics.per_class) == {"disc"}
    assert metrics.mean_dice > 0.7
    assert metrics.unit == "pixels"
    assert list(Plan.load(tmp_path / "plan.json").configurations) == ["2d"]
    for case in metrics.cases:
        values, _ = read_labels(tmp_path / "crossval" / "2d" / f"{case.case}.tif")
        assert values.shape == (1, 37, 50)
        assert set(np.unique(values)) <= {0, 255}
    predictor = api.load(tmp_path / "model", device="cpu")
    (channel,) = predictor.bundle.card.data.channels
    least, greatest = channel.minimum, channel.maximum
    assert 0 <= least[0] <= least[1] < greatest[0] <= greatest[1] <= 255, "for `mismatch`"
    assert predictor.predict_files(pictures / "images", tmp_path / "predicted") == []
    assert api.evaluate(tmp_path / "predicted", pictures / "masks", {"disc": 255}).mean_dice > 0.7
    check_other_metrics(pictures, tmp_path, metrics)


def check_other_metrics(pictures, out, before):
    """They are measured on what is there: nothing is trained or predicted for them."""
    watched = [*out.glob("models/*/*/weights.safetensors"), *out.glob("crossval/2d/fold_*.json")]
    times = [path.stat().st_mtime_ns for path in watched]
    run_pipeline(pictures, out, options(metrics=("dice", "assd", "cl_dice")), until="select")
    found = Metrics.load(out / "metrics.json")
    assert (found.mean_dice, found.mean_dice_interval) == (before.mean_dice, before.mean_dice_interval)
    for case in found.cases:
        assert case.per_class["disc"].assd is not None or "assd" in case.per_class["disc"].undefined
        assert case.per_class["disc"].iou is None
    run_pipeline(pictures, out, options(metrics=DEFAULT_METRICS), until="select")
    assert Metrics.load(out / "metrics.json") == before
    assert [path.stat().st_mtime_ns for path in watched] == times


def test_a_named_background_is_reported_and_not_counted(pictures, tmp_path):
    data = DataOptions(classes={"ground": 0, "disc": 255})
    run_pipeline(pictures, tmp_path, options(iterations=3, folds="0", data=data), until="select")
    metrics = Metrics.load(tmp_path / "metrics.json")
    assert list(metrics.per_class) == ["ground", "disc"]
    assert metrics.mean_dice == metrics.per_class["disc"].dice


def test_configurations_and_their_ensemble_are_compared(volumes, tmp_path):
    run_pipeline(volumes, tmp_path, options(iterations=2, folds="0"), until="select")
    selection = Selection.load(tmp_path / "selection.json")
    compared = {candidate.configurations for candidate in selection.compared}
    assert compared == {("2d",), ("3d_fullres",), ("2d", "3d_fullres")}
    assert len(list((tmp_path / "crossval" / "2d+3d_fullres").glob("*.nii.gz"))) == 1
    best = max(candidate.mean_dice for candidate in selection.compared)
    assert Metrics.load(tmp_path / "metrics.json").mean_dice >= best - 1e-3


SHORT = {"iterations": 2, "folds": "0", "configurations": ("3d_fullres",)}


@pytest.fixture(scope="module")
def finished(volumes, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    run_pipeline(volumes, out, options(**SHORT), until="select")
    return out


@pytest.fixture
def trained(finished, tmp_path):
    """A copy of the finished run, which may be changed."""
    return shutil.copytree(finished, tmp_path / "trained")


def weights(out):
    return out / "models" / "3d_fullres" / "fold_0" / "weights.safetensors"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_what_is_damaged_and_derived_is_made_again(volumes, trained, caplog):
    case = Metrics.load(trained / "metrics.json").cases[0].case
    place, model = trained / "crossval" / "3d_fullres", trained / "model"
    prepared = next((trained / "prepared").glob("*/*.labels.b2nd"))
    flipped = [
        place / "scores" / f"{case}.scores.b2nd", place / f"{case}.nii.gz", prepared, trained / "selection.json",
        model / "model_card.md", next(model.glob("*/*.safetensors")), place / "cases" / f"{case}.json",
    ]  # fmt: skip
    before, scores = Metrics.load(trained / "metrics.json"), read_scores(place / "scores", case)
    times = {weights(trained): weights(trained).stat().st_mtime_ns}
    for path in flipped:
        flip(path)
    (trained / "metrics.json").write_text("{")
    (model / "bundle.json").unlink()
    run_pipeline(volumes, trained, options(**SHORT), until="select")
    assert Metrics.load(trained / "metrics.json") == before
    # equal but for the order of sums, which a library chooses anew
    np.testing.assert_allclose(read_scores(place / "scores", case), scores, atol=0.02)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    api.load(model, device="cpu")
    for told in ("selection.json", prepared.name.split(".")[0], f"{case}.scores.b2nd", f"{case}.nii.gz"):
        assert caplog.text.count(told) == 1, caplog.text


def test_damaged_weights_are_named_and_only_their_fold_is_trained_again(volumes, trained, caplog):
    flip(weights(trained))
    run_pipeline(volumes, trained, options(**SHORT), until="select")
    assert "fold_0/weights.safetensors. The fold is trained again" in caplog.text
    assert (trained / "models" / "3d_fullres" / "fold_0.old_1" / "weights.safetensors").exists()
    api.load(trained / "model", device="cpu")


def test_full_trains_one_model_on_all_cases_and_claims_nothing(volumes, trained):
    run_pipeline(volumes, trained, options(folds="full"), until="select")
    record = RunRecord.load(trained / "models" / "3d_fullres" / "fold_all" / "record.json")
    assert len(record.train_cases) == 4
    assert record.validation_cases == ()
    assert not (trained / "metrics.json").exists()
    assert "nothing was compared" in Selection.load(trained / "selection.json").reason
    assert len(api.load(trained / "model", device="cpu").models["3d_fullres"]) == 1


def test_other_options_train_again_and_lose_nothing(volumes, trained):
    run_pipeline(volumes, trained, options(**{**SHORT, "iterations": 3}), until="train")
    models = trained / "models" / "3d_fullres"
    assert RunRecord.load(models / "fold_0" / "record.json").steps == 3
    assert RunRecord.load(models / "fold_0.old_1" / "record.json").steps == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "imaginary"}, "--loss imaginary is unknown. Choose one of"),
        ({"folds": "9"}, "there are 4 folds. Give indices from 0 to 3"),
        ({"folds": "some"}, "Give all, full, or indices"),
        ({"deterministic": True, "iterations": None, "seconds": 600.0}, "--deterministic needs"),
        ({"device": "cuda:77"}, "is not here"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_trained(volumes, tmp_path, changes, message):
    with pytest.raises(OptionError, match=message):
        run_pipeline(volumes, tmp_path, options(**{"iterations": 1, **changes}), until="train")
    assert not (tmp_path / "models").exists()


def test_plan_never_refuses_for_want_of_time(volumes, tmp_path, caplog):
    given = options(seconds=2.0, folds="0", configurations=("3d_fullres",))
    with caplog.at_level("WARNING"):
        outcome = run_pipeline(volumes, tmp_path, given, until="plan")
    assert "3d_fullres" in outcome.plan.configurations
    assert "the whole command takes at least" in caplog.text
    with pytest.raises(DeadlineError, match="the time is too short"):
        run_pipeline(volumes, tmp_path, given, until="preprocess")


def test_two_commands_in_one_folder_are_refused(volumes, tmp_path):
    from autounet.store.folder_lock import locked

    with locked(tmp_path), pytest.raises(OptionError, match="another autounet is working"):
        run_pipeline(volumes, tmp_path, options(iterations=1), until="fingerprint")


def test_options_that_only_say_the_default_change_nothing(volumes, trained):
    before = weights(trained).stat().st_mtime_ns
    said = options(**SHORT, seed=0, family="plain", preset=None)
    run_pipeline(volumes, trained, said, until="select")
    assert weights(trained).stat().st_mtime_ns == before
    assert not list((trained / "models" / "3d_fullres").glob("*.old_*"))


def test_a_deleted_fold_is_trained_validated_and_packed_again(volumes, trained):
    shutil.rmtree(weights(trained).parent)
    old = {path: path.stat().st_mtime_ns for path in (trained / "metrics.json", trained / "model" / "bundle.json")}
    run_pipeline(volumes, trained, options(**SHORT), until="select")
    assert weights(trained).exists()
    assert all(path.stat().st_mtime_ns > before for path, before in old.items())


def test_deleted_prepared_cases_come_back_and_nothing_is_trained_again(volumes, trained):
    before = weights(trained).stat().st_mtime_ns
    shutil.rmtree(trained / "prepared")
    run_pipeline(volumes, trained, options(**SHORT), until="select")
    assert len(list((trained / "prepared" / "3d_fullres").glob("*.json"))) == 4
    assert weights(trained).stat().st_mtime_ns == before


def test_a_refused_option_does_not_stick(volumes, trained):
    with pytest.raises(OptionError):
        run_pipeline(volumes, trained, options(loss="imaginary"), until="select")
    run_pipeline(volumes, trained, options(**SHORT), until="select")


@pytest.fixture(scope="module")
def promised(volumes, tmp_path_factory):
    """The options of a command that has an hour, and its folder with a plan."""
    out, given = tmp_path_factory.mktemp("promised"), options(seconds=3600.0, folds="0", configurations=("3d_fullres",))
    run_pipeline(volumes, out, given, until="plan")
    return given, out


def test_the_promise_ends_with_the_command(promised):
    assert not (promised[1] / "clock.json").exists()


def test_a_resumed_command_without_time_left_says_so_and_trains_nothing(volumes, promised, tmp_path):
    given, out = promised[0], shutil.copytree(promised[1], tmp_path / "out")
    Clock(promised_seconds=3600.0, spent_seconds=3595.0).save(out / "clock.json")
    with pytest.raises(DeadlineError, match="are left, and 1 folds need at least"):
        run_pipeline(volumes, out, given, until="train")
    assert not (out / "models").exists()


def test_new_names_reach_the_metrics_and_train_nothing_again(volumes, trained):
    before = weights(trained).stat().st_mtime_ns
    stale = trained / "crossval" / "3d_fullres" / "gone.nii.gz"  # of a case that was taken out
    stale.write_bytes(b"")
    (own := stale.with_name("mine.nii.gz")).write_bytes(b"")  # without a record that we wrote it
    keep_result(stale.parent / "cases" / "gone.json", "1", CaseMetrics(case="gone", per_class={}))
    run_pipeline(volumes, trained, options(data=DataOptions(classes={"spleen": 1, "gland": 2})), until="select")
    assert not stale.exists()
    assert own.exists()
    assert weights(trained).stat().st_mtime_ns == before
    assert not list((trained / "models" / "3d_fullres").glob("*.old_*"))
    metrics = Metrics.load(trained / "metrics.json")
    assert set(metrics.per_class) == {"spleen", "gland"}
    assert metrics.per_class["spleen"].dice is not None


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan whose grid depends on how hard the data are to learn."""
    folder = tmp_path_factory.mktemp("planned")
    data = make_demo_dataset(folder / "data", cases=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shape, "_possible_grids", lambda first, kept: (1.0, 2.0))
        return folder / "out", run_pipeline(data, folder / "out", options(seconds=400.0), until="plan")


@pytest.mark.parametrize(
    ("changes", "share"),
    [({"seconds": 200.0}, 0.02), ({"options": options(seconds=400.0, iterations=50)}, 0.02), ({}, 1e-9)],
)
def test_no_trial_is_made_in_short_runs_for_given_steps_and_where_it_takes_too_long(
    planned, monkeypatch, changes, share
):
    out, outcome = planned
    monkeypatch.setattr(plan_stage, "TRIAL_PREPARATION", share)
    assert outcome.plan.undecided == (1.0, 2.0)
    maker = replace(outcome.maker, **changes)
    assert plan_stage.tried(RunFolder(out), maker, PlanFile(RunFolder(out)), outcome.plan)[1] is outcome.plan


def test_a_trial_on_the_data_decides_on_the_grid_once(planned, monkeypatch):
    out, outcome = planned
    folder, file = RunFolder(out), PlanFile(RunFolder(out))
    for share in (0.02, 0.05, 0.2):  # on a busy machine nothing is learnt in the shortest
        monkeypatch.setattr(plan_stage, "TRIAL_SHARE", share)
        maker, plan = plan_stage.tried(folder, outcome.maker, file, outcome.plan)
        if plan is not outcome.plan:
            break
    assert EASY <= plan.learning <= HARD
    assert maker.learning == plan.learning
    told = [
        reason.text
        for reason in plan.reasons
        if re.match(r"a trial of \d+ s on 6 cases had a mean Dice of", reason.text)
    ]
    assert len(told) == 1
    assert plan == Plan.load(folder.plan)
    assert not file.is_edited(plan)
    assert not folder.learning_trial.exists()
    assert not list(out.glob("models/*/fold_*"))
    assert plan_stage.tried(folder, outcome.maker, file, plan)[1] is plan
