"""Data sets in numbers for `planning_parity.py`: known ones, awkward ones, and random ones.

A question is a dictionary of plain numbers, so that it can be kept as JSON beside the answers:

    cases     list of {cropped, shape, spacing, times}; axes (z, y, x), mm; `times` cases are alike
    flat      True: two-dimensional images
    channels  their names, which decide the normalisation in nnU-Net
    classes   with the background
    regions   number of nested regions over the classes, 0: the classes themselves are the targets
    ignore    True: there is an ignore label
    gigabytes nominal memory target, null: each planner's own
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

Question = dict[str, Any]

TASK04 = Path(__file__).parent.parent / "tests" / "golden" / "task04_fingerprint.json"

KNOWN: dict[str, tuple[int, list[tuple[int, ...]], list[tuple[float, ...]], list[str], int]] = {
    # name: cases, typical shapes after crop, typical spacings, channels, classes
    "ACDC": (
        200,
        [(10, 256, 216), (9, 256, 232), (8, 232, 256), (16, 288, 256), (7, 224, 154)],
        [(10, 1.5625, 1.5625), (10, 1.3672, 1.3672), (5, 1.4062, 1.4062), (10, 1.6797, 1.6797), (6.5, 1.4583, 1.4583)],
        ["cineMRI"],
        4,
    ),
    "BraTS": (1251, [(140, 171, 137), (144, 170, 139), (136, 175, 135)], [(1, 1, 1)], ["T1", "T1ce", "T2", "FLAIR"], 4),
    "LiTS": (
        131,
        [(432, 512, 512), (685, 512, 512), (124, 512, 512), (841, 512, 512), (75, 512, 512)],
        [(1.0, 0.7676, 0.7676), (0.8, 0.7832, 0.7832), (5.0, 0.8594, 0.8594), (0.7, 0.6836, 0.6836)],
        ["CT"],
        3,
    ),
    "KiTS": (
        210,
        [(104, 512, 512), (64, 512, 512), (261, 512, 512), (602, 512, 512), (81, 512, 512)],
        [(3.0, 0.7812, 0.7812), (5.0, 0.8203, 0.8203), (1.0, 0.7402, 0.7402), (0.5, 0.9199, 0.9199)],
        ["CT"],
        3,
    ),
    "BTCV": (
        30,
        [(147, 512, 512), (139, 512, 512), (93, 512, 512), (198, 512, 512), (85, 512, 512)],
        [(3.0, 0.7598, 0.7598), (3.0, 0.8594, 0.8594), (5.0, 0.6797, 0.6797), (2.5, 0.7422, 0.7422)],
        ["CT"],
        14,
    ),
    "AMOS": (
        200,
        [(104, 768, 768), (90, 512, 512), (321, 512, 512), (72, 260, 320)],
        [(5.0, 0.6836, 0.6836), (2.0, 0.8203, 0.8203), (1.25, 0.7422, 0.7422), (3.0, 1.1875, 1.1875)],
        ["CT"],
        16,
    ),
    "MSD heart": (20, [(115, 320, 232), (120, 320, 282), (90, 320, 220)], [(1.37, 1.25, 1.25)], ["MRI"], 2),
    "MSD prostate": (
        32,
        [(20, 320, 320), (15, 384, 384), (24, 256, 256)],
        [(3.6, 0.625, 0.625), (3.0, 0.6, 0.6), (4.0, 0.75, 0.75)],
        ["T2", "ADC"],
        3,
    ),
    "MSD lung": (63, [(252, 512, 512), (467, 512, 512), (112, 512, 512)], [(1.25, 0.7852, 0.7852)], ["CT"], 2),
    "MSD pancreas": (281, [(93, 512, 512), (69, 512, 512), (145, 512, 512)], [(2.5, 0.8027, 0.8027)], ["CT"], 3),
    "MSD colon": (126, [(95, 512, 512), (53, 512, 512), (247, 512, 512)], [(5.0, 0.7812, 0.7812)], ["CT"], 2),
    "MSD spleen": (41, [(90, 512, 512), (60, 512, 512), (135, 512, 512)], [(5.0, 0.793, 0.793)], ["CT"], 2),
    "TotalSegmentator": (1204, [(231, 235, 249), (128, 200, 220), (320, 333, 333)], [(1.5, 1.5, 1.5)], ["CT"], 60),
    "ISBI 2012": (1, [(30, 512, 512)], [(50.0, 4.0, 4.0)], ["noNorm"], 2),
    "DRIVE": (20, [(1, 584, 565)], [(1, 1, 1)], ["R", "G", "B"], 2),
    "Retina, large": (81, [(1, 2336, 3504)], [(1, 1, 1)], ["R", "G", "B"], 2),
}

AWKWARD: list[tuple[tuple[int, ...], tuple[float, ...]]] = [
    ((1500, 2000, 1), (1, 1, 1)),
    ((1500, 2000, 1), (1, 1, 5)),
    ((1, 256, 256), (1, 1, 1)),
    ((256, 256, 2), (1, 1, 1)),
    ((256, 256, 2), (0.5, 0.5, 8)),
    ((1, 2, 2), (1, 1, 1)),
    ((128, 128, 128), (0.01, 0.01, 0.01)),
    ((128, 128, 128), (50, 50, 50)),
    ((40, 400, 400), (50, 0.01, 0.01)),
    ((300, 300, 300), (0.01, 50, 50)),
    ((12, 8, 8), (1, 1, 1)),
    ((17, 33, 65), (2.0, 1.0, 0.5)),
    ((2000, 40, 40), (0.3, 3.0, 3.0)),
    ((1000, 1000, 1000), (0.4, 0.4, 0.4)),
]


def questions(count: int, seed: int) -> list[Question]:
    """`count` data sets: Task04, the known ones, the awkward ones, then random ones."""
    generator = random.Random(seed)
    fixed = [_task04(), *(_known(name, generator) for name in KNOWN), *(_awkward(*pair) for pair in AWKWARD)]
    return (fixed + [draw(generator) for _ in range(count - len(fixed))])[:count]


def draw(generator: random.Random) -> Question:
    """A data set in numbers: 1 to 60 cases around one typical shape and spacing, sometimes mixed, sometimes 2-D."""
    flat = generator.random() < 0.1
    shape, spacing = _typical(generator)
    if flat:
        shape, spacing = [1, *(max(length, 32) * 2 for length in shape[1:])], [1.0, 1.0, 1.0]
    spread = generator.choice([0.0, 0.1, 0.4])
    cases = []
    for _ in range(generator.choice([1, 2, 5, 9, 20])):
        size = [max(1, round(length * generator.uniform(1 - spread, 1 + spread))) for length in shape]
        whole = [round(length * generator.uniform(1, 1.25)) for length in size]
        if flat:
            size[0] = whole[0] = 1
        steps = spacing if flat else [round(value * generator.uniform(1 - spread, 1 + spread), 4) for value in spacing]
        times = generator.choice([1, 1, 1, 3, 40])
        cases.append({"cropped": size, "shape": whole, "spacing": steps, "times": times})
    classes = generator.choice([2, 3, 4, 14, 60])
    return {
        "flat": flat,
        "cases": cases,
        "channels": _channels(generator),
        "classes": classes,
        "regions": min(3, classes - 1) if generator.random() < 0.2 else 0,
        "ignore": generator.random() < 0.2,
        "gigabytes": generator.choice([4, 11, 16, 80]) if generator.random() < 0.15 else None,
    }


def _typical(generator: random.Random) -> tuple[list[int], list[float]]:
    shape = [round(2 ** generator.uniform(3.5, 9)) for _ in range(3)]
    spacing = [round(2 ** generator.uniform(-1.5, 1.5), 4) for _ in range(3)]
    kind = generator.random()
    if kind < 0.3:
        axis = generator.randrange(3)
        spacing[axis] = round(spacing[axis] * generator.uniform(2, 9), 4)
        shape[axis] = max(4, round(shape[axis] / generator.uniform(1, 10)))
    elif kind < 0.5:
        spacing = [generator.choice([0.5, 1.0, 1.5, 3.0])] * 3
        shape = [generator.choice([32, 64, 128, 256])] * 3 if generator.random() < 0.5 else shape
    elif kind < 0.75:
        shape = [generator.randrange(40, 700), *[generator.choice([256, 384, 512])] * 2]
        plane = round(generator.uniform(0.5, 1.2), 4)
        spacing = [generator.choice([0.7, 1.0, 1.5, 2.5, 3.0, 5.0]), plane, plane]
    return shape, spacing


def _channels(generator: random.Random) -> list[str]:
    names = ["CT", "T1", "noNorm", "FLAIR", "ct", "zscore"]
    return [generator.choice(names) for _ in range(generator.choice([1, 1, 2, 4]))]


def _task04() -> Question:
    cases = json.loads(TASK04.read_text())["cases"]
    plain = [
        {"cropped": case["cropped_shape"], "shape": case["shape"], "spacing": case["spacing"], "times": 1}
        for case in cases
    ]
    return _question(plain, ["MRI"], 3)


def _known(name: str, generator: random.Random) -> Question:
    """20 different cases at most: the typical shapes with typical spacings, a little varied."""
    count, shapes, spacings, channels, classes = KNOWN[name]
    different = min(count, 20)
    cases = []
    for index in range(different):
        size = [max(1, round(length * generator.uniform(0.9, 1.1))) for length in shapes[index % len(shapes)]]
        size[0] = 1 if shapes[0][0] == 1 else size[0]
        whole = [240, 240, 155][::-1] if name == "BraTS" else size
        times = count // different + (index < count % different)
        cases.append(
            {"cropped": size, "shape": whole, "spacing": list(spacings[index % len(spacings)]), "times": times}
        )
    question = _question(cases, channels, classes)
    return question | {"flat": shapes[0][0] == 1, "regions": 3 if name == "BraTS" else 0}


def _awkward(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Question:
    case = {"cropped": list(shape), "shape": list(shape), "spacing": list(spacing), "times": 10}
    return _question([case], ["CT"], 3) | {"flat": shape[0] == 1}


def _question(cases: list[dict[str, Any]], channels: list[str], classes: int) -> Question:
    common = {"regions": 0, "ignore": False, "gigabytes": None}
    return {"flat": False, "cases": cases, "channels": channels, "classes": classes, **common}
