"""The documentation as the tests see it: pages, fenced blocks, links, headings, inline code."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Command:
    """One line `$ autounet ...` of a block `console`, and what the page says that it prints."""

    words: tuple[str, ...]
    printed: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        return [block for found, block in FENCE.findall(self.text) if found == language]

    @property
    def languages(self) -> set[str]:
        return {language for language, _ in FENCE.findall(self.text)}

    def commands(self) -> Iterator[Command]:
        """Of the blocks `console`, in order."""
        for block in self.blocks("console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, *printed = part.strip().splitlines()
                yield Command(tuple(shlex.split(line)), tuple(printed))

    @property
    def prose(self) -> str:
        """Without fenced blocks."""
        return FENCE.sub("", self.text)

    @property
    def links(self) -> list[str]:
        return LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """As GitHub and Python-Markdown name headings: small letters, no punctuation, hyphens for spaces."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
        return {re.sub(r"\s", "-", heading.strip()) for heading in plain}

    @property
    def code(self) -> list[str]:
        """Inline code, lines of indented blocks, commands: what readers may type."""
        inline = re.findall(r"`([^`\n]+)`", self.prose)
        indented = re.findall(r"^    (.+)$", self.prose, re.MULTILINE)
        return inline + indented + [" ".join(each.words) for each in self.commands()]


def pages() -> list[Page]:
    return [Page(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]


def program_texts() -> Iterator[str]:
    """Every text in the program's code, with … for what is filled in."""
    for file in (ROOT / "autounet").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def undocumented(out: Path) -> list[str]:
    """Files of an output folder that no row of docs/files.md names."""
    rows = re.findall(r"^\| (`[^|]+`) \|", Page(ROOT / "docs" / "files.md").text, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    patterns = [re.sub(r"<[^>]+>", "[^/]+", re.escape(name).replace(r"\.\.\./", "(.*/)?")) for name in names]
    patterns = [f"{each}.*" if each.endswith("/") else each for each in patterns]
    files = (file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())
    return [file for file in files if not any(re.fullmatch(each, file) for each in patterns)]
