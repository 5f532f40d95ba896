"""Everything that reads files of others, each with sound files to change and what reads them."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from fuzzing_data import Parser, Seed, dicom_objects, images, outlines_of_objects, sidecars, splits, tables
from fuzzing_mutations import flipped, json_changed, safetensors_changed, worded, zip_changed

# ---- what OUT holds ----------------------------------------------------------------------------------------------


def outputs(folder: Path) -> Path:
    """An output folder with all records that a command reads first."""
    from fake_output import complete_output

    from autounet.schema.run import DeviceProfile, PredictedCase, PredictedFile, read_log, record_of
    from autounet.store.run_folder import RunFolder
    from autounet.time_budget.deadline import Clock
    from autounet.workflow.job_state import JobList, JobRun, ListedJob

    out = RunFolder(complete_output(folder / "out"))
    assert DeviceProfile.load(out.device) is not None
    Clock(promised_seconds=900.0, spent_seconds=1.0).save(out.clock)
    place = out.job("a")
    JobRun(key="k", attempt="1", state="running", host="h", began=1.0).save(place.run)
    place.attempts.write_text('{"at": 1.0, "host": "h", "reason": "lost", "counted": true}\n')
    JobList(jobs=(ListedJob(name="a", key="k", needs=(), done="models/a/done.json"),)).save(out.job_list)
    for file in out.path.glob("models/*/*/record.json"):
        curve = json.loads(file.read_text())["curve"]
        (file.parent / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve[:3]))
        assert read_log(file.parent / "log.jsonl")
        (file.parent / "started.json").write_text("{}")
    record = PredictedCase(
        case="a", key="k", run="r", files=(PredictedFile(name="a.nii.gz", bytes=1, modified=0, checksum=None),)
    )
    record.save(record_of(out.path, "a"))
    return out.path


def status(folder: Path) -> list[Seed]:
    from autounet.workflow.read_status import read_status

    out = outputs(folder)
    files = [*out.glob("*.json"), *out.glob("jobs/**/*.json*"), *out.glob("models/*/fold_0/*.json*")]
    return [Seed(file, (json_lines_changed, flipped), partial(read_status, out)) for file in sorted(files)]


def json_lines_changed(rng: Random, whole: bytes) -> bytes:
    try:
        return json_changed(rng, whole)
    except ValueError:  # a line for each record
        lines = whole.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json_changed(rng, lines[at])
        return b"\n".join(lines) + b"\n"


def plans(folder: Path) -> list[Seed]:
    """As `train` takes them over: read, and validated against the data."""
    from autounet.planning.validation import validate
    from autounet.schema.dataset import Dataset
    from autounet.schema.fingerprint import Fingerprint
    from autounet.store.run_folder import RunFolder
    from autounet.workflow.plan_stage import PlanFile

    out = RunFolder(outputs(folder))
    fingerprint, labels = Fingerprint.load(out.fingerprint), Dataset.load(out.dataset).labels
    fingerprint = fingerprint.model_copy(update={"orientation": "canonical"})  # as the plan of the same maker has it

    def read() -> None:
        if (plan := PlanFile(out).load()) is not None:
            validate(plan, fingerprint, labels)
        out.plan.with_name("plan.json.damaged").unlink(missing_ok=True)

    return [Seed(out.plan, (json_changed, worded, flipped), read)]


def predicted(folder: Path) -> list[Seed]:
    from autounet.schema.run import is_result, record_of, written_names

    out = outputs(folder)

    def read() -> None:
        written_names(out, "a")
        is_result(out / "a.nii.gz")

    return [Seed(record_of(out, "a"), (json_changed, worded, flipped), read)]


def reports(folder: Path) -> list[Seed]:
    """What the other commands read of an output folder, as they do: each of them refuses or shows it."""
    from autounet.report.comparison import compare_runs, compare_with_published
    from autounet.report.output_records import read_output_records
    from autounet.schema.errors import AutoUNetError

    out = outputs(folder)
    other = shutil.copytree(out, folder / "other")

    def read() -> None:
        told = None
        for each in (
            partial(compare_with_published, out, None), partial(compare_runs, out, other, "dice"),
            partial(read_output_records, out),
        ):  # fmt: skip
            try:
                each()
            except AutoUNetError as error:
                told = error
        if told is not None:
            raise told

    return [Seed(file, (json_changed, flipped), read) for file in sorted(out.glob("*.json"))]


def prepared(folder: Path) -> list[Seed]:
    from test_store import properties_of

    from autounet.store import prepared as store

    image = np.arange(2 * 4 * 8 * 8, dtype=np.float32).reshape(2, 4, 8, 8)
    properties = properties_of((4, 8, 8))
    name = properties.identifier
    store.write_prepared(folder, properties, image, image[0].astype(np.int8), {1: np.ones((3, 3), np.int32)})
    store.write_scores(folder, name, image)

    def read() -> None:
        """A command compares checksums first; whoever made the folder has computed them."""
        case = store.open_prepared(folder, name)
        case.image[:, 1:3]
        if case.labels is not None:
            case.labels[...]
        store.read_scored(folder, folder, name)

    arrays = [Seed(file, (flipped,), read) for file in sorted(folder.glob("*.b2nd"))]
    return [*arrays, Seed(folder / f"{name}.json", (json_changed, flipped), read)]


# ---- models ------------------------------------------------------------------------------------------------------


def bundles(folder: Path) -> list[Seed]:
    from nnunet_exports import configuration, packed

    from autounet.inference.bundle import export_bundle, load_bundle

    model = packed(folder / "packed", {"2d": configuration(2)}, folds=(0,))
    archive = folder / "a.autounet"
    export_bundle(model, archive)

    def read_archive() -> None:
        from autounet.inference import archive as module

        try:
            load_bundle(archive)
        finally:  # a process that reads one model keeps it
            while module._unpacked:
                shutil.rmtree(module._unpacked.popitem()[1], ignore_errors=True)

    return [
        Seed(model / "bundle.json", (json_changed, flipped), partial(load_bundle, model)),
        Seed(archive, (zip_changed, flipped), read_archive),
    ]


def weights(folder: Path) -> list[Seed]:
    import torch
    from nnunet_exports import configuration, packed

    from autounet.inference.bundle import load_network
    from autounet.store.weights import load_weights, read_pretrained

    own = configuration(2)
    model = packed(folder / "packed", {"2d": own}, folds=(0,))
    file = model / "2d" / "fold_0.safetensors"
    saved = folder / "saved.pth"
    torch.save({"state_dict": load_weights(file)}, saved)
    return [
        Seed(file, (safetensors_changed, flipped), lambda: load_network(own, file, "cpu")),
        Seed(saved, (zip_changed, flipped), partial(read_pretrained, saved)),
    ]


def imports(folder: Path) -> list[Seed]:
    from nnunet_folders import trained, zipped

    from autounet.interop.import_nnunet import import_model

    model = trained(folder / "results" / "Dataset001_A", folds=(0,))
    whole = zipped(folder / "results" / "Dataset001_A", folder / "model.zip")
    out = folder / "imported"

    def read(source: Path) -> None:
        try:
            import_model(source, out)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    described = [
        Seed(model / f"{name}.json", (json_changed, worded), partial(read, model)) for name in ("plans", "dataset")
    ]
    saved = model / "fold_0" / "checkpoint_final.pth"
    return [
        *described,
        Seed(saved, (zip_changed, flipped), partial(read, model)),
        Seed(whole, (zip_changed, flipped), partial(read, whole)),
    ]


# ---- options -----------------------------------------------------------------------------------------------------

RUN_TOML = b"""time = "30m"
memory = "8GB"
configurations = ["2d", "3d_fullres"]
folds = [0, 1]
seed = 3
deterministic = true
epochs = 3

