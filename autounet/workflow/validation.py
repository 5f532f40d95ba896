"""Validation of a fold, by all devices that shared its training.

On this machine each device has a process, in a launch each of its processes takes part. A case goes to whichever is
free next; who predicts it writes its files and its result, so that nothing but names goes from one to another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..crossval.validate import segmentation_name, summarise_cases, validate_cases
from ..processes import launched
from ..progress import progress, stop_if_cancelled
from ..schema.dataset import Dataset
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.plan import Configuration
from ..schema.quantities import format_number
from ..schema.record import CaseName, Part
from ..schema.stage_inputs import TrainingCase, ValidatedCaseInputs
from ..store import read_properties, scores_file, stage_labels_file
from ..store.file_hashes import FileHashes
from ..store.run_folder import CrossvalFolder
from . import cache

log = logging.getLogger(__name__)


class ValidationWork(Part):
    """Cases of a fold that are to be predicted and evaluated, and what for that takes."""

    dataset: Dataset
    configuration: Configuration
    fold: int
    keys: dict[CaseName, str]
    """case -> key of its result"""
    weights: Path
    prepared: Path
    previous: Path | None
    folder: Path
    """of the out-of-fold results"""


SideBySide = Callable[[Sequence[str], ValidationWork, Callable[[], object]], None]
"""does the work in a process on each of some devices, and calls the last argument after each case"""


def validate(
    dataset: Dataset,
    configuration: Configuration,
    fold: int,
    cases: Sequence[TrainingCase],
    weights: Path,
    prepared: Path,
    previous: Path | None,
    folder: CrossvalFolder,
    device: str,
    devices: Sequence[str] = (),
    side_by_side: SideBySide | None = None,
) -> Metrics:
    """Predict and evaluate the cases whose earlier results no longer hold. `weights` are those of the fold.

    On `device`, or where there are several `devices` on each, by `side_by_side` or by the processes of a launch.
    """
    hashes, identifiers = FileHashes(), [case.identifier for case in cases]
    keys = {
        case.identifier: ValidatedCaseInputs(
            weights=hashes.of(weights) or "",
            configuration=configuration.trained,
            inference=configuration.inference,
            fold=fold,
            labels=dataset.labels,
            prepared=read_properties(prepared, case.identifier).key,
            annotated=case.annotated,
            previous=None if previous is None else hashes.of(stage_labels_file(previous, case.identifier)),
        ).key
        for case in cases
    }
    results = _kept(dataset, folder, keys)
    if changed := {case: key for case, key in keys.items() if case not in results}:
        for case in changed:
            cache.forget(folder.case_result(case))
        work = ValidationWork(
            dataset=dataset, configuration=configuration, fold=fold, keys=changed, weights=weights, prepared=prepared,
            previous=previous, folder=folder.path,
        )  # fmt: skip
        with progress(f"validating {folder.path.name} fold_{fold}", len(changed)) as meter:
            if len(devices) < 2 or len(changed) < 2:
                take_part(work, device, changed, meter.advance)
            elif launched() is None:
                assert side_by_side is not None
                side_by_side(devices[: len(changed)], work, meter.advance)
            else:
                from ..training.torchrun import together

                together(work.model_dump_json(), device, list(changed), meter.advance, take_part_of_launch)
        results = _kept(dataset, folder, keys)
    metrics = summarise_cases([results[case] for case in identifiers], dataset)
    metrics.save(folder.metrics(fold))
    log.info("%s fold_%d: mean Dice %s", folder.path.name, fold, format_number(metrics.mean_dice))
    return metrics


def _kept(dataset: Dataset, folder: CrossvalFolder, keys: Mapping[str, str]) -> dict[str, CaseMetrics]:
    """Results of cases that are of these inputs and whose files are there."""

    def files(case: str) -> list[Path]:
        return [folder.path / segmentation_name(dataset.case(case)), scores_file(folder.scores, case)]

    return cache.kept_results(keys, folder.case_result, files)


def take_part(
    work: ValidationWork, device: str, cases: Iterable[str], on_case: Callable[[], object] = lambda: None
) -> None:
    """Predict, evaluate and keep those of the work's cases that this process is given."""
    from ..inference.bundle import load_network

    folder = CrossvalFolder(work.folder)

    def keep(metrics: CaseMetrics) -> None:
        cache.keep_result(folder.case_result(metrics.case), work.keys[metrics.case], metrics)
        on_case()
        stop_if_cancelled()

    model = load_network(work.configuration, work.weights, device)
    validate_cases(
        work.dataset, work.configuration, [model], work.prepared, cases, work.fold, folder, device, on_case=keep,
        previous=work.previous,
    )  # fmt: skip


def take_part_of_launch(work: str, device: str, cases: Iterable[str], on_case: Callable[[], object]) -> None:
    """`take_part`, of work that has come as JSON from another process."""
    take_part(ValidationWork.model_validate_json(work), device, cases, on_case)
