"""From a folder of test images to the zip that a challenge asks for: predicted, checked file by file, hashed."""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from .. import __version__
from ..datasets import InputCase, find_inputs
from ..datasets.checks.case_checks import HEADER_TOLERANCE
from ..imageio import (
    output_suffix,
    read_geometry,
    read_labels,
    segmentation_suffix,
    stored_type,
    suffix,
    write_labels,
)
from ..inference.archive import EPOCH
from ..schema.bundle import ModelBundle
from ..schema.errors import DataError, OptionError, UsageError, unknown_name
from ..schema.geometry import geometry_differences
from ..schema.labels import Labels
from ..schema.names import RENAME, is_plain_path
from ..schema.record import CaseName, ConfigurationName, Part, PlainPath, Record, is_text, replacing
from .folder import OutputOptions, predict_folder
from .predictor import Predictor

TASKS = (
    "Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus", "Task05_Prostate", "Task06_Lung",
    "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon",
)  # fmt: skip
"""of the Medical Segmentation Decathlon; its evaluation reads `<task>/<case>.nii.gz` of all ten from one zip"""
FORMS = ("files", "decathlon", "grand-challenge")
FIELDS = frozenset({"case", "ext"})


PATTERN_HELP = "A pattern is a path inside the zip with {case} and perhaps {ext}, the ending of the image's format"


class Template(NamedTuple):
    """Names of the files in the zip."""

    pattern: str
    """with {case} and, for the ending of the image's own format, {ext}"""
    text: str
    """as it was given"""


def template_for(text: str, source: Path, trained_on: str) -> Template:
    """`files`, `decathlon[:TASK]`, `grand-challenge[:SLUG]`, or a pattern with {case}.

    files: `<case>.<ext>` as `predict` names them. decathlon: `<task>/<case>.nii.gz`; the task is looked for in the path
    of the images and in `trained_on`, the name of the model's data set. grand-challenge: `.mha`, one of the two formats
    that grand-challenge.org keeps images in, in `images/<slug>/` where the slug of the output's interface is given, as
    the containers of its algorithms have it. Raises OptionError.
    """
    require_template(text)
    name, _, argument = text.partition(":")
    if "{" in text:
        return Template(text, text)
    if name == "files":
        return Template("{case}{ext}", text)
    if name == "decathlon":
        return Template(f"{argument or _task(source, trained_on)}/{{case}}.nii.gz", text)
    return Template(f"images/{argument}/{{case}}.mha" if argument else "{case}.mha", text)


def require_template(text: str) -> None:
    """Raises UsageError for what is a template of no model and no images."""
    name, _, argument = text.partition(":")
    if "{" in text:
        _require_pattern(text)
    elif name not in FORMS or (name == "files" and argument):
        raise unknown_name("--template", text, FORMS, ", or give a pattern such as '{case}_segmentation.nii.gz'")
    elif name == "decathlon" and argument and argument not in TASKS:
        raise unknown_name("--template decathlon:", argument, TASKS)
    elif name == "grand-challenge" and argument and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", argument):
        raise UsageError(
            f"--template {text} has no valid slug: a slug is lower case words joined by '-'",
            "Copy the slug from the interface",
        )


def require_zip(out: Path) -> None:
    """Raises UsageError for another ending."""
    if out.suffix.lower() != ".zip":
        raise UsageError(f"--out {out} is no zip, and a submission is one", "Give a name that ends in .zip")


def _task(source: Path, trained_on: str) -> str:
    named = [part for part in (*reversed(Path(source).resolve().parts), trained_on) if part in TASKS]
    if not named:
        raise OptionError(
            f"--template decathlon needs a task, and neither the path {source} nor the model names one",
            f"Give --template decathlon:TASK, with one of {', '.join(TASKS)}",
        )
    return named[0]


def _require_pattern(pattern: str) -> None:
    try:
        fields = {field for _, field, form, _ in Formatter().parse(pattern) if field is not None or form}
    except ValueError as error:
        raise UsageError(f"--template {pattern} is no pattern ({error})", PATTERN_HELP) from None
    path = Path(pattern)
    if "case" not in fields or fields - FIELDS or path.is_absolute() or ".." in path.parts:
        raise UsageError(f"--template {pattern} is no pattern", PATTERN_HELP)


def submitted_names(template: Template, cases: Sequence[InputCase]) -> dict[str, str]:
    """The name in the zip of each case. Raises OptionError where two are the same, or no image format."""
    names = {case.identifier: template.pattern.format(case=case.identifier, ext=_ending(case)) for case in cases}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise OptionError(f"--template {template.text} gives {twice[0]} to more than one case", "Use {case}")
    if odd := [name for name in names.values() if not is_text(name)]:
        raise OptionError(f"the name {odd[0]} is no text in UTF-8, which a zip file needs", "Rename the image")
    if unsafe := [name for name in names.values() if not is_plain_path(name)]:
        raise OptionError(f"--template {template.text} gives the name {unsafe[0]!r}, which no zip should hold", RENAME)
    unknown = [name for name in names.values() if not suffix(name) or output_suffix(suffix(name)) != suffix(name)]
    if unknown:
        raise OptionError(
            f"--template {template.text} gives {unknown[0]}, which is no format that segmentations are written in",
            "End it with {ext}, .nii.gz, .mha, .nrrd, .tif or .png",
        )
    return names


