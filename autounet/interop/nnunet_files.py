"""Where a trained nnU-Net v2 model lies: a folder, or the zip that `nnUNetv2_export_model_to_zip` writes.

    <trainer>__<plans>__<configuration>/plans.json
                                        dataset.json
                                        fold_0/checkpoint_final.pth, ..., or fold_all/checkpoint_final.pth

One such folder is one configuration. Those of a data set lie in one folder, where a cascade needs its first stage.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from ..schema.disk import writing
from ..schema.errors import ModelError
from ..schema.quantities import format_size
from .nnunet_plans import PLANS_NAME, TRAINER, read_configuration, read_plans
from .nnunet_records import NnunetCheckpoint, read_checkpoint

PLANS, DATASET, CHECKPOINT = "plans.json", "dataset.json", "checkpoint_final.pth"
ALL_CASES = "fold_all"
"""the fold of a model that was trained on all cases"""
SEPARATOR = "__"
"""between trainer, plans and configuration in the name of a model folder"""
FOLD = re.compile(r"fold_([0-9]{1,4}|all)")
LARGEST_JSON = 64 * 1024**2
"""bytes: a plans.json is some kilobytes long"""


def fold_folder(fold: int | None) -> str:
    return ALL_CASES if fold is None else f"fold_{fold}"


def model_folder_name(configuration: str) -> str:
    """Of a configuration, by nnU-Net's own trainer and plans."""
    return SEPARATOR.join((TRAINER, PLANS_NAME, configuration))


class Source(Protocol):
    """Files by their names with forward slashes, relative to what holds the model folders."""

    label: str
    """what errors call it"""
    names: list[str]
    given: str | None
    """the model folder that was named itself; None: what holds them was"""

    def text(self, name: str) -> str: ...

    def file(self, name: str) -> Any:
        """A context manager that gives the path of a file that stays until it is left."""
        ...


@dataclass(frozen=True)
class ModelFolder:
    """One configuration of a trained model."""

    path: str
    """relative to the source"""
    checkpoints: dict[int | None, str]
    """fold -> file; None is the model trained on all cases"""
    unfinished: tuple[str, ...]
    """folds without a final checkpoint"""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def configuration(self) -> str | None:
        """By the folder's name; None for a folder that was renamed."""
        parts = self.name.split(SEPARATOR)
        return parts[2] if len(parts) == 3 else None

    def sibling(self, configuration: str) -> str:
        """Path of the folder of another configuration by the same trainer and plans."""
        trainer_and_plans = self.name.rsplit(SEPARATOR, 1)[0]
        return str(PurePosixPath(self.path).with_name(f"{trainer_and_plans}{SEPARATOR}{configuration}"))


@contextmanager
def open_source(source: Path) -> Iterator[Source]:
    """A folder or a zip to read from. Raises ModelError when it is neither, or a damaged zip."""
    source = Path(source)
    if source.is_dir():
        yield FolderSource(source)
        return
    if not source.exists():
        raise ModelError(f"{source} does not exist", "Give the folder of a trained nnU-Net model, or its exported zip")
    try:
        with zipfile.ZipFile(source) as archive:
            yield ZipSource(source, archive)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{source} is no whole zip file ({error})", "Export or copy the model again") from None


def model_folders(source: Source) -> dict[str, ModelFolder]:
    """By path, all folders with a plans.json and a fold. Raises ModelError when there is none."""
    found: dict[str, ModelFolder] = {}
    names = frozenset(source.names)
    for name in sorted(names):
        if PurePosixPath(name).name != PLANS:
            continue
        path = PurePosixPath(name).parent
        folds = {part for each in names if (part := _fold_of(path, each)) is not None}
        whole = {fold: f"{path / fold / CHECKPOINT}" for fold in folds if f"{path / fold / CHECKPOINT}" in names}
        numbered = {int(fold[5:]): file for fold, file in whole.items() if fold != ALL_CASES}
        checkpoints: dict[int | None, str] = dict(sorted(numbered.items())) or dict.fromkeys(
            [None] if whole else [], whole.get(ALL_CASES, "")
        )
        unfinished = tuple(sorted(folds - set(whole) - {ALL_CASES}))
        found[str(path)] = ModelFolder(str(path), checkpoints, unfinished)
    if not found:
        raise ModelError(
            f"{source.label} holds no {PLANS}",
            "Give the folder <trainer>__<plans>__<configuration> that nnU-Net wrote, the folder above it, or the zip "
            "that nnUNetv2_export_model_to_zip writes",
        )
    return found


def read_json(source: Source, name: str) -> dict[str, Any]:
    """Raises ModelError naming the file when it is missing or no JSON object."""
    if name not in source.names:
        raise ModelError(f"{source.label}: {name} is missing", "Copy or export the whole model again")
    try:
        content = json.loads(source.text(name))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{source.label}: {name} is not readable JSON ({error})", "Copy the model again") from None
    if not isinstance(content, dict):
        raise ModelError(
            f"{source.label}: {name} holds {type(content).__name__}, not an object", "Copy the model again"
        )
    return content


def _fold_of(path: PurePosixPath, name: str) -> str | None:
    """`fold_3` when the file lies in that folder of the model at `path`."""
    parts = PurePosixPath(name).parts
    depth = len(path.parts)
    inside = parts[:depth] == path.parts and len(parts) > depth + 1
    return parts[depth] if inside and FOLD.fullmatch(parts[depth]) else None


