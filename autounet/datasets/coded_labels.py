"""Label files that hold colours, 3D Slicer's named segments or a number for each object: which value is what."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..imageio import crowds_in, is_nrrd_segmentation, is_outlines, read_segments, segment_sets
from ..schema.dataset import Case, CaseFacts, Dataset, Finding
from ..schema.errors import DataError, OptionError
from ..schema.labels import LabelCode
from ..schema.options import DataOptions
from .colour_masks import find_palette
from .layouts.detected_layout import DeclaredLabels, DetectedLayout, read_description, read_object
from .numbered_labels import join_objects, number_objects, tell_apart
from .structures import Coded, combination_codes
from .unnumbered_masks import masks_of, unnumbered_masks, with_pieces

log = logging.getLogger(__name__)


PALETTE = "palette.json"
MOST_SHARED = 40
"""files of outlines that may be those of many images each, as COCO's, of which alone there are crowds"""
_IGNORE_VALUE = 255


def with_coded_labels(
    root: Path, found: DetectedLayout, cases: Sequence[Case], options: DataOptions
) -> tuple[DetectedLayout, list[Finding]]:
    """`found` with the classes, regions and codes of a palette, of colours or of segments, and what is to be told.

    Raises DataError and OptionError.
    """
    if options.join:
        return join_objects(found, options, options.join), []
    if options.objects:
        outlines = {root / part.path for case in cases for part in case.label_parts if is_outlines(Path(part.path))}
        crowds = len(outlines) <= MOST_SHARED and any(crowds_in(path) for path in outlines)
        found = tell_apart(found, cases, options, options.objects, crowds)
        unnumbered = unnumbered_masks(masks_of(root, cases), found.labels.ignore)
        if unnumbered is None:
            return found, []
        codes = with_pieces(found.codes) if unnumbered.pieces else found.codes
        return replace(found, codes=codes), [unnumbered.finding]
    told: list[Finding] = []
    known = {**found.labels.classes, **options.class_values}
    ignore = options.ignore if options.ignore is not None else found.labels.ignore
    palette = _palette(root, options)
    files = [root / case.label for case in cases if case.label and not case.label_parts]
    if palette is not None:
        labels, codes = _by_colour(palette, known, ignore)
    elif any(is_nrrd_segmentation(path) for path in files):
        labels, codes = _by_segment([path for path in files if is_nrrd_segmentation(path)], known)
    elif (colours := find_palette(files)) is not None:
        labels, codes = _by_colour(colours.colours, known, ignore)
        told = [colours.finding]
    else:
        return found, []
    if not codes:
        return found, []
    joined = DeclaredLabels(
        found.labels.classes | labels.classes,
        found.labels.regions | labels.regions,
        labels.ignore if labels.ignore is not None else found.labels.ignore,
    )
    return replace(found, labels=joined, labels_declared=True, codes=codes), told


def _palette(root: Path, options: DataOptions) -> dict[str, Any] | None:
    """Of `--palette`, of dataset.json (an object, or the name of a file), or palette.json in the folder."""
    described = read_description(root).get("palette")
    if options.palette is None and isinstance(described, dict):
        return described
    name = options.palette or described
    path = root / str(name or PALETTE)
    if not path.is_file():
        if name:
            raise OptionError(
                f"--palette {name}: there is no such file", "Give a JSON file with a colour for each class"
            )
        return None
    return read_object(path, 'an object like {"class": [red, green, blue], ...}')


def _by_colour(palette: Mapping[str, Any], known: Mapping[str, int], ignore: int | None) -> Coded:
    """Values as declared; else 0 for the class called background, or black; else numbers in the palette's order.

    A class may have several colours: a list of them. The class called `ignore` is left out of training.
    """
    colours = {name: _colours(name, entry) for name, entry in palette.items()}
    flat = Counter(colour for own in colours.values() for colour in own)
    twice = [colour for colour, count in flat.items() if count > 1]
    if twice:
        raise DataError(f"the palette gives the colour {list(twice[0])} to two classes", "Give each its own")
    values = {name: known[name] for name in colours if name in known}
    zero = next((name for name in colours if name.lower() == "background"), None)
    zero = zero or next((name for name, own in colours.items() if (0, 0, 0) in own), None)
    if zero is not None and 0 not in values.values():
        values.setdefault(zero, 0)
    ignored = next((name for name in colours if name.lower() == "ignore"), None)
    if ignored is not None:
        used = {*values.values(), *known.values()}
        ignore = ignore if ignore is not None else next(v for v in range(_IGNORE_VALUE, 1 << 16) if v not in used)
        values[ignored] = ignore
    for name in colours:
        if name not in values:
            used = {0, *values.values(), *known.values()}
            values[name] = next(value for value in range(1, len(used) + 2) if value not in used)
    codes = [LabelCode(value=values[name], colour=colour) for name, own in colours.items() for colour in own]
    classes = {name: value for name, value in values.items() if name != ignored}
    return DeclaredLabels(classes, {}, ignore), tuple(codes)


