"""Defects that show only when cases are compared: duplicates, outliers, probable annotation errors.

All are found from facts alone. `check_dataset` joins them with the defects of each case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...imageio import OPAQUE, VOLUME_KINDS
from ...ops.orient import canonical_axes, permute
from ...schema.dataset import CaseFacts, Channel, ChannelFacts, ChannelKind, Dataset, Finding, Severity
from ..coded_labels import palette_findings
from ..labels import annotation_findings, label_findings
from ..structures import overlap_findings
from .case_checks import FIX
from .left_right import pair_findings

LEAST_NUMBERS = 5
"""with fewer numbers there is no telling which ones are usual"""
LIMIT = 3.5
"""modified z-score from which on a number is an outlier: B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers,
ASQC Quality Press 1993"""
MOST_APART = 0.05
"""share of the numbers that may be outliers; where more are, the data come from several sources and none is wrong"""


def outliers(values: Sequence[float], least: float) -> list[int]:
    """Indices of the numbers that lie apart by at least `least` from the median and by the modified z-score.

    The modified z-score is 0.6745 (x - median) / MAD, with the median absolute deviation MAD: of normally distributed
    numbers it is the z-score, and a few wrong numbers do not move it. One number in a small set may lie apart.
    """
    if len(values) < LEAST_NUMBERS:
        return []
    numbers = np.asarray(values, float)
    away = np.abs(numbers - np.median(numbers))
    deviation = np.median(away)
    found = np.flatnonzero((away >= least) & (0.6745 * away > LIMIT * deviation))
    return found.tolist() if len(found) <= max(1, MOST_APART * len(numbers)) else []


RARE = 0.1
"""share of the cases up to which a peculiarity is probably an error; beyond, it is how the data set was made"""
MOST_PIECES = 2
"""components of a class in the median case, up to which isolated ones are reported: structures are single or paired"""
SPACING_FACTOR = 2.0
"""least factor between a case's spacing and the median: below, patches of every case show about the same"""
FIXED_FACTOR, OWN_FACTOR = 3.0, 5.0
"""least factor between a case's range of intensities and the median: where all cases are normalised by the same
numbers, and where each is by its own"""
FIXED_SHIFT, OWN_SHIFT = 0.5, 5.0
"""least distance between a case's median intensity and the others', likewise, in usual ranges of intensities"""
LEAST_HU = -100.0
"""Hounsfield units of fat, above which nothing of a body that holds any fat or air lies entirely (DICOM PS3.3
C.11.1.1.2 defines the unit: air -1000, water 0)"""
OFFSET_TISSUE = (700.0, 1400.0)
"""median of CT stored as HU + 1024, which some scanners and archives do"""
GREY_VALUES = 3
"""different values between the two of a mask from which on they are no classes"""
GREY_SHARE = 0.1
"""most of the voxels that they make up: the borders between the two"""
WHITE = (255, 65_535)
"""larger value of masks stored as pictures"""


def set_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Warnings about cases that differ from the others; `facts` of those that could be read."""
    return [
        *duplicate_findings(facts),
        *empty_findings(dataset, facts),
        *isolated_findings(dataset, facts),
        *spacing_findings(facts),
        *implausible_spacing(dataset, facts),
        *(each for index, channel in enumerate(dataset.channels) for each in _channel_findings(channel, index, facts)),
    ]


def duplicates(facts: Sequence[CaseFacts]) -> list[list[str]]:
    """Cases whose images are equal voxel by voxel, in lists of two or more."""
    by_image: dict[str, list[str]] = {}
    for fact in facts:
        if fact.image_hash is not None:
            by_image.setdefault(fact.image_hash, []).append(fact.identifier)
    return [names for names in by_image.values() if len(names) > 1]


def duplicate_findings(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    labels = {fact.identifier: fact.value_counts for fact in facts}
    for first, *others in duplicates(facts):
        for name in others:
            label = "" if labels[name] == labels[first] else ", but its label differs"
            yield _warning(
                name,
                "duplicate-image",
                f"its image is identical to that of {first}{label}",
                "Remove one of the two. Until then both stay in one fold, so that the validation is not too optimistic",
            )


def empty_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Empty labels where nearly all other cases have foreground; that no case has any is another finding."""
    background = {0, dataset.labels.ignore}
    labelled = [fact for fact in facts if fact.value_counts]
    empty = [fact.identifier for fact in labelled if not set(fact.value_counts) - background]
    if len(empty) <= max(1, RARE * len(labelled)) and len(empty) < len(labelled):
        for name in empty:
            remedy = "Check that the label was saved. A case without any structure may stay"
            yield _warning(name, "empty-label", "its label is empty: every voxel is background", remedy)


