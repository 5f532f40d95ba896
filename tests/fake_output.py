"""An output folder such as `autounet run` leaves behind, made of small synthetic arrays and records."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from autounet.evaluation import evaluate_case, summarise
from autounet.imageio import write_image, write_labels
from autounet.schema.dataset import Case, Channel, Dataset, Finding, Splits
from autounet.schema.fingerprint import CaseFingerprint, ChannelFingerprint, CheckResult, Fingerprint
from autounet.schema.geometry import Geometry
from autounet.schema.labels import LabelClass, Labels, Region
from autounet.schema.metrics import CaseMetrics, ClassMetrics, Metrics
from autounet.schema.options import DataOptions, PlannerOptions, RunOptions, TrainOptions
from autounet.schema.plan import ChannelNormalisation, Configuration, NetworkSpec, Plan, PreprocessSpec, Reason
from autounet.schema.run import DeviceProfile, EpochLog, RunRecord
from autounet.schema.selection import (
    Candidate,
    PostprocessStep,
    PostprocessTrial,
    ReliabilityBin,
    Selection,
    TemperatureScaling,
)
from autounet.store.run_folder import RunFolder

FOLDS = 5
MIRRORED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
"""RAS: x and y run against LPS"""


def make_output(out: Path, dimension: int = 3, cases: int = 10, seed: int = 0) -> Path:
    """Write data into `out`/../data and everything else into `out`."""
    random = np.random.default_rng(seed)
    data = out.parent / "data"
    names = [f"case_{index:03d}" for index in range(cases)]
    dataset = _dataset(data, names, dimension)
    metrics, fingerprints = [], []
    for index, name in enumerate(names):
        image, truth, prediction, geometry = _case(random, dimension, error=index / cases)
        suffix = dataset.suffix
        write_image(data / f"images/{name}{suffix}", image, geometry)
        write_labels(data / f"labels/{name}{suffix}", truth, geometry)
        write_labels(out / f"crossval/3d_fullres/{name}{suffix}", prediction, geometry)
        scores = evaluate_case(prediction, truth, geometry.spacing, dataset.labels)
        metrics.append(CaseMetrics(case=name, fold=index % FOLDS, per_class=scores))
        fingerprints.append(
            CaseFingerprint(
                identifier=name,
                content_hash=f"{index:016x}",
                shape=truth.shape,
                cropped_shape=truth.shape,
                spacing=geometry.spacing,
                voxels=tuple(int((truth == value).sum()) for value in dataset.labels.values),
            )
        )
    summarise(metrics, dataset.labels).save(out / "metrics.json")
    dataset.save(out / "dataset.json")
    splits = Splits(source="automatic", folds=tuple(tuple(names[fold::FOLDS]) for fold in range(FOLDS)))
    splits.save(out / "splits.json")
    channel = ChannelFingerprint(
        name="T1",
        kind="mri",
        mean=312.4,
        std=80.2,
        median=300,
        minimum=4,
        maximum=900,
        percentile_00_5=101.5,
        percentile_99_5=598.0,
    )
    Fingerprint(
        dimension=dimension, orientation="ras", channels=(channel,) * len(dataset.channels), cases=fingerprints
    ).save(out / "fingerprint.json")
    _write_plan_and_runs(out, dataset, splits, dimension)
    return out


def _dataset(data: Path, names: list[str], dimension: int) -> Dataset:
    suffix = ".nii.gz" if dimension == 3 else ".png"
    channels = (Channel(name="T1", kind="mri"),)
    if dimension == 2:
        channels = tuple(Channel(name=name, kind="photo") for name in ("red", "green", "blue"))
    classes = [LabelClass(name="background", value=0), LabelClass(name="left kidney", value=7)]
    if dimension == 3:
        classes.append(LabelClass(name="tumour <rare>", value=9))
    return Dataset(
        root=str(data),
        name="Synthetic & small",
        layout="pairs",
        channels=channels,
        labels=Labels(classes=tuple(classes)),
        labels_declared=False,
        cases=tuple(
            Case(identifier=name, images=(f"images/{name}{suffix}",), label=f"labels/{name}{suffix}") for name in names
        ),
        image_pattern=f"images/*{suffix}",
        file_kind="nifti" if dimension == 3 else "png",
        suffix=suffix,
    )


def _case(random, dimension: int, error: float):
    """Two balls in noise; the prediction is off by a shift that grows with `error`. Case 0 lacks the second."""
    shape = (20, 48, 44) if dimension == 3 else (1, 72, 96)
    z, y, x = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    centre = [size / 2 for size in shape]
    truth = np.zeros(shape, dtype=np.int32)
    prediction = np.zeros(shape, dtype=np.int32)
    shift = error * 6
    for labels, move in ((truth, 0.0), (prediction, shift)):
        labels[(2 * (z - centre[0])) ** 2 + (y - centre[1] + 4 + move) ** 2 + (x - centre[2]) ** 2 < 100] = 7
        if dimension == 3 and error > 0:
            labels[(2 * (z - centre[0])) ** 2 + (y - centre[1] - 9) ** 2 + (x - centre[2] - 5 - move) ** 2 < 30] = 9
    image = 100 + 40 * (truth == 7) + 80 * (truth == 9) + random.normal(0, 12, shape)
    if dimension == 2:
        image = np.stack([image, image * 0.6, image * 0.4]).clip(0, 255)
        return image.astype(np.uint8), truth, prediction, Geometry(shape=shape, kind="png", dimension=2)
    geometry = Geometry(shape=shape, spacing=(2.0, 1.0, 1.0), direction=MIRRORED)
    return image[None].astype(np.float32), truth, prediction, geometry


def configuration(dims: int, channels: int = 1) -> Configuration:
    """A small plain network's configuration."""
    return Configuration(
        preprocess=PreprocessSpec(
            spacing=(2.0, 1.0, 1.0), normalisation=(ChannelNormalisation(scheme="zscore"),) * channels
        ),
        prepared="canonical_a",
        patch_size=(16, 48, 40)[-dims:],
        batch_size=4,
        network=NetworkSpec(
            dims=dims,
            in_channels=channels,
            out_channels=3,
            features=(32, 64, 128),
            strides=((1,) * dims, (2,) * dims, (2,) * dims),
            kernel_sizes=((3,) * dims,) * 3,
            encoder_blocks=(2, 2, 2),
            decoder_blocks=(2, 2),
        ),
        median_shape=(20, 48, 44),
        predicted_memory_bytes=1_900_000_000,
    )


