"""A short run of `benchmarks/fuzzing.py`, and what its long ones have found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def tools():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import fuzzing
        import fuzzing_mutations
        import fuzzing_parsers

        yield fuzzing, fuzzing_mutations, fuzzing_parsers
    finally:
        sys.path.remove(str(BENCHMARKS))


QUICK = ("MetaImage", "folds", "spacing beside pictures", "--config, --executor")


@pytest.mark.parametrize("name", QUICK)
def test_damaged_files_end_with_our_errors(tools, tmp_path: Path, name: str) -> None:
    fuzzing, _, parsers = tools
    seeds = parsers.PARSERS[name].make(tmp_path)
    whole = {each.file: each.file.read_bytes() for each in seeds}
    for index in range(60):
        rng = Random(f"test/{name}/{index}")
        seed = rng.choice(seeds)
        seed.file.write_bytes(rng.choice(seed.changes)(rng, whole[seed.file]))
        assert not fuzzing.outcome(seed.read), f"input {index}"
        seed.file.write_bytes(whole[seed.file])


def test_harm_is_noticed(tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a parser that crashes, hangs, fails, and takes memory, each is counted once and its input is kept."""
    fuzzing, _, _ = tools
    (tmp_path / "fuzzing_parsers.py").write_text(HARMFUL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).resolve().parent.parent}")
    monkeypatch.setattr(fuzzing, "SCRIPT", tmp_path / "fuzzing.py")
    script = (BENCHMARKS / "fuzzing.py").read_text()
    (tmp_path / "fuzzing.py").write_text(script.replace("MOST_GROWTH = 400 << 20", "MOST_GROWTH = 40 << 20"))
    monkeypatch.setattr(fuzzing, "LONGEST", 1.0)
    tally = fuzzing.attack("harmful", tmp_path / "work", 0, 6)
    assert sorted(each.kind for each in tally.found) == ["crash", "hang", "memory", "traceback"]
    assert len(list((tmp_path / "work" / "kept").iterdir())) == 4
    assert (tally.accepted, tally.refused) == (2, 1)


HARMFUL = """
import os, time
from pathlib import Path
from typing import NamedTuple

class Seed(NamedTuple):
    file: object
    changes: object
    read: object

class Parser(NamedTuple):
    make: object

def make(folder):
    file = folder / "file"
    file.write_bytes(b"sound")
    calls = []

    def change(rng, whole):
        calls.append(1)
        count = folder.parent / "count"
        number = len(count.read_text()) if count.exists() else 0
        again = folder.parent / "again"
        if number == 1 and not again.exists():  # the watcher tries a hang twice
            again.touch()
        else:
            count.write_text("x" * (number + 1))
        return str(number).encode()

    def read():
        from autounet.schema.errors import OptionError
        number = file.read_bytes()
        if number == b"0":
            os.abort()
        if number == b"1":
            time.sleep(60)
        if number == b"2":
            raise KeyError("a mistake")
        if number == b"3":
            b"x" * (60 << 20)
        if number == b"4":
            raise OptionError("refused")

    return [Seed(file, (change,), read)]

PARSERS = {"harmful": Parser(make)}
"""


def test_an_input_depends_on_its_number_alone(tools) -> None:
    _, mutations, _ = tools
    sound = json.dumps({"a": [1, 2, {"b": "c"}], "checksum": "x"}).encode()
    for change in (mutations.flipped, mutations.worded, mutations.json_changed):
        made = [change(Random(f"0/a/{index}"), sound) for index in range(50)]
        assert made == [change(Random(f"0/a/{index}"), sound) for index in range(50)]
        assert len(set(made)) > 30
