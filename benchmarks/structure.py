"""How the code is cut: files, lines, classes, importers, circles, functions; of this checkout, or of two commits.

    python benchmarks/structure.py --before 2fa19ae

Parses only, imports nothing of AutoUNet. An importer is a module of the package with an import statement that names the
module, at any depth of the file; a circle is a strongly connected set of modules (the package itself, which hands out
`api` on demand and gives its version, is left out). A function's length is its body
without the docstring. A private helper is a function whose name starts with one underscore; it is called once when its
name stands once in its module outside its definition.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from measuring import REPOSITORY, table

LONG = 40


@dataclass(frozen=True)
class Structure:
    files: int
    lines: int
    median_lines: float
    largest_file: int
    files_under_40_lines: int
    classes: int
    class_names_in_several_files: int
    modules_with_one_importer: int
    modules_in_circles: int
    functions_over_40_lines: int
    private_helpers_called_once: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="a commit to set beside this checkout")
    before = parser.parse_args().before
    columns = {"now": measure(REPOSITORY / "autounet")}
    if before:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(
                ["git", "-C", str(REPOSITORY), "archive", before, "autounet"], capture_output=True, check=True
            )
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
                packed.extractall(folder, filter="data")
            columns = {before: measure(Path(folder) / "autounet"), **columns}
    rows = [
        [field.name.replace("_", " "), *(f"{getattr(column, field.name):g}" for column in columns.values())]
        for field in fields(Structure)
    ]
    print(table(["", *columns], rows))


def measure(package: Path) -> Structure:
    paths = sorted(package.rglob("*.py"))
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    trees = {module_name(path, package): ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    packages = {module_name(path, package) for path in paths if path.name == "__init__.py"}
    imports = {name: imported(name, tree, name in packages, trees) for name, tree in trees.items()}
    importers = Counter(target for targets in imports.values() for target in targets)
    classes = [
        (node.name, name) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    homes = Counter(name for name, _ in set(classes))
    inner = {name: targets - {package.name} for name, targets in imports.items() if name != package.name}
    return Structure(
        files=len(paths),
        lines=sum(lines.values()),
        median_lines=statistics.median(lines.values()),
        largest_file=max(lines.values()),
        files_under_40_lines=sum(count < 40 for count in lines.values()),
        classes=len(classes),
        class_names_in_several_files=sum(count > 1 for count in homes.values()),
        modules_with_one_importer=sum(importers[name] == 1 for name in trees),
        modules_in_circles=sum(len(circle) for circle in circles(inner)),
        functions_over_40_lines=sum(length > LONG for tree in trees.values() for length in function_lengths(tree)),
        private_helpers_called_once=sum(helpers_called_once(tree) for tree in trees.values()),
    )


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(name: str, tree: ast.Module, is_package: bool, modules: dict[str, ast.Module]) -> set[str]:
    """The package's own modules that `name` imports."""
    home = name.split(".") if is_package else name.split(".")[:-1]
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            within = {alias.name: f"{source}.{alias.name}" for alias in node.names}
            targets |= {inner if inner in modules else source for inner in within.values()}
    return (targets & set(modules)) - {name}


def circles(imports: dict[str, set[str]]) -> Iterator[set[str]]:
    """Sets of modules each of which imports every other, directly or through others of the set."""
    reached = {name: reachable(name, imports) for name in imports}
    seen: set[str] = set()
    for name in imports:
        circle = {other for other in reached[name] if name in reached[other]}
        if circle and name not in seen:
            seen |= circle
            yield circle


def reachable(name: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(imports[name])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imports[module]
    return found


def function_lengths(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def helpers_called_once(tree: ast.Module) -> int:
    nodes = list(ast.walk(tree))
    private = {
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("_")
        and not node.name.startswith("__")
    }
    used = Counter(node.id for node in nodes if isinstance(node, ast.Name))
    used.update(node.attr for node in nodes if isinstance(node, ast.Attribute))
    return sum(used[name] == 1 for name in private)


if __name__ == "__main__":
    main()
