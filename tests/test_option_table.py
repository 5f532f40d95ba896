"""The table of options: what is written from it is read back, and the commands and their help are made of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from autounet.api import evaluate, load
from autounet.cli.app import app, main
from autounet.cli.command_options import options_of
from autounet.losses import LOSSES
from autounet.nets import FAMILIES
from autounet.planning import CONFIGURATIONS, PRESETS
from autounet.schema import option_table
from autounet.schema.dataset import ChannelKind
from autounet.schema.errors import OptionError, UsageError
from autounet.schema.metrics import METRIC_NAMES, chosen_metrics
from autounet.schema.option_rules import KINDS
from autounet.schema.option_table import RUN_OPTIONS, Option, run_command, run_options
from autounet.schema.options import (
    DataOptions,
    RunOptions,
    StartingWeights,
)
from autounet.schema.plugins import BUILT_IN
from autounet.schema.quantities import parse_size, parse_time, write_size, write_time
from autounet.workflow.output_folder import with_stored

COMMANDS = get_command(app).commands
TEXTS = st.text(st.sampled_from("az09 -_.,:=*?'\"\\$`|&;()[]{}~#!é中\n\t"), min_size=1, max_size=8)
"""what a shell or the command line could take for something else"""
NAMES = TEXTS.filter(lambda text: "=" not in text)
INTEGERS = st.integers(0, 10**6)
SEVERAL = st.lists(INTEGERS, min_size=1, max_size=4).map(tuple)
PATHS = TEXTS.map(lambda text: str(Path("/", text)))


def _pairs(values: st.SearchStrategy[Any], **given: Any) -> st.SearchStrategy[dict[str, Any]]:
    entries = st.lists(st.tuples(NAMES, values), unique_by=(lambda entry: entry[0], *given.get("also", ())), max_size=3)
    return entries.map(dict)


STRATEGIES: dict[int, st.SearchStrategy[Any]] = {
    id(notation): strategy
    for notation, strategy in (
        (option_table.TEXT, TEXTS),
        (option_table.INTEGER, INTEGERS.map(lambda value: value + 1)),
        (option_table.SWITCH, st.booleans()),
        (option_table.WHOLE_PATH, PATHS),
        (option_table.EXECUTOR, st.just("local") | PATHS),
        (option_table.SIZE, st.integers(1, 2**50)),
        (option_table.TIME, st.floats(1e-3, 1e9, exclude_min=True) | st.integers(1, 10**6).map(float)),
        (option_table.FOLDS, SEVERAL.map(lambda folds: ",".join(map(str, folds)))),
        (option_table.NAMES, st.lists(TEXTS.filter(lambda text: "," not in text), min_size=1).map(tuple)),
        (option_table.METRIC_NAMES, st.lists(st.sampled_from(METRIC_NAMES)).map(chosen_metrics)),
        (option_table.PATTERNS, _pairs(TEXTS)),
        (option_table.CHANNEL_KINDS, _pairs(st.sampled_from(KINDS))),
        (option_table.CLASS_VALUES, _pairs(INTEGERS, also=[lambda entry: entry[1]])),
        (option_table.REGION_VALUES, _pairs(SEVERAL)),
        (option_table.SPLITS, st.just("nnunet") | PATHS),
        (option_table.WORKERS, INTEGERS),
        (option_table.MODEL, PATHS.map(lambda path: StartingWeights(kind="model", path=path))),
        (option_table.ENCODER, PATHS.map(lambda path: StartingWeights(kind="encoder", path=path))),
    )
}
"""values of an option by how it is written"""


def _recorded() -> list[Option]:
    return [option for option in RUN_OPTIONS if option.field is not None]


CHECKED: dict[str, st.SearchStrategy[Any]] = {
    "family": st.sampled_from(BUILT_IN["families"]),
    "loss": st.sampled_from(BUILT_IN["losses"]),
    "augmentation": st.sampled_from(BUILT_IN["augmentations"]),
    "configurations": st.lists(st.sampled_from(CONFIGURATIONS), min_size=1).map(tuple) | st.just(("auto",)),
    "folds": st.sampled_from(("all", "full"))
    | st.lists(INTEGERS, min_size=1).map(lambda each: ",".join(map(str, each))),
    "device": st.sampled_from(("auto", "cpu", "cuda", "cuda:1", "mps")),
    "data.kinds": _pairs(st.sampled_from(KINDS)),
    "data.group": TEXTS.map(lambda text: f"({re.escape(text)})"),
}
"""values of options whose names are checked"""


def _strategy(option: Option) -> st.SearchStrategy[Any]:
    """Values of an option; those of the record's field where it lists them."""
    assert option.field is not None
    if option.field in CHECKED:
        return CHECKED[option.field]
    holder, _, field = option.field.rpartition(".")
    annotation = (DataOptions if holder else RunOptions).model_fields[field].annotation
    choices = [value for part in get_args(annotation) for value in get_args(part) if isinstance(value, str)]
    return (
        st.sampled_from(choices)
        if choices and option.notation is option_table.TEXT
        else STRATEGIES[id(option.notation)]
    )


