"""The Python interface: `run`, `plan`, `train`, `check`, `load`, `evaluate` and `register`.

The first four do what the commands of their names do, with the same options, and return records. Nothing is printed
unless asked for, several may run at once in threads of one process, and every error that a caller can correct is an
AutoUNetError. torch is imported when something is planned or predicted, never by importing this module.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from .label_evaluation import evaluate as evaluate
from .prediction.folder import OnCase, OutputOptions, predict_folder
from .prediction.predictor import Predictor
from .progress import Progress as Progress
from .progress import Watcher, watched
from .run_log import run_log
from .schema.errors import AutoUNetError as AutoUNetError
from .schema.errors import Cancelled as Cancelled
from .schema.errors import DataError as DataError
from .schema.errors import DeadlineError as DeadlineError
from .schema.errors import ModelError as ModelError
from .schema.errors import OptionError as OptionError
from .schema.errors import UsageError, lost_worker, unknown_name
from .schema.fingerprint import CheckResult
from .schema.metrics import Metrics
from .schema.option_table import RUN_OPTIONS, Option, run_options
from .schema.options import DataKeywords, RunKeywords
from .schema.plan import Average, Plan
from .schema.plugins import register as register
from .schema.quantities import AnyPath
from .schema.run import RunRecord
from .schema.selection import Selection
from .store.run_folder import RunFolder
from .workers import wait_politely

if TYPE_CHECKING:
    from .workflow.pipeline import RunOutcome

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]
Cancel = Callable[[], bool]


@dataclass(frozen=True)
class TrainedFold:
    """One trained network."""

    configuration: str
    fold: int | None
    """None: it was trained on all cases"""
    record: RunRecord
    """options, learning curve, time, memory and versions of the training"""
    metrics: Metrics | None
    """of its validation cases; None where there are none"""


@dataclass(frozen=True)
class TrainResult:
    """What `train` leaves in the output folder `out`."""

    out: Path
    plan: Plan
    folds: tuple[TrainedFold, ...]


@dataclass(frozen=True)
class RunResult(TrainResult):
    """What `run` leaves in the output folder `out`."""

    selection: Selection
    """which configurations were chosen, from which, and why"""
    metrics: Metrics | None
    """of the selected out-of-fold segmentations; None where all cases were trained on"""
    model: Path
    """of the packed model, for `load`"""
    report: Path
    """report.html"""


def run(
    data: AnyPath,
    out: AnyPath,
    *,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
    verbose: bool = False,
    **options: Unpack[RunKeywords],
) -> RunResult:
    """Read and check the data, plan, prepare, train, validate, select, pack the model and report, all into `out`.

    What `out` holds already is kept where it is still valid, so that the same call continues what was interrupted; an
    option that is left out has the value that it had there. `on_progress` is called in this thread, several times a
    second at most. `cancel` is asked after every step and case; where it returns true, Cancelled is raised, and the
    same call continues. `verbose` shows messages on standard error, as the command does; `run.log` has them always.
    Raises AutoUNetError: OptionError for options, DataError for data, DeadlineError for too little time.
    """
    place, outcome = _until("run", data, out, options, Watcher(on_progress, cancel, verbose))
    assert outcome.plan is not None
    metrics = Metrics.load(place.metrics) if place.metrics.exists() else None
    selection = Selection.load(place.selection)
    return RunResult(
        place.path, outcome.plan, _folds(place, outcome), selection, metrics, place.bundle, outcome.written
    )


def train(
    data: AnyPath,
    out: AnyPath,
    *,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
    verbose: bool = False,
    **options: Unpack[RunKeywords],
) -> TrainResult:
    """As `run`, up to trained and validated folds; a later `run` goes on from there."""
    place, outcome = _until("train", data, out, options, Watcher(on_progress, cancel, verbose))
    assert outcome.plan is not None
    return TrainResult(place.path, outcome.plan, _folds(place, outcome))


def plan(
    data: AnyPath,
    out: AnyPath,
    *,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
    verbose: bool = False,
    **options: Unpack[RunKeywords],
) -> Plan:
    """As `run`, up to the plan, with a reason for every decision; nothing is trained."""
    _, outcome = _until("plan", data, out, options, Watcher(on_progress, cancel, verbose))
    assert outcome.plan is not None
    return outcome.plan


def check(
    data: AnyPath,
    *,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
    verbose: bool = False,
    **options: Unpack[DataKeywords],
) -> CheckResult:
    """What is understood of the data, and every defect at once in `findings`; nothing is written.

    Fatal ones are no error here: `is_fatal` of the result says whether there are any. Raises OptionError.
    """
    given = _given("check", {"data": data, **options})
    with _work("check", given, Watcher(on_progress, cancel, verbose)):
        from .workflow.dataset_stage import check_data
        from .workflow.defaults import require_files

        chosen = run_options((option, text) for option, text in given if option.field).data
        require_files(chosen)
        return check_data(Path(data), chosen)


Given = list[tuple[Option, Any]]
"""options, and for each what would stand on the command line"""


def _given(command: str, values: Mapping[str, object]) -> Given:
    """Raises UsageError for a name that is no option of the command, and a value of another type."""
    table = {option.keyword: option for option in RUN_OPTIONS if command in option.commands}
    keywords = DataKeywords if command == "check" else RunKeywords
    known = table.keys() & {"data", "out", *keywords.__annotations__}
    for name, value in values.items():
        if name not in known:
            raise unknown_name(f"autounet.{command}():", name, sorted(known))
        if value is None and table[name].required:
            raise UsageError(f"autounet.{command}(): {name} is None", "Give a folder")
    return [(table[name], table[name].texts(value)) for name, value in values.items()]


@contextmanager
def _work(command: str, given: Given, watcher: Watcher) -> Iterator[None]:
    """Watched and logged inside. Raises UsageError for callbacks that cannot be called."""
    for name, callback in (("on_progress", watcher.on_progress), ("cancel", watcher.cancel)):
        if callback is not None and not callable(callback):
            raise UsageError(f"{name} {callback!r} cannot be called", "Give a function, or leave it out")
    told = ", ".join(f"{option.keyword}={text!r}" for option, text in given if text is not None)
    wait_politely()
    with watched(watcher), run_log(f"autounet.{command}({told})", echo=watcher.bars):
        try:
            yield
        except RuntimeError as error:
            if (lost := lost_worker(error)) is None:
                raise
            raise lost from error


def _until(
    command: str, data: AnyPath, out: AnyPath, options: RunKeywords, watcher: Watcher
) -> tuple[RunFolder, RunOutcome]:
    """As the command of this name; the output folder and what `run_pipeline` returns."""
    given = _given(command, {"data": data, "out": out, **options})
    chosen = run_options((option, text) for option, text in given if option.field)
    with _work(command, given, watcher):
        from .workflow.pipeline import run_pipeline

        stage = "report" if command == "run" else command
        replan = bool(options.get("replan"))
        return RunFolder(Path(out)), run_pipeline(Path(data), Path(out), chosen, stage, replan)


def _folds(place: RunFolder, outcome: RunOutcome) -> tuple[TrainedFold, ...]:
    """Of every configuration that was trained, in the order of training."""
    assert outcome.schedule is not None
    found = []
    for name in outcome.schedule.configurations:
        for fold in outcome.schedule.folds_of(name):
            file = None if fold is None else place.crossval(name).metrics(fold)
            metrics = Metrics.load(file) if file is not None and file.exists() else None
            found.append(TrainedFold(name, fold, RunRecord.load(place.fold(name, fold).record), metrics))
    return tuple(found)


def _with_options(function: Callable[..., Any], known: Mapping[str, Any]) -> None:
    """Signature and docstring name every option, for `help` and for editors that ask at run time."""
    table = {option.keyword: option for option in RUN_OPTIONS}
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=known[name]) for name in known
    ]
    function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    lines = "\n".join(f"    {name}: {table[name].help}" for name in known)
    function.__doc__ = f"{function.__doc__}\n    Options:\n\n{lines}\n    "


for _function in (run, train, plan):
    _with_options(_function, RunKeywords.__annotations__)
_with_options(check, DataKeywords.__annotations__)


class Model(Predictor):
    """A trained model: `predict` takes one image, `predict_files` a file or folder."""

    def predict_files(
        self,
        source: str | Path,
        out: str | Path,
        on_case: OnCase | None = None,
        gate_maps: bool = False,
        form: str | None = None,
        probabilities: bool = False,
        uncertainty: bool = False,
        overwrite: bool = False,
        force: bool = False,
    ) -> list[str]:
        """Predict a file or folder into `out`. A bad image is reported and skipped; returns the messages of those.

        What `out` holds already of this model, with these options and from the same image files is kept, unless
        `overwrite`. `form` is None for the image's own format, dicom-seg or bids. `gate_maps` also writes what the
        attention gates let pass, `probabilities` and `uncertainty` the maps of docs/predicting.md. Images that are
        unlike the model's training (dimension, spacing, modality, intensities) are refused unless `force`. Raises
        OptionError for an unknown `form`, for gate maps of networks without gates, and while another command or
        thread predicts into `out`.
        """
        from .workflow.shards import in_this_process

        outputs = OutputOptions(form, probabilities, uncertainty, gate_maps)
        predict = partial(in_this_process, self, on_case)
        outcome = predict_folder(self, Path(source), Path(out), outputs, overwrite, force, predict)
        for failure in outcome.failures:
            log.error("not predicted: %s", failure)
        outcome.log_counts()
        return outcome.failures


def load(
    model: str | Path,
    device: str = "auto",
    *,
    configuration: str | None = None,
    folds: Sequence[int] | None = None,
    mirror: bool = True,
    overlap: float | None = None,
    prune: int | None = None,
    average: Average | None = None,
    postprocess: bool = True,
) -> Model:
    """Load a packed model, `OUT/model` or a file `.autounet`, once; its `predict` then takes one image after another.

    `device` is auto, cpu, cuda, cuda:1 or mps. `configuration` is one instead of those selected, `folds` some of its
    networks, `mirror` whether mirrored views are averaged, `overlap` that of tiles (0 to 0.9, None: as planned).
    For `prune`, `average` and `postprocess` see `Predictor`. Nothing in a model is executed. Raises ModelError for one
    that is damaged or lacks what is chosen, OptionError for a device that is not there.
    """
    return Model(
        Path(model),
        device=device,
        configuration=configuration,
        folds=folds,
        mirror=mirror,
        overlap=overlap,
        prune=prune,
        average=average,
        postprocess=postprocess,
    )
