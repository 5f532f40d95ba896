"""The house rules that imports can break: they only go down, and some packages live in one place only.

Layers are those of the design. Every import counts, also inside functions and for type checking: a dependency is a
dependency. Packages of one layer do not import each other; inside one package there is no order.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autounet

ROOT = Path(autounet.__file__).parent

LAYERS = (
    ("schema",),
    ("images", "store", "nets", "losses", "ops"),
    ("datasets", "step"),
    ("planning", "preprocessing", "evaluation", "report", "fingerprint", "tracing", "tracking"),
    ("inference", "selection"),
    ("training",),
)
TOP = ("__main__", "api", "cli", "cli_models", "cli_options", "cli_stages", "device", "pipeline", "running")
"""layer 7: the modules that join the stages; they may import each other, never in a circle (but for type checking)"""
FREE = ("allocator", "atomic", "workers")
"""modules that import nothing of ours, so that anything may use them"""
SIDE = ("interop",)
"""may use anything, and only the top may use it"""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer} | dict.fromkeys(TOP, len(LAYERS))

ONLY_IN = {
    "SimpleITK": ("images",),
    "PIL": ("images", "report"),
    "tifffile": ("images",),
    "matplotlib": ("report", "training"),
    "skimage": ("ops",),
    "jinja2": ("report",),
    "tensorboard": ("tracking",),
    "wandb": ("tracking",),
    "mlflow": ("tracking",),
    "blosc2": ("store",),
    "safetensors": ("store",),
    "highdicom": ("interop",),
    "pydicom": ("interop",),
    "typer": ("cli", "cli_models", "cli_options", "cli_stages"),
}
WITHOUT_TORCH = {
    "schema",
    "planning",
    "images",
    "datasets",
    "store",
    "ops",
    "report",
    "evaluation",
    "preprocessing",
    "selection",
    "fingerprint",
    "tracking",
    "workers",
}
"""these import torch inside functions at most"""


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """The package or module directly below autounet that a file belongs to; '' for autounet itself."""
    relative = path.relative_to(ROOT)
    name = relative.parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import below a node of a file."""
    package = ("autounet", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            if module == "autounet":
                yield from ((node.lineno, f"autounet.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


class WithoutTypes(ast.NodeTransformer):
    """Drops what stands under `if TYPE_CHECKING:`."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def own_imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, package or module below autounet) for each import of our own below a node."""
    for line, name in imported(path, tree):
        words = name.split(".")
        if words[0] == "autounet" and len(words) > 1 and not words[1].startswith("__version__"):
            yield line, words[1]


class WithoutFunctions(WithoutTypes):
    """Leaves what runs when the module is imported."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        return None

    visit_AsyncFunctionDef = visit_FunctionDef


def test_every_module_has_a_layer():
    unknown = {part(path) for path in files()} - set(RANK) - set(FREE) - set(SIDE) - {""}
    assert not unknown, f"say in LAYERS or TOP of this test where {sorted(unknown)} belong"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    here = part(path)
    for line, there in own_imports(path, parse(path)):
        if there == here or there in FREE or (here, there) == ("", "api"):
            continue
        place = f"{path.relative_to(ROOT.parent)}:{line}"
        assert here not in ("", *FREE), (
            f"{place}: {here or 'autounet'} must import nothing of ours, but imports {there}"
        )
        if here == "interop":
            continue
        assert there != "interop" or here in TOP, f"{place}: only the top imports interop"
        if here in TOP:
            continue
        assert RANK[there] < RANK[here], f"{place}: {here} (layer {RANK[here] + 1}) imports {there}"


def test_the_top_has_no_circles():
    graph: dict[str, set[str]] = {name: set() for name in TOP}
    for path in files():
        if part(path) in TOP:
            found = {there for _, there in own_imports(path, WithoutTypes().visit(parse(path)))}
            graph[part(path)] |= (found & set(TOP)) - {part(path)}
    while graph:
        free = [name for name, needs in graph.items() if not needs & set(graph)]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_known_in_its_place_only(library):
    for path in files():
        if part(path) in ONLY_IN[library]:
            continue
        for line, name in imported(path, parse(path)):
            assert name.split(".")[0] != library, f"{path.relative_to(ROOT.parent)}:{line} imports {library}"


def test_torch_stays_out_of_the_light_packages():
    for path in files():
        if part(path) not in WITHOUT_TORCH:
            continue
        for line, name in imported(path, WithoutFunctions().visit(parse(path))):
            assert name.split(".")[0] != "torch", f"{path.relative_to(ROOT.parent)}:{line} imports torch"


def test_nothing_prints():
    for path in files():
        for node in ast.walk(parse(path)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not called, f"{path.relative_to(ROOT.parent)}:{node.lineno} prints; use logging"
