"""Names and links that lead out of a folder, steer a terminal, or are read as HTML, Markdown or mathematics."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from pathlib import Path

import pytest
from broken_sets import NONE, volumes
from fake_output import configuration, make_output
from hypothesis import given
from hypothesis import strategies as st

from autounet.cli.command_options import PrintableLog
from autounet.datasets.inputs import InputCase, _safely_named
from autounet.figures import as_svg, chart, literal
from autounet.inference.archive import replace_folder
from autounet.inference.card import card_text
from autounet.schema.bundle import BundleMember, ModelBundle, ModelCard, Score, ScoreSummary
from autounet.schema.dataset import Case, CaseFacts, Channel
from autounet.schema.errors import AutoUNetError, DataError, ModelError, OptionError, RecordError
from autounet.schema.labels import LabelClass, Labels, Region
from autounet.schema.names import case_problem, is_plain_path, path_problem, printable
from autounet.schema.plan import Plan
from autounet.schema.record import new_folder, replacing, require_no_links, write_text
from autounet.schema.run import EpochLog
from autounet.schema.selection import Selection
from autounet.store.run_folder import OWN_NAMES, RunFolder
from autounet.training.journal import draw_progress
from autounet.workflow.output_folder import require_own_folder

OUTWARDS = (
    "../x", "a/../../x", "/etc/x", "a//b", "..", ".", "", "a/", ".hidden", "a\\b", "C:x", "nul", "a/COM1.nii",
    "x" * 201,
    "a\nb", "a\x1b[31mb", "a\u202eb", "a\0b", "a?", "a*", "a|b", 'a"b', "<a>",
)  # fmt: skip
ALLOWED = ("case_1", "site0/p0", "Müller 3", "BraTS-1.2", "\udce9", "a$b$", "a&b", "naïve'", "ct (1)", "日本")


@pytest.mark.parametrize("name", OUTWARDS)
def test_a_name_that_leads_out_is_no_name_of_a_case(name: str) -> None:
    assert case_problem(name)
    assert not is_plain_path(name)
    with pytest.raises(DataError, match="the case name"):
        Case(identifier=name, images=())
    assert _safely_named(InputCase(name, (Path("a.nii"),))).error is not None
    assert not case_problem(_safely_named(InputCase(name, (Path("../a?.nii"),))).identifier)


@pytest.mark.parametrize("name", ALLOWED)
def test_names_that_people_use_are_names(name: str) -> None:
    assert Case(identifier=name, images=()).identifier == name
    assert is_plain_path(name)


@pytest.mark.parametrize("name", ["scores/a", "cases/a", "next/a", "fold_0/a", "weighted/a"])
def test_folders_of_our_own_are_no_folders_of_cases(name: str) -> None:
    assert case_problem(name)
    assert not path_problem(name)


@given(st.text(max_size=60))
def test_a_plain_path_stays_inside_whatever_it_is(name: str) -> None:
    if is_plain_path(name):
        place = os.path.normpath(os.path.join("/out", name))
        assert place.startswith("/out/")
        assert place == f"/out/{name}"


@given(st.text(max_size=60))
def test_what_is_printed_steers_no_terminal(text: str) -> None:
    shown = printable(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert printable(shown) == shown


def test_errors_and_logs_are_printed_so() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "file %s", ("\x1b]0;owned\x07\x9b31m",), None)
    assert PrintableLog("%(message)s").format(record) == r"file \x1b]0;owned\x07\x9b31m"


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "", " ", "x" * 201])
def test_names_of_classes_and_channels_are_one_line_of_text(name: str) -> None:
    for make in (
        lambda: LabelClass(name=name, value=1),
        lambda: Region(name=name, values=(1,)),
        lambda: Channel(name=name),
    ):
        with pytest.raises(DataError, match="the name"):
            make()


def test_a_table_with_names_that_lead_out_is_refused(tmp_path: Path) -> None:
    folder = volumes(tmp_path / "data")
    images = sorted((folder / "imagesTr").iterdir())
    rows = [
        f"../../victim{number},imagesTr/{path.name},labelsTr/{path.name[:2]}.nii.gz"
        for number, path in enumerate(images)
    ]
    (folder / "cases.csv").write_text("case,CT,label\n" + "\n".join(rows))
    from autounet.workflow.dataset_stage import check_data

    found = check_data(folder, NONE).findings
    assert len(found) == 1
    assert "../../victim0" in found[0].message


@pytest.mark.parametrize(
    "record",
    [
        lambda: BundleMember(configuration="2d", fold=0, path="../x.safetensors", checksum=""),
        lambda: BundleMember(configuration="../2d", fold=0, path="x", checksum=""),
        lambda: BundleMember(configuration="2d", fold=-1, path="x", checksum=""),
        lambda: Selection(chosen=("../2d",), compared=(), reason=""),
        lambda: configuration(3).model_validate(
            {**configuration(3).model_dump(exclude={"spacing"}), "prepared": "/tmp/x"}
        ),
    ],
)
def test_names_of_configurations_and_weights_stay_inside(record) -> None:
    with pytest.raises((ValueError, ModelError), match=r"validation error|may lead outside"):
        record()


def test_a_plan_or_facts_with_a_hostile_name_are_a_damaged_record(tmp_path: Path) -> None:
    out = make_output(tmp_path / "out", cases=2)
    text = (out / "plan.json").read_text()
    (out / "plan.json").write_text(text.replace('"3d_fullres": {', '"../../3d": {'))
    with pytest.raises(RecordError, match="is not a valid Plan"):
        Plan.load(out / "plan.json")
    (out / "facts.json").write_text(json.dumps({"format_version": 5, "identifier": "../x"}))
    with pytest.raises(AutoUNetError):
        CaseFacts.load(out / "facts.json")


# ---- links ----------------------------------------------------------------------------------------------------


def test_what_is_written_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").symlink_to(victim)
    write_text(tmp_path / "out" / "a.json", "ours")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "out" / "a.json").is_symlink()


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    names = set()
    for _ in range(20):
        with replacing(tmp_path / "a.json") as temporary:
            names.add(temporary.name)
            temporary.write_text("")
        folder = new_folder(tmp_path / "a")
        names.add(folder.name)
        folder.rmdir()
    assert len(names) == 40


@pytest.mark.parametrize(
    "place",
    [".lock", "plan.json", "tracking", "crossval", "prepared/canonical_a", "models/3d_fullres/fold_0/log.jsonl"],
)
def test_an_output_folder_with_planted_links_is_refused(tmp_path: Path, place: str) -> None:
    out = tmp_path / "out"
    victim = tmp_path / "victim"
    victim.mkdir()
    (out / place).parent.mkdir(parents=True)
    (out / "options.json").write_text("{}")
    (out / place).symlink_to(victim)
    with pytest.raises(OptionError, match="is a link to"):
        require_own_folder(RunFolder(out))


@pytest.mark.parametrize("name", ["crossval", "models", "metrics.json", "plan.json"])
def test_a_folder_that_holds_other_things_is_refused_whole(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    with pytest.raises(OptionError, match=f"holds {name}"):
        require_own_folder(RunFolder(out))
    (out / name).rmdir()
    (out / "notes.txt").write_text("mine")
    (out / "data").mkdir()
    require_own_folder(RunFolder(out))


def test_every_file_of_a_run_is_an_own_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    paths = [getattr(folder, name) for name, value in vars(RunFolder).items() if isinstance(value, property)]
    own = {path.relative_to(tmp_path).parts[0] for path in paths}
    assert own - {".lock", ".lock_holder", "tracking"} <= set(OWN_NAMES)


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_a_packed_model_has_the_rights_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        for _ in range(2):
            replace_folder(new_folder(tmp_path / "model"), tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ---- a user's files -------------------------------------------------------------------------------------------


def test_repair_and_demo_remove_nothing_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autounet.cli import commands
    from autounet.datasets import synthetic
    from autounet.schema.options import DataOptions
    from autounet.workflow.dataset_stage import fix_data

    for place in (tmp_path / ".new.unfinished", tmp_path / ".data"):
        place.mkdir()
        (place / "mine").write_text("mine")
    fix_data(volumes(tmp_path / "broken"), DataOptions(), tmp_path / "new")
    made = []

    def stop(folder: Path, **_: object) -> Path:
        made.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "make_demo_dataset", stop)
    with pytest.raises(KeyboardInterrupt):
        commands.demo(tmp_path, 1.0)
    assert not made[0].exists()
    assert all((tmp_path / name / "mine").read_text() == "mine" for name in (".new.unfinished", ".data"))


def test_only_results_of_gone_cases_are_removed(tmp_path: Path) -> None:
    from autounet.schema.dataset import Dataset
    from autounet.schema.metrics import CaseMetrics
    from autounet.workflow.cache import keep_result
    from autounet.workflow.select_stage import _remove_gone_cases

    out = make_output(tmp_path / "out", cases=2)
    dataset, folder = Dataset.load(out / "dataset.json"), RunFolder(out)
    slashed = dataset.cases[0].model_copy(update={"identifier": "site0/p0"})
    dataset = dataset.model_copy(update={"cases": (dataset.cases[0], slashed)})
    place = folder.crossval("3d_fullres")
    kept = [place.path / name for name in ("case_000.nii.gz", "site0/p0.nii.gz", "mine.nii.gz", "scores/mine.b2nd")]
    gone = [place.path / name for name in ("case_001.nii.gz", "site1/p0.nii.gz", "scores/site1/p0.scores.b2nd")]
    for path in (*kept, *gone):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for case in ("case_000", "case_001", "site0/p0", "site1/p0"):
        keep_result(place.case_result(case), "1", CaseMetrics(case=case, per_class={}))
    _remove_gone_cases(folder, dataset)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


# ---- what is shown --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["$x_{$", "a $b$ c", "$\\frac{1}{0}$", "cost $5", "$$"])
def test_names_are_no_mathematics_in_figures(tmp_path: Path, name: str) -> None:
    line = EpochLog(step=1, progress=0.5, seconds=1, learning_rate=0.1, loss=1.0, validation_dice={name: 0.5},
                    step_seconds=1.0, data_wait_seconds=0.0)  # fmt: skip
    draw_progress([line, line.model_copy(update={"step": 2})], tmp_path / "a.png", "title")
    figure, axes = chart()
    text = axes.set_title(literal(name))
    as_svg(figure)
    assert text._preprocess_math(text.get_text()) == (name, False)


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "`|a|`",
        "![x](http://x/y.png)",
    ],
)
def test_the_card_holds_no_html_and_no_links_of_others(name: str) -> None:
    labels = Labels(classes=(LabelClass(name="background", value=0), LabelClass(name=name, value=1)))
    bundle = ModelBundle(
        name=name, layout="pairs", image_pattern="*", suffix=name, file_kind="nifti", channels=(Channel(name=name),),
        labels=labels, configurations={"2d": configuration(2)}, members=(), mean_dice=None, versions={name: name},
        selection=Selection(chosen=("2d",), compared=(), reason=name, postprocessing_reason=name),
        details={"origin": name},
        card=ModelCard(licence=name, scores=ScoreSummary(cases=1, unit="mm", mean_dice=0.5, scores=(
            Score(name=name, metric="dice", mean=0.5),))),
    )  # fmt: skip
    text = card_text(bundle)
    assert not re.search(r"<(script|img)", text)
    assert not re.search(r"(?<!\\)\](?=\()", text)


def test_the_report_escapes_names(tmp_path: Path) -> None:
    from autounet.report import write_report

    out = make_output(tmp_path / "out", cases=3)
    for path in (out / "dataset.json", out / "metrics.json"):
        path.write_text(path.read_text().replace("left kidney", "<script>$x$ </script>"))
    page = write_report(out).read_text()
    assert "<script>$x$" not in page


@pytest.mark.parametrize("place", ["site0", ".predicted", ".predicted/site0", "a/b"])
def test_nothing_is_written_through_a_folder_that_is_a_link(tmp_path: Path, place: str) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.mkdir()
    files = [out / "site0/p0.nii.gz", out / ".predicted/site0/p0.json", out / "a/b/c/d.nii.gz"]
    require_no_links(out, files)
    (out / place).parent.mkdir(parents=True)
    (out / place).symlink_to(victim)
    with pytest.raises(OptionError, match="is a link to"):
        require_no_links(out, files)
    (tmp_path / "linked").symlink_to(tmp_path / "other")  # the folder itself is the user's choice
    require_no_links(tmp_path / "linked", [tmp_path / "linked/site0/p0.nii.gz"])
