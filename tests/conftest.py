"""Hypothesis without a time limit per example: shared machines are noisy, and tests never assert times."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which would fight for the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.load_profile("default")
