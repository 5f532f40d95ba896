"""One case is trained on without validation, and every part of the run says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_contents import one_case
from broken_sets import NONE

from autounet import api
from autounet.schema.dataset import Splits
from autounet.schema.errors import OptionError
from autounet.schema.options import RunOptions
from autounet.schema.run import RunRecord
from autounet.schema.selection import Selection
from autounet.workflow import cluster
from autounet.workflow.pipeline import run_pipeline
from autounet.workflow.read_status import read_status


def test_one_case_is_trained_without_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "try_configurations", lambda *_: None)  # starts a process for a trial
    data, out = tmp_path / "data", tmp_path / "out"
    one_case(data)
    options = RunOptions(device="cpu", workers=0, memory_bytes=420 * 2**20, iterations=2, data=NONE)
    report = run_pipeline(data, out, options).written.read_text(encoding="utf-8")
    assert Splits.load(out / "splits.json") == Splits(source="full", folds=(("c0",),))
    record = RunRecord.load(out / "models" / "2d" / "fold_all" / "record.json")
    assert (record.train_cases, record.validation_cases) == (("c0",), ())
    assert "nothing was compared" in Selection.load(out / "selection.json").reason
    assert not (out / "metrics.json").exists()
    assert "there is 1 case, which cannot be split for a cross-validation" in report
    status = read_status(out)
    assert [(fold.fold, fold.state) for fold in status.folds] == [("all", "done")]
    assert status.findings == 1
    assert "warnings about the data: 1 (listed in findings.json and in the report)" in status.lines
    assert api.load(out / "model", device="cpu").predict_files(data / "images", tmp_path / "predicted") == []
    assert read_status(tmp_path / "predicted").state == "finished"
    with pytest.raises(OptionError, match="there is one case or group, which cannot be split"):
        run_pipeline(data, out, options.model_copy(update={"folds": "0"}), until="train")
