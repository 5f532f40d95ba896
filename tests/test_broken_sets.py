"""Every defect of the gallery is told as case, finding and remedy, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_gallery import GALLERY, Broken
from broken_sets import NONE, pictures, volumes

from autounet.schema.dataset import Finding
from autounet.workflow import dataset_stage
from autounet.workflow.dataset_stage import check_data


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes would take longer than all that they would do here."""
    monkeypatch.setattr(dataset_stage, "available_cores", lambda: 1)


def test_the_gallery_is_large_enough() -> None:
    assert len({broken.name for broken in GALLERY}) == len(GALLERY) >= 40


@pytest.mark.parametrize("make", [volumes, pictures])
def test_sound_data_have_no_findings(tmp_path: Path, make) -> None:
    assert check_data(make(tmp_path / "data"), NONE).findings == ()


@pytest.mark.parametrize("broken", GALLERY, ids=lambda broken: broken.name)
def test_the_defect_is_found(tmp_path: Path, broken: Broken) -> None:
    options = broken.make(tmp_path / "data") or NONE
    findings = check_data(tmp_path / "data", options).findings
    found = next(finding for finding in findings if (finding.code, finding.case) == (broken.code, broken.case))
    assert broken.message in found.message
    assert broken.remedy in found.remedy
    assert found.severity == broken.severity
    assert "\n" not in str(found)
    if broken.case is not None:
        assert str(tmp_path) not in str(found)
    others = [finding for finding in findings if finding is not found]
    assert not (broken.alone and others), told(others)


def told(findings: list[Finding]) -> str:
    return "\n".join(f"{finding.code}: {finding}" for finding in findings)