@st.composite
def all_options(draw: st.DrawFn) -> RunOptions:
    """Some of the options; of those that exclude each other one."""
    values: dict[str, Any] = {}
    data: dict[str, Any] = {}
    for option in draw(st.lists(st.sampled_from(_recorded()), unique_by=lambda option: option.field)):
        assert option.field is not None
        holder, _, field = option.field.rpartition(".")
        (data if holder else values)[field] = draw(_strategy(option))
    labelled = {
        *data.get("classes", {}).values(),
        *(value for each in data.get("regions", {}).values() for value in each),
    }
    if data.get("ignore") in labelled:
        del data["ignore"]
    return RunOptions(data=DataOptions(**data), **values)


def parsed(words: list[str]) -> RunOptions:
    """As `autounet run` parses the words after it."""
    values = COMMANDS["run"].make_context("run", words).params
    return run_options((option, values[option.parameter]) for option in options_of("run"))


@given(all_options())
def test_the_command_of_the_report_gives_the_same_run_again(options: RunOptions) -> None:
    words = shlex.split(run_command("/my data/it's", "out", options))
    assert words[:5] == ["autounet", "run", "/my data/it's", "--out", "out"]
    assert parsed(words[2:]) == options


@pytest.mark.parametrize("option", _recorded(), ids=lambda option: option.name)
def test_every_option_is_covered_by_the_law_above(option: Option) -> None:
    assert option.notation is option_table.TEXT or id(option.notation) in STRATEGIES
    _strategy(option).validate()


def test_every_field_of_the_records_has_an_option() -> None:
    fields = {f"data.{name}" for name in DataOptions.model_fields} | set(RunOptions.model_fields) - {"data"}
    assert {option.field for option in _recorded()} == fields