def _write_plan_and_runs(out: Path, dataset: Dataset, splits: Splits, dimension: int) -> None:
    plan = Plan(
        configurations={"3d_fullres": configuration(dimension, len(dataset.channels))},
        options=PlannerOptions(),
        reasons=(
            Reason(configuration=None, topic="spacing", text="target spacing 2 x 1 x 1 mm: the median of all cases"),
            Reason(configuration="3d_fullres", topic="patch", text="patch <16, 48, 40>: the largest that fits 8 GB"),
        ),
        fingerprint="0123456789abcdef",
    )
    plan.save(out / "plan.json")
    for fold in range(FOLDS):
        curve = tuple(
            EpochLog(
                step=step * 20,
                progress=step / 50,
                seconds=step * 3.0,
                learning_rate=0.01 * (1 - step / 51),
                loss=0.9 * np.exp(-step / 14) - 0.75 + 0.02 * np.sin(step * (fold + 1)),
                validation_dice={"left kidney": 0.93 * (1 - np.exp(-step / 10)) + 0.004 * fold},
                step_seconds=0.151,
                data_wait_seconds=0.002,
            )
            for step in range(1, 51)
        )
        record = RunRecord(
            configuration_name="3d_fullres",
            configuration=plan.configurations["3d_fullres"].key,
            fold=fold,
            options=TrainOptions(),
            train_cases=splits.training(fold),
            validation_cases=splits.validation(fold),
            device="cpu",
            steps=1000,
            seconds=151.0,
            curve=curve,
            parameters=1_400_000,
            peak_memory_bytes=1_750_000_000,
            versions={"autounet": "0.1.0", "torch": "2.13.0"},
            events=("continued after an interruption at step 400",) if fold == 1 else (),
        )
        record.save(out / f"models/3d_fullres/fold_{fold}/record.json")
    Selection(
        chosen=("3d_fullres",),
        compared=(Candidate(configurations=("3d_fullres",), mean_dice=0.81),),
        reason="Only one configuration was trained, so there was nothing to choose from.",
    ).save(out / "selection.json")
    options = RunOptions(data=DataOptions(label="labels/*"), memory_bytes=8 * 1024**3, seconds=1800, folds="all")
    options.save(out / "options.json")
    DeviceProfile(
        device="cpu", name="Test CPU", cores=2, memory_bytes=8 * 1024**3, precision="bf16", channels_last=True
    ).save(out / "device.json")
    finding = Finding(
        case="case_003",
        code="geometry",
        severity="warning",
        message="image and label differ in origin by 2 mm",
        remedy="Check the export of the label",
    )
    CheckResult(
        layout=dataset.layout,
        channels=dataset.channels,
        labels=dataset.labels,
        cases=tuple(case.identifier for case in dataset.cases),
        findings=(finding,),
    ).save(out / "findings.json")


