"""Every reader of records, found by its class: what it takes as a name, and what comes of hostile ones."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from fake_output import complete_output
from pydantic import BaseModel
from typer.testing import CliRunner

import autounet
from autounet.cli.app import app
from autounet.report import write_report
from autounet.schema.dataset import Dataset
from autounet.schema.errors import AutoUNetError
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.metrics import Metrics
from autounet.schema.options import RunOptions
from autounet.schema.plan import Plan
from autounet.schema.record import Record, digest
from autounet.schema.run import DeviceProfile, RunRecord
from autounet.schema.selection import Selection

HOSTILE = "../../victim<script>alert(1)</script>\x1b[2J$\\frac"

READ_ONLY = """
    Case.images Case.label LabelPart.path Dataset.root RepairResult.folder DataOptions.label DataOptions.splits
    DataOptions.join DataOptions.objects DataOptions.palette DataOptions.group DataOptions.channels
    DataOptions.kinds DataOptions.regions DataOptions.classes StartingWeights.path TrainOptions.start
    RunOptions.executor RunOptions.folds FileHashRecord.files Interface.inputs ClusterOptions.folder
    ClusterOptions.python SharedWork.work
"""
"""paths and patterns of input, which are read and never written, and options, which are parsed where they are used"""
COMPARED = """
    HashedFile.hash BundleMember.checksum ModelBundle.card_checksum ModelBundle.checksum Submission.sha256
    Submission.model_checksum SubmittedFile.sha256 CaseFacts.content_hash CaseFacts.image_hash
    CaseFingerprint.content_hash CaseProperties.key Plan.fingerprint StartingWeights.checksum PredictedCase.key
    PredictedCase.run PreparedRecord.checksums DoneRecord.key DoneRecord.files CaseResult.key JobRun.key
    JobRun.attempt ListedJob.key PredictedFile.name PredictedFile.checksum PredictedCase.earlier PreparationInputs.cases
    PreparedCaseInputs.content CascadeCaseInputs.scores CascadeCaseInputs.prepared CascadeCaseInputs.following
    CascadeInputs.validation EnsembleCaseInputs.members InitialWeights.new SelectionInputs.jobs
    TrainingCase.prepared TrainingCase.previous ValidatedCaseInputs.weights ValidatedCaseInputs.prepared
    ValidatedCaseInputs.previous ValidationInputs.training TrackingRecord.identity IntensitySample.float32
    ValidationWork.keys
"""
"""hashes, keys, and names of files that are there: only compared, or decoded as numbers"""
LOOKED_UP = """
    Dataset.layout Dataset.suffix Dataset.file_kind Dataset.image_pattern Dataset.channel_patterns
    ModelBundle.layout ModelBundle.suffix ModelBundle.file_kind ModelBundle.image_pattern
    ModelBundle.channel_patterns Geometry.kind NetworkSpec.family NetworkSpec.options PlannerOptions.family
    PlannerOptions.configurations RunOptions.family RunOptions.configurations RunOptions.loss
    RunOptions.augmentation RunOptions.device RunOptions.metrics TrainOptions.loss TrainOptions.augmentation
    PostprocessStep.name PluginUse.name DeviceProfile.device DeviceProfile.precision DeviceProfile.throughput
    DeviceProfile.sample_rates MemoryCalibration.devices SelectionInputs.inference SelectionInputs.metrics
    TrainingPlace.device TrainingPlace.devices TrainingPlace.annotated TrialInputs.device SharedWork.device
    ProbabilityChannels.channels Labels.pairs LabelCode.segments SharedVoxels.structures ObjectSeparation.rule
    ListedJob.needs ListedJob.done ListedJob.name StartingModel.name Interface.output ClusterOptions.before
    ClusterOptions.partition ClusterOptions.account ClusterOptions.options ClusterOptions.address
    ClusterOptions.image ClusterOptions.volumes NnunetConfiguration.data_identifier
    NnunetConfiguration.preprocessor_name NnunetConfiguration.normalization_schemes
    NnunetConfiguration.resampling_fn_data NnunetConfiguration.resampling_fn_seg NnunetConfiguration.previous_stage
    NnunetConfiguration.resampling_fn_probabilities NnunetConfiguration.next_stage NnunetConfiguration.architecture
    NnunetPlans.dataset_name NnunetPlans.plans_name NnunetPlans.image_reader_writer NnunetPlans.configurations
    NnunetPlans.experiment_planner_used NnunetPlans.label_manager NnunetPlans.intensities
