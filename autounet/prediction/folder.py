"""A file or folder of images through a model, one after another: read ahead, predicted, written, recorded.

Nothing is kept of a case but its name; which cases are done is recorded in the output folder (`case_records`). One
command at a time works there. It predicts the cases itself or hands them to other processes (`workflow/shards.py`).
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import numpy as np

from .. import __version__
from ..datasets import InputCase, find_inputs, load_input
from ..datasets.inputs import refused
from ..imageio import is_series, read_geometry
from ..ops.resample import prepared_shape
from ..preprocessing import CHECK_SPACING, Prepared, enlargement
from ..schema.errors import AutoUNetError, DataError, OptionError, OutOfMemory
from ..schema.geometry import Geometry
from ..schema.record import digest, require_folder, require_no_links
from ..schema.run import RECORDS, record_of, require_replaceable
from ..store.folder_lock import locked
from ..system_memory import available_memory, is_out_of_memory
from ..workers import keep_freed_memory, one_ahead
from .bids_derivatives import BIDS, foreign_files, judge_names, require_volume, write_dataset
from .bids_derivatives import write_sidecar as write_bids_sidecar
from .by_rows import ByRows, judge_size, needs_rows, predict_by_rows
from .case_records import CaseRecords, Outcome, OutputOptions, Work, remove_leftovers
from .maps import foreign_channels_file, require_gates, write_gates, write_probability_maps
from .mismatch import intensity_mismatches, judge_headers, require_fit
from .objects_table import foreign_table, join_tables, write_table
from .output_files import DICOM_SEG, output_paths, prediction_path, require_new, write_prediction
from .predictor import NetworkScores, Predictor

log = logging.getLogger(__name__)

MUCH_LARGER = 8
"""times the stored voxels on a network's grid from which on the spacing is named where memory runs out"""


def _no_series(case: InputCase) -> InputCase:
    name = case.images[0].name
    return refused(
        case.identifier,
        case.images,
        f"{name} is no DICOM series, as --format {DICOM_SEG} needs",
        "Predict it without --format",
    )


OnCase = Callable[[str], None]
Read = tuple[list[Prepared], Geometry, np.ndarray | None] | ByRows
"""a case as networks take it, its geometry, and where objects are measured the image (C, Z, Y, X) as stored; or how it
is predicted without being read as a whole"""


Predict = Callable[[CaseRecords, Sequence[InputCase]], list[InputCase]]
"""predicts those cases that are not finished, and says which these were"""


def predict_folder(
    predictor: Predictor,
    source: Path,
    out: Path,
    outputs: OutputOptions,
    overwrite: bool = False,
    force: bool = False,
    predict: Predict | None = None,
) -> Outcome:
    """Predict what is not yet finished in `out`, in this process or by `predict`, for which the predictor needs no
    networks.

    `overwrite` predicts the finished ones again, too, and replaces files that AutoUNet did not write. Images that are
    unlike the training (`mismatch`) are refused, with `force` only those that networks cannot take. An AutoUNetError,
    as of a bad image, and memory that runs out concern one case: its message is among the failures, and the next case
    follows. Every other error ends the work: OSError where something cannot be written, and whatever a mistake in the
    program raises, with the case in its notes. Raises OptionError for an unknown format, for gate maps of networks
    without gates, for files in the way, and while another command works in `out`.
    """
    require_folder(out)
    _require_possible(predictor, outputs)
    cases = _judged_cases(predictor, source, out, outputs, force)
    paths = {case: output_paths(predictor, out, case, outputs) for case in cases if case.error is None}
    require_new(paths)
    may_write = {case.identifier: own for case, own in paths.items()}
    require_no_links(out, [path for case, own in may_write.items() for path in (record_of(out, case), *own)])
    if not overwrite:
        others = _foreign_files(predictor, out, outputs)
        require_replaceable(out, may_write, others, "Give another --out, or --overwrite to replace what is there")
    work = Work(out, outputs, prediction_key(predictor, outputs), uuid.uuid4().hex, overwrite, force)
    records = case_records(predictor, work)
    with locked(out, out / RECORDS):
        if outputs.form == BIDS:
            write_dataset(out, predictor.bundle)
        given = predict(records, cases) if predict else predict_here(predictor, None, records, cases)
        remove_leftovers((out / RECORDS).rglob(".*"))
        join_tables(predictor.bundle, out, [own[0] for own in paths.values()])
        return records.outcome(len(cases), given)


