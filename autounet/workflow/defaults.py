"""Defaults: from the options of a command to those of the planner and the training, and to what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..nets import FAMILIES
from ..nets.efficient import STEM_FEATURES
from ..planning import PRESETS
from ..processes import processes_of_a_training
from ..schema.cluster import cluster_options
from ..schema.errors import OptionError, UsageError
from ..schema.metrics import chosen_metrics
from ..schema.options import GIB, MIRRORED_STEPS, DataOptions, PlannerOptions, RunOptions, TrainOptions
from ..schema.plan import Configuration, Plan, with_previous_stages
from ..schema.plugins import BUILT_IN
from ..schema.run import FIXED_AUGMENTED_BY, AugmentedBy, DeviceProfile
from ..tracking import NO_TRACKER, require_tracker
from ..workers import available_cores

EPOCH_STEPS = 250
"""steps of an epoch, as in nnU-Net"""
FULL_STEPS = 1000 * EPOCH_STEPS
"""nnU-Net's full recipe"""
CPU_SECONDS = 3600.0
"""the time of a run on a CPU without --time, --epochs or --iterations"""
SHORT_STEPS = 25_000
"""below this many steps AdamW with a short warm-up and averaged weights is used. Chosen: what was once measured beside
SGD with polynomial decay no longer holds, and where the two cross was not measured"""
SHORT_LOSS = "log_dice_ce"
"""of that recipe. In trainings of 2 minutes of a core it finds rare classes where `dice_ce` does not, and loses nothing
measurable elsewhere (benchmarks/results/recipes_2026-11-30.md). In full trainings the two were not compared"""
TRANSFERRED_RATE = 1e-3
"""highest learning rate of a training from a model's weights, after a linear rise over 5 % of it, by either optimiser.
With SGD a tenth of the usual: so nnU-Net's authors fine-tune (Wald et al. 2024, arXiv 2412.17041, and the trainers of
their code: 1e-3 instead of 1e-2, rising over 50 of 1000 epochs). With AdamW a third, as theirs for transformers (1e-4
instead of 3e-4)"""
PRETRAINED_FAMILY = "efficient"
"""whose encoder there are weights for, in timm"""
AVERAGED_PART = 10
"""the averaged weights look back over a tenth of the training"""


def requested_configurations(options: RunOptions) -> tuple[str, ...] | None:
    """Names given; None for 'auto', which is stored as such so that it can revoke names given earlier."""
    return None if options.configurations == ("auto",) else options.configurations


