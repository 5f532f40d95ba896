"""For tests of whole runs in this process whose subject is neither the device nor how its memory is tried.

Every new output folder probes the device, and every plan is tried in a process of its own. Where runs have a few steps,
that takes longer than all the rest. `test_end_to_end` and `test_guard` show both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from autounet.planning import fill_memory, plan_inputs
from autounet.training import probe

probe_once = functools.cache(probe.probe_device)


@pytest.fixture(autouse=True, scope="module")
def one_probe() -> Iterator[None]:
    """The device is probed once for all modules that import this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "probe_device", probe_once)
        yield


@pytest.fixture(autouse=True, scope="module")
def no_trials() -> Iterator[None]:
    """No trial steps before the first fold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autounet.workflow.cluster.try_configurations", lambda *_: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def narrow() -> Iterator[None]:
    """8 features in the first stage, whatever memory is left: a quarter of the convolutions' work, or less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_inputs, "WIDTH", 8)
        patch.setattr(fill_memory, "WIDTH", 8)
        patch.setattr(fill_memory, "MOST_WIDTH", 8)
        yield
