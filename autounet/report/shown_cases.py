"""The cases that the report shows: which ones and why, with their pictures and their slices for the viewer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..figures import Picture
from ..schema.errors import AutoUNetError
from ..schema.metrics import CaseMetrics
from ..store.run_folder import RunFolder
from .advice import suspicious_cases
from .output_records import OutputRecords
from .overlays import case_cuts, configuration_pictures, overlay_pictures, uncertainty_pictures
from .results_section import RankedCase, case_dice
from .tables import number
from .viewer import ViewerCase, pack_case
from .volumes import CaseVolume, EntropyReader, read_volume

log = logging.getLogger(__name__)

VIEWER_CASES = 3
"""the worst ones, whose slices can be browsed"""
MAX_CONFIGURATIONS = 3
"""whose own predictions are drawn"""


@dataclass(frozen=True)
class ShownCase:
    """One case of the report; `problem` says why there are no pictures."""

    entry: RankedCase
    reasons: tuple[str, ...] = ()
    """why it is shown: best, median, worst ..."""
    notes: tuple[str, ...] = ()
    """sentences without full stops"""
    configurations: tuple[str, ...] = ()
    """whose own predictions are drawn"""
    overlays: tuple[Picture, ...] = ()
    uncertainties: tuple[Picture, ...] = ()
    configuration_overlays: tuple[Picture, ...] = ()
    problem: str | None = None

    @property
    def case(self) -> str:
        return self.entry.case

    @property
    def anchor(self) -> str:
        return "case-" + "".join(letter if letter.isalnum() else "-" for letter in self.case)

    @property
    def dice(self) -> str:
        return number(self.entry.dice)

    @property
    def per_class(self) -> str:
        """Dice of each class; empty with a single class."""
        values = [f"{name} {number(metrics.dice)}" for name, metrics in self.entry.metrics.per_class.items()]
        return ", ".join(values) if len(values) > 1 else ""

    def without_pictures(self, problem: str) -> ShownCase:
        return replace(self, overlays=(), uncertainties=(), configuration_overlays=(), problem=problem)


def best_median_worst(ranked: Sequence[RankedCase]) -> list[tuple[str, RankedCase]]:
    """(best | median | worst, case), each case once; of an even number the lower of the two middle cases."""
    if not ranked:
        return []
    chosen: dict[str, tuple[str, RankedCase]] = {}
    for word, entry in (("worst", ranked[0]), ("best", ranked[-1]), ("median", ranked[(len(ranked) - 1) // 2])):
        chosen.setdefault(entry.case, (word, entry))
    order = ("best", "median", "worst")
    return sorted(chosen.values(), key=lambda pair: order.index(pair[0]))


def least_certain(ranked: Sequence[RankedCase]) -> RankedCase | None:
    """The case with the highest mean entropy; None where it was measured in fewer than two cases."""
    measured = [(entry.metrics.uncertainty, entry) for entry in ranked if entry.metrics.uncertainty is not None]
    return max(measured, key=lambda pair: (pair[0], pair[1].case))[1] if len(measured) > 1 else None


def largest_disagreement(
    ranked: Sequence[RankedCase], configuration_metrics: Mapping[str, Sequence[CaseMetrics]], classes: Sequence[str]
) -> tuple[RankedCase, dict[str, float]] | None:
    """The case whose mean Dice differs most between single configurations, and these values; None without two."""
    dice: dict[str, dict[str, float]] = {}
    for name, cases in configuration_metrics.items():
        for case in cases:
            if (value := case_dice(case, classes)) is not None:
                dice.setdefault(case.case, {})[name] = value
    several = [(entry, dice[entry.case]) for entry in ranked if len(dice.get(entry.case, {})) > 1]
    if not several:
        return None
    return max(several, key=lambda pair: (max(pair[1].values()) - min(pair[1].values()), pair[0].case))


def show_cases(
    records: OutputRecords, ranked: Sequence[RankedCase], classes: Sequence[str], entropy: EntropyReader | None
) -> tuple[list[ShownCase], list[ViewerCase]]:
    """The chosen cases with their pictures, and the worst cases for the viewer. `classes`: counted in the mean Dice."""
    chosen = {shown.case: shown for shown in _choose_cases(records, ranked, classes)}
    worst = [entry.case for entry in ranked[:VIEWER_CASES]]
    packed: dict[str, ViewerCase] = {}
    for shown in [*chosen.values(), *(ShownCase(entry) for entry in ranked[:VIEWER_CASES] if entry.case not in chosen)]:
        try:
            volume = _read(records, shown, entropy)
            if shown.case in chosen:
                chosen[shown.case] = _with_pictures(shown, volume)
            if shown.case in worst:
                words = f"mean Dice {shown.dice}" + (f": {shown.per_class}" if shown.per_class else "")
                packed[shown.case] = pack_case(volume, words)
        except AutoUNetError as error:
            problem = ". ".join(filter(None, [error.message, error.remedy]))
            chosen |= {shown.case: shown.without_pictures(problem)} if shown.case in chosen else {}
        except Exception as error:  # the report comes after hours of training and is not lost for one picture
            log.warning("no picture of case %s", shown.case, exc_info=True)
            problem = f"{type(error).__name__}: {error}"
            chosen |= {shown.case: shown.without_pictures(problem)} if shown.case in chosen else {}
    return list(chosen.values()), [packed[case] for case in worst if case in packed]


def _choose_cases(records: OutputRecords, ranked: Sequence[RankedCase], classes: Sequence[str]) -> list[ShownCase]:
    """Best, median, worst, largest disagreement of configurations, least certain, suspicious labels; each once."""
    choices = best_median_worst(ranked)
    disagreement = largest_disagreement(ranked, records.configuration_metrics, classes)
    if disagreement:
        choices.append(("configurations differ most", disagreement[0]))
    if uncertain := least_certain(ranked):
        choices.append(("least certain", uncertain))
    choices += [("label to look at again", entry) for entry in suspicious_cases(ranked)]
    chosen: dict[str, ShownCase] = {}
    for reason, entry in choices:
        shown = chosen.get(entry.case) or ShownCase(entry)
        chosen[entry.case] = replace(shown, reasons=(*shown.reasons, reason))
    for case, shown in chosen.items():
        notes: list[str] = []
        configurations: tuple[str, ...] = ()
        if disagreement and disagreement[0].case == case:
            dice = disagreement[1]
            values = ", ".join(f"{name} {number(value)}" for name, value in dice.items())
            notes.append(f"Mean out-of-fold Dice of each configuration alone: {values}")
            configurations = tuple(dice)[:MAX_CONFIGURATIONS]
        if (uncertainty := shown.entry.metrics.uncertainty) is not None:
            notes.append(f"Mean uncertainty around its structures: {number(uncertainty)}")
        chosen[case] = replace(shown, notes=tuple(notes), configurations=configurations)
    return list(chosen.values())


def _read(records: OutputRecords, shown: ShownCase, entropy: EntropyReader | None) -> CaseVolume:
    if records.dataset is None or records.prediction_folder is None:
        raise AutoUNetError("dataset.json or selection.json is missing, so its files are not known")
    case = next((case for case in records.dataset.cases if case.identifier == shown.case), None)
    if case is None:
        raise AutoUNetError("dataset.json does not list it")
    folders = [RunFolder(records.out).crossval(name).path for name in shown.configurations]
    readable = _tolerant(entropy) if entropy else None
    return read_volume(records.dataset, case, records.prediction_folder, readable, folders)


def _tolerant(entropy: EntropyReader) -> EntropyReader:
    """Damaged scores cost a case its uncertainty, not its pictures."""

    def read(case: str, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray | None:
        try:
            return entropy(case, z, y, x)
        except AutoUNetError as error:
            log.warning("no uncertainty of case %s: %s", case, error)
            return None

    return read


def _with_pictures(shown: ShownCase, volume: CaseVolume) -> ShownCase:
    cuts = case_cuts(volume)
    return replace(
        shown,
        overlays=tuple(overlay_pictures(cuts, shown.case, volume.values)),
        uncertainties=tuple(uncertainty_pictures(cuts, shown.case, volume.values)),
        configuration_overlays=tuple(configuration_pictures(cuts, shown.case, volume.values)),
    )
