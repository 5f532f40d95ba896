"""What was run: the device, a training with its log, and what `predict` and `ensemble` have written into a folder.

Files that these wrote may be replaced, and are no images to predict:

OUT/.predicted/<case>.json   what was written for the case, by which model and options, from which files
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from .errors import OptionError, RecordError
from .options import TrainOptions
from .plugins import PluginUse
from .record import CaseName, ConfigurationName, Part, Record

AugmentedBy = Literal["batchgeneratorsv2", "torch"]
FIXED_AUGMENTED_BY: AugmentedBy = "torch"
"""where no measurement may decide, or none was made"""


class DeviceProfile(Record):
    """`device.json`: probed once per output folder."""

    device: str
    """cpu, cuda:0, mps"""
    name: str
    """of the processor or GPU"""
    cores: int
    memory_bytes: int
    """free for training when probed"""
    precision: str
    """fp32, bf16 or fp16: measured on a CPU, by rule elsewhere"""
    channels_last: bool
    throughput: dict[str, float] = {}
    """convolution GFLOP/s by precision, where it was measured"""
    memory_correction: float = Field(default=1.0, ge=1.0)
    """factor of predicted memory, raised when trial steps needed more or memory ran out"""
    sample_rates: dict[str, float] = {}
    """voxels a second on one core. light_2d, light_3d, full_2d, full_3d: augmenting one channel with labels of two
    classes by batchgeneratorsv2; the same with torch_ before it: in plain torch; reading: decompressing one channel of
    a prepared case. Empty: not measured"""
    augmented_by: AugmentedBy = FIXED_AUGMENTED_BY
    """which of the two is the quicker one here; not asked where the same weights are promised, or on a GPU"""
    memory_margin_bytes: int | None = Field(default=None, ge=0)
    """added to the prediction that is traced, as measured by `autounet calibrate`: the CUDA context, or a process
    before its first step. None: not measured, the default of the kind of device applies (`memory_model`)"""
    memory_margin_fraction: float = Field(default=0.0, ge=0)
    """of the predicted bytes, added as well: work spaces, rounding, fragmentation"""


class MemoryMargin(Part):
    """Margin that `autounet calibrate` measured on one device; see `DeviceProfile` for the two numbers."""

    memory_margin_bytes: int = Field(ge=0)
    memory_margin_fraction: float = Field(ge=0)
    torch: str
    """version it was measured with; another version may need more or less memory"""


class MemoryCalibration(Record):
    """`calibration.json` in the user's folder for settings."""

    devices: dict[str, MemoryMargin] = {}
    """by `DeviceProfile.name`"""


def fold_name(fold: int | None) -> str:
    """Name of a fold's folder; fold None is the training on all cases."""
    return "fold_all" if fold is None else f"fold_{fold}"


class EpochLog(Part):
    """One line of `log.jsonl`."""

    step: int
    progress: float
    """0..1"""
    seconds: float
    """of training so far"""
    learning_rate: float
    loss: float
    validation_dice: dict[str, float] | None = None
    """class -> pseudo Dice over a few validation patches; None where it was not measured"""
    training_dice: dict[str, float] | None = None
    """the same over a few patches of training cases that show the rarest classes, by which classes are left behind"""
    left_behind: tuple[str, ...] = ()
    """classes, or regions, whose Dice on patches of training cases has stayed near zero until this step"""
    step_seconds: float
    """mean since the previous line"""
    data_wait_seconds: float
    """mean waiting time of a step for its batch, part of `step_seconds`"""
    peak_memory_bytes: int | None = None
    """so far: allocated on a GPU, resident on a CPU; None where it cannot be measured"""
    event: str | None = None
    """what happened at this step, in words: that the training has converged, and when it ends; which classes are left
    behind from here on, or no longer"""
    converged: bool = False
    """whether that is that the training has converged"""


