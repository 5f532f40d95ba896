"""A gallery of broken data sets, one defect each, and what the check must find in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import broken_contents as contents
import broken_sets as sets
from broken_sets import SPOILT

from autounet.schema.options import DataOptions

AGAIN = "Copy or export the file again"
FIX = "autounet check DATA --fix --out NEW"
IMAGE, LABEL = "imagesTr/c2_0000.nii.gz", "labelsTr/c2.nii.gz"
SECOND = "imagesTr/c2_0001.nii.gz"
ELSEWHERE = f"{LABEL} is not aligned with {IMAGE}: "
LEFT_OUT = "left out: "
RESAMPLED = f"{LABEL} was resampled onto its image"


@dataclass(frozen=True)
class Broken:
    """One data set and the finding that the check must give."""

    make: Callable[[Path], DataOptions | None]
    code: str
    message: str
    """part of it"""
    remedy: str
    """part of it"""
    case: str | None = SPOILT
    severity: str = "fatal"
    alone: bool = True
    """whether this is all that is found"""
    fixed: str | None = None
    """part of what `--fix` says it did with the case; None: it is left as it is, or nothing can be done"""

    @property
    def name(self) -> str:
        return self.make.__name__


GALLERY = (
    Broken(sets.truncated_image, "unreadable-file", "truncated", AGAIN, fixed=LEFT_OUT),
    Broken(sets.truncated_label, "unreadable-file", "truncated", AGAIN, fixed=LEFT_OUT),
    Broken(sets.truncated_plain_nifti, "unreadable-file", "truncated", AGAIN, fixed=LEFT_OUT),
    Broken(sets.truncated_mha, "unreadable-file", "imagesTr/c2_0000.mha", "again", fixed=LEFT_OUT),
    Broken(sets.truncated_nrrd, "unreadable-file", "imagesTr/c2_0000.nrrd", "again", fixed=LEFT_OUT),
    Broken(sets.truncated_png, "unreadable-file", "images/c2.png", "again", fixed=LEFT_OUT),
    Broken(sets.truncated_tiff, "unreadable-file", "images/c2.tif", "again", fixed=LEFT_OUT),
    Broken(sets.truncated_jpeg, "unreadable-file", "images/c2.jpg", "again", fixed=LEFT_OUT),
    Broken(sets.truncated_bmp, "unreadable-file", "images/c2.bmp", "again", fixed=LEFT_OUT),
    Broken(sets.empty_image_file, "unreadable-file", "is empty (0 bytes)", AGAIN, fixed=LEFT_OUT),
    Broken(sets.empty_label_file, "unreadable-file", "is empty (0 bytes)", AGAIN, fixed=LEFT_OUT),
    Broken(sets.text_for_an_image, "unreadable-file", "is not a NIfTI file", AGAIN, fixed=LEFT_OUT),
    Broken(sets.flipped_byte, "unreadable-file", "is damaged", AGAIN, fixed=LEFT_OUT),
    Broken(sets.missing_label, "missing-label", "has no label file in labelsTr/", "Add its label", fixed=LEFT_OUT),
    Broken(sets.missing_image, "missing-image", "labelsTr/c2.nii.gz has no image", "Add its image", fixed=LEFT_OUT),
    Broken(
        sets.missing_channel, "missing-channel", "no file for channel 0001 (T2)", "--missing-channels", fixed=LEFT_OUT
    ),
    Broken(
        sets.misnumbered_channel,
        "missing-image",
        "no file for channel 0001 (T2); c2_0007.nii.gz ends in the number of no channel",
        "Correct the numbers",
        fixed=LEFT_OUT,
    ),
    Broken(
        sets.label_of_another_shape, "shape-mismatch", "its label labelsTr/c2.nii.gz (7, 10, 8)", FIX, fixed=RESAMPLED
    ),
    Broken(
        sets.channel_of_another_shape,
        "shape-mismatch",
        "imagesTr/c2_0001.nii.gz has shape (3, 10, 8)",
        "to one grid",
        fixed="was resampled onto the case's first channel",
    ),
    Broken(
        sets.mask_of_another_size, "shape-mismatch", "its label masks/c2.png (1, 48, 40)", FIX, fixed="was scaled from"
    ),
    Broken(
        sets.mask_of_other_proportions,
        "shape-mismatch",
        "(1, 24, 33)",
        "Give the label",
        fixed="left out: masks/c2.png has",
    ),
    Broken(
        sets.label_of_another_spacing, "geometry-mismatch", f"{ELSEWHERE}spacing (2.0, 1.0, 1.4)", FIX, fixed=RESAMPLED
    ),
    Broken(
        sets.label_of_another_origin, "geometry-mismatch", f"{ELSEWHERE}origin (-10.0, 21.0, 5.0)", FIX, fixed=RESAMPLED
    ),
    Broken(
        sets.label_of_another_direction,
        "geometry-mismatch",
        "direction (1.0, 0.0, 0.0, 0.0, -1.0",
        FIX,
        fixed=RESAMPLED,
    ),
    Broken(
        sets.label_far_away, "geometry-mismatch", "origin (500.0, 20.0, 5.0)", FIX, fixed="its header puts it outside"
    ),
    Broken(sets.label_without_header, "geometry-mismatch", "spacing (1.0, 1.0, 1.0)", FIX, fixed="had no geometry"),
    Broken(
        sets.image_without_header,
        "geometry-mismatch",
        "instead of (1.0, 1.0, 1.0)",
        FIX,
        alone=False,
        fixed="had no geometry",
    ),
    Broken(
        sets.channel_of_another_origin,
        "geometry-mismatch",
        "imagesTr/c2_0001.nii.gz is not aligned",
        FIX,
        fixed="was resampled onto the case's first channel",
    ),
    Broken(
        sets.channel_without_header,
        "geometry-mismatch",
        "imagesTr/c2_0001.nii.gz is not aligned",
        FIX,
        fixed="had no geometry",
    ),
    Broken(sets.flat_and_deep, "mixed-dimensions", "is a 2-D image and c2 a volume", "separate data sets", case=None),
    Broken(
        sets.one_case_in_micrometres,
        "implausible-spacing",
        "it has voxels of 2000 x 1000 x 1500 mm (z, y, x), which no CT or MRI has",
        "its numbers are probably micrometres, not mm",
        severity="warning",
        alone=False,
    ),
    Broken(
        sets.all_cases_in_metres,
        "implausible-spacing",
        "6 of 6 cases have voxels of 0.002 x 0.001 x 0.0015 mm (z, y, x), which no CT or MRI has",
        "its numbers are probably metres, not mm",
        case=None,
        severity="warning",
        alone=False,
    ),
    Broken(
        sets.odd_spacing,
        "spacing-outlier",
        "20 x 1 x 1.5 mm (z, y, x) differs",
        "Check the header",
        severity="warning",
    ),
    Broken(
        contents.constant_image,
        "constant-image",
        "the image has the value 7 in every voxel",
        "remove the case",
        fixed=LEFT_OUT,
    ),
    Broken(contents.constant_channel, "constant-image", "channel 1 has the value 7", "Export", severity="warning"),
    Broken(
        contents.one_enormous_voxel,
        "implausible-intensity",
        "the image has 1 voxel up to 1e+20, while most intensities are",
        "export it again",
        severity="warning",
    ),
    Broken(
        contents.swapped_bytes,
        "implausible-intensity",
        "3 voxels up to -3",
        "replace them",
        severity="warning",
        alone=False,
    ),
    Broken(
        contents.nan_voxels, "nan-voxels", "holds 3 NaN voxels of 480", FIX, fixed="3 voxels of imagesTr/c2_0000.nii.gz"
    ),
    Broken(
        contents.infinite_voxels,
        "infinite-voxels",
        "2 infinite voxels",
        FIX,
        fixed="2 voxels of imagesTr/c2_0000.nii.gz",
    ),
    Broken(
        contents.nothing_but_nan,
        "nan-voxels",
        "480 NaN voxels of 480",
        "Replace",
        fixed="left out: imagesTr/c2_0000.nii.gz",
    ),
    Broken(
        contents.another_scale, "intensity-outlier", "MRI differ from the other", "exported like", severity="warning"
    ),
    Broken(
        contents.no_ct_anywhere,
        "no-ct-values",
        "CT counts as CT, but",
        "--kind 'CT=other'",
        case=None,
        severity="warning",
    ),
    Broken(
        contents.one_windowed_ct,
        "no-ct-values",
        "its CT values, 0 to 255",
        "windowing",
        severity="warning",
        alone=False,
    ),
    Broken(
        contents.one_ct_with_offset,
        "intensity-outlier",
        "CT differ from the other",
        "exported like",
        severity="warning",
    ),
    Broken(
        contents.one_dark_photograph,
        "intensity-outlier",
        "red differ from",
        "exported",
        severity="warning",
        alone=False,
    ),
    Broken(
        contents.grey_among_colours,
        "grey-and-coloured",
        "1 of 6 pictures are grey and the others coloured. Grey ones are read with equal red, green and blue",
        "check --fix --out NEW stores all in colours",
        None,
        "warning",
    ),
    Broken(
        contents.same_image_twice,
        "duplicate-image",
        "identical to that of c1",
        "one fold",
        severity="warning",
        fixed=LEFT_OUT,
    ),
    Broken(
        contents.same_image_stored_otherwise,
        "duplicate-image",
        "identical to that of c1, but its label differs",
        "one fold",
        severity="warning",
        fixed=LEFT_OUT,
    ),
    Broken(contents.undeclared_value, "undeclared-label", "value 9 is not declared", "--class NAME=9", fixed=LEFT_OUT),
    Broken(
        contents.absent_class,
        "absent-class",
        "spleen (value 2) occurs in no case",
        "check",
        case=None,
        severity="warning",
    ),
    Broken(
        contents.no_foreground, "no-foreground", "no label file holds any value besides 0", "--label PATTERN", case=None
    ),
    Broken(contents.one_empty_label, "empty-label", "its label is empty", "was saved", severity="warning"),
    Broken(
        contents.label_beyond_the_image,
        "label-outside-image",
        "lie outside the imaged region",
        "shifted",
        severity="warning",
    ),
    Broken(
        contents.label_on_nothing,
        "label-outside-image",
        "120 of 120 labelled voxels lie where",
        "drawn on",
        severity="warning",
    ),
    Broken(contents.stray_voxel, "tiny-component", "organ has an isolated component of", "erase", severity="warning"),
    Broken(
        contents.smoothed_mask,
        "grey-label",
        "7 of its voxels hold 7 values in between (30 to 220)",
        FIX,
        fixed="7 values",
    ),
    Broken(
        contents.jpeg_mask,
        "lossy-label",
        "masks/c2.jpg is a JPEG file and holds",
        "PNG",
        fixed="were rounded to the nearer",
    ),
    Broken(
        contents.fractional_label,
        "grey-label",
        "label values that are not integers",
        FIX,
        fixed="24 voxels with values",
    ),
    Broken(
        contents.photographs_for_labels, "too-many-values", "different values, from 3", "--label PATTERN", case=None
    ),
    Broken(
        contents.value_that_pictures_cannot_hold,
        "unwritable-label",
        "70000 does not fit into .png",
        "Renumber",
        case=None,
    ),
    Broken(contents.wrong_number_of_names, "layout", "has 1 channel, but 2 are named", "dataset.json", case=None),
    Broken(contents.broken_description, "layout", "is not readable JSON", "Correct", case=None),
    Broken(contents.wrong_ending, "layout", "no images that end in .nrrd; it has .nii.gz", "file_ending", case=None),
    Broken(
        contents.ambiguous_labels,
        "layout",
        "candidates: mask2, masks",
        "--label 'mask2/*' or --label 'masks/*'",
        case=None,
    ),
    Broken(contents.no_labels_at_all, "layout", "can hold the labels", "--label", case=None),
    Broken(contents.nothing_there, "layout", "is empty", "images and labels", case=None),
    Broken(
        contents.one_case, "too-few-cases", "there is 1 case", "without any validation", case=None, severity="warning"
    ),
    Broken(
        contents.three_cases, "too-few-cases", "3 cases are too few for 5", "3 folds", case=None, severity="warning"
    ),
    Broken(contents.folds_that_lack_a_case, "splits", "c2 are in no fold", "exactly one fold", case=None),
    Broken(
        contents.folds_that_split_a_group,
        "splits",
        "splits groups: c (c0, c1, c2 in fold 0",
        "--group",
        case=None,
        alone=False,
    ),
    Broken(
        contents.data_one_folder_deeper,
        "layout",
        "its folders do: test, training",
        "/data/training --label 'mask2/*' or --label 'masks/*' (and test later to autounet predict)",
        case=None,
    ),
    Broken(contents.annotated_for_no_class, "unknown-annotation", "lists 'bone' among", "--class NAME=VALUE"),
    Broken(contents.annotated_for_no_value, "unknown-annotation", "the value 3, which no class", "--class NAME=VALUE"),
    Broken(
        contents.annotated_case_that_is_not_there,
        "unknown-annotation",
        "there is no such case (cases: c0, c1, c2, ...)",
        "Correct the name",
        case="c02",
    ),
    Broken(contents.row_of_no_case, "unknown-case", "cases.csv lists it", "Correct the name", case="c02"),
)
