"""A program that uses the interface, for type checkers alone: what is wrong in it stands behind `wrong`."""

from __future__ import annotations

from pathlib import Path

import autounet


def show(progress: autounet.Progress) -> None:
    left: float | None = progress.run_seconds_left
    assert left is None or left >= 0, progress.task


result = autounet.run(
    Path("data"), "out", time="2h", memory=2**33, folds=[0, 1], configurations="2d", classes={"liver": 1},
    regions={"all": [1, 2]}, on_progress=show, cancel=lambda: False, replan=True, init=Path("model"), workers="auto",
)  # fmt: skip
dice: float | None = result.metrics.mean_dice if result.metrics else None
steps: int = result.folds[0].record.steps
plan: autounet.Plan = autounet.plan("data", "out", epochs=3)
trained: autounet.TrainResult = autounet.train("data", "out", deterministic=True)
found: autounet.CheckResult = autounet.check("data", kinds={"image": "ct"})
model: autounet.Model = autounet.load(result.model, folds=[0])
metrics: autounet.Metrics = autounet.evaluate("a", "b", model=result.model)
try:
    least = 0.0
except autounet.DeadlineError as error:
    least = error.least_seconds

autounet.run("data", "out", tiem="2h")  # wrong
autounet.run("data", "out", seed="3")  # wrong
autounet.check("data", time="2h")  # wrong
autounet.run("data", "out", on_progress=steps)  # wrong
autounet.fit()  # wrong
dice.upper()  # wrong