class FolderSource:
    """A model folder itself is seen from the folder above, where the other stages of a cascade lie."""

    def __init__(self, root: Path) -> None:
        root = root.resolve()
        self.label = str(root)
        self.given = root.name if (root / PLANS).is_file() else None
        self._base = root.parent if self.given else root
        plans = self._base.glob(f"*/{PLANS}") if self.given else root.rglob(PLANS)
        self.names = [
            file.relative_to(self._base).as_posix()
            for found in plans
            for pattern in ("*.json", "fold_*/*")
            for file in found.parent.glob(pattern)
        ]

    def text(self, name: str) -> str:
        return (self._base / name).read_text(encoding="utf-8-sig")

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        yield self._base / name


class ZipSource:
    """Nothing is unpacked but one checkpoint at a time, under a name of our own."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.label, self._archive = str(path), archive
        self.given: str | None = None
        self.names = [name for name in archive.namelist() if not name.endswith("/")]

    def text(self, name: str) -> str:
        if self._archive.getinfo(name).file_size > LARGEST_JSON:
            raise ModelError(f"{self.label}: {name} is larger than any of nnU-Net's", "Export the model again")
        with self._reading(name) as packed:
            return packed.read().decode("utf-8-sig")

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            size, free = self._archive.getinfo(name).file_size, shutil.disk_usage(folder).free
            if size > free:
                what = (
                    f"{name} would take {format_size(size)} on the disk of {folder}, and {format_size(free)} are free"
                )
                raise ModelError(
                    f"{self.label}: {what}", "Set TMPDIR to a folder with more space, or get the model again"
                )
            target = Path(folder) / CHECKPOINT
            with self._reading(name) as packed, target.open("wb") as copy, writing(target):
                shutil.copyfileobj(packed, copy, 1 << 20)
            yield target

    @contextmanager
    def _reading(self, name: str) -> Iterator[IO[bytes]]:
        """Raises ModelError where a member is damaged, or packed in a way that cannot be read."""
        try:
            with self._archive.open(name) as packed:
                yield packed
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OverflowError) as error:
            raise self._damaged(name, error) from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # of what is written with it
                raise
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: Exception) -> ModelError:
        return ModelError(f"{self.label}: {name} cannot be unpacked ({error})", "Export the model again")


def choose_folders(source: Source, names: Sequence[str] | None) -> dict[str, ModelFolder]:
    """By configuration the folders to predict with. Raises ModelError when the names do not decide it."""
    found = model_folders(source)
    if source.given and names is None:
        return {_configuration_of(source, found[source.given]): found[source.given]}
    by_name: dict[str, list[ModelFolder]] = {}
    for folder in found.values():
        by_name.setdefault(_configuration_of(source, folder), []).append(folder)
    if names is None and len(by_name) > 1:
        known = ", ".join(sorted(by_name))
        raise ModelError(f"{source.label} holds several configurations: {known}", "Choose with --configuration")
    chosen: dict[str, ModelFolder] = {}
    for name in names or by_name:
        candidates = by_name.get(name, [])
        if len(candidates) != 1:
            held = ", ".join(sorted(folder.path for folder in candidates or found.values()))
            problem = "several models" if candidates else "no model"
            raise ModelError(f"{source.label} holds {problem} of {name}; there are {held}", "Give the folder of one")
        chosen[name] = candidates[0]
    return chosen


def _configuration_of(source: Source, folder: ModelFolder) -> str:
    """By the folder's name; where that was changed, by its first checkpoint."""
    if folder.configuration is not None:
        return folder.configuration
    with open_checkpoint(source, folder, next(iter(finished_folds(source, folder)))) as checkpoint:
        return checkpoint.configuration


def finished_folds(source: Source, folder: ModelFolder) -> dict[int | None, str]:
    """The checkpoints by fold. Raises ModelError when there is none."""
    if not folder.checkpoints:
        raise ModelError(
            f"{source.label}: {folder.path} has no fold with a {CHECKPOINT}", "Finish its training, or export it again"
        )
    return folder.checkpoints


def add_first_stages(source: Source, folders: dict[str, ModelFolder]) -> dict[str, ModelFolder]:
    """With the folder of each previous stage, of the same trainer and plans. Raises ModelError where it is missing."""
    found = model_folders(source)
    complete = dict(folders)
    for name, folder in folders.items():
        plans = f"{folder.path}/{PLANS}"
        label = f"{source.label}: {plans}"
        previous = read_configuration(read_plans(read_json(source, plans), label), name, label).previous_stage
        if previous is None or previous in complete:
            continue
        if (place := folder.sibling(previous)) not in found:
            raise ModelError(
                f"{source.label}: {name} is the second stage of a cascade, and {place}, its first, is missing",
                "Put it into the same folder, or export both",
            )
        complete[previous] = found[place]
    return complete


@contextmanager
def open_checkpoint(source: Source, folder: ModelFolder, fold: int | None) -> Iterator[NnunetCheckpoint]:
    name = folder.checkpoints[fold]
    with source.file(name) as path:
        yield read_checkpoint(path, f"{source.label}: {name}")