def read_log(path: Path) -> list[EpochLog]:
    """Lines of a `log.jsonl`; none without a file. One that was cut off or damaged ends them."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(EpochLog.model_validate_json(text))
        except ValidationError:
            break
    return lines


class Compilation(Part):
    """Whether the network was compiled for the steps of a training, and why."""

    compiled: bool
    reason: str
    """a sentence"""
    eager_seconds: float | None = None
    """of a forward and a backward pass of the network as it is, in the trial that decided; None: not timed"""
    compiled_seconds: float | None = None
    """the same of the compiled one"""
    compiling_seconds: float | None = None
    cuda_graphs: bool = False


class RunRecord(Record):
    """`record.json` of one fold."""

    configuration_name: ConfigurationName
    configuration: ConfigurationName
    """digest of the configuration it was trained with"""
    fold: int | None = Field(ge=0)
    """None: trained on all cases"""
    options: TrainOptions
    train_cases: tuple[CaseName, ...]
    validation_cases: tuple[CaseName, ...]
    device: str
    steps: int
    seconds: float
    curve: tuple[EpochLog, ...]
    parameters: int
    peak_memory_bytes: int | None
    versions: dict[str, str]
    """of the packages that matter, by name"""
    plugins: tuple[PluginUse, ...] = ()
    """that network, loss and augmentation are of"""
    events: tuple[str, ...] = ()
    """sentences: interruptions, smaller batches ..."""
    left_behind: tuple[str, ...] = ()
    """classes, or regions, whose Dice was still near zero on patches of training cases at the end"""
    compilation: Compilation | None = None
    """of the last command that trained; None: not known"""


RECORDS = ".predicted"


class PredictedFile(Part):
    """A file that was written for a case."""

    name: str
    """relative to the output folder"""
    bytes: int
    modified: int
    """nanoseconds since 1970"""
    checksum: str | None
    """blake2b-128, hex; None of a folder"""


class PredictedCase(Record):
    """`OUT/.predicted/<case>.json`, written when a case is begun, and again after all of its files."""

    case: CaseName
    key: str
    """of the model, the options and the image files, see `prediction/case_records.py`; empty until it is predicted"""
    run: str
    """identifies the command that wrote it; several processes of one command share it"""
    files: tuple[PredictedFile, ...] = ()
    earlier: tuple[str, ...] = ()
    """names of files that earlier commands wrote for the case, such as maps, or that are or were begun"""
    problem: str | None = None
    """why it could not be predicted; the processes of the same command skip it, a later command tries again"""


def record_of(out: Path, case: str) -> Path:
    return out / RECORDS / f"{case}.json"


def read_record(out: Path, case: str) -> PredictedCase:
    """Raises RecordError where there is none, or one that is damaged or another case's."""
    record = PredictedCase.load(record_of(out, case))
    if record.case != case:
        raise RecordError(f"{record_of(out, case)} is that of the case {record.case}", "Remove it")
    return record


def recorded_names(out: Path, case: str) -> frozenset[str] | None:
    """Names that a case's record says were written, relative to `out`; None where the record is damaged."""
    if not record_of(out, case).exists():
        return frozenset()
    try:
        record = read_record(out, case)
    except RecordError:
        return None
    return frozenset((*(each.name for each in record.files), *record.earlier))


def written_names(out: Path, case: str) -> frozenset[str]:
    """Names that were written for a case, or begun, as far as its record says."""
    return recorded_names(out, case) or frozenset()


def is_written(out: Path, case: str, name: str) -> bool:
    """Whether AutoUNet wrote the file of this name for the case, or is writing it.

    A damaged record vouches for all files of its case.
    """
    names = recorded_names(out, case)
    return names is None or name in names


def is_result(file: Path) -> bool:
    """Whether AutoUNet wrote this file into its folder: `<case>.<ext>`, or a map `<case>.<what it is>.<ext>`."""
    if not (file.parent / RECORDS).is_dir():
        return False
    parts = file.name.split(".")
    cases = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return any(is_written(file.parent, case, file.name) for case in cases)


def require_replaceable(
    out: Path, may_write: Mapping[str, Iterable[Path]], others: Iterable[Path], remedy: str
) -> None:
    """Raises OptionError for files that AutoUNet did not write and that would be replaced, before any is.

    `may_write` is what may be written, by case; `others` is there and known not to be AutoUNet's.
    """
    foreign = [*others]
    for case, paths in may_write.items():
        there = [path for path in paths if os.path.lexists(path)]
        foreign += [path for path in there if not is_written(out, case, path.relative_to(out).as_posix())]
    if foreign:
        shown = ", ".join(str(path) for path in foreign[:3])
        more = f" and {len(foreign) - 3} more" if foreign[3:] else ""
        it = "them" if foreign[1:] else "it"
        raise OptionError(f"{shown}{more} would be replaced, and AutoUNet did not write {it}", remedy)
