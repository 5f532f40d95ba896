"""What is remembered of a case that `predict` has finished."""

from __future__ import annotations

from autounet.schema.record import Part, Record


class PredictedFile(Part):
    name: str
    """relative to the output folder"""
    bytes: int


class PredictedCase(Record):
    """`OUT/.predicted/<case>.json`, written after all files of the case."""

    key: str
    """of the model, the options and the image files, see `running.shared_folder`"""
    run: str
    """of the command that predicted it; several processes of one command share it"""
    files: tuple[PredictedFile, ...] = ()
    problem: str | None = None
    """why it could not be predicted; the processes of the same command leave it, a later command tries again"""