def _colours(name: str, entry: Any) -> list[tuple[int, int, int]]:
    several = entry if isinstance(entry, list) and entry and isinstance(entry[0], list) else [entry]
    for colour in several:
        parts = colour if isinstance(colour, list) and len(colour) == 3 else [None]
        if not all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= 255 for part in parts):
            raise DataError(f"the palette gives class {name!r} {colour!r}", "Write [red, green, blue], each 0 to 255")
    return [(colour[0], colour[1], colour[2]) for colour in several]


def _by_segment(files: Sequence[Path], known: Mapping[str, int]) -> Coded:
    """Classes from segments' names; where segments overlap, a class for each combination, and the segments as regions.

    Values are those of the files when all files agree, else numbers in the order of first appearance.
    """
    sets: dict[frozenset[str], None] = {}
    names: dict[str, set[int]] = {}
    for path in files:
        segments = read_segments(path)
        for segment in segments:
            names.setdefault(segment.name, set()).add(segment.value)
        layered = len({segment.layer for segment in segments}) > 1
        twice = len({(segment.layer, segment.value) for segment in segments}) < len(segments)
        found = (
            list(segment_sets(path).voxels) if layered or twice else [frozenset({segment.name}) for segment in segments]
        )
        sets |= dict.fromkeys(each for each in found if each)
    joined = [combination for combination in sets if len(combination) > 1]
    stored = {name: next(iter(values)) for name, values in names.items() if len(values) == 1 and 0 not in values}
    usable = not joined and len(stored) == len(names) and len(set(stored.values())) == len(stored)
    if not usable and not joined and len(names) > 1:
        log.warning("the segments' values differ between label files: classes go by name, and are numbered anew")
    return combination_codes(names, joined, sets, known, stored if usable else None)


ShownValue = tuple[int, tuple[int, int, int]]
"""a value of a label file, and the colour in which it is shown"""
MOST_NAMED = 12
"""files named in one finding"""
_WHITE: ShownValue = (255, (255, 255, 255))


def palette_findings(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Label files whose palettes give a value another colour, or a colour another value, than most do (fatal).

    Colours of numbered objects mean nothing.
    """
    if dataset.labels.objects or not any(fact.label_colours for fact in facts) or number_objects(dataset, facts):
        return []
    names = {case.identifier: case.label for case in dataset.cases}
    palettes = [(names[fact.identifier], _shown_values(fact)) for fact in facts]
    counts = Counter(pair for _, own in palettes for pair in own)
    usual: list[ShownValue] = []
    odd: dict[ShownValue, ShownValue] = {}
    for pair in sorted(counts, key=lambda pair: (-counts[pair], pair)):
        rivals = (each for each in usual if _excludes(each, pair))
        rival = next((each for each in rivals if not any({each, pair} <= own for _, own in palettes)), None)
        if rival is None:
            usual.append(pair)
        else:
            odd[pair] = rival
    files = [(str(name), min(own & set(odd))) for name, own in palettes if own & set(odd)]
    if not files:
        return []
    example, (value, colour) = files[0]
    shown = ", ".join(name for name, _ in files[:MOST_NAMED])
    shown += f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
    message = (
        f"the same value or colour does not mean the same in all label files: in {example}, {value} is shown as "
        f"{list(colour)}; in others, {odd[value, colour][0]} is shown as {list(odd[value, colour][1])}. Files whose "
        f"palettes differ: {shown}"
    )
    remedy = (
        "Say which colour is which class with --palette FILE, a JSON file like "
        '{"background": [0, 0, 0], "name": [128, 0, 0]}: then the colours decide'
    )
    return [Finding(code="palettes-differ", message=message, remedy=remedy)]


def _shown_values(fact: CaseFacts) -> frozenset[ShownValue]:
    """Of a mask of 0 and 255 without palette 255 is white, which one of a single bit calls 1."""
    plain = [_WHITE] if set(fact.value_counts) in ({0, _WHITE[0]}, {_WHITE[0]}) else []
    return frozenset(fact.label_colours.items() or plain)


def _excludes(one: ShownValue, other: ShownValue) -> bool:
    """Whether no single palette has both: a value, a colour, or one numbered by greys and one by indices."""
    numbered = [colour == (value, value, value) for value, colour in (one, other)]
    return one[0] == other[0] or one[1] == other[1] or (numbered[0] != numbered[1] and 0 not in (one[0], other[0]))
