"""The help of `run` names what there is: its texts are written out, since the dicts would load numpy and torch."""

from __future__ import annotations

import pytest
from typer.main import get_command

from autounet.cli import app
from autounet.losses import LOSSES
from autounet.nets import FAMILIES
from autounet.planning import CONFIGURATIONS, PRESETS


@pytest.mark.parametrize(
    ("option", "names"),
    [("family", FAMILIES), ("loss", LOSSES), ("preset", PRESETS), ("configurations", CONFIGURATIONS)],
)
def test_the_help_names_all_there_are(option, names):
    shown = next(each.help for each in get_command(app).commands["run"].params if each.name == option)
    assert shown.partition(": ")[2].partition(";")[0].split(", ") == list(names)
