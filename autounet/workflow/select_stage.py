"""The last job: compare configurations and ensembles on all out-of-fold cases, choose, pack the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..crossval.ensemble_weights import fit_weights
from ..crossval.objects import separate_objects
from ..crossval.result import measure, postprocess_and_calibrate
from ..crossval.select import select as choose
from ..crossval.validate import ensemble_cases, score_sources, segmentation_name, summarise_cases
from ..imageio import output_suffix
from ..progress import progress
from ..schema.dataset import CaseFacts, Dataset
from ..schema.fingerprint import Fingerprint
from ..schema.labels import counted_targets
from ..schema.metrics import CaseMetrics, Metrics
from ..schema.options import DataOptions
from ..schema.plan import with_previous_stages
from ..schema.selection import Selection
from ..schema.stage_inputs import EnsembleCaseInputs
from ..store import scores_file, stage_labels_file
from ..store.run_folder import RunFolder
from . import cache
from .training_schedule import TrainingSchedule, ensembles


def select(
    folder: RunFolder,
    dataset: Dataset,
    schedule: TrainingSchedule,
    data_options: DataOptions,
    fingerprint: Fingerprint,
    metrics: Sequence[str],
    workers: int,
    seconds_left: float | None,
) -> None:
    """Write selection.json, metrics.json with the metrics of these names, and model/."""
    configurations = schedule.configurations
    folds = [fold for fold in schedule.folds if fold is not None]
    result: Metrics | None = None
    if folds:
        compared = {name: _single(folder, dataset, name, folds) for name in configurations}
        for members in ensembles(tuple(configurations)):
            compared["+".join(members)] = _ensemble(folder, dataset, schedule, members)
        costs = {name: len(with_previous_stages(name.split("+"), configurations)) for name in compared}
        selection = choose(compared, [target.name for target in counted_targets(dataset.labels)], costs, folds)
        result = compared["+".join(selection.chosen)]
        selection, result = fit_weights(selection, result, dataset, configurations, folder, workers, seconds_left)
        selection, result = postprocess_and_calibrate(selection, result, dataset, configurations, folder, workers)
        if dataset.labels.objects is not None:
            selection, result = separate_objects(selection, result, dataset, configurations, folder, workers)
        result = measure(selection, result, dataset, folder, metrics, workers)
        result.save(folder.metrics)
    else:
        selection = _without_validation(tuple(configurations))
        folder.metrics.unlink(missing_ok=True)
    selection.save(folder.selection)
    _remove_gone_cases(folder, dataset)
    _pack(folder, dataset, schedule, data_options, fingerprint, selection, result)


def _single(folder: RunFolder, dataset: Dataset, name: str, folds: Sequence[int]) -> Metrics:
    place = folder.crossval(name)
    return summarise_cases([case for fold in folds for case in Metrics.load(place.metrics(fold)).cases], dataset)


def _ensemble(folder: RunFolder, dataset: Dataset, schedule: TrainingSchedule, members: tuple[str, ...]) -> Metrics:
    """Only cases whose scores have changed are averaged again."""
    place, fold_of = folder.crossval(*members), schedule.fold_of_case
    keys = {
        case: EnsembleCaseInputs(
            members=tuple(cache.result_key(folder.crossval(name).case_result(case)) for name in members)
        ).key
        for case in fold_of
    }

    def files(case: str) -> list[Path]:
        return [place.path / segmentation_name(dataset.case(case))]

    results = cache.kept_results(keys, place.case_result, files)
    changed = {case: fold for case, fold in fold_of.items() if case not in results}
    with progress(f"averaging {' and '.join(members)}", len(changed)) as meter:

        def on_case(metrics: CaseMetrics) -> None:
            cache.keep_result(place.case_result(metrics.case), keys[metrics.case], metrics)
            results[metrics.case] = metrics
            meter.advance()

        for case in changed:
            cache.forget(place.case_result(case))
        sources = score_sources(folder, schedule.configurations, members)
        targets = schedule.configurations[members[0]].targets
        ensemble_cases(dataset, sources, targets, changed, place.path, on_case=on_case)
    return summarise_cases([results[case] for case in fold_of], dataset)


def _without_validation(names: Sequence[str]) -> Selection:
    """All cases were trained on: the main configuration, since nothing speaks for the cost of an ensemble."""
    return Selection(
        chosen=("3d_fullres" if "3d_fullres" in names else names[-1],),
        compared=(),
        reason="Trained on all cases: nothing was left to validate on, so nothing was compared.",
    )


def _remove_gone_cases(folder: RunFolder, dataset: Dataset) -> None:
    """Segmentations, scores and cascade labels of cases that the data set no longer has.

    Only of cases with a record of ours: what else lies there is somebody's.
    """
    known = {case.identifier for case in dataset.cases}
    for record in sorted(folder.crossval_root.glob("**/cases/**/*.json")):
        inside = [parent for parent in record.parents if folder.crossval_root in parent.parents]
        place = next(parent for parent in reversed(inside) if parent.name == "cases")
        name = record.relative_to(place).as_posix().removesuffix(".json")
        if name in known or cache.result_key(record) is None:
            continue
        root, ending = place.parent, output_suffix(dataset.suffix)
        files = [
            root / f"{name}{ending}",
            root / "postprocessed" / f"{name}{ending}",
            root / "objects" / f"{name}{ending}",
            scores_file(root / "scores", name),
        ]
        files += [stage_labels_file(following, name) for following in root.glob("next/*")]
        for file in (*files, record):
            file.unlink(missing_ok=True)


def _pack(
    folder: RunFolder,
    dataset: Dataset,
    schedule: TrainingSchedule,
    data_options: DataOptions,
    fingerprint: Fingerprint,
    selection: Selection,
    metrics: Metrics | None,
) -> None:
    from ..inference.bundle import pack

    configurations = schedule.configurations
    weights: Mapping[str, Mapping[int | None, Path]] = {
        name: {fold: folder.fold(name, fold).weights for fold in schedule.folds_of(name)}
        for name in with_previous_stages(selection.chosen, configurations)
    }
    facts = [folder.facts / f"{case.identifier}.json" for case in dataset.cases]
    pack(
        folder.bundle,
        dataset,
        data_options,
        configurations,
        selection,
        weights,
        metrics.mean_dice if metrics else None,
        fingerprint=fingerprint,
        metrics=metrics,
        facts=[CaseFacts.load(file) for file in facts if file.exists()],
    )