def complete_output(out: Path) -> Path:
    """`make_output` of volumes with all that a report can tell.

    Two configurations and their ensemble, a region, postprocessing, calibration, uncertainty, published results.
    """
    make_output(out, cases=8)
    folder, both = RunFolder(out), ("2d", "3d_fullres")
    dataset, metrics, plan = (
        kind.load(path)
        for kind, path in ((Dataset, folder.dataset), (Metrics, folder.metrics), (Plan, folder.plan))
    )  # fmt: skip
    region = Region(name="kidney with tumour", values=(7, 9))
    labels = dataset.labels.model_copy(update={"regions": (region,)})
    dataset.model_copy(update={"labels": labels, "name": "Synthetic hippocampus"}).save(folder.dataset)
    cases = [
        case.model_copy(
            update={
                "per_class": case.per_class | {region.name: case.per_class["left kidney"]},
                "uncertainty": 0.02 * index,
            }
        )
        for index, case in enumerate(metrics.cases)
    ]
    summarise(cases, labels).save(folder.metrics)
    one = plan.configurations["3d_fullres"]
    plan.model_copy(update={"configurations": dict.fromkeys(both, one)}).save(folder.plan)
    selection = _complete_selection(both)
    for shown in (folder.crossval("2d").path, folder.selected(selection).postprocessed):
        shutil.copytree(folder.crossval("3d_fullres").path, shown)
    for fold in range(FOLDS):
        record = RunRecord.load(out / f"models/3d_fullres/fold_{fold}/record.json")
        record.model_copy(update={"configuration_name": "2d"}).save(out / f"models/2d/fold_{fold}/record.json")
    worse = {name: ClassMetrics(dice=0.1) for name in cases[0].per_class}
    for name in both:
        scored = [cases[1].model_copy(update={"per_class": worse}) if name == "2d" else cases[1]]
        summarise([*scored, *cases[2:]], labels).save(out / f"crossval/{name}/fold_0.json")
        (out / f"crossval/{name}/fold_0.done.json").write_text("{}")
    selection.save(folder.selection)
    return out


def _complete_selection(chosen: tuple[str, ...]) -> Selection:
    step = PostprocessStep(name="foreground", values=(7, 9), keep="minimum", minimum=31.6)
    trials = [
        PostprocessTrial(name=name, step=step if kept else None, gain=0.0123 if kept else None, noise=0.004, kept=kept)
        for name, kept in (("foreground", True), ("kidney with tumour", False))
    ]
    bins = tuple(ReliabilityBin(confidence=at, right=at - 0.05, share=at / 5) for at in (0.4, 0.6, 0.8, 0.95))
    return Selection(
        chosen=chosen,
        compared=tuple(
            Candidate(configurations=each, mean_dice=dice, interval=(0.7, 0.9), behind=0.82 - dice, noise=0.02)
            for each, dice in ((chosen, 0.82), (chosen[:1], 0.8), (chosen[1:], 0.79))
        ),
        reason="The ensemble has the highest mean Dice.",
        rule="Candidates within one standard error count as equal.",
        postprocessing=(step,),
        postprocessing_trials=tuple(trials),
        postprocessing_reason="Components below 31.6 mm³ are removed.",
        calibration=TemperatureScaling(
            temperature=1.7, fitted=1.7, ece_before=0.0611, ece_after=0.0122, cases=8, voxels=4321,
            reliability_before=bins, reliability_after=bins,
        ),
    )  # fmt: skip
