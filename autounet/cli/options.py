"""Options of the command line that more than one command has, or that need a long text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Text = Optional[str]  # noqa: UP045
Texts = Optional[list[str]]  # noqa: UP045
Whole = Optional[int]  # noqa: UP045
Switch = Optional[bool]  # noqa: UP045
File = Optional[Path]  # noqa: UP045

Data = Annotated[Path, typer.Argument(help="Folder with images and labels, in any supported layout")]
Model = Annotated[Path, typer.Argument(help="A packed model: OUT/model, or a file .autounet")]
Out = Annotated[Path, typer.Option(help="Output folder; given again, the run continues")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output")]
# written out, since the dicts that hold the names of the next four load numpy and torch (tests/test_help_names.py)
Configurations = Annotated[Text, typer.Option(help="auto, or some of 2d,3d_lowres,3d_fullres,3d_cascade_fullres")]
Family = Annotated[
    Text,
    typer.Option(help="Network family: plain, residual, original, unet3d, nested, attention, swin, efficient, mednext"),
]
Loss = Annotated[
    Text,
    typer.Option(
        help="Loss: dice_ce, dice, ce, bce, weighted_ce, topk, dice_topk, focal, dice_focal, tversky, focal_tversky"
    ),
]
Preset = Annotated[Text, typer.Option(help="Plan as nnU-Net does: nnunet, residual-m, residual-l, residual-xl")]
Channel = Annotated[Texts, typer.Option(help="NAME=PATTERN: files of a channel")]
Kind = Annotated[Texts, typer.Option(help="NAME=ct|mri|photo|other: kind of a channel")]
Label = Annotated[Text, typer.Option(help="Pattern of the label files, for example '1st_manual/*'")]
Class = Annotated[Texts, typer.Option("--class", help="NAME=VALUE: name of a label value")]
Region = Annotated[Texts, typer.Option(help="NAME=V1,V2,...: target made of several values")]
Ignore = Annotated[Whole, typer.Option(help="Label value that means: not annotated")]
Group = Annotated[Text, typer.Option(help="Regular expression; cases with the same first capture stay together")]
Splits = Annotated[Text, typer.Option(help="nnunet, or a JSON file with the folds")]
Palette = Annotated[
    Text, typer.Option(metavar="FILE", help="JSON with a colour for each class, where label pictures hold colours")
]
MissingChannels = Annotated[
    bool, typer.Option("--missing-channels", help="Cases may lack channels: train with what is there")
]
Frames = Annotated[Text, typer.Option(metavar="channels|time", help="What the fourth axis of 4-D files is")]
Pretrained = Annotated[
    Text, typer.Option(help="File: family efficient in 2-D starts from these weights, timm's EfficientNet; or none")
]
Init = Annotated[
    Text, typer.Option(metavar="MODEL", help="Start from a packed model of the same architecture; or none")
]
Metrics = Annotated[
    Text,
    typer.Option(
        help="default, all, or some of dice, iou, sensitivity, precision, hd95, nsd, volume, volume_difference, assd, "
        "nsd_subvoxel, boundary_iou, lesion_f1, panoptic_quality, cl_dice"
    ),
]
Track = Annotated[
    Text,
    typer.Option(
        metavar="tensorboard|wandb|mlflow", help="Also show curves and results there (extra track); none: no more"
    ),
]
Overlap = Annotated[Optional[float], typer.Option(help="Overlap of tiles", min=0, max=0.9)]  # noqa: UP045
Prune = Annotated[Whole, typer.Option(help="Family nested: predict by its U-Net of this many poolings", min=1)]
GateMaps = Annotated[
    bool, typer.Option("--gate-maps", help="Family attention: also write what its gates let pass, as images")
]
Probabilities = Annotated[bool, typer.Option("--probabilities", help="Also write probabilities; order in classes.json")]
Uncertainty = Annotated[
    bool, typer.Option("--uncertainty", help="Also write the entropy and the disagreement between folds, in nats")
]
Average = Annotated[
    Text, typer.Option(metavar="probabilities|logits", help="What folds, views and configurations are averaged as")
]
NoPostprocessing = Annotated[
    bool, typer.Option("--no-postprocessing", help="Keep the components that the model was selected to remove")
]
Template = Annotated[
    str, typer.Option(help="files, decathlon[:TASK], grand-challenge[:SLUG], or a pattern such as '{case}_seg.nii.gz'")
]