def memory_budget(options: RunOptions, profile: DeviceProfile) -> int:
    """Bytes: --memory, else the preset's target, else 90 % of a free GPU, or half of a CPU's memory, at most 8 GB."""
    if options.memory_bytes:
        return options.memory_bytes
    if options.preset:
        return PRESETS[options.preset].memory_bytes
    if profile.device == "cpu":
        return min(8 * GIB, profile.memory_bytes // 2)
    return int(0.9 * profile.memory_bytes)


def planner_options(options: RunOptions, profile: DeviceProfile) -> PlannerOptions:
    """Pretrained weights have their width, and those of a model were trained with mirrored samples."""
    few = (step_limit(options) or MIRRORED_STEPS) < MIRRORED_STEPS
    return PlannerOptions(
        memory_bytes=memory_budget(options, profile),
        preset=options.preset,
        family=network_family(options),
        configurations=requested_configurations(options),
        base_features=STEM_FEATURES if options.starts_from == "encoder" else None,
        minimum_batch=max(2, processes_of_a_training(options.devices_per_training)),
        mirror_samples=bool(options.preset) or options.starts_from == "model" or not few,
    )


def network_family(options: RunOptions) -> str:
    """The preset's, the one given, or plain."""
    return PRESETS[options.preset].family if options.preset else options.family or "plain"


def step_limit(options: RunOptions) -> int | None:
    """Steps per fold by --epochs or --iterations, whichever is smaller; None without either."""
    limits = [EPOCH_STEPS * options.epochs if options.epochs else None, options.iterations]
    given = [steps for steps in limits if steps]
    return min(given) if given else None


def ends_when_converged(options: RunOptions, promised: float | None) -> bool:
    """Of the full recipe only: steps and times that are given are kept to, and a preset has nnU-Net's 1000 epochs."""
    return promised is None and step_limit(options) is None and options.preset is None


def promised_seconds(options: RunOptions, profile: DeviceProfile) -> float | None:
    """The time limit of the command: --time, or one hour on a CPU when neither time nor steps are given."""
    if options.seconds:
        return options.seconds
    if profile.device == "cpu" and step_limit(options) is None:
        return CPU_SECONDS
    return None


def train_options(
    options: RunOptions,
    expected_steps: int,
    dims: int,
    family: str | None = None,
    augmented_by: AugmentedBy = FIXED_AUGMENTED_BY,
) -> TrainOptions:
    """SGD with nnU-Net's schedule for the full recipe; a short one has AdamW, warm-up, averages and `SHORT_LOSS`.

    `augmented_by` is what the device's profile says; it does not count where the same weights are promised.

    `family` is that of the network, where the options do not say it. Weights of a model are trained on more slowly. On
    images of `dims` 2 the first U-Net is trained as published. In volumes its balance of rare classes makes them far
    too large: Dice of 0.24 instead of 0.81 on Task04 (benchmarks/results/families_task04_2026-11-22.md).
    """
    published = dims in FAMILIES[family or network_family(options)].weighs_borders
    if options.deterministic:
        augmented_by = FIXED_AUGMENTED_BY
    if options.augmentation not in (None, *BUILT_IN["augmentations"]):
        augmented_by = "batchgeneratorsv2"  # plug-ins are made of its transforms
    full = TrainOptions(
        loss=options.loss or ("weighted_ce" if published else "dice_ce"),
        emphasis=options.preset is None,
        augmentation=options.augmentation or "full",
        augmented_by=augmented_by,
        elastic=published,
        seed=options.seed or 0,
        deterministic=options.deterministic,
        start=options.start.checksum if options.start else None,
    )
    transferred = options.starts_from == "model"
    if options.preset or expected_steps > SHORT_STEPS:
        slow = {"learning_rate": TRANSFERRED_RATE, "schedule": "warmup_poly"}
        return full.model_copy(update=slow) if transferred else full
    short = {
        "optimiser": "adamw",
        "learning_rate": TRANSFERRED_RATE if transferred else 3e-3,
        "weight_decay": 1e-2,
        "schedule": "warmup_cosine",
        "loss": options.loss or ("weighted_ce" if published else SHORT_LOSS),
        "ema_decay": round(min(0.999, max(0.9, 1 - AVERAGED_PART / max(AVERAGED_PART, expected_steps))), 4),
        "augmentation": options.augmentation or "light",
    }
    return full.model_copy(update=short)


def require_files(options: DataOptions) -> None:
    """Raises UsageError for files that options name and that are not there, OptionError for folds that are none."""
    if options.splits is not None:
        from ..datasets.splits import require_splits  # it takes longer to load than `status` to answer

        require_splits(options.splits)
    if options.palette is not None and not Path(options.palette).is_file():
        remedy = "Give a JSON file with a colour for each class"
        raise UsageError(f"--palette {options.palette}: there is no such file", remedy)


def check_options(options: RunOptions) -> None:
    """Raises UsageError for options that contradict each other, OptionError for files and devices that are not there.

    No image has been read then.
    """
    if options.metrics:
        chosen_metrics(options.metrics)
    if options.track not in (None, NO_TRACKER):
        require_tracker(str(options.track))
    require_files(options.data)
    if options.preset and options.family not in (None, PRESETS[options.preset].family):
        raise UsageError(
            f"--preset {options.preset} has networks of the family {PRESETS[options.preset].family}, not "
            f"{options.family}",
            f"Leave out --family {options.family}, or give another preset",
        )
    if options.starts_from == "encoder" and network_family(options) != PRETRAINED_FAMILY:
        raise UsageError(
            f"--pretrained is for --family {PRETRAINED_FAMILY}, not {network_family(options)}",
            f"Give --family {PRETRAINED_FAMILY}, or --pretrained none",
        )
    if options.deterministic and not step_limit(options):
        raise UsageError(
            "--deterministic needs a number of steps: a time limit never gives the same steps twice",
            "Give --epochs or --iterations",
        )


def parse_folds(text: str | None, count: int) -> tuple[int | None, ...]:
    """'all', 'full' (one model on all cases: None) or '0,1'; with a `count` of 1 all is full. Raises OptionError."""
    if text == "full" or (count == 1 and text in (None, "all")):
        return (None,)
    if text in (None, "all"):
        return tuple(range(count))
    if count == 1:
        raise OptionError(f"--folds {text}: there is one case or group, which cannot be split", "Give all or full")
    try:
        folds = tuple(sorted({int(part) for part in str(text).split(",")}))
    except ValueError:
        raise OptionError(f"--folds {text} names no folds", "Give all, full, or indices such as 0,1") from None
    if not folds or folds[0] < 0 or folds[-1] >= count:
        raise OptionError(f"--folds {text}: there are {count} folds", f"Give indices from 0 to {count - 1}")
    return folds


def trained_names(plan: Plan, options: RunOptions, limited: bool, every_fold: bool = True) -> tuple[str, ...]:
    """Which configurations are trained: those that are named; with a time limit what the plan chose; else all of it.

    The previous stage of each comes before it. Where not `every_fold` is trained, stages that need one are left out
    unless it is named. Raises PlanError for a name that the plan does not have.
    """
    requested = requested_configurations(options)
    if requested:
        names = requested
    elif limited and plan.chosen:
        names = plan.chosen
    elif limited:
        names = ("3d_fullres",) if "3d_fullres" in plan.configurations else tuple(plan.configurations)[:1]
    else:
        names = tuple(name for name, each in plan.configurations.items() if every_fold or each.previous_stage is None)
    return with_previous_stages(names, plan.configurations)


def is_every_fold(folds: tuple[int | None, ...], count: int) -> bool:
    """Whether these are all folds of a cross-validation; `full` is none."""
    return None not in folds and len(folds) == count


def trained_folds(
    name: str, configurations: Mapping[str, Configuration], folds: tuple[int | None, ...], count: int
) -> tuple[int | None, ...]:
    """The folds of one configuration: those of --folds, and every cross-validation fold of a previous stage.

    The next stage learns from segmentations of cases that the network had not seen. A previous stage trained on all
    cases would hand on segmentations better than any of a new image, so `full` cross-validates it all the same.
    """
    needed = any(each.previous_stage == name for each in configurations.values())
    return tuple(range(count)) if needed else folds


def loader_workers(options: RunOptions, device: str) -> int:
    """Processes that make batches: beside a GPU all but one core, on a CPU none, since they would compete."""
    if options.workers is not None:
        return options.workers
    cluster = cluster_options(options.executor)
    return 0 if device == "cpu" else min(12, max(1, (cluster.cores if cluster else available_cores()) - 1))