def isolated_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Isolated components of a few voxels, where the class seldom has any."""
    names = {label.value: label.name for label in dataset.labels.classes}
    values = sorted({value for fact in facts for value in fact.components})
    for value in values:
        having = [fact for fact in facts if value in fact.components]
        suspicious = [fact for fact in having if fact.components[value].isolated]
        pieces = sorted(fact.components[value].count for fact in having)[len(having) // 2]
        if len(suspicious) > max(1, RARE * len(having)) or pieces > MOST_PIECES:
            continue
        for fact in suspicious:
            found = fact.components[value]
            size = "1 voxel" if found.smallest == 1 else f"{found.smallest} voxels"
            what = f"an isolated component of {size} at (z, y, x) = {found.place}"
            if found.isolated > 1:
                what = f"{found.isolated} isolated components, the smallest of {size} at (z, y, x) = {found.place}"
            message = f"{names.get(value, f'label {value}')} has {what}: probably an annotation error"
            remedy = f"Look at it, and erase it if it is one; the largest component has {found.largest} voxels"
            yield _warning(fact.identifier, "tiny-component", message, remedy)


def spacing_findings(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Along the patient's axes, of volumes that have a spacing."""
    volumes = [fact for fact in facts if fact.geometry.kind in VOLUME_KINDS or fact.geometry.dimension == 3]
    spacings = [permute(each.geometry.spacing, canonical_axes(each.geometry.direction)[0]) for each in volumes]
    reported = set()
    for along in zip(*spacings, strict=True):
        for index in outliers([math.log(value) for value in along], math.log(SPACING_FACTOR)):
            if index not in reported:
                reported.add(index)
                own = " x ".join(f"{value:.4g}" for value in spacings[index])
                usual = f"{along[index]:.4g} mm, where the median of the others is {_median(along, index):.4g} mm"
                message = f"its spacing of {own} mm (z, y, x) differs from the other cases: {usual}"
                remedy = "Check the header of its file: a missing or wrong spacing distorts sizes and resampling"
                yield _warning(volumes[index].identifier, "spacing-outlier", message, remedy)


LEAST_MM, MOST_MM = 0.003, 100.0
"""voxels of CT and MRI lie between: 3 um would be 3 mm taken for micrometres, 100 mm 0.1 mm taken for metres"""
MOST_OF_ANY = 500.0
"""mm of a voxel of any other kind of channel"""


