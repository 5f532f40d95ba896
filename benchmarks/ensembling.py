"""What choosing and averaging bring: 2d, 3d_fullres and their ensemble; five folds against one on unseen cases.

    python benchmarks/ensembling.py --data Task04_Hippocampus [--time 40m] [--out OUT]

DATA is a Decathlon folder. Every tenth case is held out; the others are trained with five folds of both configurations.
The selection compares them out of fold. Then the held-out cases are segmented by the whole ensemble and by each fold
alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import commit, machine, public_command, run, seconds_text, table, write_results

log = logging.getLogger("benchmark")

PROGRAM = Path(sys.executable).with_name("autounet")
EVERY = 10
FOLDS = 5


@dataclass(frozen=True)
class HeldOut:
    training: Path
    """a Decathlon folder without the held-out cases"""
    images: Path
    references: Path


def hold_out(data: Path, out: Path) -> HeldOut:
    """Links to the files of DATA: nine tenths in a Decathlon folder, one tenth as images and references."""
    described = json.loads((data / "dataset.json").read_text())
    cases = sorted(described["training"], key=lambda case: case["image"])
    held = HeldOut(out / "data", out / "held_out" / "images", out / "held_out" / "references")
    kept = []
    for index, case in enumerate(cases):
        image, label = ((data / case[key]).resolve() for key in ("image", "label"))
        if index % EVERY == 0:
            link(image, held.images / image.name)
            link(label, held.references / label.name)
        else:
            link(image, held.training / "imagesTr" / image.name)
            link(label, held.training / "labelsTr" / label.name)
            kept.append({"image": f"./imagesTr/{image.name}", "label": f"./labelsTr/{label.name}"})
    changed = described | {"training": kept, "numTraining": len(kept)}
    (held.training / "dataset.json").write_text(json.dumps(changed, indent=1))
    return held


def link(target: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def held_out_metrics(model: Path, held: HeldOut, out: Path, name: str, *options: str) -> dict[str, Any]:
    """Metrics of the held-out cases as `model` with `options` segments them."""
    predictions, metrics = out / "predictions" / name, out / "metrics" / f"{name}.json"
    metrics.parent.mkdir(exist_ok=True)
    predict = [PROGRAM, "predict", model, held.images, "--out", predictions, *options]
    run(predict, out / "logs" / f"predict_{name}.log")
    evaluate = [PROGRAM, "evaluate", predictions, held.references, "--model", model, "--out", metrics]
    run(evaluate, out / "logs" / f"evaluate_{name}.log")
    return json.loads(metrics.read_text())


def case_means(metrics: dict[str, Any]) -> dict[str, float]:
    """Mean Dice over the classes of each case in which it is defined."""
    means = {}
    for case in metrics["cases"]:
        values = [found["dice"] for found in case["per_class"].values() if found["dice"] is not None]
        if values:
            means[case["case"]] = statistics.mean(values)
    return means


def selection_table(selection: dict[str, Any]) -> str:
    def shown(interval: list[float] | None) -> str:
        return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"

    rows = [
        [" + ".join(tried["configurations"]), f"{tried['mean_dice']:.4f}", shown(tried.get("interval"))]
        for tried in selection["compared"]
    ]
    return table(["out of fold", "mean Dice", "95 % interval"], rows)


def fold_table(ensemble: dict[str, Any], singles: list[dict[str, Any]]) -> tuple[str, str]:
    """The table of the held-out cases, and what it says."""
    alone = [single["mean_dice"] for single in singles]
    mean = statistics.mean(alone)
    rows = [[f"fold {fold} alone", f"{value:.4f}"] for fold, value in enumerate(alone)]
    rows += [["mean of the single folds", f"{mean:.4f}"], ["all five folds", f"{ensemble['mean_dice']:.4f}"]]
    per_case = [case_means(single) for single in singles]
    together = case_means(ensemble)
    better = sum(value > statistics.mean(each[case] for each in per_case) for case, value in together.items())
    verb = "beat" if ensemble["mean_dice"] > mean else "do NOT beat"
    said = f"The five folds together {verb} the mean single fold; in {better} of {len(together)} cases they are better."
    return table(["held-out cases", "mean Dice"], rows), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "autounet-ensembling")
    parser.add_argument("--time", default="40m")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    out = given.out.resolve()
    if out.exists():
        sys.exit(f"{out} exists already. Give another --out.")

    held = hold_out(given.data.resolve(), out)
    training = [held.training, "--out", out / "run", "--configurations", "2d,3d_fullres", "--time", given.time]
    log.info("training")
    measured = run([PROGRAM, "run", *training], out / "logs" / "run.log")
    selection, model = json.loads((out / "run" / "selection.json").read_text()), out / "run" / "model"
    log.info("held-out cases")
    ensemble = held_out_metrics(model, held, out, "all_folds")
    singles = [held_out_metrics(model, held, out, f"fold_{fold}", "--folds", str(fold)) for fold in range(FOLDS)]
    folds, said = fold_table(ensemble, singles)
    text = "\n".join(
        [
            "# Choosing and averaging\n",
            f"- command: `python {public_command([f'benchmarks/{Path(__file__).name}', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- commit: {commit()}",
            f"- training: `autounet run {public_command(training)}`, {seconds_text(measured.seconds)}\n",
            "## Which configurations\n",
            selection_table(selection),
            f"Chosen: {' + '.join(selection['chosen'])}. {selection['reason']}\n",
            selection["postprocessing_reason"] + "\n",
            f"## Five folds and one, on {len(ensemble['cases'])} cases that no fold has seen\n",
            folds,
            said,
            "",
        ]
    )
    write_results("ensembling", text, given.results)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
