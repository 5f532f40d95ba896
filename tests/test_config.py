"""`--config FILE.toml`, `-h`, and `--quiet` and `--verbose` on either side of the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from quick_runs import narrow, one_probe  # noqa: F401 - used by the plans here
from test_option_table import COMMANDS as PARSERS
from test_option_table import all_options
from typer.testing import CliRunner

from autounet.cli.app import app, main
from autounet.cli.command_options import COMMANDS, GENERAL, config_values, options_of
from autounet.datasets.synthetic import make_demo_dataset
from autounet.imageio import write_labels
from autounet.schema.errors import UsageError
from autounet.schema.geometry import Geometry
from autounet.schema.option_table import RUN_OPTIONS, run_options
from autounet.schema.options import RunOptions


def toml(value: Any) -> str:
    """A value as it is written in TOML, whose texts escape as JSON's do."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(f"\\u{ord(each):04x}" if each in '"\\\n\t' else each for each in value)
        return f'"{escaped}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(name)} = {toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value)


def written(options: RunOptions) -> str:
    """Every option that was given, in TOML: where a value is one, as a number, a list or a table."""
    lines = ['data = "/data"', 'out = "out"']
    for option in RUN_OPTIONS:
        if option.field is None:
            continue
        holder, _, field = option.field.rpartition(".")
        value = getattr(options.data if holder else options, field)
        words = option.words(value)
        if not words:
            continue
        if option.name in ("--init", "--pretrained"):
            value = words[1]
        lines.append(f"{option.key} = {toml(value)}")
    return "\n".join(lines)


def parsed(words: list[str]) -> dict[str, Any]:
    """What typer hands to `autounet run`, the file's values and the command line's."""
    return PARSERS["run"].make_context("run", words).params


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(all_options())
def test_every_option_may_stand_in_a_file(tmp_path: Path, options: RunOptions) -> None:
    file = tmp_path / "run.toml"
    file.write_text(written(options), encoding="utf-8")
    values = parsed(["--config", str(file)])
    assert (values["data"], values["out"]) == (Path("/data"), Path("out"))
    assert run_options((option, values[option.parameter]) for option in options_of("run")) == options


SMALL = ("--configurations", "3d_fullres", "--memory", "450MB")
"""a plan that is made sooner"""


def test_the_command_line_wins_and_the_record_is_the_same_whichever_way(tmp_path: Path) -> None:
    data = make_demo_dataset(tmp_path / "data", cases=4)
    file = tmp_path / "run.toml"
    file.write_text(f"data = {toml(str(data))}\nseed = 3\nworkers = 0\n[class]\norgan = 1\nlesion = 2\n")
    outs = [tmp_path / name for name in ("by_file", "by_words")]
    words = [
        ["--config", str(file), "--out", str(outs[0]), "--seed", "4"],
        [str(data), "--out", str(outs[1]), "--seed", "4", "--workers", "0", "--class", "organ=1", "--class",
         "lesion=2"],
    ]  # fmt: skip
    for each in words:
        done = CliRunner().invoke(app, ["plan", *each, *SMALL, "--device", "cpu", "--iterations", "5"])
        assert done.exit_code == 0, done.output
    first, second = ((out / "options.json").read_text() for out in outs)
    assert first == second
    assert RunOptions.load(outs[0] / "options.json").seed == 4


