"""What the documentation says, done: commands parse, cheap ones and Python run, messages and links are there."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from doc_pages import ROOT, Command, Page, pages, program_texts
from typer.main import get_command

from autounet.cli.app import app, main
from autounet.datasets.synthetic import make_demo_dataset
from autounet.inference.bundle import pack
from autounet.nets import FAMILIES
from autounet.schema.dataset import Dataset
from autounet.schema.options import DataOptions, TrainOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, PreprocessSpec
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection
from autounet.store.weights import save_weights

sys.path.insert(0, str(ROOT / "docs"))
import make_commands
import make_pictures

PAGES = pages()
IDS = [page.path.name for page in PAGES]
LANGUAGES = {"console", "python", "text"}
"""text is for people alone"""
CHEAP = {"check", "fingerprint", "status", "predict", "ensemble", "evaluate"}
OTHERS = re.compile(r"(nnUNetv2_\w+|tensorboard|mlflow|wandb|python3?|pip|git) ")
"""programs whose options are their own"""


@pytest.fixture
def place(folders: Path) -> Iterator[Path]:
    """`folders`, and afterwards nothing else."""
    before = set(folders.iterdir())
    yield folders
    for path in set(folders.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the pages speak of: DATA, NEW_IMAGES and REFERENCES; OUT and demo-output with a packed model."""
    place = tmp_path_factory.mktemp("docs")
    data = make_demo_dataset(place / "demo-output" / "data", cases=6)
    for name, source in (("OUT", "demo-output"), ("out", "demo-output"), ("DATA", "demo-output/data")):
        if not (place / name).exists():  # OUT and out are one on some systems
            (place / name).symlink_to(source)
    for source, target in (
        ("imagesTr/demo_000_0000", "NEW_IMAGES/patient_0000"),
        ("labelsTr/demo_000", "REFERENCES/patient"),
    ):
        (place / target).parent.mkdir()
        shutil.copy(data / f"{source}.nii.gz", place / f"{target}.nii.gz")
    (place / "images").symlink_to("NEW_IMAGES")
    assert ran(place, ["fingerprint", "DATA", "--out", "OUT", "--workers", "0"])[0] == 0
    pack_random_model(place / "OUT")
    return place


def pack_random_model(out: Path) -> None:
    """OUT/model with two folds that were never trained."""
    dataset = Dataset.load(out / "dataset.json")
    ones, twos = (1, 1, 1), (2, 2, 2)
    plan = Configuration(
        preprocess=PreprocessSpec(spacing=(2.0, 1.5, 1.5), normalisation=(ChannelNormalisation(scheme="zscore"),)),
        prepared="p",
        patch_size=(16, 32, 32),
        batch_size=2,
        network=FAMILIES["plain"].propose(3, 1, dataset.labels.count, (ones, twos), ((3, 3, 3),) * 2, base_features=4),
        median_shape=(24, 40, 40),
        predicted_memory_bytes=0,
    )
    weights: dict[int | None, Path] = {}
    for fold in (0, 1):
        torch.manual_seed(fold)
        path = out / "models" / "3d_fullres" / f"fold_{fold}" / "weights.safetensors"
        save_weights(path, FAMILIES["plain"].build(plan.network).state_dict())
        weights[fold] = path
        RunRecord(
            configuration_name="3d_fullres", configuration=plan.key, fold=fold, options=TrainOptions(),
            train_cases=(), validation_cases=(), device="cpu", steps=1, seconds=1.0, curve=(), parameters=1,
            peak_memory_bytes=None, versions={},
        ).save(path.with_name("record.json"))  # fmt: skip
    selection = Selection(chosen=("3d_fullres",), compared=(), reason="only one")
    pack(out / "model", dataset, DataOptions(), {"3d_fullres": plan}, selection, {"3d_fullres": weights}, mean_dice=0.5)


