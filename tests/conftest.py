"""Hypothesis without time limits: shared machines are noisy, and tests never assert times."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
