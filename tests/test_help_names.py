"""The help of `run` names what there is: its texts are written out, since the dicts would load numpy and torch."""

from __future__ import annotations

import pytest
from typer.main import get_command

from autounet.cli.app import app
from autounet.losses import LOSSES
from autounet.nets import FAMILIES
from autounet.planning import CONFIGURATIONS, PRESETS


@pytest.mark.parametrize(
    ("option", "before", "between", "names"),
    [
        ("family", "Network family: ", ", ", FAMILIES),
        ("loss", "Loss: ", ", ", LOSSES),
        ("preset", "Plan as nnU-Net does: ", ", ", PRESETS),
        ("configurations", "auto, or some of ", ",", CONFIGURATIONS),
    ],
)
def test_the_help_names_all_there_are(option, before, between, names):
    shown = next(each.help for each in get_command(app).commands["run"].params if each.name == option)
    assert shown == before + between.join(names)