"""
"""words that choose one of what the program knows, or a library is told; an unknown one is an error or fits nothing"""
SHOWN = """
    Dataset.name Dataset.fold_source Case.group Case.fold LabelPart.name Finding.case Finding.code Finding.message
    Finding.remedy Splits.source ChannelFingerprint.name CheckResult.layout CheckResult.cases CheckResult.example
    Fingerprint.orientation Fingerprint.unlike Repair.done Repair.dropped CaseMetrics.per_class ClassMetrics.plugins
    ClassMetrics.undefined ComparedFigure.method ComparedFigure.target ComparedFigure.measured_on
    ComparedFigure.protocol ComparedFigure.metric ComparedFigure.source ComparedFigure.comparable KnownDataSet.name
    KnownDataSet.aliases Metrics.per_class Metrics.unit Metrics.intervals PairedDifference.name
    PairedDifference.undefined PublishedComparison.data_set PublishedComparison.recognised
    PublishedComparison.sentences PublishedFigure.method PublishedFigure.target PublishedResults.protocol
    PublishedResults.metric PublishedResults.source PublishedResults.comparable Plan.events Reason.text
    PluginUse.package PluginUse.version DeviceProfile.name EpochLog.validation_dice EpochLog.training_dice
    EpochLog.left_behind EpochLog.event Compilation.reason MemoryMargin.torch PredictedCase.problem RunRecord.device
    RunRecord.versions    RunRecord.events RunRecord.left_behind PostprocessTrial.name Selection.reason Selection.rule
    Selection.postprocessing_reason Weighting.reason TrainingPlace.events TrainingPlace.warnings Attempt.host
    Attempt.reason JobRun.host JobRun.reason JobStatus.name JobStatus.host JobStatus.reason JobStatus.log
    FoldStatus.converged FoldStatus.left_behind RunStatus.now RunStatus.stages RunStatus.lines ModelBundle.name
    ModelBundle.versions ModelBundle.details ChannelSummary.name ChannelSummary.kind ClassSummary.name
    ModelCard.licence Score.name Score.metric ScoreSummary.unit TrainingSummary.loss TrainingSummary.optimiser
    TrainingSummary.devices ExportedModel.name ExportedModel.form ExportedModel.versions ExportedOutput.name
    Submission.archive Submission.template Submission.model Submission.versions SubmittedFile.type
"""
"""sentences and figures for people, escaped where they are written"""


def _records() -> Iterator[type[BaseModel]]:
    package = Path(autounet.__file__).parent
    for file in package.rglob("*.py"):
        if re.search(r"\((Part|Record|BaseModel)\):", file.read_text()):
            importlib.import_module(".".join(("autounet", *file.relative_to(package).with_suffix("").parts)))
    waiting: list[type[BaseModel]] = [BaseModel]
    while waiting:
        for each in waiting.pop().__subclasses__():
            waiting.append(each)
            if each.__module__.startswith("autounet."):
                yield each


def _plain_strings(annotation: Any, rules: tuple[Any, ...] = ()) -> Iterator[bool]:
    """For each `str` in a type whether nothing checks it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is str:
        yield not rules
    elif hasattr(annotation, "__metadata__"):
        yield from _plain_strings(parts[0], annotation.__metadata__)
    elif origin is not Literal:
        for part in parts:
            yield from _plain_strings(part)


def test_every_text_in_a_record_is_a_checked_name_or_leads_nowhere() -> None:
    """A new field of a record has a checked type of `schema.record`, or has to be put into a list above."""
    plain = {
        f"{record.__name__}.{name}"
        for record in _records()
        for name, field in record.model_fields.items()
        if any(_plain_strings(field.annotation, tuple(field.metadata)))
    }
    declared = [name for group in (READ_ONLY, COMPARED, LOOKED_UP, SHOWN) for name in group.split()]
    assert len(set(declared)) == len(declared)
    assert plain == set(declared), f"new: {plain - set(declared)}; gone: {set(declared) - plain}"


def _places(value: Any) -> Iterator[Callable[[], Callable[[], None]]]:
    """For each text and each key of a JSON value: what puts the hostile name there, and returns what undoes it."""

    def replaced(holder: Any, key: Any) -> Callable[[], None]:
        before, holder[key] = holder[key], HOSTILE
        return lambda: holder.__setitem__(key, before)

    def renamed(holder: dict[str, Any], key: str) -> Callable[[], None]:
        before = dict(holder)
        holder[HOSTILE] = holder.pop(key)
        return lambda: (holder.clear(), holder.update(before))[0]

    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(each, dict | list):
            yield from _places(each)
        elif isinstance(each, str):
            yield lambda key=key: replaced(value, key)
    if isinstance(value, dict) and value:
        yield lambda: renamed(value, next(iter(value)))


def _poison(file: Path, kind: type[Record]) -> int:
    """Put the hostile name wherever the record is still read with it; returns how many places refused it."""
    content = json.loads(file.read_text())
    content.pop("checksum", None)
    refused = 0
    for put in _places(content):
        undo = put()
        file.write_text(json.dumps(content | ({"checksum": digest(content)} if kind.SEALED else {})))
        try:
            kind.load(file)
        except AutoUNetError:
            refused += 1
            undo()
    file.write_text(json.dumps(content | ({"checksum": digest(content)} if kind.SEALED else {})))
    kind.load(file)
    return refused


def test_names_that_records_let_through_lead_nowhere(tmp_path: Path) -> None:
    """Status and report of an output folder whose records hold hostile text wherever they take it."""
    out = complete_output(tmp_path / "outer" / "inner" / "out")
    fold = out / "models" / "3d_fullres" / "fold_0"
    records: dict[Path, type[Record]] = {
        out / "dataset.json": Dataset, out / "fingerprint.json": Fingerprint, out / "device.json": DeviceProfile,
        out / "options.json": RunOptions, out / "plan.json": Plan, out / "metrics.json": Metrics,
        out / "selection.json": Selection, fold / "record.json": RunRecord,
    }  # fmt: skip
    for file, kind in records.items():
        assert _poison(file, kind) > 0, file
    done = CliRunner().invoke(app, ["status", str(out)])
    assert done.exit_code == 0, done.output
    assert "mean Dice" in done.output
    assert "\x1b" not in done.output
    page = write_report(out).read_text()
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page
    assert not list(tmp_path.rglob("*victim*"))
