"""Networks as ONNX files, and their results by onnxruntime. Needs the extra `onnx`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autounet.schema.errors import OptionError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

INPUT, OUTPUT = "image", "logits"
TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")
"""loggers that tell of each step and of packages that nothing here uses"""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raises OptionError when the extra is not installed."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise OptionError(f"ONNX needs {', '.join(missing)}. Install them: pip install 'autounet[onnx]'")


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """The input is called `image`, the output `logits`; sizes that the program leaves open stay open."""
    import torch

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    written = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    assert written is not None
    written.save(path)


def run_onnx(path: Path, image: np.ndarray) -> np.ndarray:
    """Logits (B, K, *T) float32 of an image (B, C, *P) float32, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT], {INPUT: image})[0])