def ran(place: Path, words: list[str]) -> tuple[int, str]:
    """Exit code and standard output of a command, run in `place`."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("typer.echo", lambda text="", **_: lines.append(str(text)))
        patch.setattr(sys, "argv", ["autounet", *words])
        patch.setattr("autounet.workers.available_cores", lambda: 1)  # no processes for a handful of small images
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, "\n".join(lines)


def parsed(command: Command) -> None:
    """Raises what the command line raises at a wrong option, and runs nothing."""
    root = get_command(app)
    words = list(command.words[1:])
    while words and words[0].startswith("-"):
        assert words[0] in {name for each in root.params for name in each.opts}
        words.pop(0)
    root.commands[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_parse_and_blocks_are_of_known_languages(page: Page) -> None:
    assert page.languages <= LANGUAGES
    for command in page.commands():
        assert command.words[0] == "autounet"
        parsed(command)


@pytest.mark.parametrize("page", [page for page in PAGES if any(page.commands())], ids=lambda page: page.path.name)
def test_cheap_commands_do_what_the_page_says(place: Path, page: Page) -> None:
    for command in page.commands():
        inputs = [word for word in command.words[2:4] if not word.startswith("-")]
        if (command.words[1] not in CHEAP and "bundle" not in command.words) or not all(
            (place / each).exists() for each in inputs
        ):
            continue
        code, printed = ran(place, list(command.words[1:]))
        assert code == 0, (command, printed)
        assert set(command.printed) <= set(printed.splitlines()), (command, printed)


@pytest.mark.parametrize("page", [page for page in PAGES if page.blocks("python")], ids=lambda page: page.path.name)
def test_python_runs(place: Path, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = {"__name__": "docs"}
    for block in page.blocks("python"):
        if "onnxruntime" in block:
            pytest.importorskip("onnxruntime")
        exec(compile(block, str(page.path), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Page) -> None:
    anchors = {each.path: each.anchors for each in PAGES}
    for link in page.links:
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), link
        assert not anchor or anchor in anchors[target], link
        outside = page.path.parent.name == "docs" and not target.is_relative_to(ROOT / "docs")
        assert not outside, f"{link}: the site holds docs/ alone"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_option_or_command_is_named_that_there_is_not(page: Page) -> None:
    commands = get_command(app).commands
    options = {name for each in commands.values() for parameter in each.params for name in parameter.opts}
    options |= {"--help", *(name for parameter in get_command(app).params for name in parameter.opts)}
    for code in page.code:
        named = set() if OTHERS.match(code) else set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
        assert named <= options, code
        for name in re.findall(r"^(?:\$ |\.venv/bin/)?autounet ([a-z]+)\b", code):
            assert name in commands, code


def test_the_page_of_commands_is_what_the_program_says() -> None:
    assert make_commands.page() == make_commands.PAGE.read_text(encoding="utf-8"), "run: python docs/make_commands.py"


def test_the_picture_of_the_flow_is_what_its_program_draws() -> None:
    drawn = (make_pictures.PICTURES / "flow.svg").read_text(encoding="utf-8")
    assert make_pictures.flow() == drawn, "run: python docs/make_pictures.py"


def test_every_message_explained_is_one_of_the_programs() -> None:
    texts = "\n".join(program_texts())
    quoted = re.findall(r"\*\*`([^`]+)`\*\*", Page(ROOT / "docs" / "errors.md").text)
    unknown = [quote for quote in quoted if re.sub(r"^… | …$", "", quote).strip("…") not in texts]
    assert len(quoted) > 30
    assert not unknown


def test_every_part_of_the_planner_has_its_paragraph() -> None:
    explained = "".join(Page(ROOT / "docs" / name).text for name in ("planning.md", "time.md"))
    parts = {file.name for file in (ROOT / "autounet" / "planning").glob("[a-z]*.py")}
    assert not {name for name in parts if f"`{name}`" not in explained and f"planning/{name}`" not in explained}


def test_every_page_is_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"\b([\w-]+\.md)\b", site))
    assert listed == {page.path.name for page in PAGES[1:]}
