"""Trained nnU-Net v2 folders, made by hand: what its trainer writes, with random weights of a small network."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autounet.nets import FAMILIES
from autounet.nets.plain import nnunet_plain_name, nnunet_residual_name
from autounet.schema.plan import NetworkSpec

CLASS_NAMES = {"plain": "unet.PlainConvUNet", "residual": "residual_unet.ResidualEncoderUNet"}
NAMES = {"plain": nnunet_plain_name, "residual": nnunet_residual_name}
BLOCKS = {"plain": "n_conv_per_stage", "residual": "n_blocks_per_stage"}
LABELS = {"background": 0, "large": 1, "small": 2}


def network(family: str = "plain", dims: int = 3, inputs: int = 1, outputs: int = 3) -> NetworkSpec:
    ones, twos, kernel = (1,) * dims, (2,) * dims, (3,) * dims
    return NetworkSpec(
        family=family,
        dims=dims,  # type: ignore[arg-type]
        in_channels=inputs,
        out_channels=outputs,
        features=(4, 6),
        strides=(ones, twos),
        kernel_sizes=(kernel, kernel),
        encoder_blocks=(1, 2),
        decoder_blocks=(1,),
    )


def configuration(spec: NetworkSpec, **changes: Any) -> dict[str, Any]:
    """As nnU-Net's planners write it."""
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    dims, name = spec.dims, "resample_data_or_seg_to_shape"
    return {
        "data_identifier": f"nnUNetPlans_{dims}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8] * dims,
        "median_image_size_in_voxels": [9.5] * dims,
        "spacing": [2.0, 1.0, 1.5][-dims:],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": name,
        "resampling_fn_seg": name,
        "resampling_fn_probabilities": name,
        "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**kwargs, "order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.{CLASS_NAMES[spec.family]}",
            "arch_kwargs": {
                "n_stages": len(spec.features),
                "features_per_stage": list(spec.features),
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [list(kernel) for kernel in spec.kernel_sizes],
                "strides": [list(stride) for stride in spec.strides],
                BLOCKS[spec.family]: list(spec.encoder_blocks),
                "n_conv_per_stage_decoder": list(spec.decoder_blocks),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
        **changes,
    }


def plans(configurations: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    intensities = {"max": 9.0, "min": 0.0, "mean": 4.0, "median": 4.0, "std": 2.0, "percentile_00_5": 1.0,
                   "percentile_99_5": 8.0}  # fmt: skip
    return {
        "dataset_name": "Dataset900_Hand",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.5],
        "original_median_shape_after_transp": [7, 9, 9],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": configurations,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities, "1": intensities},
        **changes,
    }


def description(labels: dict[str, Any] = LABELS, channels: Sequence[str] = ("MRI",), **changes: Any) -> dict[str, Any]:
    names = {str(index): name for index, name in enumerate(channels)}
    return {"channel_names": names, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz", **changes}


def tensors(spec: NetworkSpec, seed: int) -> dict[str, torch.Tensor]:
    """Under all the names that nnU-Net's state dict has for them."""
    torch.manual_seed(seed)
    state = FAMILIES[spec.family].build(spec).state_dict()
    named = {NAMES[spec.family](name, spec): torch.randn_like(tensor) * 0.3 for name, tensor in state.items()}
    twice = {}
    for name, tensor in named.items():
        module = name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        twice |= {module: tensor, name: tensor}
        if name.startswith("encoder."):
            twice |= {f"decoder.{name}": tensor, f"decoder.{module}": tensor}
    return twice


def checkpoint(spec: NetworkSpec, name: str, fold: int | str, seed: int, **changes: Any) -> dict[str, Any]:
    """With numpy's numbers where nnU-Net has them: in what it logged, and in its best score."""
    logged = {"mean_fg_dice": [np.float64(0.5)], "dice_per_class_or_region": [[np.float32(0.4), np.float32(0.6)]],
              "epoch_start_timestamps": [1.0], "train_losses": [np.float64(0.1)]}  # fmt: skip
    return {
        "network_weights": tensors(spec, seed),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]},
        "grad_scaler_state": None,
        "logging": logged,
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"configuration": name, "fold": fold, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": tuple(range(spec.dims)),
        **changes,
    }


def trained(
    results: Path,
    name: str = "3d_fullres",
    spec: NetworkSpec | None = None,
    their_plans: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    folds: Sequence[int | str] = (0, 1),
    **changes: Any,
) -> Path:
    """The folder of one trained configuration. `changes` are those of its checkpoints."""
    spec = spec or network()
    folder = results / f"nnUNetTrainer__nnUNetPlans__{name}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(their_plans or plans({name: configuration(spec)})))
    (folder / "dataset.json").write_text(json.dumps(dataset or description()))
    for index, fold in enumerate(folds):
        file = folder / f"fold_{fold}" / "checkpoint_final.pth"
        file.parent.mkdir()
        torch.save(checkpoint(spec, name, fold, seed=index, **changes), file)
    return folder


def zipped(results: Path, target: Path) -> Path:
    """As nnU-Net exports it: paths from the folder that holds the data sets' results."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(results.rglob("*")):
            archive.write(file, file.relative_to(results.parent))
    return target
