"""Hypothesis without a time limit per example: shared machines are noisy, and tests never assert times."""

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.load_profile("default")