def case_records(predictor: Predictor, work: Work) -> CaseRecords:
    return CaseRecords(work, partial(output_paths, predictor, work.out, outputs=work.outputs))


def predict_here(
    predictor: Predictor, on_case: OnCase | None, records: CaseRecords, cases: Sequence[InputCase]
) -> list[InputCase]:
    """In this process; returns those that were not finished."""
    given = records.unfinished(cases)
    predict_cases(predictor, on_case, records, given)
    return given


def predict_cases(
    predictor: Predictor, on_case: OnCase | None, records: CaseRecords, cases: Iterable[InputCase]
) -> None:
    """Those of the cases that are not finished; while one is predicted, the next is read and the last written.

    Beside a GPU the last is decided on as well, see `decided_beside`.
    """
    keep_freed_memory()
    with closing(records), ThreadPoolExecutor(1) as pool:
        behind: tuple[InputCase, Future[None]] | None = None
        for case, read in one_ahead(records.begun(cases), partial(_load_and_prepare, predictor, records.work)):
            written = case, pool.submit(_finish, *_predicted(predictor, case, read, records))
            del read
            _wait(behind, on_case)
            behind = written
        _wait(behind, on_case)


def _wait(written: tuple[InputCase, Future[None]] | None, on_case: OnCase | None) -> None:
    if written is not None:
        written[1].result()
        if on_case:
            on_case(written[0].identifier)


Rest = Callable[[], list[Path]]
"""writes what is not written yet of a case, and gives all files that belong to it"""


def _predicted(
    predictor: Predictor, case: InputCase, read: Callable[[], Read], records: CaseRecords
) -> tuple[Predictor, InputCase, CaseRecords, Rest | None]:
    """What `_finish` takes."""
    try:
        return predictor, case, records, _predict_case(predictor, case, read, records.work)
    except Exception as error:
        records.failed(case, _problem(predictor, case, error))
        return predictor, case, records, None


def _finish(predictor: Predictor, case: InputCase, records: CaseRecords, rest: Rest | None) -> None:
    """Do what is left of a case and record it; None: it could not be predicted, which is recorded."""
    if rest is None:
        return
    try:
        paths = rest()
    except Exception as error:
        records.failed(case, _problem(predictor, case, error))
    else:
        records.finished(case, paths)


WAITING_SHARE = 0.25
"""of the memory that is available, up to which the scores of a case wait while the next one is predicted"""


def decided_beside(device: str, scores: Mapping[str, NetworkScores]) -> bool:
    """Whether scores are decided on while the networks go on with the next case.

    On a CPU both would compete for it; beside a GPU the two cases' scores have to fit into the memory.
    """
    return device != "cpu" and sum(each.scores.nbytes for each in scores.values()) < WAITING_SHARE * available_memory()


def _require_possible(predictor: Predictor, outputs: OutputOptions) -> None:
    """Raises OptionError for outputs that the model, or the format, cannot have."""
    form = outputs.form
    if outputs.gate_maps:
        require_gates(predictor)
    if form in (DICOM_SEG, BIDS) and predictor.bundle.labels.objects is not None:
        raise OptionError(f"--format {form} holds classes, and this model numbers objects", "Leave --format out")
    if form == BIDS and outputs.maps:
        raise OptionError(f"--format {form} is for segmentations without maps", "Write maps by another command")


def _judged_cases(
    predictor: Predictor, source: Path, out: Path, outputs: OutputOptions, force: bool
) -> list[InputCase]:
    """Those of `source`, with an error where the format has no name or no place for one, or the model is another's."""
    cases = find_inputs(source, predictor.bundle)
    if outputs.form == BIDS:
        cases = judge_names(cases, out)
    if outputs.form == DICOM_SEG and any(is_series(image) for case in cases for image in case.images[:1]):
        cases = [case if case.error or is_series(case.images[0]) else _no_series(case) for case in cases]
    cases = judge_headers(predictor.bundle, cases, force)
    return [judge_size(predictor, case, outputs.maps, outputs.form) for case in cases]


def _foreign_files(predictor: Predictor, out: Path, outputs: OutputOptions) -> list[Path]:
    """Files about all cases together that are there and not AutoUNet's."""
    found = foreign_table(predictor.bundle, out)
    found += foreign_channels_file(out) if outputs.probabilities else []
    return found + (foreign_files(out) if outputs.form == BIDS else [])


