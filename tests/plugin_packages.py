"""Packages with plug-ins in a folder, as an installer leaves them: their modules, and a dist-info beside them."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

from autounet.schema.plugins import plugins

EXAMPLE = Path(__file__).parents[1] / "docs" / "example_plugin"


def write_metadata(folder: Path, name: str, version: str, groups: Mapping[str, Mapping[str, str]]) -> Path:
    """`groups`: group of entry points -> name -> `module:attribute`."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in own.items()) for group, own in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return info


def install_example(folder: Path, version: str | None = None) -> Path:
    """The example of docs/plugins.md, in the version that its pyproject.toml has, or another. Returns the folder."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    (package,) = project["tool"]["setuptools"]["packages"]
    shutil.copytree(EXAMPLE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    own = project["project"]
    write_metadata(folder, own["name"], version or own["version"], own["entry-points"])
    return folder


def version_here(name: str) -> str:
    """Of the augmentation `name`, in whatever process this is called."""
    return plugins("augmentations")[name].use.version