def test_other_commands_read_theirs(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_labels(tmp_path / folder / "case.nii.gz", np.ones((2, 3, 4), np.int32), Geometry(shape=(2, 3, 4)))
    file = tmp_path / "evaluate.toml"
    places = [toml(str(tmp_path / name)) for name in ("a", "b", "metrics.json")]
    file.write_text(
        "predictions = {}\nreferences = {}\nout = {}\nmetrics = ['iou']\nclass = {{organ = 1}}\n".format(*places)
    )
    done = CliRunner().invoke(app, ["evaluate", "--config", str(file)])
    assert done.exit_code == 0, done.output
    assert "organ: dice 1.0000, iou 1.0000" in done.stdout
    assert (tmp_path / "metrics.json").exists()
    values = {"folders": ["x", "y"], "weights": [0.5, 0.25], "out": "o"}
    file.write_text("\n".join(f"{name} = {toml(value)}" for name, value in values.items()))
    assert config_values(file, "ensemble") == {**values, "weights": "0.5,0.25"}
    file.write_text('folds = [0, 1]\noverlap = 0\nno-mirror = true\nformat = "dicom-seg"')
    assert config_values(file, "predict") == {
        "folds": "0,1", "overlap": 0, "no_mirror": True, "format_": "dicom-seg",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tiem = '2h'", "tiem is unknown. Did you mean time? Choose one of augmentation, channel, class, "),
        ("missing_channels = true", "missing_channels is unknown. Did you mean missing-channels?"),
        ("config = 'other.toml'", "config is unknown"),
        ("seed = '3'", "--seed: '3' cannot be used. Give a whole number"),
        ("time = 2020-01-01", "--time: datetime.date(2020, 1, 1) cannot be used. Give a text or a number"),
        ("time = -5", "--time: '-5s' is not a time"),
        ("class = ['liver=1']", "--class: ['liver=1'] cannot be used. Give a whole number or a text for each name"),
        ("epochs = 0", "epochs"),
        ("seed = ", "cannot be read: Invalid value"),
        ("family = 'unetr'", "--family unetr is unknown"),
    ],
)
def test_a_file_with_something_wrong_is_named_and_ends_with_2(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    monkeypatch.setattr(sys, "argv", ["autounet", "run", "absent", "--out", "new", "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match=r"absent\.toml cannot be read: No such file"):
        config_values(tmp_path / "absent.toml", "run")


def test_every_command_takes_what_every_command_takes() -> None:
    assert set(PARSERS) == set(COMMANDS)
    for command in PARSERS:
        assert set(GENERAL) <= {option.parameter for option in options_of(command)}
        short, long = (CliRunner().invoke(app, [command, name]) for name in ("-h", "--help"))
        assert (short.exit_code, short.output) == (0, long.output)
    assert CliRunner().invoke(app, ["-h"]).exit_code == 0


COMMANDS_APART = """
import json, logging, sys
from autounet.cli.app import main
for words in json.loads(sys.argv[1]):
    logging.getLogger().handlers.clear()
    sys.argv = ["autounet", *words]
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code
    print(code or 0, end=chr(0), flush=True)
    print(end=chr(0), file=sys.stderr, flush=True)
"""
"""one after the other, each as if it were the first"""


def test_messages_are_few_or_many_on_either_side_of_the_command(tmp_path: Path) -> None:
    """In a process of their own: a handler for the whole program is set up."""
    data = make_demo_dataset(tmp_path / "data", cases=4)
    given = [str(data), "--out", str(tmp_path / "out")]
    sides = (([], []), ([], ["-q"]), (["--quiet"], []), ([], ["--verbose"]))
    commands = [[*before, "fingerprint", *given, *after] for before, after in sides]
    commands.append(["plan", *given, "--folds", "9", "--verbose"])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS_APART, json.dumps(commands)], capture_output=True, text=True, check=True
    )
    *printed, end = done.stdout.split(chr(0))
    assert [each[-1:] for each in printed] == [*"0000", "1"], done.stderr
    assert all("fingerprint: " in each for each in printed[:-1])
    assert end == ""
    usual, short, long, verbose, failing, _ = done.stderr.split(chr(0))
    assert "reading: done in" in usual
    assert "reading" not in short + long
    assert "4 cases" in short, "a warning"
    assert "4 cases" in long
    assert "autounet.progress reading: done in" in verbose
    assert "Traceback" in failing
    assert failing.splitlines()[-1].startswith("Error: ")
    log = (tmp_path / "out" / "run.log").read_text(encoding="utf-8")
    assert log.count(f" fingerprint {data} --out ") == log.count(f" fingerprint: {tmp_path / 'out'}") == 4
    assert log.count("reading: done in") == 5, "of quiet commands, too"
    assert failing.splitlines()[-1] in log
    both = CliRunner().invoke(app, ["status", str(tmp_path), "--quiet", "-v"])
    assert isinstance(both.exception, UsageError)
    assert "exclude each other" in str(both.exception)
