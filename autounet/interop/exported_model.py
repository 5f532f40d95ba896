"""The record of exported networks, with all that happens before and after them, and ONNX files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from ..schema.dataset import Channel
from ..schema.errors import OptionError
from ..schema.labels import Labels, TargetKind
from ..schema.plan import InferenceSpec, PreprocessSpec
from ..schema.record import ConfigurationName, Part, PlainPath, Record
from ..schema.selection import PostprocessStep

if TYPE_CHECKING:
    from torch.export import ExportedProgram

RECORD = "preprocessing.json"
METADATA = "preprocessing"
"""key under which an ONNX file holds the same text"""


class SizeRule(Part):
    """Sizes n along one axis that a network takes: n = step x k + rest for whole k, from `least` to `most`."""

    step: int
    rest: int
    least: int
    most: int | None = None
    """None: any; the same as `least` where the file is for one size alone, which is then the patch"""


class ExportedNetwork(Part):
    path: PlainPath
    """relative to the record"""
    fold: int | None
    largest_difference: float
    """from torch's logits, where both were run"""
    largest_logit: float
    """for comparison"""


class ExportedOutput(Part):
    """One channel of the logits."""

    name: str
    values: tuple[int, ...]
    """label values, as in files, whose union it stands for"""
    paints: int
    """value that is written where it wins (classes), or where its probability exceeds 0.5 (regions, in their order)"""


class ExportedSwap(Part):
    """What a view mirrored along spatial axis `axis` exchanges: the channel whose place each one takes, before the
    network in the image and after it in the logits."""

    axis: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class ExportedConfiguration(Part):
    """The networks of one configuration, with what happens before and after them; see `docs/exchange.md`."""

    preprocess: PreprocessSpec
    patch_size: tuple[int, ...]
    sizes: tuple[SizeRule, ...]
    """one per axis"""
    inference: InferenceSpec
    targets: TargetKind
    """classes: softmax, and the channel of the highest probability wins; regions: a sigmoid for each"""
    outputs: tuple[ExportedOutput, ...]
    swap: ExportedSwap | None
    """None: mirrored views exchange nothing"""
    previous_stage: ConfigurationName | None
    """the configuration whose segmentation, one-hot without the background, follows the image's channels"""
    networks: tuple[ExportedNetwork, ...] = Field(min_length=1)
    """which are averaged as `inference.average` says"""


class ExportedModel(Record):
    """`preprocessing.json`."""

    name: str
    form: str
    channels: tuple[Channel, ...]
    labels: Labels
    chosen: tuple[ConfigurationName, ...]
    """configurations whose probabilities are averaged on the image's own grid"""
    weights: tuple[float, ...] = ()
    """of these, summing to 1; empty: equal"""
    channel_combinations: tuple[tuple[bool, ...], ...]
    """which channels an image may have, where some may be missing: those are 0 after normalisation; empty: all"""
    postprocessing: tuple[PostprocessStep, ...]
    """of the segmentation in the image's own voxels, in this order"""
    temperature: float
    """calibration temperature that logits are divided by for probabilities; it changes no segmentation of classes"""
    configurations: dict[ConfigurationName, ExportedConfiguration]
    versions: dict[str, str]


INPUT, OUTPUT = "image", "logits"
VERBOSE_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
"""loggers that report each step, and packages that nothing here uses"""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raises OptionError when the extra is not installed."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise OptionError(f"ONNX needs {', '.join(missing)}", "Install them: pip install 'autounet[onnx]'")


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """The input is called `image`, the output `logits`; sizes that the program leaves open stay open."""
    import torch

    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    written = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    assert written is not None
    written.save(path)


def describe_onnx(path: Path, text: str) -> None:
    """Write the record into the file itself, where onnxruntime finds it beside the network."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {METADATA: text})
    onnx.save(model, path)


def run_onnx(path: Path, image: np.ndarray) -> np.ndarray:
    """Logits (B, K, *T) float32 of an image (B, C, *P) float32, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT], {INPUT: image})[0])
