"""Hypothesis without time limits: shared machines are noisy, and tests never assert times. Long files come first."""

import logging
import os
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):  # each keeps to its own: a command starts processes for all that it may use
        number, count = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: count])

import pytest
from hypothesis import HealthCheck, settings

import autounet  # noqa: F401 - its import adds a handler, which no test then seems to leave behind

LONGEST = (
    "test_end_to_end",
    "test_cluster",
    "test_executor",
    "test_torchrun",
    "test_ranks",
    "test_small_runs",
    "test_export_networks",
)
"""files that take longest, by their names"""

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`make test`) no core waits at the end for a long file that came last."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def logging_is_left_as_it_was() -> Iterator[None]:
    """A level or a handler that one test leaves behind decides what another one hears."""
    package = logging.getLogger("autounet")
    before = package.level, package.propagate, package.handlers[:]
    yield
    assert (package.level, package.propagate, package.handlers) == before
