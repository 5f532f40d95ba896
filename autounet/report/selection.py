"""What was compared, what was removed from the result, how sure its probabilities are: as rows and sentences. Pure."""

from __future__ import annotations

from autounet.report.table import DASH, Table, number
from autounet.schema.selection import Candidate, Selection


def candidates_table(selection: Selection) -> Table:
    """Every candidate with its interval and how far behind the best it is."""
    rows = [
        [
            " + ".join(candidate.configurations),
            number(candidate.mean_dice, 4),
            _interval(candidate),
            number(candidate.behind, 4),
            number(candidate.noise, 4),
            "chosen" if candidate.configurations == selection.chosen else "",
        ]
        for candidate in selection.compared
    ]
    head = ["candidate", "mean Dice", "95 % interval", "behind the best", "one standard error", ""]
    notes = [selection.rule.rstrip(".")] if selection.rule and len(rows) > 1 else []
    return Table(head, rows, numeric=(1, 2, 3, 4), notes=notes)


def _interval(candidate: Candidate) -> str:
    return DASH if candidate.interval is None else f"{candidate.interval[0]:.4f} to {candidate.interval[1]:.4f}"


def trials_table(selection: Selection) -> Table:
    """What postprocessing was tried, and what it gained on cases that had no part in choosing it."""
    rows = [
        [
            trial.name,
            DASH if trial.step is None else f"keep {trial.step}",
            DASH if trial.gain is None else f"{trial.gain:+.4f}",
            number(trial.noise, 4),
            "kept" if trial.kept else "",
        ]
        for trial in selection.postprocessing_trials
    ]
    head = ["components of", "best on all cases", "mean Dice gained when held out", "one standard error", ""]
    return Table(head, rows, numeric=(2, 3))


def calibration_text(selection: Selection) -> str:
    """Two sentences; empty without calibration."""
    found = selection.calibration
    if found is None:
        return ""
    used = "is applied to" if found.temperature != 1.0 else "brings nothing to cases held out, so it is not applied to"
    return (
        f"Expected calibration error of the out-of-fold probabilities ({found.bins} bins, {found.voxels} voxels around "
        f"the structures of {found.cases} cases): {found.ece_before:.4f} before, {found.ece_after:.4f} after "
        f"temperature scaling, each fold at the temperature of the others. The temperature fitted on all, "
        f"{found.fitted:.3g}, {used} the probabilities that autounet predict writes. It changes no segmentation."
    )
