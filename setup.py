"""Writes the page of the package index from README.md; all else is in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")
"""to a file beside README.md, or a picture of it: what the index cannot follow"""


def index_page(readme: str, source: str | None) -> str:
    """README with links to files led to the address `source`; without one their words remain, and no pictures."""

    def absolute(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if source:
            return f"{picture}[{words}]({source}{path})"
        return "" if picture else words

    return LINK.sub(absolute, readme)


if __name__ == "__main__":
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (HERE / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=index_page(text, project["urls"].get("Source")),
        long_description_content_type="text/markdown",
    )