class SubmittedFile(Part):
    case: CaseName
    name: PlainPath
    """in the zip"""
    sha256: str
    bytes: int
    type: str
    """number type of the voxels as stored"""
    values: tuple[int, ...]
    """label values that occur"""


class Submission(Record):
    """`<zip without its ending>.manifest.json`."""

    archive: str
    sha256: str
    """of the zip"""
    template: str
    model: str
    """name of the data set that the model was trained on"""
    model_checksum: str | None
    """of its `bundle.json`"""
    configurations: tuple[ConfigurationName, ...]
    files: tuple[SubmittedFile, ...]
    versions: dict[str, str]
    """that predicted"""


log = logging.getLogger(__name__)


def submit(predictor: Predictor, source: Path, out: Path, template: str = "files", force: bool = False) -> Submission:
    """Predict `source` and write the zip `out` and its manifest.

    Each file is read again as it will be submitted: it has the geometry of its image, an integer type and declared
    label values alone. Raises OptionError for a template or a name that cannot be, DataError that names every case that
    could not be predicted or fails a check; then nothing is written. `force` as in `predict_folder`.
    """
    out = Path(out)
    require_zip(out)
    cases = find_inputs(source, predictor.bundle)
    chosen = template_for(template, source, predictor.bundle.name)
    names = submitted_names(chosen, [case for case in cases if case.error is None])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as work:
        predicted, named = Path(work, "predicted"), Path(work, "named")
        problems = list(predict_folder(predictor, source, predicted, OutputOptions(), force=force).failures)
        files = []
        for case in cases:
            if not _segmentation(case, predicted).is_file():  # which one of the problems says
                continue
            try:
                path = _rename(case, predicted, named / names[case.identifier])
                files.append(_inspect(case, path, names[case.identifier], predictor.bundle.labels))
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError(f"nothing was written, since {len(problems)} checks failed:\n" + "\n".join(problems))
        _write_zip(out, named, names)
    submission = _manifest(out, template, predictor.bundle, predictor.names, files)
    submission.save(out.with_suffix(".manifest.json"))
    log.info("%d cases in %s", len(files), out)
    return submission


def _segmentation(case: InputCase, folder: Path) -> Path:
    return folder / f"{case.identifier}{_ending(case)}"


def _ending(case: InputCase) -> str:
    """Of a case's segmentation; of one without any image, none."""
    return segmentation_suffix(case.images[0]) if case.images else ""


def _rename(case: InputCase, predicted: Path, path: Path) -> Path:
    """The segmentation under its name in the zip; written again where that is another format."""
    own = _segmentation(case, predicted)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix(own) == suffix(path):
        own.replace(path)
    else:
        values, geometry = read_labels(own)
        write_labels(path, values, geometry)
    return path


def _inspect(case: InputCase, path: Path, name: str, labels: Labels) -> SubmittedFile:
    """Read the file as it will be submitted, and describe it. Raises DataError for what a challenge would refuse."""
    values, geometry = read_labels(path)
    expected, kind = read_geometry(case.images[0]), stored_type(path)
    if differences := geometry_differences(geometry, expected, HEADER_TOLERANCE):
        raise DataError(
            f"{name} differs from its image in {differences[0]}",
            "Give a template whose format keeps it",
            case.identifier,
        )
    if not np.issubdtype(kind, np.integer):
        raise DataError(f"{name} holds {kind}, not integers", "Give another format", case.identifier)
    present = tuple(int(value) for value in np.unique(values))
    if unknown := sorted(set(present) - set(labels.values)) if labels.objects is None else []:
        raise DataError(
            f"{name} holds the value {unknown[0]}, which the model does not declare",
            "Pack the model again",
            case.identifier,
        )
    content = path.read_bytes()
    return SubmittedFile(
        case=case.identifier,
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        type=str(kind),
        values=present,
    )


def _write_zip(out: Path, folder: Path, names: Mapping[str, str]) -> None:
    """Sorted by name; what is compressed already is stored."""
    with replacing(out, ".zip") as temporary, ZipFile(temporary, "w") as archive:
        for name in sorted(names.values()):
            entry = ZipInfo(name, EPOCH)
            entry.compress_type = ZIP_STORED if name.lower().endswith((".gz", ".png")) else ZIP_DEFLATED
            archive.writestr(entry, (folder / name).read_bytes())


def _manifest(
    out: Path, template: str, bundle: ModelBundle, configurations: Sequence[str], files: Sequence[SubmittedFile]
) -> Submission:
    with open(out, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return Submission(
        archive=out.name,
        sha256=checksum,
        template=template,
        model=bundle.name,
        model_checksum=bundle.checksum,
        configurations=tuple(configurations),
        files=tuple(files),
        versions={"autounet": __version__},
    )
