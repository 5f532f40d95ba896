"""Light things stay light, seen from outside: what a fresh interpreter has loaded."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

HEAVY = {"torch", "SimpleITK", "scipy", "matplotlib", "blosc2", "batchgenerators", "batchgeneratorsv2"}
HELP_LIMIT = 1.0
"""seconds of processor time; the aim is 0.3 s on an idle machine, this one may be busy"""

EVERY_MODULE = """
import importlib, pkgutil
for name in {packages!r}:
    package = importlib.import_module("autounet." + name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
        importlib.import_module(module.name)
"""
HELP = """
import sys
from autounet.cli.app import main
sys.argv = ["autounet", "--help"]
try:
    main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
"""
TELL = """
import json, sys
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def loaded(code: str) -> set[str]:
    """Top-level packages that a new interpreter has loaded after running `code`."""
    done = subprocess.run([sys.executable, "-c", code + TELL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded("import autounet") & (HEAVY | {"numpy", "pydantic"})


def test_help_loads_nothing_heavy():
    assert not loaded(HELP) & HEAVY


def test_help_is_quick():
    """Processor time, the least of three, so that a busy machine does not decide."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "autounet", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < HELP_LIMIT


def test_training_and_inference_load_no_simpleitk():
    assert "SimpleITK" not in loaded(EVERY_MODULE.format(packages=["training", "inference"]))


def test_stages_around_training_load_no_torch():
    packages = ["schema", "planning", "imageio", "datasets", "store", "ops", "report", "evaluation", "preprocessing"]
    assert "torch" not in loaded(EVERY_MODULE.format(packages=[*packages, "crossval", "fingerprint"]))


def test_planning_loads_no_charts_and_timed_steps_no_compiler():
    assert not loaded("import autounet.workflow.pipeline") & {"torch", "matplotlib", "jinja2"}
    traced = """
import sys
from autounet.memory_model.traced import self_test
self_test()
assert "torch._dynamo" not in sys.modules
"""
    assert "torch" in loaded(traced)
