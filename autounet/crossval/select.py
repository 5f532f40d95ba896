"""The last job: compare configurations and ensembles on all out-of-fold cases, choose, pack the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from ..imageio import is_image, stem
from ..schema.labels import counted_targets
from ..schema.metrics import Metrics
from ..schema.plan import with_previous_stages
from ..schema.run import fold_name
from ..schema.selection import Selection
from ..store import SCORES, STAGE_LABELS
from ..workflow.context import Context
from . import validate as case_work
from .choose import select
from .ensemble_weights import Weighing
from .final_steps import Aftercare, measured
from .validate import ValidatedCases, ensemble_keys


def fold_metrics(out: Path, name: str, fold: int) -> Path:
    """Where the out-of-fold metrics of one fold are kept."""
    return out / "crossval" / name / f"fold_{fold}.json"


class Selecting:
    """Writes selection.json, metrics.json and model/."""

    def __init__(self, context: Context) -> None:
        self.context, self.out = context, context.out
        self.folds = [fold for fold in context.folds if fold is not None]

    def run(self) -> None:
        metrics = {**self._single(), **self._ensembles()} if self.folds else {}
        if metrics:
            selection = self._select(metrics)
            selection, plain = Weighing(self.context).of(selection, metrics["+".join(selection.chosen)])
            selection, chosen = Aftercare(self.context).of(selection, plain)
            chosen = measured(self.context, selection, chosen)
            chosen.save(self.out / "metrics.json")
        else:
            selection, chosen = self._without_validation(), None
            (self.out / "metrics.json").unlink(missing_ok=True)
        selection.save(self.out / "selection.json")
        self._forget_gone_cases()
        self._pack(selection, chosen)

    def _select(self, metrics: Mapping[str, Metrics]) -> Selection:
        labels, configurations = self.context.known.dataset.labels, self.context.configurations
        costs = {name: len(with_previous_stages(name.split("+"), configurations)) for name in metrics}
        return select(metrics, [target.name for target in counted_targets(labels)], costs, self.folds)

    def _forget_gone_cases(self) -> None:
        """Segmentations, scores and handed-over labels of cases that the data set no longer has."""
        known = {case.identifier for case in self.context.known.dataset.cases}
        kept = {file: stem(file) for file in self.out.glob("crossval/**/*") if is_image(file)}
        places_of = ("*/scores/*", f".{SCORES}"), ("*/next/*/*", f".{STAGE_LABELS}"), ("*/cases/*", ".json")
        for places, ending in places_of:
            files = self.out.glob(f"crossval/{places}{ending}")
            kept |= {file: file.name.removesuffix(ending) for file in files}
        for file, name in kept.items():
            if name not in known:
                file.unlink()

    def _single(self) -> dict[str, Metrics]:
        found = {}
        for name in self.context.configurations:
            cases = [case for fold in self.folds for case in Metrics.load(fold_metrics(self.out, name, fold)).cases]
            found[name] = case_work.summarise_cases(cases, self.context.known.dataset)
        return found

    def _ensembles(self) -> dict[str, Metrics]:
        """Of every pair, and of all. Only cases whose scores have changed are averaged again."""
        dataset, crossval = self.context.known.dataset, self.out / "crossval"
        fold_of = {case: fold for fold in self.folds for case in self.context.cases(fold)[1]}
        found = {}
        for members in self._members():
            joined = "+".join(members)
            earlier = ValidatedCases(
                dataset, crossval / joined, ensemble_keys([crossval / name for name in members], list(fold_of))
            )
            kept = earlier.kept()
            sources = {name: (self.context.configurations[name], crossval / name / "scores") for name in members}
            if changed := {case: fold for case, fold in fold_of.items() if case not in kept}:
                metrics = case_work.ensemble_cases(dataset, sources, self.out / "prepared", changed, crossval / joined)
                earlier.keep(metrics.cases)
                kept |= {each.case: each for each in metrics.cases}
            found[joined] = case_work.summarise_cases([kept[case] for case in fold_of], dataset)
        return found

    def _members(self) -> list[tuple[str, ...]]:
        """Of the ensembles; planning sees to it that all configurations learn the same."""
        names = tuple(self.context.configurations)
        return [*combinations(names, 2), *([names] if len(names) > 2 else [])]

    def _without_validation(self) -> Selection:
        """All cases were trained on: the main configuration, since nothing speaks for the cost of an ensemble."""
        names = list(self.context.configurations)
        return Selection(
            chosen=("3d_fullres" if "3d_fullres" in names else names[-1],),
            compared=(),
            reason="Trained on all cases: nothing was left to validate on, so nothing was compared.",
        )

    def _pack(self, selection: Selection, metrics: Metrics | None) -> None:
        from ..inference.bundle import pack

        models, configurations, known = self.out / "models", self.context.configurations, self.context.known
        weights = {
            name: {
                fold: models / name / fold_name(fold) / "weights.safetensors" for fold in self.context.folds_of(name)
            }
            for name in with_previous_stages(selection.chosen, configurations)
        }
        pack(
            self.out / "model",
            known.dataset,
            self.context.options.data,
            configurations,
            selection,
            weights,
            metrics.mean_dice if metrics else None,
            fingerprint=known.fingerprint,
            metrics=metrics,
        )
