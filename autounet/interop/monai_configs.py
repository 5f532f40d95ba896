"""What MONAI reads of a bundle: `configs/metadata.json`, and the program `configs/inference.json`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from .. import __version__
from ..schema.bundle import NO_LICENCE, ModelBundle
from ..schema.dataset import ChannelKind
from ..schema.labels import targets_of
from ..schema.plan import Configuration

MONAI = "1.6.1"
"""version that bundles were tried with"""
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
READ_BY_MONAI = re.compile(r"[$@%]")
"""signs that make a text of a configuration a program, a reference or a macro"""
MODALITIES = {ChannelKind.ct: "CT", ChannelKind.mri: "MR"}
INFERENCE = {
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/data'",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$__import__('torch').device('cuda' if __import__('torch').cuda.is_available() else 'cpu')",
    "mirror": True,
    "remove_components": True,
    "plan": {"_target_": "scripts.records.read_plan", "bundle_root": "@bundle_root", "mirror": "@mirror"},
    "datalist": {"_target_": "scripts.images.find_cases", "folder": "@dataset_dir", "plan": "@plan"},
    "preprocessing": {"_target_": "scripts.predict.ReadCase", "plan": "@plan"},
    "dataset": {"_target_": "monai.data.Dataset", "data": "@datalist", "transform": "@preprocessing"},
    "network_def": {"_target_": "scripts.predict.Networks", "plan": "@plan"},
    "network": {
        "_target_": "scripts.predict.load_networks",
        "networks": "@network_def",
        "weights": "$@bundle_root + '/models/model.pt'",
        "device": "@device",
    },
    "inferer": {"_target_": "scripts.predict.CaseInferer", "plan": "@plan", "device": "@device"},
    "postprocessing": {
        "_target_": "scripts.predict.WriteSegmentation",
        "plan": "@plan",
        "output_dir": "@output_dir",
        "remove": "@remove_components",
    },
    "evaluator": {
        "_target_": "scripts.predict.Evaluator",
        "dataset": "@dataset",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
    },
    "run": ["$@evaluator.run()"],
}
"""`configs/inference.json`: nothing in it is of the model"""


def metadata(bundle: ModelBundle, name: str, what: str) -> dict[str, Any]:
    """`what` the model does, in a sentence.

    The network's format is that of the first selected configuration, which `network_def` stands for.

    MONAI takes `metadata.json` for a configuration like others, so signs that run code there are replaced.
    """
    own, scores = bundle.configurations[name], bundle.card.scores
    outputs = [_plain(each.name) for each in targets_of(bundle.labels, own.targets)]
    channels = [_plain(channel.name) for channel in bundle.channels]
    classes = [_plain(label.name) for label in bundle.labels.classes]
    licence = f"licence of the weights: {_plain(bundle.card.licence)}"
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by autounet {__version__}"},
        "monai_version": MONAI,
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"SimpleITK": version("SimpleITK")},
        "name": _plain(bundle.name),
        "task": f"Segmentation of {', '.join(classes[1:])}",
        "description": _plain(what),
        "authors": "trained with autounet, by whom is not stated",
        "copyright": licence if bundle.card.licence != NO_LICENCE else "not stated",
        "data_source": _plain(bundle.name),
        "data_type": bundle.file_kind,
        "image_classes": ", ".join(channels),
        "label_classes": ", ".join(
            f"{label.value}: {text}" for label, text in zip(bundle.labels.classes, classes, strict=True)
        ),
        "pred_classes": ", ".join(outputs),
        "eval_metrics": {} if scores is None or scores.mean_dice is None else {"mean_dice": scores.mean_dice},
        "intended_use": "Research. It is not a medical device and must not be used for diagnosis or treatment",
        "references": ["Isensee et al., Nature Methods 18, 203-211 (2021), doi 10.1038/s41592-020-01008-z"],
        "network_data_format": _network_format(
            bundle, own, channels + (classes[1:] if own.previous_stage else []), outputs
        ),
    }


def _network_format(
    bundle: ModelBundle, own: Configuration, inputs: Sequence[str], outputs: Sequence[str]
) -> dict[str, Any]:
    kinds = {channel.kind for channel in bundle.channels}
    common = {"spatial_shape": list(own.patch_size), "dtype": "float32", "value_range": [], "is_patch_data": True}
    return {
        "inputs": {
            "image": {
                "type": "image",
                "format": "hounsfield" if kinds == {ChannelKind.ct} else "magnitude",
                "modality": MODALITIES.get(next(iter(kinds)), "n/a") if len(kinds) == 1 else "n/a",
                "num_channels": own.network.in_channels,
                **common,
                "channel_def": {str(index): text for index, text in enumerate(inputs)},
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "num_channels": len(outputs),
                **common,
                "channel_def": {str(index): text for index, text in enumerate(outputs)},
            }
        },
    }


def _plain(text: str) -> str:
    return READ_BY_MONAI.sub("_", text)
