"""Draws a training's curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autounet.atomic import replacing
from autounet.schema.run import EpochLog


def draw_progress(curve: Sequence[EpochLog], path: Path) -> None:
    """Loss and validation Dice above, learning rate and seconds a step below, over the steps; replaces `path`."""
    from matplotlib.figure import Figure

    steps = [line.step for line in curve]
    figure = Figure(figsize=(8, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(steps, [line.loss for line in curve], color="black", label="training loss")
    top.set_ylabel("loss")
    scores = top.twinx()
    scores.set_ylabel("Dice on validation patches")
    scores.set_ylim(0, 1)
    measured = [line for line in curve if line.validation_dice]
    for name in measured[-1].validation_dice or () if measured else ():
        values = [(line.validation_dice or {}).get(name) for line in measured]
        scores.plot([line.step for line in measured], values, label=name, linewidth=1)
    handles = [handle for axes in (top, scores) for handle in axes.get_legend_handles_labels()[0]]
    top.legend(handles, [str(handle.get_label()) for handle in handles], loc="lower left", fontsize="small")
    bottom.plot(steps, [line.learning_rate for line in curve], color="black")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    speed = bottom.twinx()
    speed.plot(steps, [line.step_seconds for line in curve], color="tab:orange", linewidth=1)
    speed.set_ylabel("seconds a step (orange)")
    speed.set_ylim(bottom=0)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