def implausible_spacing(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Voxels of a size that the kind of the channels does not have: once for the set where most cases have them."""
    medical = any(channel.kind in (ChannelKind.ct, ChannelKind.mri) for channel in dataset.channels)
    least, most = (LEAST_MM, MOST_MM) if medical else (0.0, MOST_OF_ANY)
    volumes = [fact for fact in facts if fact.geometry.kind in VOLUME_KINDS or fact.geometry.dimension == 3]
    wrong = [fact for fact in volumes if not least <= min(fact.geometry.spacing) <= max(fact.geometry.spacing) <= most]
    whole_set = len(wrong) > len(volumes) / 2
    found = []
    for fact in wrong[:1] if whole_set else wrong:
        size = " x ".join(f"{value:.4g}" for value in fact.geometry.spacing)
        what = f"voxels of {size} mm (z, y, x), which no {'CT or MRI' if medical else 'image'} has"
        message = f"{len(wrong)} of {len(volumes)} cases have {what}" if whole_set else f"it has {what}"
        unit = "micrometres" if max(fact.geometry.spacing) > most else "metres"
        remedy = (
            f"Correct the spacing in the headers: its numbers are probably {unit}, not mm. Patches and distances "
            "follow from it"
        )
        found.append(_warning(None if whole_set else fact.identifier, "implausible-spacing", message, remedy))
    return found


def _median(values: Sequence[float], without: int) -> float:
    rest = sorted(value for index, value in enumerate(values) if index != without)
    return rest[len(rest) // 2]


def _channel_findings(channel: Channel, index: int, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    cases = [(fact.identifier, fact.channels[index]) for fact in facts if index < len(fact.channels)]
    known = [(name, each) for name, each in cases if each.low is not None]
    if channel.kind is ChannelKind.ct:
        yield from _ct_findings(channel, known)
    if channel.kind is ChannelKind.photo:
        yield from _depth_findings(channel, known)
    yield from _intensity_outliers(channel, known)


def _depth_findings(channel: Channel, cases: Sequence[tuple[str, ChannelFacts]]) -> Iterator[Finding]:
    """Photographs of 8 and of 16 bits in one set: equal brightness is other numbers, and all are divided by one."""
    few = {name for name, each in cases if (each.maximum or 0) <= WHITE[0]}
    deep = [name for name, _ in cases if name not in few]
    if few and deep:
        fewer = sorted(few) if len(few) <= len(deep) else deep
        shown = ", ".join(fewer[:10]) + (f" and {len(fewer) - 10} more" if len(fewer) > 10 else "")
        message = (
            f"channel {channel.name} is at most {WHITE[0]} in {len(few)} cases, as in pictures of 8 bits, and larger "
            f"in {len(deep)}, as in those of 16 bits; the fewer are {shown}"
        )
        yield _warning(None, "mixed-depth", message, "Store all pictures with the same number of bits")


def _intensity_outliers(channel: Channel, cases: Sequence[tuple[str, ChannelFacts]]) -> Iterator[Finding]:
    """Other scales and offsets. They matter little where each case is normalised by its own mean and deviation."""
    cases = [(name, each) for name, each in cases if _width(each) > 0]
    if not cases:
        return
    fixed = channel.kind in (ChannelKind.ct, ChannelKind.photo)
    widths, middles = [_width(each) for _, each in cases], [each.median or 0.0 for _, each in cases]
    usual = sorted(widths)[len(widths) // 2]
    scaled = outliers([math.log(width) for width in widths], math.log(FIXED_FACTOR if fixed else OWN_FACTOR))
    shifted = outliers(middles, usual * (FIXED_SHIFT if fixed else OWN_SHIFT))
    for index in sorted({*scaled, *shifted}):
        name, own = cases[index]
        rest = [each for place, (_, each) in enumerate(cases) if place != index]
        low, high = (sorted(getattr(each, side) for each in rest)[len(rest) // 2] for side in ("low", "high"))
        message = (
            f"the intensities of channel {channel.name} differ from the other cases: mostly {own.low:.4g} to "
            f"{own.high:.4g}, in the others {low:.4g} to {high:.4g}"
        )
        yield _warning(name, "intensity-outlier", message, "Check that it was exported like the others")


def _width(facts: ChannelFacts) -> float:
    assert facts.low is not None
    assert facts.high is not None
    return facts.high - facts.low


def _ct_findings(channel: Channel, cases: Sequence[tuple[str, ChannelFacts]]) -> Iterator[Finding]:
    """One finding for the whole set where most cases hold no CT values, else one for each that does not."""
    wrong = [(name, each) for name, each in cases if not _looks_like_ct(each)]
    if len(wrong) > len(cases) / 2:
        low, high = min(each.minimum for _, each in wrong), max(each.maximum for _, each in wrong)  # type: ignore[type-var]
        values = f"{low:.4g} to {high:.4g}"
        message = f"channel {channel.name} counts as CT, but its values, {values}, are not Hounsfield units"
        remedy = (
            f"CT is normalised on the Hounsfield scale; if the channel is not CT, give --kind '{channel.name}=other' "
            f"or --kind '{channel.name}=mri'"
        )
        yield _warning(None, "no-ct-values", message, remedy)
        return
    for name, each in wrong:
        values = f"{each.minimum:.4g} to {each.maximum:.4g}"
        message = f"its {channel.name} values, {values}, are not Hounsfield units like those of the other cases"
        yield _warning(name, "no-ct-values", message, "Export it again, without windowing or scaling")


def _looks_like_ct(facts: ChannelFacts) -> bool:
    """Something as light as fat, or tissue where an offset of 1024 puts it."""
    assert facts.minimum is not None
    assert facts.median is not None
    return facts.minimum <= LEAST_HU or OFFSET_TISSUE[0] <= facts.median <= OFFSET_TISSUE[1]


def grey_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Masks of 0 and 255 (or 65535) with greys between them, as smoothing and scaling leave (fatal)."""
    declared = {*dataset.labels.values, dataset.labels.ignore} - {None}
    found, known = [], {each.identifier: each for each in facts}
    for case in dataset.cases:
        fact = known.get(case.identifier)
        greys = grey_values(fact.value_counts, declared) if fact is not None else []
        if fact is None or not greys:
            continue
        voxels = sum(fact.value_counts[value] for value in greys)
        message = (
            f"{case.label} is a mask of 0 and {max(fact.value_counts)}, but {voxels} of its voxels hold {len(greys)} "
            f"values in between ({greys[0]} to {greys[-1]})"
        )
        remedy = f"Save it without smoothing or scaling, or let {FIX} round these voxels to the nearer of the two"
        found.append(Finding(case=case.identifier, code="grey-label", message=message, remedy=remedy))
    return found


def grey_values(counts: dict[int, int], declared: set[int | None]) -> list[int]:
    """The undeclared values between 0 and white in a mask, ascending; none where they may be classes."""
    if not counts or max(counts) not in WHITE or min(counts) < 0:
        return []
    white, total = max(counts), sum(counts.values())
    greys = sorted(value for value in counts if 0 < value < white and value not in declared)
    spread = any(white / 4 <= value <= 3 * white / 4 for value in greys)
    few = sum(counts[value] for value in greys) <= GREY_SHARE * total
    return greys if len(greys) >= GREY_VALUES and spread and few else []


def _warning(case: str | None, code: str, message: str, remedy: str) -> Finding:
    return Finding(case=case, code=code, severity=Severity.warning, message=message, remedy=remedy)


FOLDS = 5
"""folds of a cross-validation when there are cases enough"""


def check_dataset(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Every finding: of each case by itself, of cases compared with each other, and of the data set as a whole."""
    findings = _joined([finding for fact in facts for finding in fact.findings], len(facts))
    readable = [fact for fact in facts if fact.samples]
    grey = grey_findings(dataset, readable)
    spoilt = {finding.case for finding in grey}
    findings += grey + label_findings(dataset, [fact for fact in readable if fact.identifier not in spoilt])
    findings += set_findings(dataset, readable) + annotation_findings(dataset, readable)
    findings += [*pair_findings(dataset, readable), *palette_findings(dataset, readable)]
    findings += overlap_findings(readable)
    flat = {fact.geometry.dimension for fact in readable}
    if len(flat) > 1:
        example = {fact.geometry.dimension: fact.identifier for fact in readable}
        findings.append(
            Finding(
                code="mixed-dimensions",
                message=f"{example[2]} is a 2-D image and {example[3]} a volume",
                remedy="Keep images and volumes in separate data sets",
            )
        )
    return findings + _count_findings(dataset)


def _joined(findings: list[Finding], cases: int) -> list[Finding]:
    """One finding in place of those of many cases that nothing needs to be done about."""
    opaque = [each for each in findings if each.code == OPAQUE]
    if len(opaque) < 2:
        return findings
    number = len({each.case for each in opaque})
    message = f"{number} of {cases} cases have a transparency channel that is opaque everywhere; it is left out"
    rest = [each for each in findings if each.code != OPAQUE]
    return [*rest, opaque[0].model_copy(update={"case": None, "message": message})]


def _count_findings(dataset: Dataset) -> list[Finding]:
    groups = {case.group or case.identifier for case in dataset.cases}
    grouped = any(case.group for case in dataset.cases)
    what = "group" if grouped else "case"
    if len(groups) == 1:
        message = f"there is 1 {what}, which cannot be split for a cross-validation"
        remedy = "One model is trained on it without any validation. Add cases to measure how good it is"
        return [Finding(code="too-few-cases", severity=Severity.warning, message=message, remedy=remedy)]
    if len(groups) < FOLDS:
        message = f"{len(groups)} {what}s are too few for {FOLDS} folds"
        remedy = f"{len(groups)} folds are made. Add cases for a more reliable validation"
        return [Finding(code="too-few-cases", severity=Severity.warning, message=message, remedy=remedy)]
    return []