def prediction_key(predictor: Predictor, outputs: OutputOptions) -> str:
    """Digest of all that decides what is written for an image, apart from the device."""
    configurations = {name: each.model_dump(mode="json") for name, each in predictor.configurations.items()}
    steps = [step.model_dump(mode="json") for step in (*predictor.steps, predictor.separation)]
    chosen = [predictor.names, predictor.folds, predictor.combination, steps]
    return digest([__version__, predictor.bundle.checksum, configurations, chosen, outputs])


def _problem(predictor: Predictor, case: InputCase, error: Exception) -> str:
    """Why one case could not be predicted; an error that is not about the case is raised."""
    if isinstance(error, OutOfMemory):
        problem = _memory_problem(predictor, case, error.message, error.remedy)
    elif isinstance(error, AutoUNetError):
        problem = str(error) if error.case is not None else f"case {case.identifier}: {error}"
    elif isinstance(error, OSError) or not is_out_of_memory(error):
        if not isinstance(error, OSError):
            error.add_note(f"case {case.identifier} was being predicted")
        raise error
    else:
        problem = _memory_problem(predictor, case, "memory ran out", "Free some of it, or use --device cpu")
    log.info("case %s: not predicted", case.identifier)
    return problem


def _memory_problem(predictor: Predictor, case: InputCase, message: str, remedy: str) -> str:
    """What to say where memory ran out, with the spacing where that makes the image much larger than it is stored."""
    with suppress(DataError):  # the file's header was read before
        geometry = read_geometry(case.images[0])
        for configuration in predictor.configurations.values():
            shape = prepared_shape(configuration.preprocess, geometry.shape, geometry.spacing)
            if math.prod(shape) > MUCH_LARGER * math.prod(geometry.shape):
                message = f"{message}; its {enlargement(geometry.spacing, shape)}"
                return str(OutOfMemory(message, f"{CHECK_SPACING}. Else: {remedy}", case.identifier))
    return str(OutOfMemory(message, remedy, case.identifier))


def _predict_case(predictor: Predictor, case: InputCase, read: Callable[[], Read], work: Work) -> Rest:
    out, outputs, found = work.out, work.outputs, read()
    if isinstance(found, ByRows):
        segmentation = prediction_path(out, case, outputs.form)
        predict_by_rows(predictor, case, found, segmentation, work.force)
        return lambda: [segmentation]
    prepared, geometry, image = found
    if outputs.form == BIDS:
        require_volume(case, geometry.dimension)
    scores = predictor.predict_scores(prepared, keep_input=outputs.gate_maps or outputs.uncertainty)
    rest = partial(_decided, predictor, case, scores, geometry, image, work)
    return (lambda: rest()()) if decided_beside(predictor.device, scores) else rest()


def _decided(
    predictor: Predictor,
    case: InputCase,
    scores: Mapping[str, NetworkScores],
    geometry: Geometry,
    image: np.ndarray | None,
    work: Work,
) -> Rest:
    """A call that writes the segmentation; all other files are written."""
    out, outputs = work.out, work.outputs
    paths = [prediction_path(out, case, outputs.form)]
    if outputs.form == BIDS:
        paths.append(write_bids_sidecar(paths[0], case))
    values = predictor.decide(scores)
    segmentation = prediction_path(out, case, None)  # whose name and format the maps follow
    if image is not None:
        paths += write_table(predictor.bundle, case.identifier, values, image, geometry, segmentation)
    if outputs.probabilities or outputs.uncertainty:
        wanted = outputs.probabilities, outputs.uncertainty
        paths += write_probability_maps(predictor, scores, segmentation, geometry, *wanted)
    if outputs.gate_maps:
        paths += write_gates(predictor, scores, segmentation, geometry)

    def write() -> list[Path]:
        write_prediction(paths[0], values, geometry, case, predictor.bundle)
        return paths

    return write


def _load_and_prepare(predictor: Predictor, work: Work, case: InputCase) -> Read:
    try:
        if way := needs_rows(predictor, case, work.outputs.maps, work.outputs.form):
            return way
        image, geometry = load_input(case, predictor.bundle.channels)
    except OSError as error:
        path = error.filename or case.images[0]
        raise DataError(
            f"{path} cannot be read ({error})", "Check that the file is there and whole", case.identifier
        ) from None
    present = None if case.present is None else tuple(index in case.present for index in range(len(image)))
    require_fit(case, intensity_mismatches(predictor.bundle, image, present), work.force)
    kept = image if predictor.bundle.labels.objects is not None else None
    return predictor.prepare(image, geometry, present), geometry, kept
