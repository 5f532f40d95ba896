"""Commands of AutoUNet in processes forked from this one, on a set so small that a whole run takes seconds.

What a run needs is imported before, its device was measured before, and pictures are left out: what is left is what can
be interrupted. A checkpoint is written with every line of the log, where a real run waits `LEAST_SECONDS`. Linux only.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import autounet
from autounet.cli.app import main as command
from autounet.datasets import synthetic
from autounet.planning import fill_memory, plan_inputs
from autounet.report import data_section, page, results_section, training_section
from autounet.schema.record import replacing
from autounet.schema.run import DeviceProfile
from autounet.training import journal, loop, probe, state
from autounet.workflow import cluster

STEPS, FOLDS = 6, 2
SHAPES = ((10, 16, 16), (12, 16, 14))
CASES = 4
PROFILE = DeviceProfile(
    device="cpu", name="as in the table of faults", cores=1, memory_bytes=2**33, precision="fp32", channels_last=True,
    throughput={"fp32": 15.0}, sample_rates=dict.fromkeys(("light_2d", "light_3d", "full_2d", "full_3d"), 1e7),
)  # fmt: skip
"""of the processor; measuring it takes longer than such a run"""
LONGEST = 600.0
"""seconds that a command may take before it counts as hanging"""
SEEN = re.compile(r"^\d\d:\d\d:\d\d |\d+(\.\d+)?( of \d+)?| (KB|MB|GB)\b")
"""what differs between two logs of the same work"""


class Ended(NamedTuple):
    """A command that has ended: exit code (negative: the signal), seconds, and what it printed."""

    code: int
    seconds: float
    log: str
    noticed: float | None = None
    """seconds from what went wrong, or from the beginning, to the line that says so, or else to the end"""
    said: str = ""
    """that line; empty where there is none"""
    struck: bool = False
    """whether something has gone wrong"""


@dataclass(frozen=True)
class Place:
    """Data and an output folder, in a folder `work` that holds what was made before, too."""

    work: Path

    @property
    def data(self) -> Path:
        return self.work / "data"

    @property
    def out(self) -> Path:
        return self.work / "out"

    @property
    def struck(self) -> Path:
        """Is there as soon as something has gone wrong."""
        return self.work / "struck"

    @property
    def steps(self) -> Path:
        """A line for every training step."""
        return self.work / "steps"

    def command(self, name: str, *options: object) -> list[str]:
        given = [name, self.data, "--out", self.out, "--iterations", STEPS, "--deterministic", "--folds", "0,1"]
        given += ["--device", "cpu", "--workers", 0, "--configurations", "3d_fullres", "--memory", "600MB", *options]
        return list(map(str, given))

    def commands(self, options: Sequence[object] = ()) -> list[list[str]]:
        """From check to predict."""
        predict = ["predict", self.out / "model", self.data / "imagesTr", "--out", self.out / "predicted"]
        predict += ["--device", "cpu", "--no-mirror"]
        return [["check", str(self.data)], self.command("run", *options), list(map(str, predict))]


Hook = Callable[[Place, Callable[[], None]], Any]
"""Called in the process of the command, with what has to be called when the fault strikes."""


@dataclass
class Forks:
    """What the processes that are forked begin with."""

    place: Place
    usual: set[str] = field(default_factory=set)
    """lines that undisturbed commands print"""

    def run(
        self,
        arguments: Sequence[str],
        hook: Hook | None = None,
        after: tuple[float, int] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Ended:
        """A command in a process of its own: with a fault, or a signal `after` so many seconds.

        `meanwhile` is called here once something has gone wrong.
        """
        place, log = self.place, self.place.work / f"log{os.getpid()}_{time.monotonic_ns()}"
        if hook is not None:
            place.struck.unlink(missing_ok=True)
        began, noticed = time.time(), None
        child = os.fork()
        if child == 0:
            os._exit(self._child(arguments, log, hook))
        status = None
        while status is None:
            pid, code = os.waitpid(child, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(code)
            elif after is not None and time.time() - began > after[0]:
                os.kill(child, after[1])
                after = None
            elif time.time() - began > LONGEST:
                os.killpg(child, signal.SIGKILL)
            elif meanwhile is not None and place.struck.exists():
                meanwhile()
                meanwhile = None
            else:
                time.sleep(0.005)
            if noticed is None and hook is not None and place.struck.exists() and self.unusual(log):
                noticed = time.time()
        since = place.struck.stat().st_mtime if place.struck.exists() else began
        text, said = log.read_text(errors="replace") if log.exists() else "", self.unusual(log)
        log.unlink(missing_ok=True)
        seconds = max(0.0, (noticed or time.time()) - since)
        return Ended(status, time.time() - began, text, seconds, said, place.struck.exists())

    def unusual(self, log: Path) -> str:
        """The line of an error, else the first line that undisturbed commands do not print; empty without any."""
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        errors = [line for line in lines if line.startswith("Error: ")]
        others = [line for line in lines if line.strip() and SEEN.sub("#", line) not in self.usual and " %" not in line]
        return re.sub(r"^\d\d:\d\d:\d\d ", "", (errors or others or [""])[0])

    def _child(self, arguments: Sequence[str], log: Path, hook: Hook | None) -> int:
        """In the forked process; returns the exit code."""
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs ignore it
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(number, 1)
        os.dup2(number, 2)
        sys.argv = ["autounet", *arguments]
        try:
            for each in self.quick():
                each.start()
            if hook is not None:
                hook(self.place, self.place.struck.touch)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            command()
        except SystemExit as ended:
            return int(ended.code or 0) if isinstance(ended.code, int | None) else 1
        except KeyboardInterrupt as ended:
            frames = traceback.extract_tb(ended.__traceback__)
            if not any(
                Path(each.filename).match("autounet/cli/app.py") for each in frames
            ):  # before or after the command
                return 128 + signal.SIGINT
            traceback.print_exc()
            return 70
        except BaseException:
            traceback.print_exc()
            return 70
        finally:
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the command is over
                signal.signal(each, signal.SIG_IGN)
        return 0

    def quick(self) -> list[Any]:
        """Patches for narrow networks, no trial steps, no pictures, a known device, and many checkpoints."""
        advance = loop.advance

        def counted(*given: Any) -> Any:
            with self.place.steps.open("a") as file:
                file.write("step\n")
            return advance(*given)

        patches = [
            mock.patch.object(plan_inputs, "WIDTH", 8),
            mock.patch.object(fill_memory, "WIDTH", 8),
            mock.patch.object(fill_memory, "MOST_WIDTH", 8),
            mock.patch.object(cluster, "try_configurations", return_value=None),
            mock.patch.object(probe, "probe_device", return_value=PROFILE),
            mock.patch.object(journal, "draw_progress", blank),
            mock.patch.object(page, "show_cases", return_value=([], [])),
            mock.patch.object(results_section, "result_charts", return_value=[]),
            mock.patch.object(data_section, "data_charts", return_value=[]),
            mock.patch.object(training_section, "training_charts", return_value=[]),
            mock.patch.object(training_section, "reliability_diagram", return_value=None),
            mock.patch.object(state, "LEAST_SECONDS", 0.0),
            mock.patch.object(state, "TIME_SHARE", 1e9),
            mock.patch.object(loop, "advance", counted),
        ]
        return patches

    def all(
        self,
        hook: Hook | None = None,
        options: Sequence[object] = (),
        meanwhile: Callable[[], None] | None = None,
        first: int = 0,
    ) -> Ended:
        """The commands from the `first` of check, run and predict on; what ends one ends all."""
        seconds, said, log, noticed, struck = 0.0, "", "", None, False
        for arguments in self.place.commands(options)[first:]:
            ended = self.run(arguments, hook, meanwhile=meanwhile)
            seconds, log, struck = seconds + ended.seconds, log + ended.log, struck or ended.struck
            if ended.said and not said:
                said, noticed = ended.said, ended.noticed
            if ended.code:
                return ended._replace(seconds=seconds, log=log, struck=struck)
        return Ended(0, seconds, log, noticed, said, struck)


def blank(_: object, path: Path, title: str = "") -> None:
    """In the place of a picture, which takes longer to draw than all the rest of such a run."""
    with replacing(path) as temporary:
        temporary.write_bytes(b"\x89PNG\r\n")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def outcome(out: Path) -> dict[str, str]:
    """Digests of weights, metrics and segmentations of the cases and of what was predicted."""
    patterns = ("models/*/fold_[01]/weights.safetensors", "model/*/*.safetensors", "crossval/*/*.nii.gz")
    files = [path for pattern in (*patterns, "metrics.json", "predicted/[!.]*.nii.gz") for path in out.glob(pattern)]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def prepare(work: Path, folders: bool) -> tuple[Forks, dict[str, str]]:
    """Data in `work`, and what is to come out; with `folders` also output folders planned for, trained and finished.

    What an earlier call has made is used again. This process imports what a run imports, and runs nothing itself.
    """
    place, known = Place(work), work / "expected.json"
    forks = Forks(place)
    begun = time.monotonic()
    import_all()
    if not known.exists():
        emptied(work)
        with mock.patch.object(synthetic, "SHAPES", SHAPES):
            synthetic.make_demo_dataset(place.data, cases=CASES)
        for name, stage in (("planned", "plan"), ("trained", "train")) if folders else ():
            require(forks.run(place.command(stage)))
            shutil.copytree(place.out, work / name)
        shutil.rmtree(place.out, ignore_errors=True)
        logs = [require(forks.all())]
        if folders:
            logs.append(require(forks.all()))  # says that all is done already
            shutil.copytree(place.out, work / "finished")
        usual = {SEEN.sub("#", line) for log in logs for line in log.splitlines()}
        known.write_text(json.dumps({"expected": outcome(place.out), "usual": sorted(usual)}))
    content = json.loads(known.read_text())
    forks.usual = set(content["usual"])
    print(f"undisturbed: {time.monotonic() - begun:.0f} s", flush=True)
    return forks, content["expected"]


def import_all() -> None:
    """What commands import only when they need it."""
    found = [each.name for each in pkgutil.walk_packages(autounet.__path__, "autounet.")]
    for name in (*found, "torch._dynamo", "SimpleITK", "filelock"):
        if not name.endswith("__main__"):
            importlib.import_module(name)


def require(ended: Ended) -> str:
    """What a command printed that had to end well."""
    assert ended.code == 0, ended
    return ended.log
