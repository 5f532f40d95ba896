"""The model card as text (Markdown): what Mitchell et al., "Model cards for model reporting", FAT* 2019, ask for.

Pure: the text follows from the bundle's record alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from autounet.schema.bundle import ModelBundle
from autounet.schema.card import NO_LICENCE, DataSummary, ModelCard, ScoreSummary, TrainingSummary
from autounet.schema.quantities import format_time

INTENDED = (
    "Segmenting images like those described under *Training data*: the same structures, channels, modality and "
    "resolution. On other scanners, protocols, populations or species its quality is not known and has to be measured "
    "first. **Research software, no medical device**: it is not approved for diagnosis or treatment, and its results "
    "have to be checked by a person who is qualified to do so."
)
UNKNOWN = "-"


def card_text(bundle: ModelBundle) -> str:
    """Ends with a line break."""
    card = bundle.card or ModelCard()
    parts = [
        [f"# Model card: {_plain(bundle.name)}"],
        [f"Licence: {_plain(card.licence)}" + (" (ask whom you got it from)" if card.licence == NO_LICENCE else "")],
        ["## What it segments", *_segments(bundle)],
        ["## Intended use", INTENDED],
        ["## Training data", *_data(card.data)],
        ["## Cross-validation", *_scores(bundle, card.scores)],
        ["## How it predicts", *_prediction(bundle)],
        ["## How it was trained", *_trainings(card.trainings, bundle)],
        ["## Versions", ", ".join(f"{name} {version}" for name, version in sorted(bundle.versions.items()))],
        ["`bundle.json` holds all of this for programs, and a checksum of every other file."],
    ]
    return "\n\n".join(text for part in parts for text in part) + "\n"


def _segments(bundle: ModelBundle) -> Iterator[str]:
    channels = ", ".join(f"{_plain(channel.name)} ({channel.kind.value})" for channel in bundle.channels)
    yield f"Images: {channels}; stored as {bundle.suffix or bundle.file_kind} where it was trained."
    labels = bundle.labels
    yield _table(["value in the file", "class"], [[str(each.value), each.name] for each in labels.classes])
    if labels.regions:
        rows = [[each.name, ", ".join(map(str, each.values))] for each in labels.regions]
        yield _table(["region", "values"], rows)


def _data(data: DataSummary | None) -> Iterator[str]:
    if data is None:
        yield "Not known: the model was trained elsewhere, or packed before cards were written."
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
        f"In brackets: 95 % intervals by bootstrap over cases. Distances in {scores.unit}."
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
    yield f"Predicts with {' + '.join(selection.chosen)}. {selection.reason}"
    for text in (selection.weighting.reason if selection.weighting else "", selection.postprocessing_reason):
        if text:
            yield text
    if selection.calibration is not None:
        yield f"Probabilities are told at the temperature {selection.calibration.temperature:.4g}."


def _trainings(trainings: Sequence[TrainingSummary], bundle: ModelBundle) -> Iterator[str]:
    if "origin" in bundle.details:
        yield str(bundle.details["origin"])
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
    """One line that means nothing to Markdown tables, whatever a data set calls its classes."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _joined(values: Iterable[float], between: str = " x ") -> str:
    return between.join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"
