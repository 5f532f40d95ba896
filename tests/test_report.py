"""The report: whole from whole records, and a sentence for whatever is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_output import configuration, make_output
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from autounet.figures import AGREEMENT_COLOUR, PREDICTION_COLOUR, REFERENCE_COLOUR, Picture
from autounet.ops.orient import orient
from autounet.report import page as page_module
from autounet.report import shown_cases, write_report
from autounet.report.output_records import read_output_records
from autounet.report.overlays import Cut, case_cuts, difference_image
from autounet.report.results_section import RankedCase, rank_cases
from autounet.report.shown_cases import best_median_worst
from autounet.report.training_section import plan_table, training_table
from autounet.report.volumes import CaseVolume, whole, window
from autounet.schema.errors import RecordError
from autounet.schema.metrics import CaseMetrics, ClassMetrics, Metrics
from autounet.schema.plan import Plan
from autounet.schema.run import Compilation

SAID = (
    "Synthetic & small",
    "Best: case_000",
    "Worst: case_005",
    "the median of all cases",
    "patch <16, 48, 40>",
    "differ in origin",
    "continued after an interruption",
    "not a medical device",
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Text and pictures of a page; fails when a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        self.addresses += [values[key] for key in ("src", "href") if key in values]
        self.anchors |= {values["id"]} if "id" in values else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


def read(path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def viewer_cases(path) -> list[dict]:
    found = re.search(r'id="viewer-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found[1]) if found else []


@pytest.fixture(scope="module", params=[3, 2])
def output(request, tmp_path_factory):
    return make_output(tmp_path_factory.mktemp(f"report{request.param}") / "out", dimension=request.param, cases=6)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return make_output(tmp_path_factory.mktemp("damaged") / "out", cases=5)


@pytest.fixture
def copy(volumes, tmp_path, monkeypatch):
    """An output folder that a test may damage; the data stay where they are. Drawing, the slow part, is left out."""
    monkeypatch.setattr(shown_cases, "overlay_pictures", lambda *_: [])
    monkeypatch.setattr(Figure, "savefig", lambda _, buffer, **kwargs: buffer.write(b"a chart"))
    return shutil.copytree(volumes, tmp_path / "out")


def test_whole_page(output):
    """Self-contained but for links to files beside it, and every part is told."""
    path = write_report(output)
    assert path == output / "report.html"
    assert path.stat().st_size < 10e6
    page = read(path)
    for text in SAID:
        assert text in page.text
    assert "autounet run" in page.text
    assert "--time 30m" in page.text
    assert "No picture" not in page.text
    beside = [address for address in page.addresses if not address.startswith(("data:image/", "#"))]
    assert beside
    assert all((output / address).is_file() for address in beside)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.anchors
    assert all(image["alt"] for image in page.images)
    # training, distributions, data, three for best, median and worst
    assert len(page.images) == 4 + 3 + 2 + 3 * 3
    assert [each["name"] for each in viewer_cases(path)] == ["case_005", "case_004", "case_003"]


def test_equal_records_give_an_equal_page(copy, monkeypatch):
    monkeypatch.undo()  # the charts are drawn
    monkeypatch.setattr(shown_cases, "overlay_pictures", lambda *_: [])
    first, second = (re.sub(r"on \d\d .*? UTC", "", write_report(copy).read_text()) for _ in range(2))
    assert first == second


def test_a_page_that_is_too_large_says_what_it_leaves_out(copy, monkeypatch):
    """First cases of the viewer, and only then pictures."""
    monkeypatch.setattr(shown_cases, "overlay_pictures", lambda *_: [Picture("data:image/png;base64,", "none")])
    full = write_report(copy).stat().st_size
    monkeypatch.setattr(page_module, "MAX_BYTES", full - 10_000)
    path = write_report(copy)
    assert path.stat().st_size <= full - 10_000
    assert len(viewer_cases(path)) < 3
    assert "No picture" not in read(path).text
    monkeypatch.setattr(page_module, "MAX_BYTES", 0)
    page = read(write_report(copy))
    assert "No picture: the page would be larger than 10 MB" in page.text
    assert "no case whose files can be shown" in page.text


def test_the_case_on_which_configurations_differ_is_shown_with_each(copy, monkeypatch):
    """And the page says so."""
    plan = Plan.load(copy / "plan.json")
    one = plan.configurations["3d_fullres"]
    plan.model_copy(update={"configurations": {"2d": one, "3d_fullres": one}}).save(copy / "plan.json")
    metrics = Metrics.load(copy / "metrics.json")
    shutil.copytree(copy / "crossval/3d_fullres", copy / "crossval/2d")
    metrics.save(copy / "crossval/3d_fullres/fold_0.json")
    (copy / "crossval/3d_fullres/fold_0.done.json").write_text("{}")
    bad = {name: ClassMetrics(dice=0.1) for name in metrics.per_class}
    cases = [case.model_copy(update={"per_class": bad}) if case.case == "case_001" else case for case in metrics.cases]
    metrics.model_copy(update={"cases": tuple(cases)}).save(copy / "crossval/2d/fold_0.json")
    drawn = {}
    monkeypatch.setattr(
        shown_cases,
        "configuration_pictures",
        lambda cuts, case, _: drawn.update({case: list(cuts[0].configuration_predictions)}) or [],
    )
    page = read(write_report(copy))
    assert "onfigurations differ most: case_001" in page.text
    assert "Mean out-of-fold Dice of each configuration alone: 2d 0.100, 3d_fullres" in page.text
    assert drawn["case_001"] == ["2d", "3d_fullres"]
    assert "shown with the prediction of each" in page.text


def test_damaged_scores_cost_the_uncertainty_alone(copy, caplog):
    def damaged(*_):
        raise RecordError("scores are damaged")

    metrics = Metrics.load(copy / "metrics.json")
    cases = tuple(case.model_copy(update={"uncertainty": 0.1}) for case in metrics.cases)
    metrics.model_copy(update={"cases": cases}).save(copy / "metrics.json")
    page = read(write_report(copy, damaged))
    assert "No picture of the uncertainty" in page.text
    assert "No picture:" not in page.text
    assert "scores are damaged" in caplog.text


def test_links_lead_to_files_that_are_there(copy):
    name = "crossval/3d_fullres/case_003.nii.gz"
    assert name in read(write_report(copy)).addresses
    (copy / name).unlink()
    assert name not in read(write_report(copy)).addresses


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("dataset.json", "There is no dataset.json"),
        ("fingerprint.json", "There is no fingerprint.json"),
        ("plan.json", "There is no plan.json"),
        ("metrics.json", "There is no metrics.json"),
        ("selection.json", "No configuration has been selected"),
        ("options.json", "There is no options.json"),
        ("models", "No fold has finished training"),
        ("crossval", "No picture"),
        ("findings.json", "not a medical device"),
        ("device.json", "not a medical device"),
        ("splits.json", "not a medical device"),
    ],
)
def test_a_missing_part_is_a_sentence(copy, missing, sentence):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert sentence in read(write_report(copy)).text


def test_an_empty_folder_gives_a_page(tmp_path):
    assert "There is no plan.json" in read(write_report(tmp_path)).text


@pytest.mark.parametrize("name", ["plan.json", "metrics.json", "findings.json", "models/3d_fullres/fold_1/record.json"])
def test_a_damaged_record_is_named(copy, name):
    (copy / name).write_text('{"format_version": 1, "wrong": 3}')
    page = read(write_report(copy))
    assert "Records that could not be read" in page.text
    assert name.rsplit("/", maxsplit=1)[-1] in page.text


def test_a_damaged_segmentation_is_a_sentence(copy):
    for path in (copy / "crossval/3d_fullres").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    assert "No picture" in read(write_report(copy)).text


def scores(case: str, **dice: float | None) -> CaseMetrics:
    return CaseMetrics(case=case, per_class={name: ClassMetrics(dice=value) for name, value in dice.items()})


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_ranking_is_sorted_and_shows_each_case_once(values):
    cases = [scores(f"c{index}", a=value) for index, value in enumerate(values)]
    ranked = rank_cases(Metrics(mean_dice=None, per_class={"a": ClassMetrics()}, cases=cases), ["a"])
    dice = [entry.dice for entry in ranked]
    assert dice == sorted(value for value in values if value is not None)
    picked = [entry.case for _, entry in best_median_worst(ranked)]
    assert len(picked) == len(set(picked)) == min(3, len(ranked))


def test_a_case_counts_by_its_defined_classes_alone():
    metrics = Metrics(mean_dice=None, per_class={}, cases=[scores("x", a=0.5, b=None, background=1.0)])
    (entry,) = rank_cases(metrics, ["a", "b"])
    assert entry == RankedCase(metrics.cases[0], 0.5)


def test_a_single_case_is_shown_as_the_worst():
    (pair,) = best_median_worst([RankedCase(scores("x", a=0.5), 0.5)])
    assert pair[0] == "worst"


def volume_of(image, truth, prediction, spacing, values=(4,), anatomical=True) -> CaseVolume:
    marked = np.isin(truth, values) | np.isin(prediction, values)
    return CaseVolume("c", image, truth, prediction, spacing, values, window(marked, spacing), anatomical)


def test_cuts_go_through_the_structure_with_the_patient_upright():
    truth = np.zeros((10, 40, 50), dtype=np.int32)
    truth[7:9, 5:9, 30:36] = 4
    image = np.zeros((*truth.shape, 1), dtype=np.float32)
    image[truth == 4] = 1
    axial, coronal, sagittal = case_cuts(volume_of(image, truth, truth, (2.0, 1.0, 1.0)))
    for cut, area in ((axial, 4 * 6), (coronal, 2 * 6), (sagittal, 2 * 4)):
        assert (cut.reference == 4).sum() == area == cut.image.sum()
    assert np.flatnonzero((coronal.reference == 4).any(1)).tolist() == [1, 2]  # z = 7 and 8 of 10, counted from the top
    assert coronal.spacing == (2.0, 1.0)
    assert axial.spacing == (1.0, 1.0)


def test_cuts_of_an_empty_case_show_the_middle():
    empty = np.zeros((3, 5, 7), dtype=np.int32)
    volume = volume_of(empty[..., None], empty, empty, (1.0, 1.0, 1.0), (1,), anatomical=False)
    assert [cut.image.shape for cut in case_cuts(volume)] == [(5, 7), (3, 7), (3, 5)]


@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_uncertainty_is_turned_as_the_image_is(axes, flips):
    """The source tells values at stored indices; every cut gets those that belong to its pixels."""
    stored = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6) / 200
    image = orient(stored, axes, flips)
    labels = np.zeros(image.shape, np.int32)

    def entropy(case, z, y, x):
        return stored[np.ix_(z, y, x)]

    volume = CaseVolume(
        "c", image[..., None], labels, labels, (1.0, 1.0, 1.0), (1,), whole(image.shape),
        axes=tuple(axes), flips=flips, entropy=entropy,
    )  # fmt: skip
    for cut in case_cuts(volume):
        np.testing.assert_array_equal(cut.uncertainty, cut.image)


def test_differences_tell_missed_from_added():
    truth, prediction = np.array([[1, 1, 0, 0, 2]]), np.array([[1, 0, 1, 0, 1]])
    cut = Cut("", np.zeros((1, 5)), truth, prediction, (1.0, 1.0), volume=False)
    found = [tuple(pixel) for pixel in difference_image(cut, [1, 2])[0]]
    assert found == [
        to_rgb(AGREEMENT_COLOUR),
        to_rgb(REFERENCE_COLOUR),
        to_rgb(PREDICTION_COLOUR),
        (0, 0, 0),
        to_rgb(REFERENCE_COLOUR),
    ]


def test_what_was_planned_and_what_was_trained_are_told_apart(tmp_path):
    """A configuration that was not trained has no column, and one that was planned again says so."""
    plan = Plan.load(make_output(tmp_path / "out") / "plan.json")
    planned = plan.configurations["3d_fullres"]
    runs = read_output_records(tmp_path / "out").runs
    both = {"2d": configuration(2), "3d_fullres": planned}
    found = plan_table(both, runs)
    assert (found.head, len(found.rows[0])) == (["property", "3d_fullres"], 2)
    assert found.notes == ["2d is planned and was not trained: no figure of this report is of it"]
    changed = planned.model_copy(update={"batch_size": planned.batch_size + 1})
    (note,) = plan_table({"3d_fullres": changed}, runs[:2]).notes
    assert note == "3d_fullres was planned again after fold 0, fold 1 had been trained: this is the later plan"
    assert plan_table({"3d_fullres": planned}, runs).notes == []
    assert plan_table(both, []).head == ["property", "2d", "3d_fullres"]
    assert plan_table(both, []).notes == ["Nothing has been trained yet: this is what is planned"]
    plan.model_copy(update={"configurations": both}).save(tmp_path / "out" / "plan.json")
    html = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "2d is planned and was not trained" in Page(html).text
    assert "Trained configurations" in html


def test_whether_networks_were_compiled_is_told_once_for_each_reason(tmp_path):
    run = read_output_records(make_output(tmp_path / "out")).runs[0]
    quicker = Compilation(compiled=True, reason="it is quicker", cuda_graphs=True)
    told = [None, quicker, quicker, Compilation(compiled=False, reason="--compile off")]
    runs = [run.model_copy(update={"fold": fold, "compilation": each}) for fold, each in enumerate(told)]
    found = training_table(runs)
    place = found.head.index("network")
    assert [row[place] for row in found.rows] == ["–", *["compiled, CUDA graphs"] * 2, "not compiled"]
    assert found.notes == [
        "3d_fullres, fold 1, fold 2: the network was compiled, CUDA graphs: it is quicker",
        "3d_fullres, fold 3: the network was not compiled: --compile off",
    ]
