"""What segmentations are called in a submission."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from autounet.datasets import InputCase
from autounet.images import output_suffix, suffix
from autounet.schema.errors import OptionError

TASKS = (
    "Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus", "Task05_Prostate", "Task06_Lung",
    "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon",
)  # fmt: skip
"""of the Medical Segmentation Decathlon; its evaluation reads `<task>/<case>.nii.gz` of all ten from one zip"""
FIELDS = frozenset({"case", "ext"})


class Template(NamedTuple):
    pattern: str
    """with {case} and, for the ending of the image's own format, {ext}"""
    text: str
    """as it was asked for"""


def template_for(text: str, source: Path, trained_on: str) -> Template:
    """`files`, `decathlon[:TASK]`, `grand-challenge[:SLUG]`, or a pattern with {case}.

    files: `<case>.<ext>` as `predict` names them. decathlon: `<task>/<case>.nii.gz`; the task is looked for in the path
    of the images and in `trained_on`, the name of the model's data set. grand-challenge: `.mha`, one of the two formats
    that grand-challenge.org keeps images in, in `images/<slug>/` where the slug of the output's interface is given, as
    the containers of its algorithms have it. Raises OptionError.
    """
    name, _, argument = text.partition(":")
    if "{" in text:
        return Template(_checked(text), text)
    if name == "files" and not argument:
        return Template("{case}{ext}", text)
    if name == "decathlon":
        return Template(f"{_task(argument, source, trained_on)}/{{case}}.nii.gz", text)
    if name == "grand-challenge":
        if argument and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", argument):
            raise OptionError(
                f"--template {text}: a slug is lower case words joined by '-'. Copy it from the interface"
            )
        return Template(f"images/{argument}/{{case}}.mha" if argument else "{case}.mha", text)
    raise OptionError(
        f"--template {text} is unknown. Give files, decathlon, grand-challenge, or a pattern such as "
        "'{case}_segmentation.nii.gz'"
    )


def _task(argument: str, source: Path, trained_on: str) -> str:
    if argument:
        if argument not in TASKS:
            raise OptionError(f"--template decathlon:{argument} is no task. The tasks are {', '.join(TASKS)}")
        return argument
    named = [part for part in (*reversed(Path(source).resolve().parts), trained_on) if part in TASKS]
    if not named:
        raise OptionError(
            f"--template decathlon: neither the path {source} nor the model names the task. "
            f"Give --template decathlon:TASK, with one of {', '.join(TASKS)}"
        )
    return named[0]


def _checked(pattern: str) -> str:
    try:
        fields = {field for _, field, form, _ in Formatter().parse(pattern) if field is not None or form}
    except ValueError as error:
        raise OptionError(f"--template {pattern}: {error}") from None
    path = Path(pattern)
    if "case" not in fields or fields - FIELDS or path.is_absolute() or ".." in path.parts:
        raise OptionError(
            f"--template {pattern}: a pattern is a path inside the zip with {{case}} and perhaps {{ext}}, the ending "
            "of the image's format"
        )
    return pattern


def submitted_names(template: Template, cases: Sequence[InputCase]) -> dict[str, str]:
    """The name in the zip of each case. Raises OptionError where two are the same, or no image format."""
    names = {
        case.identifier: template.pattern.format(case=case.identifier, ext=output_suffix(suffix(case.images[0])))
        for case in cases
    }
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise OptionError(f"--template {template.text} gives {twice[0]} to more than one case. Use {{case}}")
    unknown = [name for name in names.values() if not suffix(name) or output_suffix(suffix(name)) != suffix(name)]
    if unknown:
        raise OptionError(
            f"--template {template.text} gives {unknown[0]}, which is no format that segmentations are written in. "
            "End it with {ext}, .nii.gz, .mha, .nrrd, .tif or .png"
        )
    return names