[channel]
MRI = "images/*"

[class]
organ = 1

[region]
whole = [1, 2]
"""
CLUSTER_TOML = b"""provider = "slurm"
partition = "gpu"
walltime = "2h"
memory = "16GB"
blocks = 4
address = "10.1.0.1"
before = ["module load cuda"]
"""


def options(folder: Path) -> list[Seed]:
    """`--config`, and what is made of its values; `--executor`."""
    from autounet.cli.command_options import config_values, options_of
    from autounet.schema.cluster import read_cluster_options
    from autounet.schema.option_table import run_options

    run, cluster = folder / "run.toml", folder / "cluster.toml"
    run.write_bytes(RUN_TOML)
    cluster.write_bytes(CLUSTER_TOML)
    known = {option.parameter: option for option in options_of("run")}

    def read() -> None:
        values = config_values(run, "run")
        run_options([(known[name], value) for name, value in values.items()])

    return [
        Seed(run, (worded, flipped), read),
        Seed(cluster, (worded, flipped), partial(read_cluster_options, cluster)),
    ]


PARSERS: dict[str, Parser] = {
    "folds": Parser(splits, 4),
    "spacing beside pictures": Parser(sidecars, 3),
    "plan": Parser(plans, 2),
    "--config, --executor": Parser(options, 2),
    "records of predict": Parser(predicted),
    "MetaImage": images(".mha", "raw.mha", ".mhd", share=1.5),
    "PNG": images(".png", "palette.png", "rgba.png", "deep.png"),
    "JPEG, GIF, BMP": images(".jpg", "turned.jpg", ".gif", ".bmp"),
    "TIFF": images(".tif", "stack.tif", "rgb.tif", "cmyk.tif", "bits.tif", ".ome.tif"),
    "bundle, .autounet": Parser(bundles),
    "prepared cases and scores": Parser(prepared),
    "NIfTI": images(".nii", ".nii.gz", share=0.6),
    "NRRD": images(".nrrd", "raw.nrrd", ".seg.nrrd", share=0.6),
    "OME-Zarr": images(".ome.zarr", "array.ome.zarr", "chunk.ome.zarr", "shard.ome.zarr", share=0.4),
    "HDF5": images(".h5", share=0.4),
    "COCO, LabelMe, ImageJ": Parser(outlines_of_objects),
    "weights": Parser(weights, 0.4),
    "tables and lists of cases": Parser(tables, 0.3),
    "output folder (status)": Parser(status, 0.2),
    "nnU-Net model": Parser(imports, 0.2),
    "DICOM series": images("dicom", "dicom-jpeg2000", share=0.1),
    "DICOM SEG and RTSTRUCT": Parser(dicom_objects, 0.1),
    "output folder (compare, report)": Parser(reports, 0.02),
}
"""the quick ones first"""
