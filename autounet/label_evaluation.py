"""Evaluates label images against references: pairs the files, finds the classes, measures each case."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .datasets import Match, image_files, pair
from .datasets.layouts.files import strip_channel
from .datasets.unnumbered_masks import object_numbers, unnumbered_masks, with_pieces
from .evaluation import (
    DEFAULT_METRICS,
    METRICS,
    OBJECT_METRICS,
    chosen_metrics,
    distance_unit,
    evaluate_case,
    evaluate_objects,
    on_grid_of,
    summarise,
)
from .evaluation.dicom_objects import (
    is_object,
    label_objects,
    labels_by_name,
    pair_by_series,
    read_case,
    require_names,
)
from .imageio import VOLUME_KINDS, is_container, objects_geometry, read_geometry, read_label_content, read_labels, stem
from .ops.masks import values_in
from .progress import progress
from .schema.errors import DataError, OptionError
from .schema.labels import LabelClass, Labels, Region, labels_of_objects, require_background_zero
from .schema.metrics import CaseMetrics, Metrics
from .workers import map_parallel

log = logging.getLogger(__name__)


class _EvaluateTask(NamedTuple):
    case: str
    prediction: Path
    reference: Path
    labels: Labels
    metrics: tuple[str, ...]
    pieces: tuple[bool, bool]
    """whether connected pieces of the prediction, and of the reference, are the objects, which no values number"""


def _evaluate_one(task: _EvaluateTask) -> CaseMetrics | DataError:
    """The error of a case whose files do not fit together, so that those of all cases are told at once."""
    try:
        numbers = task.labels.objects is not None
        prediction, own = read_case(task.prediction, task.reference, task.labels, numbers=numbers)
        codes = () if numbers else task.labels.codes
        reference, geometry = read_case(task.reference, task.prediction, task.labels, codes, numbers)
        prediction, reference = (
            object_numbers(values, with_pieces(task.labels.codes)) if pieces else values
            for values, pieces in zip((prediction, reference), task.pieces, strict=True)
        )
    except DataError as error:
        return DataError(error.message, error.remedy, task.case)
    prediction, differences = on_grid_of(prediction, own, geometry)
    if differences:
        return DataError(
            f"the prediction {task.prediction.name} differs from its reference in {'; '.join(map(str, differences))}",
            "Predict the image that the reference was drawn on, or correct the header that is wrong",
            task.case,
        )
    unit = distance_unit(geometry)
    measure = evaluate_objects if task.labels.objects else evaluate_case
    per_class = measure(prediction, reference, geometry.spacing, task.labels, unit=unit, metrics=task.metrics)
    return CaseMetrics(case=task.case, per_class=per_class)


def _values(pair_: tuple[Path, Path]) -> tuple[set[int], set[int]]:
    prediction, reference = (values_in(read_labels(path)[0]) for path in pair_)
    return prediction, reference


def _require_one_background(files: Sequence[Path]) -> None:
    """Raises DataError where a picture shows by another value what the palette of others shows by 0."""
    palettes = {}
    for file in files:
        if read_geometry(file).kind not in VOLUME_KINDS:
            palettes[file] = dict(read_label_content(file, numbers=True).colours)
    shown = {palette[0]: file for file, palette in reversed(palettes.items()) if 0 in palette}
    for file, palette in palettes.items():
        for value, colour in palette.items():
            if value and colour in shown and shown[colour] != file:
                raise DataError(
                    f"the colour {list(colour)} is the background in {shown[colour]}, and the value {value} in {file}",
                    "Store all label files with one palette, or without any",
                )


def _warn_of_strangers(predicted: set[int], drawn: set[int]) -> None:
    """Masks of 1 and masks of 255 have no class in common, and a Dice of 0 does not say so; nor does one of nothing."""
    predicted, drawn = predicted - {0}, drawn - {0}
    if empty := [name for name, values in (("predictions", predicted), ("references", drawn)) if not values]:
        log.warning("the %s hold no value besides 0. Check that these are the label files", " and the ".join(empty))
    if predicted and drawn and not predicted & drawn:
        shown = [", ".join(map(str, sorted(values)[:5])) for values in (predicted, drawn)]
        log.warning(
            "no class is in both: the predictions hold %s and the references %s. Every Dice is 0. Where these mean the "
            "same, give both the same values",
            *shown,
        )


WORTH_PROCESSES = 20_000_000
"""voxels that a process measures in the seconds that starting others takes"""


def evaluate(
    predictions: str | Path,
    references: str | Path,
    classes: Mapping[str, int] | None = None,
    model: str | Path | None = None,
    workers: int = 1,
    on_case: Callable[[CaseMetrics], None] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    regions: Mapping[str, Sequence[int]] | None = None,
    objects: str | None = None,
) -> Metrics:
    """Evaluate a folder (or file) of label images against references, paired by name.

    Classes come from `model` (a packed one), else from `classes` (name -> value), else from the values found; so do
    regions, from `model` or else from `regions` (name -> values). `objects` names the one class whose objects both
    files number; they are measured as objects, too, as they are for a `model` that tells objects apart.
    `metrics` names what is measured (`default` and `all` stand for several; see docs/metrics.md); Dice always is.
    DICOM-SEG and RTSTRUCT name their structures: classes are these names, their values those given, and two objects are
    a pair when they were drawn on one series. The two files of a case have to lie on the same voxels in space; which
    way round each stores them does not matter. More than one of `workers` are processes of their own, where the images
    are not so few and small that starting them takes longer; a script needs no `__main__` guard for that.
    Raises OptionError for an unknown name, DataError that names every case whose files cannot be read or do not fit.
    """
    wanted = chosen_metrics(metrics)
    require_background_zero({**(classes or {}), **(regions or {})})
    pairs = _evaluation_pairs(Path(predictions), Path(references))
    files = [file for match in pairs for file in (match.second, match.first)]
    dicom = [file for file in files if is_object(file)]
    require_names(files, dicom, named=bool(classes) or model is not None)
    first = read_geometry(plain[0]) if (plain := [file for file in files if file not in dicom]) else None
    _require_one_background(plain)
    first = first or objects_geometry(files[:2])
    workers = workers if len(pairs) * math.prod(first.shape) >= WORTH_PROCESSES else 1
    labels = _named_objects(objects, dicom, classes, regions, model)
    if labels is None and dicom and model is None:
        labels = labels_by_name(dicom, classes or {}, regions or {})
    elif labels is None:
        labels = _evaluated_labels(pairs, classes or {}, regions or {}, model, workers)
    if labels.objects:
        wanted = tuple(name for name in METRICS if name in (*wanted, *OBJECT_METRICS))
    pieces = _pieces(pairs, labels)
    tasks = [_EvaluateTask(*match, labels, wanted, pieces) for match in pairs]
    with progress("evaluate", len(tasks)) as meter:

        def done(case: CaseMetrics | DataError) -> None:
            meter.advance(text=case.case or "")
            if on_case and isinstance(case, CaseMetrics):
                on_case(case)

        found = map_parallel(_evaluate_one, tasks, workers, done)
    if errors := [case for case in found if isinstance(case, DataError)]:
        raise errors[0] if len(errors) == 1 else DataError("\n".join(map(str, errors)))
    _warn_of_absent(cases := [case for case in found if isinstance(case, CaseMetrics)], labels)
    return summarise(cases, labels, unit=distance_unit(first), metrics=wanted)


def _named_objects(
    name: str | None,
    dicom: Sequence[Path],
    classes: Mapping[str, int] | None,
    regions: Mapping[str, Sequence[int]] | None,
    model: str | Path | None,
) -> Labels | None:
    """Labels of the class whose objects files number, where `--objects` names it. Raises OptionError."""
    if not name:
        return None
    if classes or regions or model:
        raise OptionError("--objects names the one class there is", "Leave out --class, --region and --model")
    if dicom:
        raise OptionError(
            f"--objects needs files that number objects, and {dicom[0].name} names structures", "Leave it out"
        )
    return labels_of_objects(name)


def _pieces(pairs: Sequence[Match], labels: Labels) -> tuple[bool, bool]:
    """Whether predictions and references number no objects, so that connected pieces are compared; told once each."""
    if labels.objects is None:
        return False, False
    found = []
    for what, files in (
        ("predictions", [each.first for each in pairs]),
        ("references", [each.second for each in pairs]),
    ):
        unnumbered = unnumbered_masks([(file, None) for file in files if not is_object(file)], labels.ignore)
        if unnumbered is not None:
            log.warning("%s: %s. Where objects touch, number them in the files", what, unnumbered.finding.message)
        found.append(unnumbered is not None and unnumbered.pieces)
    return found[0], found[1]


def _evaluated_labels(
    pairs: Sequence[Match],
    classes: Mapping[str, int],
    regions: Mapping[str, Sequence[int]],
    model: str | Path | None,
    workers: int,
) -> Labels:
    if model is not None:
        from .inference.bundle import load_bundle

        return load_bundle(Path(model))[0].labels
    with progress("finding classes", len(pairs)) as meter:
        values = map_parallel(_values, [(a, b) for _, a, b in pairs], workers, lambda _: meter.advance())
    predicted, drawn = (set().union(*sets) for sets in zip(*values, strict=True))
    _warn_of_strangers(predicted, drawn)
    return _named_labels(dict(classes), predicted | drawn, regions)


def _warn_of_absent(cases: Sequence[CaseMetrics], labels: Labels) -> None:
    """Classes and regions whose Dice is undefined in every case: there is nothing of them in any file."""
    shown = {label.name: f"class {label.name} (value {label.value})" for label in labels.reported}
    for each in labels.reported_regions:
        shown[each.name] = f"region {each.name} (values {', '.join(map(str, each.values))})"
    if absent := [what for name, what in shown.items() if all(case.per_class[name].dice is None for case in cases)]:
        log.warning("in no prediction and in no reference: %s. Check the values and the files", ", ".join(absent))


def _evaluation_pairs(predictions: Path, references: Path) -> list[Match]:
    """Two files are a pair; of two folders every prediction needs its reference."""
    if all(path.is_file() or is_container(path) for path in (predictions, references)):
        return [Match(stem(predictions), predictions, references)]
    known = _files(references)
    predicted = _without_companions(_files(predictions), known)
    by_series = pair_by_series(predicted, known)
    pairs = [Match(each.stem, each, by_series[each]) for each in predicted if each in by_series]
    pairs = pairs or pair(predicted, known)
    alone = sorted(path.name for path in set(predicted) - {match.first for match in pairs})
    if alone:
        raise DataError(
            f"{len(alone)} predictions have no reference in {references}: {', '.join(alone[:5])}",
            "Give the folder with a reference of the same name for each",
        )
    other = [match for match in pairs if strip_channel(stem(match.first))[0] != stem(match.second)]
    if other and not by_series:
        log.info("names differ: %s is compared with %s, for example", other[0].first.name, other[0].second.name)
    if len(pairs) < len(known):
        log.warning("%d of %d references have no prediction and are not counted", len(known) - len(pairs), len(known))
    return pairs


def _without_companions(predicted: list[Path], known: list[Path]) -> list[Path]:
    """Without the maps that `predict` writes with a segmentation, such as `<case>.gate1.nii.gz`."""
    cases, references = {stem(file) for file in predicted}, {stem(file) for file in known}

    def is_companion(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:count]) in cases for count in range(1, len(parts)))

    return [file for file in predicted if stem(file) in references or not is_companion(stem(file))]


def _files(path: Path) -> list[Path]:
    """Of a folder with DICOM objects in it or below, these and image files, and not the series that they refer to."""
    files = [path] if path.is_file() or is_container(path) else image_files(path)
    if path.is_dir() and (objects := label_objects(path)):
        files = [file for file in files if file.is_file()] + sorted(objects)
    if not files:
        raise DataError(f"{path} has no label images", "Give the folder that holds them")
    return files


def _named_labels(classes: dict[str, int], present: set[int], regions: Mapping[str, Sequence[int]]) -> Labels:
    names = {value: name for name, value in classes.items()}
    rest = sorted(present.union(names, *regions.values()) - {0})
    background = LabelClass(name=names.get(0, "background"), value=0)
    foreground = tuple(LabelClass(name=names.get(value, f"label_{value}"), value=value) for value in rest)
    return Labels(
        classes=(background, *foreground),
        background_named=0 in names,
        regions=tuple(Region(name=name, values=tuple(values)) for name, values in regions.items()),
    )