def test_options_that_exclude_each_other_and_those_taken_back(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--init and --pretrained exclude each other"):
        parsed(["data", "--out", "out", "--init", "a", "--pretrained", "b"])
    first = parsed(["data", "--out", "out", "--init", "/a", "--seed", "1"])
    first.save(tmp_path / "options.json")
    assert with_stored(RunOptions(), tmp_path / "options.json") == first
    for name in ("--init", "--pretrained"):
        none = parsed(["data", "--out", "out", name, "none"])
        assert parsed(shlex.split(run_command("data", "out", none))[2:]) == none
        assert with_stored(none, tmp_path / "options.json") == RunOptions(seed=1)
    other = parsed(["data", "--out", "out", "--pretrained", "/b"])
    assert with_stored(other, tmp_path / "options.json").start == StartingWeights(kind="encoder", path="/b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "much"], "--memory: 'much' is not a size. Write for example 8GB"),
        (["--time", "soon"], "--time: 'soon' is not a time. Write for example 90s"),
        (["--workers", "many"], "--workers: 'many' is not a whole number"),
        (["--channel", "T1"], "--channel: 'T1' is not of the form NAME=VALUE. Write for example T1=*_t1.nii.gz"),
        (["--kind", "Photo"], "--kind: 'Photo' is not of the form NAME=VALUE. Write for example image=photo, with"),
        (["--kind", "T1"], "--kind: 'T1' is not of the form NAME=VALUE. Write for example image=mri, with"),
        (["--region", "whole"], "--region: 'whole' is not of the form NAME=VALUE. Write for example whole_tumour=1,2"),
        (["--ignore", "0"], "--ignore 0: 0 is the background"),
        (["--ignore", "2", "--class", "a=2"], "--ignore 2: a has this value, too. Leave one of the two out"),
        (["--ignore", "3", "--region", "b=2,3"], "--ignore 3: b has this value, too"),
        (["--class", "a=1", "--class", "b=1"], "--class: two classes have the same value"),
        (["--region", "a=1,x"], "--region: '1,x' is not a whole number or a list of them"),
        (["--frames", "both"], "--frames both is unknown. Choose one of channels, time"),
        (["--preset", "residual_m"], "--preset residual_m is unknown. Did you mean residual-m? Choose one of nnunet"),
        (["--family", "Unet"], "--family Unet is unknown. Did you mean unet3d? Choose one of plain, residual"),
        (["--loss", "dice_cee"], "--loss dice_cee is unknown. Did you mean dice_ce? Choose one of dice_ce, dice"),
        (["--configurations", "2d,3d_full_res"], "--configurations 3d_full_res is unknown. Did you mean 3d_fullres?"),
        (["--configurations", "auto,2d"], "--configurations auto stands for all"),
        (["--folds", "some"], "--folds some names no folds"),
        (["--device", "gpu"], "--device gpu is unknown. Did you mean cpu?"),
        (["--device", "cuda:one"], "--device cuda:one is unknown. Did you mean cuda?"),
        (["--kind", "T1=MR"], "--kind T1: mr is unknown. Did you mean mri? Choose one of ct, mri, photo, other"),
        (["--group", "(a"], "--group '(a' is not a regular expression"),
        (["--group", "a"], "--group 'a' has no group"),
        (["--track", "wanddb"], "--track wanddb is unknown. Did you mean wandb?"),
        (["--metrics", "dice,hd59"], "--metrics hd59 is unknown. Did you mean hd95?"),
        (["--workers", "-1"], "--workers -1: Input should be greater than or equal to 0"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_with_its_option(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(["data", "--out", "out", *words])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "absent", "--out", "new", "--family", "unetr"], "--family unetr is unknown"),
        (["plan", "absent", "--out", "new", "--memory", "much"], "--memory: 'much' is not a size"),
        (["check", "absent", "--kind", "T1=xray"], "--kind T1: xray is unknown"),
        (["evaluate", "absent", "absent", "--metrics", "surface"], "--metrics surface is unknown"),
        (["predict", "absent", "absent", "--out", "new", "--device", "cuda:0,gpu"], "--device gpu is unknown"),
        (["predict", "absent", "absent", "--out", "new", "--format", "dicomseg"], "Did you mean dicom-seg?"),
        (["predict", "absent", "absent", "--out", "new", "--average", "logit"], "Did you mean logits?"),
        (["submit", "absent", "absent", "--out", "new.zip", "--template", "decathlons"], "Did you mean decathlon?"),
        (
            ["submit", "absent", "absent", "--out", "a.zip", "--template", "{name}.nii.gz"],
            "{name}.nii.gz is no pattern",
        ),
        (["submit", "absent", "absent", "--out", "new.tar"], "--out new.tar is no zip"),
        (["ensemble", "absent", "absent", "--out", "new", "--weights", "0,0"], "--weights 0,0 cannot be used"),
        (["ensemble", "absent", "--out", "new"], "at least two folders"),
        (["run", "absent", "--out", "new", "--splits", "nnUNett"], "no such file. Did you mean nnunet? Give nnunet"),
        (["check", "absent", "--splits", "folds.json"], "folds.json: there is no such file. Give nnunet, or a JSON"),
        (["check", "absent", "--palette", "colours.json"], "colours.json: there is no such file"),
        (["plan", "absent", "--out", "new", "--init", "model"], "model does not exist"),
        (["train", "absent", "--out", "new", "--family", "efficient", "--pretrained", "b0"], "b0 does not exist"),
        (["export", "absent", "--out", "new", "--format", "onxx"], "Did you mean onnx?"),
        (["compare", "absent", "--with", "absent", "--metric", "dise"], "Did you mean dice?"),
        (
            ["run", "absent", "--out", "new", "--preset", "nnunet", "--family", "swin"],
            "has networks of the family plain",
        ),
    ],
)
def test_options_are_checked_before_any_file_and_end_with_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["autounet", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_are_checked_in_python_too() -> None:
    for make, message in (
        (lambda: RunOptions(family="unetr"), "--family unetr is unknown"),
        (lambda: RunOptions(preset="nnunett"), "Did you mean nnunet?"),  # type: ignore[arg-type]
        (lambda: DataOptions(kinds={"T1": "xray"}), "--kind T1: xray is unknown"),
        (lambda: load("absent", "gpu"), "--device gpu is unknown"),
        (lambda: load("absent", average="logit"), "Did you mean logits?"),  # type: ignore[arg-type]
        (lambda: evaluate("absent", "absent", metrics=["dise"]), "Did you mean dice?"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            make()


def test_names_that_are_checked_are_those_there_are() -> None:
    assert set(KINDS) == set(ChannelKind)


@given(st.integers(1, 2**60), st.floats(1e-6, 1e12))
def test_sizes_and_times_are_read_back_as_written(size: int, seconds: float) -> None:
    assert parse_size(write_size(size)) == pytest.approx(size, rel=1e-15)
    assert parse_time(write_time(seconds)) == seconds


def test_sizes_and_times_are_written_as_people_do() -> None:
    assert [write_size(size) for size in (8 * 1024**3, 5 * 1024**3 // 2, 600 * 1024**2)] == ["8GB", "2.5GB", "600MB"]
    assert [write_time(seconds) for seconds in (5400, 7200, 45, 0.5)] == ["90m", "2h", "45s", "0.5s"]


# help


def shown(words: list[str]) -> str:
    """The help on a terminal of 80 columns, without the frames."""
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    return re.sub("[│╭╮╰╯─]", " ", done.output)


@pytest.mark.parametrize("command", ["autounet", *COMMANDS])
def test_no_word_of_the_help_is_cut_in_two(command: str) -> None:
    text = shown([] if command == "autounet" else [command])
    words = set(text.split())
    assert "…" not in text
    for option in options_of(command):
        names = option.names.split() if option.name.startswith("-") else []
        assert {*names, *option.help.split()} <= words, option.name
        assert option.metavar in text
    helps = [each.help for each in COMMANDS.values()] if command == "autounet" else [COMMANDS[command].help]
    assert set(" ".join(helps).split()) <= words


def test_options_are_shown_in_groups() -> None:
    text = shown(["run"])
    places = [text.index(f" {panel} ") for panel in ("Data", "Plan", "Training", "Device", "Output")]
    assert places == sorted(places)


@pytest.mark.parametrize("command", [*COMMANDS])
def test_commands_and_table_name_each_other(command: str) -> None:
    table = options_of(command)
    assert table or command in COMMANDS
    assert len({option.parameter for option in table}) == len(table)
    assert [each.name for each in COMMANDS[command].params if each.name != "help"] == [each.parameter for each in table]
    assert all(option.commands for option in table)
    assert {name for option in RUN_OPTIONS for name in option.commands} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("family", FAMILIES),
        ("loss", LOSSES),
        ("augmentation", BUILT_IN["augmentations"]),
        ("preset", PRESETS),
        ("configurations", CONFIGURATIONS),
        ("metrics", METRIC_NAMES),
        ("track", ("tensorboard", "wandb", "mlflow", "none")),
        ("data.frames", ("channels", "time")),
    ],
)
def test_the_help_names_all_there_are(field: str, names: Iterable[str]) -> None:
    """The texts are written out, since the dicts would load numpy and torch."""
    text = next(option.help for option in RUN_OPTIONS if option.field == field)
    places = [re.search(rf"(?<![\w-]){name}(?![\w-])", text) for name in names]
    assert None not in places
