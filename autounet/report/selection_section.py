"""The report's section on selection: candidates, postprocessing and calibration."""

from __future__ import annotations

from collections.abc import Sequence

from ..figures import MUTED, SERIES, Picture, as_svg, two_charts
from ..schema.selection import ReliabilityBin, Selection, TemperatureScaling
from .tables import DASH, ReportTable, interval_text, number


def candidates_table(selection: Selection) -> ReportTable:
    """Every candidate with its interval and its distance from the best one."""
    rows = [
        [
            " + ".join(candidate.configurations),
            number(candidate.mean_dice, 4),
            interval_text(candidate.interval, 4),
            number(candidate.behind, 4),
            number(candidate.noise, 4),
            "chosen" if candidate.configurations == selection.chosen else "not chosen",
        ]
        for candidate in selection.compared
    ]
    head = ["candidate", "mean Dice", "95 % interval", "below the best", "standard error of that", "decision"]
    notes = [selection.rule.rstrip(".")] if selection.rule and len(rows) > 1 else []
    return ReportTable(head, rows, numeric=(1, 2, 3, 4), notes=notes)


def postprocessing_table(selection: Selection) -> ReportTable:
    """Postprocessing steps that were tried, with the gain on cases that had no part in choosing them."""
    rows = [
        [
            trial.name,
            DASH if trial.step is None else f"keep {trial.step}",
            DASH if trial.gain is None else f"{trial.gain:+.4f}",
            number(trial.noise, 4),
            "used" if trial.kept else "not used",
        ]
        for trial in selection.postprocessing_trials
    ]
    head = ["components of", "best step on all cases", "gain in mean Dice, held out", "standard error", "decision"]
    return ReportTable(head, rows, numeric=(2, 3))


def calibration_text(calibration: TemperatureScaling) -> str:
    """What was measured and whether the temperature is used, for people who use the probabilities."""
    if calibration.temperature != 1.0:
        use = "is used"
    else:
        use = "did not reduce the error of held-out cases, so it is not used"
    return (
        f"Expected calibration error of the out-of-fold probabilities, from {calibration.voxels} voxels around the "
        f"structures of {calibration.cases} cases in {calibration.bins} bins: {calibration.ece_before:.4f} before and "
        f"{calibration.ece_after:.4f} after temperature scaling, where each fold is scaled by the temperature that was "
        f"fitted on the other folds. The temperature fitted on all folds, {calibration.fitted:.3g}, {use} for the "
        "probabilities that autounet predict writes. Segmentations do not depend on it."
    )


def reliability_diagram(calibration: TemperatureScaling) -> Picture | None:
    """Accuracy against confidence before and after scaling; None where the bins were not stored."""
    if not calibration.reliability_before:
        return None
    figure, (axes, counts) = two_charts()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, label="perfect calibration")
    lowest = 1.0
    states: tuple[tuple[str, Sequence[ReliabilityBin], str, str], ...] = (
        (f"before, error {calibration.ece_before:.3f}", calibration.reliability_before, "s", "--"),
        (f"after, error {calibration.ece_after:.3f}", calibration.reliability_after, "o", "-"),
    )
    for place, (name, bins, marker, dashes) in enumerate(states):
        confidence = [each.confidence for each in bins]
        right, share = [each.right for each in bins], [each.share for each in bins]
        colour = SERIES[1 - place]
        axes.plot(confidence, right, dashes, marker=marker, markersize=4.5, color=colour, linewidth=1.5, label=name)
        counts.plot(confidence, share, dashes, marker=marker, markersize=3, color=colour, linewidth=1.2)
        lowest = min(lowest, *confidence, *right)
    axes.set_xlim(max(0.0, lowest - 0.05), 1.02)
    axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
    axes.set_ylabel("share of correct voxels")
    axes.legend(frameon=False, fontsize=9)
    counts.set_ylabel("share of\nall voxels")
    counts.set_yscale("log")
    counts.set_xlabel("confidence: probability of the predicted class")
    alt = (
        f"Reliability diagram of the out-of-fold probabilities: expected calibration error "
        f"{calibration.ece_before:.4f} before and {calibration.ece_after:.4f} after temperature scaling"
    )
    return Picture(as_svg(figure), alt=alt, title="Reliability of the probabilities")
