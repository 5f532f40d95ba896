"""What is built and installed: the page of the package index, data files, types, modules that a system lacks."""

from __future__ import annotations

import fnmatch
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from autounet.ops import device

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINK = re.compile(r"\]\(([^)]*)\)")


@pytest.mark.parametrize("source", [None, "https://example.org/autounet/"])
def test_the_index_page_has_no_links_to_files(source: str | None) -> None:
    """Words of links stay; with an address every link leads to a file that is there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = runpy.run_path(str(ROOT / "setup.py"))["index_page"](readme, source)
    links = LINK.findall(page)
    assert all(link.startswith(("https://", "#")) for link in links)
    assert "layouts and formats" in page
    paths = [link.removeprefix(source).partition("#")[0] for link in links if source and link.startswith(source)]
    assert all((ROOT / path).exists() for path in paths)
    assert len(paths) == (len([each for each in LINK.findall(readme) if "://" not in each]) if source else 0)


def test_every_data_file_is_packed() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{each}" for package, globs in data.items() for each in globs]
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "autounet").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert "autounet/py.typed" in files
    assert [path for path in files if not any(fnmatch.fnmatch(path, pattern) for pattern in patterns)] == []


def test_an_editable_install_is_a_plain_path() -> None:
    """Which type checkers follow; setuptools writes one only where the root of the packages is named."""
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"": "."}


def test_the_peak_of_a_process_without_the_module_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has none; its own count is taken."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", "win32")
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=12_345))
    monkeypatch.setattr(device.psutil, "Process", lambda: process)
    assert device.peak_resident() == 12_345


CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--python-executable", "{python}", "--cache-dir", "{cache}"],
    "pyright": ["pyright", "--pythonpath", "{python}"],
}


def installed(folder: Path, kind: str) -> Path:
    """The interpreter of a new environment with the package as `pip install` (wheel) or `pip install -e` puts it there.

    Its dependencies are those of this environment.
    """
    source = folder / "source"
    shutil.copytree(ROOT / "autounet", source / "autounet", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    venv.create(folder / "env")
    python = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    find = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.check_output([python, "-c", find], text=True).strip())
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_type_checkers_see_the_interface(kind: str, checker: str, tmp_path: Path) -> None:
    """In a program elsewhere each line that is wrong is an error, and no other line."""
    if checker == "pyright" and shutil.which("pyright") is None:
        pytest.skip("pyright is not installed")
    python, program = installed(tmp_path / "build", kind), tmp_path / "program" / "consumer.py"
    program.parent.mkdir()
    shutil.copy(ROOT / "tests" / "typed_consumer.py", program)
    command = [each.format(python=python, cache=tmp_path / "cache") for each in CHECKERS[checker]]
    done = subprocess.run([*command, program.name], cwd=program.parent, capture_output=True, text=True, check=False)
    found = {int(line) for line in re.findall(r"consumer\.py:(\d+):.*\berror\b", done.stdout)}
    lines = program.read_text(encoding="utf-8").splitlines()
    assert found == {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}, done.stdout
