"""From a folder of test images to a zip that a challenge takes: predicted, checked file by file, hashed."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from autounet import __version__
from autounet.atomic import replacing
from autounet.datasets import InputCase, find_inputs
from autounet.images import output_suffix, read_geometry, read_labels, stored_type, suffix, write_labels
from autounet.running.predicting.submission_names import submitted_names, template_for
from autounet.schema.bundle import ModelBundle
from autounet.schema.errors import DataError, OptionError
from autounet.schema.geometry import Geometry
from autounet.schema.labels import Labels
from autounet.schema.submission import Submission, SubmittedFile

if TYPE_CHECKING:
    from autounet.running.predicting.predictor import Predictor

log = logging.getLogger(__name__)

SAME_PLACE = 1e-3
"""mm: formats round what they store, NIfTI to float32"""
SAME_DIRECTION = 1e-4
EPOCH = (1980, 1, 1, 0, 0, 0)
"""time of every file in a zip: equal segmentations make an equal zip"""


def submit(predictor: Predictor, source: Path, out: Path, template: str = "files") -> Submission:
    """Predict `source` and write the zip `out`, and beside it its manifest.

    Each file is read again as it will be submitted: it has the geometry of its image, an integer type and declared
    label values alone. Raises OptionError for a template or a name that cannot be, DataError that names every case that
    could not be predicted or fails a check; then nothing is written.
    """
    out = Path(out)
    if out.suffix.lower() != ".zip":
        raise OptionError(f"--out {out}: a submission is a zip. Give a name that ends in .zip")
    cases = find_inputs(source, predictor.bundle)
    chosen = template_for(template, source, predictor.bundle.name)
    names = submitted_names(chosen, cases)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as work:
        predicted, named = Path(work, "predicted"), Path(work, "named")
        problems = list(predictor.predict_files(source, predicted))
        files = []
        for case in cases:
            try:
                path = _named(case, predicted, named / names[case.identifier])
                files.append(_checked(case, path, names[case.identifier], predictor.bundle.labels))
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError(f"nothing was written, since {len(problems)} checks failed:\n" + "\n".join(problems))
        _write_zip(out, named, names)
    submission = _manifest(out, template, predictor.bundle, predictor.names, files)
    submission.save(out.with_suffix(".manifest.json"))
    log.info("%d cases in %s", len(files), out)
    return submission


def _named(case: InputCase, predicted: Path, path: Path) -> Path:
    """The segmentation under its name in the zip; written again where that is another format."""
    own = predicted / f"{case.identifier}{output_suffix(suffix(case.images[0]))}"
    if not own.is_file():
        raise DataError(f"case {case.identifier}: there is no segmentation. Look at the messages above")
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix(own) == suffix(path):
        own.replace(path)
    else:
        values, geometry = read_labels(own)
        write_labels(path, values, geometry)
    return path


def _checked(case: InputCase, path: Path, name: str, labels: Labels) -> SubmittedFile:
    """Raises DataError that names the case, what is wrong and what to do."""
    values, geometry = read_labels(path)
    expected, kind = read_geometry(case.images[0]), stored_type(path)
    if difference := geometry_difference(geometry, expected):
        raise DataError(
            f"case {case.identifier}: {name} differs from its image in {difference}. "
            "Give a template whose format keeps it"
        )
    if not np.issubdtype(kind, np.integer):
        raise DataError(f"case {case.identifier}: {name} holds {kind}, not integers. Give another format")
    found = tuple(int(value) for value in np.unique(values))
    if unknown := sorted(set(found) - set(labels.values)):
        raise DataError(
            f"case {case.identifier}: {name} holds the value {unknown[0]}, which the model does not declare. "
            "Pack the model again"
        )
    content = path.read_bytes()
    return SubmittedFile(
        case=case.identifier,
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        type=str(kind),
        values=found,
    )


def geometry_difference(found: Geometry, expected: Geometry) -> str:
    """What differs, with both values; empty where nothing does. The kind of file may differ."""
    if found.shape != expected.shape:
        return f"shape: {found.shape}, not {expected.shape}"
    for name, tolerance in (("spacing", SAME_PLACE), ("origin", SAME_PLACE), ("direction", SAME_DIRECTION)):
        own, wanted = getattr(found, name), getattr(expected, name)
        if not np.allclose(own, wanted, rtol=0, atol=tolerance):
            return f"{name}: {own}, not {wanted}"
    return ""


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
