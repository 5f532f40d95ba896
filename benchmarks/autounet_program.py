"""AutoUNet's side of the comparison: the same verbs as `nnunet_program.py`. Standard library only."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from measuring import Measured, run

# --epochs, because without it (or --time) a CPU gets an hour and the plan is shaped to that.
OPTIONS = ("--preset", "nnunet", "--memory", "8GB", "--splits", "nnunet", "--epochs", "1000", "--device", "cpu")
CONFIGURATION = "3d_fullres"
DRIVER = Path(__file__).with_name("autounet_driver.py")


class AutoUNet:
    """Output folders below `work`, one per state that a timed command starts from."""

    name = "AutoUNet"

    def __init__(self, data: Path, work: Path) -> None:
        self.data, self.work, self.logs = data, work / "autounet", work / "logs"
        self.program = Path(sys.executable).with_name("autounet")
        self.out = self.work / "out"
        self.model = self.work / "model"
        self.predictions = self.work / "predictions"

    # set-up, never timed

    def need_fingerprint(self) -> Path:
        return self._state("fingerprinted", lambda out: self._stage("fingerprint", out))

    def need_plan(self) -> Path:
        """Both configurations planned."""
        return self._state("planned", lambda out: self._stage("plan", out))

    def need_3d_plan(self) -> Path:
        """Planned for the one configuration that is preprocessed."""
        return self._state("planned_3d", lambda out: self._stage("plan", out, "--configurations", CONFIGURATION))

    def need_preprocessed(self) -> Path:
        """From the same plan, so that one probe of the device decides the precision of everything after it."""

        def make(out: Path) -> None:
            shutil.copytree(self.need_3d_plan(), out)
            self._stage("preprocess", out, "--configurations", CONFIGURATION)

        return self._state("preprocessed", make)

    def need_model(self, weights: Path) -> Path:
        """A bundle with the other program's weights: same network, same values."""
        if not (self.model / "bundle.json").exists():
            self._python("bundle", self.need_preprocessed(), weights, self.model)
        return self.model

    def planned(self) -> dict[str, dict[str, object]]:
        """Per configuration what both plans must agree on, in network axis order."""
        plan = json.loads((self.need_plan() / "plan.json").read_text())["configurations"]
        agreed = {}
        for name, configuration in plan.items():
            network = configuration["network"]
            agreed[name] = {
                "patch_size": configuration["patch_size"],
                "batch_size": configuration["batch_size"],
                "spacing": configuration["spacing"],
                "features": network["features"],
                "strides": network["strides"],
                "kernel_sizes": network["kernel_sizes"],
            }
        return agreed

    def folds(self) -> list[list[str]]:
        """Validation cases of each fold."""
        return [sorted(fold) for fold in json.loads((self.need_plan() / "splits.json").read_text())["folds"]]

    def precision(self) -> str:
        """Number format and memory order that the probe of the device chose for training and predicting."""
        plan = json.loads((self.need_preprocessed() / "plan.json").read_text())["configurations"][CONFIGURATION]
        return plan["precision"] + (", channels last" if plan["channels_last"] else "")

    # what is timed

    def help(self) -> Measured:
        return self._run("help", self.program, "--help")

    def fingerprint(self) -> Measured:
        shutil.rmtree(self.out, ignore_errors=True)
        return self._stage("fingerprint", self.out)

    def plan(self) -> Measured:
        self._restore(self.need_fingerprint())
        return self._stage("plan", self.out)

    def preprocess(self) -> Measured:
        self._restore(self.need_3d_plan())
        return self._stage("preprocess", self.out, "--configurations", CONFIGURATION)

    def prepare(self) -> Measured:
        """Check, fingerprint, plan and preprocess by one command."""
        shutil.rmtree(self.out, ignore_errors=True)
        return self._stage("preprocess", self.out, "--configurations", CONFIGURATION)

    def steps(self, batches: str, count: int) -> tuple[dict[str, list[float]], Measured]:
        """Seconds of each training step, and the process that made them."""
        result = self.work / "steps.json"
        out = self.need_preprocessed()
        measured = self._python("steps", out, result, "--batches", batches, "--steps", str(count))
        return json.loads(result.read_text()), measured

    def predict(self, images: Path) -> Measured:
        shutil.rmtree(self.predictions, ignore_errors=True)
        options = ("--out", self.predictions, "--device", "cpu")
        return self._run("predict", self.program, "predict", self.model, images, *options)

    def agreement(self, other: Path) -> dict[str, float]:
        """How far our predictions agree with those in another folder."""
        result = self.work / "agreement.json"
        self._python("agreement", self.predictions, other, result)
        return json.loads(result.read_text())

    # how

    def _stage(self, stage: str, out: Path, *options: str) -> Measured:
        return self._run(stage, self.program, stage, self.data, "--out", out, *OPTIONS, *options)

    def _state(self, name: str, make: Callable[[Path], object]) -> Path:
        """The output folder `name`, made once; a run that failed leaves none."""
        folder = self.work / name
        if not folder.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            unfinished = self.work / f"{name}_unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(folder)
        return folder

    def _restore(self, state: Path) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(state, self.out)

    def _python(self, name: str, *arguments: str | Path) -> Measured:
        return self._run(f"driver_{name}", sys.executable, DRIVER, name, *arguments)

    def _run(self, name: str, *command: str | Path) -> Measured:
        return run(command, self.logs / f"autounet_{name}.log")
