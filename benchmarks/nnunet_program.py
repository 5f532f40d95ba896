"""nnU-Net 2.8.1 in an environment of its own: set-up, data in its layout, and its commands. Standard library only."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

from measuring import REPOSITORY, Measured, cores, run

log = logging.getLogger("benchmark")

TORCH = "torch==2.13.0"
NNUNET = "nnunetv2==2.8.1"
DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
DRIVER = Path(__file__).with_name("nnunet_driver.py")


class NnUNet:
    """Its folders below `work`, and what has been made in them."""

    name = "nnU-Net 2.8.1"

    def __init__(self, environment: Path, data: Path, work: Path) -> None:
        self.bin, self.data, self.work = environment / "bin", data, work / "nnunet"
        self.logs = work / "logs"
        self.weights = self.work / "weights"
        self.predictions = self.work / "predictions"
        self.raw = self.work / "raw" / DATASET
        self.preprocessed = self.work / "preprocessed" / DATASET
        self.results = self.work / "results"
        # Its defaults assume 8 to 12 cores: one process per core is the setting in its favour.
        self.variables = {
            "nnUNet_raw": str(self.raw.parent),
            "nnUNet_preprocessed": str(self.preprocessed.parent),
            "nnUNet_results": str(self.results),
            "nnUNet_def_n_proc": str(cores()),
            "nnUNet_n_proc_DA": str(cores()),
        }

    # set-up, never timed

    @classmethod
    def installed(cls, environment: Path, data: Path, work: Path) -> NnUNet:
        """Make the environment unless it is there, and convert the data."""
        if not (environment / "bin" / "nnUNetv2_predict").exists():
            log.info("installing nnU-Net into its own environment")
            pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
            run([sys.executable, "-m", "venv", environment], work / "logs" / "venv.log")
            run([*pip, TORCH], work / "logs" / "install_torch.log")
            run([*pip, "-c", REPOSITORY / "constraints.txt", NNUNET], work / "logs" / "install_nnunet.log")
        program = cls(environment, data, work)
        if not (program.raw / "dataset.json").exists():
            program._convert()
        return program

    def _convert(self) -> None:
        """The Decathlon folder in nnU-Net's raw layout: same files, `_0000` appended, its own `dataset.json`."""
        source = json.loads((self.data / "dataset.json").read_text())
        for folder in ("imagesTr", "labelsTr"):
            (self.raw / folder).mkdir(parents=True, exist_ok=True)
        for entry in source["training"]:
            name = Path(entry["image"]).name.removesuffix(".nii.gz")
            shutil.copyfile(self.data / entry["image"], self.raw / "imagesTr" / f"{name}_0000.nii.gz")
            shutil.copyfile(self.data / entry["label"], self.raw / "labelsTr" / f"{name}.nii.gz")
        description = {
            "channel_names": source["modality"],
            "labels": {name: int(value) for value, name in source["labels"].items()},
            "numTraining": len(source["training"]),
            "file_ending": ".nii.gz",
        }
        (self.raw / "dataset.json").write_text(json.dumps(description, indent=1))

    def need_plan(self) -> Path:
        plans = self.preprocessed / "nnUNetPlans.json"
        if not (self.preprocessed / "dataset_fingerprint.json").exists():
            self.fingerprint()
        if not plans.exists():
            self.plan()
        return plans

    def need_preprocessed(self) -> None:
        self.need_plan()
        if not (self.preprocessed / f"nnUNetPlans_{CONFIGURATION}").exists():
            self.preprocess()

    def need_weights(self) -> Path:
        """Untrained weights of five folds; the folder with the same tensors as plain dicts."""
        self.need_preprocessed()
        if not (self.weights / "fold_4.pt").exists():
            self._python("checkpoints", self.weights)
        return self.weights

    def planned(self) -> dict[str, dict[str, object]]:
        """Per configuration what both plans must agree on, in network axis order."""
        plans = json.loads(self.need_plan().read_text())["configurations"]
        agreed = {}
        for name in ("2d", "3d_fullres"):
            network = plans[name]["architecture"]["arch_kwargs"]
            agreed[name] = {
                "patch_size": plans[name]["patch_size"],
                "batch_size": plans[name]["batch_size"],
                "spacing": plans[name]["spacing"],
                "features": network["features_per_stage"],
                "strides": network["strides"],
                "kernel_sizes": network["kernel_sizes"],
            }
        return agreed

    def folds(self) -> list[list[str]]:
        """Validation cases of each fold as its trainer splits them."""
        self.need_weights()
        splits = json.loads((self.preprocessed / "splits_final.json").read_text())
        return [sorted(fold["val"]) for fold in splits]

    # what is timed

    def help(self) -> Measured:
        return self._command("nnUNetv2_plan_and_preprocess", "--help")

    def fingerprint(self) -> Measured:
        return self._command(
            "nnUNetv2_extract_fingerprint", "-d", "4", "--verify_dataset_integrity", "--clean", "-np", str(cores())
        )

    def plan(self) -> Measured:
        return self._command("nnUNetv2_plan_experiment", "-d", "4")

    def preprocess(self) -> Measured:
        shutil.rmtree(self.preprocessed / f"nnUNetPlans_{CONFIGURATION}", ignore_errors=True)
        return self._command("nnUNetv2_preprocess", "-d", "4", "-c", CONFIGURATION, "-np", str(cores()))

    def prepare(self) -> Measured:
        """Check, fingerprint, plan and preprocess by one command."""
        shutil.rmtree(self.preprocessed / f"nnUNetPlans_{CONFIGURATION}", ignore_errors=True)
        return self._command(
            "nnUNetv2_plan_and_preprocess", "-d", "4", "--verify_dataset_integrity", "--clean",
            "-npfp", str(cores()), "-c", CONFIGURATION, "-np", str(cores()),
        )  # fmt: skip

    def steps(self, batches: str, count: int) -> tuple[dict[str, list[float]], Measured]:
        """Seconds of each training step, and the process that made them."""
        result = self.work / "steps.json"
        measured = self._python("steps", result, "--batches", batches, "--steps", str(count))
        return json.loads(result.read_text()), measured

    def predict(self, images: Path) -> Measured:
        shutil.rmtree(self.predictions, ignore_errors=True)
        folds = [str(fold) for fold in range(5)]
        return self._command(
            "nnUNetv2_predict", "-d", "4", "-i", images, "-o", self.predictions, "-c", CONFIGURATION, "-f", *folds,
            "-device", "cpu", "-npp", str(cores()), "-nps", str(cores()),
        )  # fmt: skip

    def _command(self, name: str, *arguments: str | Path) -> Measured:
        return run([self.bin / name, *arguments], self.logs / f"{name}.log", self.variables)

    def _python(self, name: str, *arguments: str | Path) -> Measured:
        in_process = {**self.variables, "nnUNet_n_proc_DA": "0"}  # the planner, in turn, refuses 0
        return run([self.bin / "python", DRIVER, name, *arguments], self.logs / f"nnunet_{name}.log", in_process)
