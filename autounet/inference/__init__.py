"""Whole images through networks: `sliding` predicts, `loading` builds networks from weights, `bundle` packs a model.

Torch is loaded when `predict_scores` is asked for, so that reading a bundle does without.
"""

from __future__ import annotations

from typing import Any

__all__ = ["predict_scores"]


def __getattr__(name: str) -> Any:
    if name != "predict_scores":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autounet.inference.sliding import predict_scores

    return predict_scores
