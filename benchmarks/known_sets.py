"""The public data sets that the benchmarks know how to run, as their makers or their users lay them out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TestSet:
    """Images that no fold has seen, and their references; both relative to DATA."""

    images: str
    references: str


@dataclass(frozen=True)
class Job:
    title: str
    data: str
    """relative to DATA"""
    time: str
    """the promise"""
    compared_with: str
    goal: float | None = None
    """None: no figure was set for it; the job is there to end well"""
    goal_class: str | None = None
    """the class the goal is about; None: the mean of the foreground classes"""
    options: tuple[str, ...] = ()
    test: TestSet | None = None
    """the goal is about the test set where there is one"""
    references: str | None = None
    """complete labels, relative to DATA, against which the out-of-fold segmentations are evaluated once more"""


GENERATED = "generated"
"""in the place of a folder: the set of `generated_set.py`, made anew"""

JOBS = {
    "task04": Job(
        title="MSD Task04 Hippocampus, 260 cases, 5-fold cross-validation",
        data="Task04_Hippocampus",
        time="60m",
        goal=0.885,
        compared_with="nnU-Net, 1000 epochs on a GPU: 0.890 (arXiv 1809.10486, Table 2; quoted from memory, "
        "not yet checked)",
    ),
    "task04_10m": Job(
        title="The same in 10 minutes",
        data="Task04_Hippocampus",
        time="10m",
        goal=0.868,
        compared_with="the goal for 60 minutes, 0.885",
    ),
    "classes30": Job(
        title="A generated set of 30 classes of very different sizes, fold 0",
        data=GENERATED,
        time="10m",
        goal=0.80,
        compared_with="no class at 0 is asked for as well",
        options=("--folds", "0"),
    ),
    "isbi": Job(
        title="ISBI 2012 membrane, 30 slices, 5-fold cross-validation",
        data="ISBI2012_membrane",
        time="20m",
        goal=0.83,
        goal_class="membrane",
        compared_with="no published Dice on these slices",
        options=("--class", "membrane=0", "--class", "cell=255"),
    ),
    "drive": Job(
        title="DRIVE vessels, trained on 20 images, tested on 20",
        data="DRIVE/training",
        time="30m",
        goal=0.823,
        compared_with="second human observer: 0.788; published U-Nets: 0.787 to 0.825",
        options=("--label", "1st_manual/*"),
        test=TestSet("DRIVE/test/images", "DRIVE/test/1st_manual"),
    ),
    "brats": Job(
        title="BraTS 2015, 4 cases of FLAIR and T1c, overlapping regions",
        data="BraTS2015_sample",
        time="10m",
        compared_with="nothing: four cases",
        options=(
            *("--label", "*/OTMultiClass.nii.gz"),
            *("--channel", "flair=*/Flair_subtrMeanDivStd.nii.gz"),
            *("--channel", "t1c=*/T1c_subtrMeanDivStd.nii.gz"),
            *("--region", "whole=1,2,3,4", "--region", "core=1,3,4", "--region", "enhancing=4"),
        ),
    ),
    "acdc": Job(
        title="ACDC, 200 volumes of 100 patients, 5-fold cross-validation",
        data="Dataset027_ACDC",
        time="60m",
        goal=0.87,
        compared_with="nnU-Net, 1000 epochs on a GPU: 0.915 (nnU-Net Revisited, MICCAI 2024), on "
        "the original intensities and spacing",
        options=("--group", r"(patient\d+)"),
    ),
    "acdc_scribbles": Job(
        title="ACDC learned from its scribbles (value 4: not annotated)",
        data="Dataset027_ACDC",
        time="10m",
        compared_with="ACDC with its complete labels, above",
        options=("--label", "scribblesTr/*", "--ignore", "4", "--group", r"(patient\d+)"),
        references="Dataset027_ACDC/labelsTr",
    ),
    "openkbp": Job(
        title="OpenKBP, 80 CT volumes, 5 organs with one left/right pair, 5-fold cross-validation",
        data="Dataset100_OpenKBP5",
        time="60m",
        goal=0.70,
        compared_with="no published Dice on these volumes",
    ),
}
