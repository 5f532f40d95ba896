"""The house rules that imports can break: they go down, in no circle, and some packages live in one place only.

Layers are those of the design. Every import counts, also inside functions and for type checking: a dependency is a
dependency. Folders of one layer do not import each other, and inside a folder, whatever its depth, files do not import
each other in a circle.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import autounet

ROOT = Path(autounet.__file__).parent

LAYERS = (
    ("system_memory",),
    ("workers", "torch_private"),
    ("processes",),
    ("schema",),
    ("run_log",),
    ("imageio", "store", "nets", "losses", "ops", "progress", "figures"),
    ("datasets", "step"),
    ("planning", "preprocessing", "evaluation", "fingerprint"),
    ("time_budget", "memory_model"),
    ("inference",),
    ("training",),
    ("prediction", "crossval", "report", "tracking", "interop"),
    ("workflow",),
    ("label_evaluation",),
    ("api", "cli"),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
UPWARDS = {("cli", "api"), ("", "api")}
"""the command line uses the Python interface, and `import autounet` offers it"""

ONLY_IN = {
    "SimpleITK": ("imageio",),
    "PIL": ("imageio", "figures", "report"),
    "tifffile": ("imageio",),
    "matplotlib": ("figures", "report", "training"),
    "skimage": ("ops",),
    "jinja2": ("report",),
    "tensorboard": ("tracking",),
    "wandb": ("tracking",),
    "mlflow": ("tracking",),
    "blosc2": ("store",),
    "safetensors": ("store",),
    "highdicom": ("prediction",),
    "pydicom": ("imageio", "prediction"),
    "nrrd": ("imageio",),
    "nibabel": ("imageio",),
    "zarr": ("imageio",),
    "h5py": ("imageio",),
    "roifile": ("imageio",),
    "typer": ("cli",),
}
WITHOUT_TORCH = {
    "schema",
    "planning",
    "imageio",
    "datasets",
    "store",
    "ops",
    "report",
    "evaluation",
    "preprocessing",
    "crossval",
    "fingerprint",
    "tracking",
    "system_memory",
    "workers",
    "processes",
    "progress",
    "run_log",
    "figures",
}
"""these import torch inside functions at most"""
ELSEWHERE = "interop.monai_scripts."
"""programs that run in a bundle of MONAI, without autounet: they read images themselves"""


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """Dotted name below autounet; '' for autounet itself."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {module(path): path for path in files()}


def imported(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import below a node of a file; a name imported from a module counts with
    the module, a module imported from a package with its own name."""
    package = ("autounet", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            name = ".".join(base + ([node.module] if node.module else []))
            for alias in node.names:
                longer = f"{name}.{alias.name}"
                yield node.lineno, longer if longer.removeprefix("autounet.") in MODULES else name


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Those of a whole file."""
    return tuple(imported(path, parse(path)))


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module below autounet) for each import of our own in a file."""
    for line, name in imports(path):
        if name.startswith("autounet."):
            yield line, name.removeprefix("autounet.")


class WithoutFunctions(ast.NodeTransformer):
    """Leaves what runs when the module is imported."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        return None

    visit_AsyncFunctionDef = visit_FunctionDef


def test_every_module_has_a_layer():
    unknown = {name.split(".")[0] for name in MODULES} - set(RANK) - {""}
    assert not unknown, f"say in LAYERS of this test where {sorted(unknown)} belong"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    here = module(path).split(".")[0]
    for line, name in own_imports(path):
        there = name.split(".")[0]
        if there == here or (here, there) in UPWARDS:
            continue
        assert here, f"autounet/__init__.py:{line} imports {there}"
        assert RANK[there] < RANK[here], f"{path.relative_to(ROOT.parent)}:{line}: {here} imports {there}"


def test_no_files_import_each_other_in_a_circle():
    graph = {name: {to for _, to in own_imports(path)} - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_known_in_its_place_only(library):
    for name, path in MODULES.items():
        if name.split(".")[0] in ONLY_IN[library] or (library == "SimpleITK" and name.startswith(ELSEWHERE)):
            continue
        for line, there in imports(path):
            assert there.split(".")[0] != library, f"{path.relative_to(ROOT.parent)}:{line} imports {library}"


def test_torch_stays_out_of_the_light_packages():
    for name, path in MODULES.items():
        if name.split(".")[0] not in WITHOUT_TORCH:
            continue
        for line, there in imported(path, WithoutFunctions().visit(parse(path))):
            assert there.split(".")[0] != "torch", f"{path.relative_to(ROOT.parent)}:{line} imports torch"


PRIVATE_OF_TORCH = {"_cdata", "_schema", "_make_wrapper_subclass", "_scoped_library"}
"""names without torch in front"""


def test_private_names_of_torch_stand_in_one_file():
    for name, path in MODULES.items():
        if name == "torch_private":
            continue
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute):
                words = ast.unparse(node).split(".")
                ours = words[0] in ("torch", "nn", "functional", "aten", "Tensor") or words[-1] in PRIVATE_OF_TORCH
            elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("torch"):
                words, ours = [*node.module.split("."), *(alias.name for alias in node.names)], True
            else:
                continue
            private = [word for word in words if word.startswith("_") and not word.startswith("__")]
            assert not (ours and private), f"{path.relative_to(ROOT.parent)}:{node.lineno} uses {'.'.join(words)}"


def test_nothing_prints():
    for path in files():
        for node in ast.walk(parse(path)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not called, f"{path.relative_to(ROOT.parent)}:{node.lineno} prints; use logging"
