"""The report's section on the data: facts, labels, charts, findings of the check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..figures import INK, MAX_ROWS, MUTED, SERIES, STYLE, Picture, as_svg, box_rows, chart, shortened
from ..schema.dataset import Dataset, Finding, Severity, is_certain, partly_annotated
from ..schema.fingerprint import ChannelFingerprint, Fingerprint
from ..schema.labels import overlapping_targets, targets_of
from ..workers import PROCESS_WIDE
from .output_records import OutputRecords
from .tables import DASH, ReportTable, range_text

OPEN_FINDINGS = 5
"""findings of one kind that are shown without a click"""
MAX_FINDINGS = 200
"""of one kind in the report; findings.json lists all"""
MAX_CHANNELS = 12
"""in the chart of intensities"""


def data_facts(records: OutputRecords) -> list[tuple[str, str]]:
    """Pairs of name and value: cases, channels, layout, sizes, spacings, intensities, folds."""
    facts: list[tuple[str, str]] = []
    if records.dataset:
        channels = ", ".join(f"{channel.name} ({channel.kind})" for channel in records.dataset.channels)
        facts.append(("cases", str(len(records.dataset.cases))))
        facts += [("channels", channels), ("layout", records.dataset.layout)]
    if records.fingerprint:
        facts += _measured_facts(records.fingerprint)
    if records.splits:
        sizes = ", ".join(str(len(fold)) for fold in records.splits.folds)
        folds = f"{len(records.splits.folds)} folds of {sizes} cases ({records.splits.source})"
        none = "none, since a single case or group cannot be split"
        facts.append(("cross-validation", none if records.splits.source == "full" else folds))
    return facts


def _measured_facts(fingerprint: Fingerprint) -> list[tuple[str, str]]:
    """Sizes, spacings and intensities; axes in the order z, y, x."""
    first = 3 - fingerprint.dimension
    shapes = list(zip(*(case.shape for case in fingerprint.cases), strict=True))[first:]
    spacings = list(zip(*(case.spacing for case in fingerprint.cases), strict=True))[first:]
    order, unit = ("z × y × x", "voxels") if fingerprint.dimension == 3 else ("height × width", "pixels")
    facts = [(f"image size, {order}", " × ".join(range_text(values, 4) for values in shapes) + f" {unit}")]
    if any(value != 1 for values in spacings for value in values):
        facts.append((f"spacing, {order}", " × ".join(range_text(values) for values in spacings) + " mm"))
    for channel in fingerprint.channels:
        if channel.mean is not None and channel.std is not None:
            text = f"mean {channel.mean:.4g}, standard deviation {channel.std:.4g}"
            if channel.percentile_00_5 is not None and channel.percentile_99_5 is not None:
                text += f", 99 % between {channel.percentile_00_5:.4g} and {channel.percentile_99_5:.4g}"
            facts.append((f"{channel.name} in the foreground", text))
    return facts


def labels_table(dataset: Dataset, fingerprint: Fingerprint | None) -> ReportTable:
    """Classes and regions with their values in the files, and how often they occur."""
    labels = dataset.labels
    cases = fingerprint.cases if fingerprint else ()
    total = sum(sum(case.voxels) for case in cases)
    partial, everything = partly_annotated(dataset), (True,) * labels.count
    rows = []
    classes = targets_of(labels, "classes") if labels.objects is None else ()
    for target in (*classes, *overlapping_targets(labels)[: len(labels.reported_regions)]):
        annotated = [case for case in cases if is_certain(target.members, partial.get(case.identifier, everything))]
        counts = [sum(case.voxels[index] for index in target.members if index < len(case.voxels)) for case in annotated]
        rows.append(
            [
                target.name,
                " + ".join(str(labels.values[index]) for index in target.members)
                if labels.objects is None
                else "a number for each object",
                f"{sum(count > 0 for count in counts)} of {len(annotated)}" if cases else DASH,
                f"{sum(counts) / total:.2%}" if total else DASH,
            ]
        )
    notes = ["Partly annotated cases count only for the classes annotated in them"] if partial and cases else []
    return ReportTable(
        ["class", "value in the files", "found in cases", "share of all voxels"], rows, numeric=(1, 2, 3), notes=notes
    )


@dataclass(frozen=True)
class FindingGroup:
    """Findings with one code and severity, in their order."""

    severity: str
    code: str
    lines: Sequence[tuple[str, str]]
    """(case, or "" for the whole data set; finding and remedy); at most MAX_FINDINGS"""
    total: int

    @property
    def open(self) -> bool:
        return self.total <= OPEN_FINDINGS


def group_findings(findings: Sequence[Finding]) -> list[FindingGroup]:
    """Fatal ones first; otherwise groups in the order of their first finding."""
    groups: dict[tuple[bool, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity is not Severity.fatal, finding.code), []).append(finding)
    return [
        FindingGroup(
            str(group[0].severity),
            code,
            [(finding.case or "", f"{finding.message}. {finding.remedy}") for finding in group[:MAX_FINDINGS]],
            len(group),
        )
        for (_, code), group in sorted(groups.items(), key=lambda item: item[0][0])
    ]


def data_charts(fingerprint: Fingerprint, dataset: Dataset | None) -> list[Picture]:
    """Image sizes, spacings, volumes of the classes, intensities; without charts of what is equal in all cases."""
    charts = [
        _axis_chart(fingerprint, "shape", "image size (voxels)", "Image sizes"),
        _axis_chart(fingerprint, "spacing", "spacing (mm)", "Voxel spacings") if has_spacing(fingerprint) else None,
        _volume_chart(fingerprint, dataset) if dataset else None,
        _intensity_chart(fingerprint),
    ]
    return [picture for picture in charts if picture is not None]


def has_spacing(fingerprint: Fingerprint) -> bool:
    """False for photographs, and for volumes in file formats without a spacing, where it is 1 throughout."""
    if fingerprint.dimension == 3 and fingerprint.oriented:
        return True  # the volumes of some data sets really have 1 mm
    return any(value != 1 for case in fingerprint.cases for value in case.spacing[3 - fingerprint.dimension :])


def _axis_chart(fingerprint: Fingerprint, attribute: str, label: str, title: str) -> Picture | None:
    """A row of points for each axis; None where all cases are alike."""
    first = 3 - fingerprint.dimension
    names = ("z", "y", "x") if fingerprint.dimension == 3 else ("", "height", "width")
    columns = list(zip(*(getattr(case, attribute) for case in fingerprint.cases), strict=True))
    values = {names[axis]: [float(value) for value in columns[axis]] for axis in range(first, 3)}
    if all(min(each) == max(each) for each in values.values()):
        return None
    figure, axes = chart(height=1.2 + 0.5 * len(values))
    box_rows(axes, values)
    low, high = (limit(limit(each) for each in values.values()) for limit in (min, max))
    if low > 0 and high / low > 20:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    medians = "; ".join(f"{name} median {np.median(each):.4g}" for name, each in values.items())
    return Picture(as_svg(figure), alt=f"{title} over {len(fingerprint.cases)} cases: {medians}", title=title)


def _volume_chart(fingerprint: Fingerprint, dataset: Dataset) -> Picture | None:
    """Volume of each foreground class over the cases that contain it, on a logarithmic axis."""
    spaced = has_spacing(fingerprint)
    unit = "ml" if spaced else "voxels" if fingerprint.dimension == 3 else "pixels"
    values: dict[str, list[float]] = {}
    labels = dataset.labels
    # classes are the dense indices 1, 2, ... in the order of the foreground
    shown = {label.name: [index] for index, label in enumerate(labels.foreground[:MAX_ROWS], start=1)}
    if labels.objects is not None:
        shown = {labels.objects: list(range(1, labels.count))}
    for name, indices in shown.items():
        counts = [sum(case.voxels[each] for each in indices if each < len(case.voxels)) for case in fingerprint.cases]
        volumes = [
            count * (float(np.prod(case.spacing)) / 1000 if spaced else 1.0)
            for case, count in zip(fingerprint.cases, counts, strict=True)
            if count
        ]
        if volumes:
            values[name] = volumes
    if not values:
        return None
    figure, axes = chart(height=max(2.0, 0.9 + 0.45 * len(values)))
    box_rows(axes, values)
    axes.set_xscale("log")
    within_two_decades = max(map(max, values.values())) < 100 * min(map(min, values.values()))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if within_two_decades else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{'volume in a case' if fingerprint.dimension == 3 else 'area in an image'} ({unit})")
    medians = "; ".join(f"{name} median {np.median(each):.3g} {unit}" for name, each in values.items())
    title = "Size of the structures"
    return Picture(as_svg(figure), alt=f"Volume of each class over cases: {medians}", title=title)


def _intensity_chart(fingerprint: Fingerprint) -> Picture | None:
    """Range of the intensities in the foreground, with its own scale for each channel, since units differ."""
    channels = [channel for channel in fingerprint.channels if None not in _range(channel)][:MAX_CHANNELS]
    if not channels:
        return None
    with PROCESS_WIDE, rc_context(STYLE):
        figure = Figure(figsize=(4.1, 0.5 + 0.85 * len(channels)), layout="constrained")
        rows = figure.subplots(len(channels), 1, squeeze=False)[:, 0]
    for axes, channel in zip(rows, channels, strict=True):
        low, start, middle, stop, high = (float(value) for value in _range(channel) if value is not None)
        axes.plot([low, high], [0, 0], color=MUTED, linewidth=1, label="minimum to maximum")
        axes.plot([start, stop], [0, 0], color=SERIES[0], linewidth=8, solid_capstyle="butt", label="99 % of voxels")
        axes.plot([middle], [0], "|", color=SERIES[1], markersize=16, markeredgewidth=2.5, label="median")
        axes.set_yticks([])
        axes.set_ylim(-1, 1)
        axes.spines["left"].set_visible(False)
        axes.set_ylabel(shortened(channel.name, 12), rotation=0, ha="right", va="center", color=INK)
    handles, names = rows[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=9, ncols=3, loc="outside upper center", handlelength=1.3)
    alt = "; ".join(f"{channel.name} median {channel.median:.4g}" for channel in channels)
    return Picture(as_svg(figure), alt=f"Intensities in the foreground: {alt}", title="Intensities in the foreground")


def _range(channel: ChannelFingerprint) -> Sequence[float | None]:
    return (channel.minimum, channel.percentile_00_5, channel.median, channel.percentile_99_5, channel.maximum)
