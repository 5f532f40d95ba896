"""The report tells what was compared, what is removed from the result and how sure its probabilities are."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_output import make_output
from matplotlib.figure import Figure

from autounet.report import shown_cases, write_report
from autounet.report.output_records import read_output_records
from autounet.schema.selection import Candidate, PostprocessStep, PostprocessTrial, Selection, TemperatureScaling


@pytest.fixture
def out(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(shown_cases, "overlay_pictures", lambda *_: [])
    monkeypatch.setattr(Figure, "savefig", lambda _, buffer, **kwargs: buffer.write(b"a chart"))
    return make_output(tmp_path / "out", cases=5)


def chosen(temperature: float) -> Selection:
    step = PostprocessStep(name="foreground", values=(7, 9), keep="minimum", minimum=31.6)
    candidates = [
        Candidate(configurations=(name,), mean_dice=dice, interval=(0.7, 0.9), behind=0.8 - dice, noise=0.02)
        for name, dice in (("2d", 0.8), ("3d_fullres", 0.79))
    ]
    return Selection(
        chosen=("3d_fullres",),
        compared=tuple(candidates),
        reason="the reason",
        rule="the rule.",
        postprocessing=(step,),
        postprocessing_trials=(PostprocessTrial(name="foreground", step=step, gain=0.0123, noise=0.004, kept=True),),
        postprocessing_reason="what is removed",
        calibration=TemperatureScaling(
            temperature=temperature, fitted=1.7, ece_before=0.0611, ece_after=0.0122, cases=5, voxels=4321
        ),
    )


TOLD = ("0.7000 to 0.9000", "0.0100", "the rule.", "the reason", "what is removed", "+0.0123", "4321 voxels",
        "0.0611 before and 0.0122 after", "keep components of at least 31.6 of foreground")  # fmt: skip


@pytest.mark.parametrize(("temperature", "used"), [(1.7, "1.7, is used for"), (1.0, "it is not used for")])
def test_what_was_judged_is_told(out: Path, temperature: float, used: str) -> None:
    chosen(temperature).save(out / "selection.json")
    text = write_report(out).read_text(encoding="utf-8")
    assert [told for told in (*TOLD, used) if told not in text] == []


def test_pictures_are_of_the_postprocessed(out: Path) -> None:
    folder = out / "crossval" / "3d_fullres"
    assert read_output_records(out).prediction_folder == folder
    chosen(1.0).save(out / "selection.json")
    assert read_output_records(out).prediction_folder == folder / "postprocessed"
