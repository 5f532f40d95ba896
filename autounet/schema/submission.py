"""What was submitted to a challenge: the manifest beside the zip."""

from __future__ import annotations

from autounet.schema.record import Part, Record


class SubmittedFile(Part):
    case: str
    name: str
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
    configurations: tuple[str, ...]
    files: tuple[SubmittedFile, ...]
    versions: dict[str, str]
    """that predicted"""
