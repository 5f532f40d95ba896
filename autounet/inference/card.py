"""The model card as text (Markdown), with the contents that Mitchell et al., "Model cards for model reporting",
FAT* 2019, propose, and before it the YAML that the Hugging Face hub reads.

Pure: the text follows from the bundle's record alone.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from ..schema.bundle import (
    NO_LICENCE,
    DataSummary,
    ModelBundle,
    ScoreSummary,
    TrainingSummary,
)
from ..schema.quantities import format_time

INTENDED = (
    "Segmenting images like those described under *Training data*: the same structures, channels, modality and "
    "resolution. On other scanners, protocols, populations or species its quality is not known and has to be measured "
    "first. **Research software, no medical device**: it is not approved for diagnosis or treatment, and its results "
    "have to be checked by a person who is qualified to do so."
)
UNKNOWN = "-"
HUB_TASK = "image-segmentation"
HUB_LICENCES = re.compile(
    r"apache-2\.0|mit|cc0-1\.0|cc-by-(2\.0|2\.5|3\.0|4\.0)|cc-by-sa-[34]\.0|cc-by-nc-[234]\.0|cc-by-nd-4\.0|"
    r"cc-by-nc-nd-[34]\.0|cc-by-nc-sa-[234]\.0|bsd-[23]-clause|a?gpl-3\.0|gpl-2\.0|lgpl-3\.0|mpl-2\.0|unlicense|odbl|pddl"
)
"""licences that the hub knows by these names; others have a name of their own"""


def front_matter(bundle: ModelBundle) -> str:
    """The block of YAML between two lines of dashes; JSON's strings and numbers are YAML's."""
    card, scores = bundle.card, bundle.card.scores
    families = dict.fromkeys(each.network.family for each in bundle.configurations.values())
    dims = dict.fromkeys(f"{each.network.dims}d" for each in bundle.configurations.values())
    kinds = dict.fromkeys(str(channel.kind.value) for channel in bundle.channels if channel.kind.value != "other")
    tags = ["segmentation", "u-net", *families, *dims, *kinds]
    lines = ["library_name: autounet", f"pipeline_tag: {HUB_TASK}", *_hub_licence(card.licence)]
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in tags)]
    if scores is not None and (found := _hub_metrics(scores)):
        named = {"type": _slug(bundle.name), "name": bundle.name}
        lines += ["metrics:", *(f"- {name}" for name in dict.fromkeys(each["type"] for each in found))]
        lines += [
            "model-index:",
            f"- name: {_quoted(bundle.name)}",
            "  results:",
            f"  - task: {_quoted({'type': HUB_TASK, 'name': 'cross-validation'})}",
            f"    dataset: {_quoted(named)}",
            "    metrics:",
            *(f"    - {_quoted(each)}" for each in found),
        ]
    return "\n".join(["---", *lines, "---"])


def _hub_licence(licence: str) -> Iterator[str]:
    name = _slug(licence)
    if licence == NO_LICENCE or HUB_LICENCES.fullmatch(name):
        yield f"license: {'unknown' if licence == NO_LICENCE else name}"
        return
    yield "license: other"
    yield f"license_name: {_quoted(name)}"


def _hub_metrics(scores: ScoreSummary) -> list[dict[str, str | float]]:
    """The mean Dice, then all that is on the card by class; undefined ones are left out."""
    named = [
        ("dice", "mean over classes", scores.mean_dice),
        *((each.metric, each.name, each.mean) for each in scores.scores),
    ]
    return [{"type": metric, "name": f"{metric}, {name}", "value": float(f"{value:.4g}")}
            for metric, name, value in named if value is not None]  # fmt: skip


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "unnamed"


def _quoted(value: object) -> str:
    """As JSON, which is YAML too, of text, numbers and objects; what would be HTML or Markdown is spelt out as numbers.

    What is no text (bytes of file names) becomes a question mark.
    """
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    return re.sub(r"[<>&`|\[\]]", lambda found: f"\\u{ord(found[0]):04x}", text)


def card_text(bundle: ModelBundle) -> str:
    """The whole card, which ends with a line break."""
    card = bundle.card
    parts = [
        [front_matter(bundle)],
        [f"# Model card: {_plain(bundle.name)}"],
        [f"Licence: {_plain(card.licence)}" + (" (ask whom you got it from)" if card.licence == NO_LICENCE else "")],
        ["## What it segments", *_segments(bundle)],
        ["## Intended use", INTENDED],
        ["## Training data", *_data(card.data)],
        ["## Cross-validation", *_scores(bundle, card.scores)],
        ["## How it predicts", *_prediction(bundle)],
        ["## How it was trained", *_trainings(card.trainings, bundle)],
        ["## Versions", _plain(", ".join(f"{name} {version}" for name, version in sorted(bundle.versions.items())))],
        ["`bundle.json` holds all of this for programs, and a checksum of every other file."],
    ]
    return "\n\n".join(text for part in parts for text in part) + "\n"


def _segments(bundle: ModelBundle) -> Iterator[str]:
    channels = ", ".join(f"{_plain(channel.name)} ({channel.kind.value})" for channel in bundle.channels)
    yield f"Images: {channels}; stored as {_plain(bundle.suffix or bundle.file_kind)} where it was trained."
    labels = bundle.labels
    if labels.objects is not None:
        yield f"Single objects: {_plain(labels.objects)}. In a segmentation each has a number of its own, from 1 on."
        return
    yield _table(["value in the file", "class"], [[str(each.value), each.name] for each in labels.classes])
    if labels.regions:
        rows = [[each.name, ", ".join(map(str, each.values))] for each in labels.regions]
        yield _table(["region", "values"], rows)


def _data(data: DataSummary | None) -> Iterator[str]:
    if data is None:
        yield "Not known: the model was trained elsewhere."
        return
    yield f"{data.cases} cases of {data.dimension} dimensions. Sizes and spacings are z, y, x, each axis by itself."
    rows = [
        ["size, voxels", *(_joined(each) for each in (data.shape, data.smallest, data.largest))],
        ["spacing, mm", *(_joined(each) for each in (data.spacing, data.finest, data.coarsest))],
    ]
    yield _table(["", "median", "least", "most"], rows)
    yield _table(
        ["channel", "kind", "median in the foreground", "0.5 to 99.5 %"],
        [
            [each.name, each.kind, _number(each.median), f"{_number(each.percentile_00_5)} to "
             f"{_number(each.percentile_99_5)}"]
            for each in data.channels
        ],
    )  # fmt: skip
    yield _table(
        ["class", "in cases", "share of labelled voxels"],
        [[each.name, str(each.cases), f"{100 * each.share:.2f} %"] for each in data.classes],
    )


def _scores(bundle: ModelBundle, scores: ScoreSummary | None) -> Iterator[str]:
    if scores is None:
        dice = f" Its mean Dice was {bundle.mean_dice:.4f}." if bundle.mean_dice is not None else ""
        yield f"No case was left to validate on, or the figures are not known.{dice}"
        return
    mean = UNKNOWN if scores.mean_dice is None else f"{scores.mean_dice:.4f}{_interval(scores.interval)}"
    yield (
        f"Mean Dice {mean}, over {scores.cases} cases, each segmented by networks that were not trained on it. "
        f"In brackets: 95 % intervals by bootstrap over cases. Distances in {_plain(scores.unit)}."
    )
    metrics = list(dict.fromkeys(each.metric for each in scores.scores))
    rows: dict[str, list[str]] = {}
    for each in scores.scores:
        value = UNKNOWN if each.mean is None else f"{each.mean:.4g}{_interval(each.interval)}"
        rows.setdefault(each.name, [each.name]).append(value)
    yield _table(["class", *metrics], list(rows.values()))


def _prediction(bundle: ModelBundle) -> Iterator[str]:
    selection = bundle.selection
    rows = []
    for name, each in bundle.configurations.items():
        folds = sum(member.configuration == name for member in bundle.members)
        spacing = _joined(each.spacing)
        rows.append([name, each.network.family, str(folds), _joined(each.patch_size), spacing, each.inference.average])
    yield _table(["configuration", "network", "networks", "patch", "spacing, mm", "folds averaged as"], rows)
    yield f"Predicts with {' + '.join(selection.chosen)}. {_plain(selection.reason)}"
    for text in (selection.weighting.reason if selection.weighting else "", selection.postprocessing_reason):
        if text:
            yield _plain(text)
    if selection.objects is not None:
        chosen, scores, data = selection.objects.chosen, bundle.card.scores, bundle.card.data
        unit = "mm3, or pixels without spacing," if scores is None or data is None else scores.unit
        unit = {"mm": f"mm{data.dimension}"}.get(unit, unit) if data is not None else unit
        yield (
            f"Single objects of {_plain(bundle.labels.objects or '')}: two are told apart where the way from one to "
            f"the other is shallower than either by {chosen.height:g} of an object's depth; objects below "
            f"{chosen.smallest:g} {unit} are removed."
        )
    if selection.calibration is not None:
        yield f"Probabilities are calibrated with the temperature {selection.calibration.temperature:.4g}."


def _trainings(trainings: Sequence[TrainingSummary], bundle: ModelBundle) -> Iterator[str]:
    if "origin" in bundle.details:
        yield _plain(str(bundle.details["origin"]))
    if not trainings:
        yield "No records of the trainings came with the weights."
        return
    rows = [
        [
            each.configuration,
            str(len(each.folds)),
            _joined(each.cases, ", "),
            _joined(each.steps, ", "),
            format_time(each.seconds),
            f"{each.parameters:,}",
            f"{each.loss}, {each.optimiser}",
            ", ".join(each.devices),
        ]
        for each in trainings
    ]
    head = ["configuration", "networks", "cases each", "steps each", "time", "parameters", "loss, optimiser", "device"]
    yield _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """One line that means nothing to Markdown or HTML, whatever a data set calls its classes."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\|`]|\](?=[(\[:]))", r"\\\1", line)


def _joined(values: Iterable[float], between: str = " x ") -> str:
    return between.join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"
