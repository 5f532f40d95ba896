"""What more machines are worth: runs on workers of this machine, and on paper a cluster of many.

    python benchmarks/scaling.py --work WORK [--workers 1,2] [--data DATA --set openkbp --memory 2GB]

First the same small run (synthetic data, four folds of some steps) goes through Parsl to one worker, then to two of one
core each, beside a run without Parsl; and tasks that only sleep show what a job costs beyond its work. Then a set is
planned with every configuration, its steps are timed, and the jobs of its run, with those lengths, are given to so many
devices: always the job that most depends on. Queueing in a cluster is not counted.
"""

from __future__ import annotations

import argparse
import heapq
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from known_sets import JOBS
from measuring import commit, machine, public_command, table, write_results

DEVICES = (1, 2, 4, 5, 8, 10, 16, 20, 32, 64)
SLEPT, TASKS = 0.2, 20
"""seconds of a task that only sleeps, and how many"""
STEPS = 150
ALL = "2d,3d_lowres,3d_fullres,3d_cascade_fullres"


def slept(tell: object) -> float:
    """A job in a process of its own, as trainings are."""
    time.sleep(SLEPT)
    return SLEPT


def cost_of_a_job(work: Path) -> list[tuple[str, str]]:
    """Seconds until the first result, and of each further job beyond its work; one worker."""
    from scaling import slept as task  # by a name that the processes of jobs can import

    from autounet.schema.cluster import ClusterOptions
    from autounet.workflow.cluster import Cluster
    from autounet.workflow.cluster_job import run_call

    cluster = Cluster(ClusterOptions(provider="local", folder=str(work / "engine")))
    try:
        began = time.monotonic()
        cluster.submit(run_call, task, {}, 1).result()
        first = time.monotonic() - began - SLEPT
        began = time.monotonic()
        for each in [cluster.submit(run_call, task, {}, 1) for _ in range(TASKS)]:
            each.result()
        further = (time.monotonic() - began) / TASKS - SLEPT
    finally:
        cluster.close(well=True)
    return [
        ("until the first job of a command begins: Parsl, a block, its worker and the job's process", f"{first:.1f}"),
        (f"each further job beyond its work ({TASKS} that sleep)", f"{further:.2f}"),
    ]


def small_runs(work: Path, workers: Sequence[int]) -> list[tuple[str, ...]]:
    """Seconds of the jobs after the plan, without Parsl and with so many workers."""
    from autounet.datasets.synthetic import make_demo_dataset

    data = make_demo_dataset(work / "data", cases=8)
    words = ["--configurations", "3d_fullres", "--iterations", STEPS, "--device", "cpu", "--deterministic"]
    planned = work / "planned"
    autounet("preprocess", data, "--out", planned, "--folds", "0,1,2,3", "--memory", "1GB", *words)
    rows: list[tuple[str, ...]] = []
    alone = 0.0
    for count in (0, *workers):
        out = work / f"by_{count}"
        subprocess.run(["cp", "-r", planned, out], check=True)
        more: list[object] = ["--workers", 0]
        if count:
            file = work / f"{count}.toml"
            file.write_text(f'provider = "local"\njobs_per_block = {count}\ncores = 1\nfolder = "{work / "engine"}"\n')
            more = ["--executor", file]
        began = time.monotonic()
        autounet("train", data, "--out", out, *more)
        seconds = time.monotonic() - began
        alone = alone or seconds
        what = f"{count} workers of one core" if count else "no Parsl, one process with all cores"
        rows.append((what, f"{seconds:.0f}", f"{alone / seconds:.2f}"))
    return rows


def autounet(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "autounet", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def makespan(lengths: Mapping[str, float], needs: Mapping[str, Sequence[str]], devices: int) -> float:
    """Seconds until all is done, when a free device gets the job with the longest path behind it."""
    behind: dict[str, float] = {}
    after: dict[str, list[str]] = {name: [] for name in lengths}
    for name, before in needs.items():
        for each in before:
            after[each].append(name)
    for name in reversed(list(lengths)):  # jobs are listed after what they need
        behind[name] = lengths[name] + max((behind[each] for each in after[name]), default=0.0)
    missing = {name: len(needs[name]) for name in lengths}
    ready = [(-behind[name], name) for name in lengths if not missing[name]]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < devices:
            name = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + lengths[name], name))
        now, name = heapq.heappop(running)
        for each in after[name]:
            missing[each] -= 1
            if not missing[each]:
                heapq.heappush(ready, (-behind[each], each))
    return now


def longest_path(lengths: Mapping[str, float], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The jobs, first to last, that no number of devices makes shorter."""
    until: dict[str, float] = {}
    previous: dict[str, str | None] = {}
    for name in lengths:
        last = max(needs[name], key=lambda each: until[each], default=None)
        previous[name] = last
        until[name] = lengths[name] + (until[last] if last else 0.0)
    path, name = [], max(until, key=lambda each: until[each])
    while name is not None:
        path.append(name)
        name = previous[name]
    return path[::-1]


def planned_jobs(data: Path, name: str, memory: str, steps: int, out: Path) -> tuple[dict, dict, str]:
    """Lengths and needs of the jobs of a run with every configuration, each by its measured step; and words on it."""
    from autounet.schema.option_table import run_options
    from autounet.store.run_folder import RunFolder
    from autounet.time_budget.run_length import closing_seconds, preprocessing_seconds, run_length, work_of
    from autounet.workflow.jobs import JobGraph
    from autounet.workflow.pipeline import run_pipeline

    source = data / JOBS[name].data
    options = [*JOBS[name].options, "--configurations", ALL, "--iterations", steps, "--memory", memory]
    autounet("plan", source, "--out", out, "--device", "cpu", *options)
    outcome = run_pipeline(source, out, run_options(()), until="plan")
    assert outcome.schedule is not None
    assert outcome.maker is not None
    found, schedule = outcome.data, outcome.schedule
    graph = JobGraph(
        folder=RunFolder(out), dataset=found.dataset,
        content={facts.identifier: facts.content_hash for facts in found.facts},
        class_voxels=found.fingerprint.class_voxels, schedule=schedule, device="cpu", workers=1, loader_workers=0,
        compile="off", initial=lambda *_: None, events={}, shards=2 * max(DEVICES),
    )  # fmt: skip
    work = work_of(found.fingerprint, 1)
    jobs = [*graph.preparation(), *graph.training()]
    jobs.append(graph.selection(jobs, outcome.maker.options.data, found.fingerprint, ()))
    lengths, told = {}, []
    for each in schedule.configurations:
        length = run_length(schedule.configurations[each], work, 1)
        assert length is not None
        told.append(f"{each} {length.training:.0f} s a training and {length.validation:.0f} s a validation")
    for job in jobs:
        if job.function in ("train", "validate"):
            length = run_length(schedule.configurations[job.configuration], work, 1)
            assert length is not None
            lengths[job.name] = length.training if job.function == "train" else length.validation
        else:
            # of a whole preparation nothing is left after its shards
            part = 0.0 if job.needs else len(job.args.get("keys", ())) / len(found.dataset.cases)
            other = {"prepare": part * preprocessing_seconds(work), "select": closing_seconds(work)}
            lengths[job.name] = other.get(job.function, 0.0)
    return lengths, {job.name: job.needs for job in jobs}, "; ".join(told)


def simulated(arguments: argparse.Namespace, out: Path) -> str:
    lengths, needs, told = planned_jobs(arguments.data, arguments.set, arguments.memory, arguments.steps, out)
    alone = makespan(lengths, needs, 1)
    path = longest_path(lengths, needs)
    rows = []
    for count in DEVICES:
        seconds = makespan(lengths, needs, count)
        rows.append((str(count), f"{seconds / 60:.0f}", f"{alone / seconds:.1f}", f"{alone / seconds / count:.0%}"))
    shortest = sum(lengths[name] for name in path) / 60
    options = f"--configurations {ALL} --iterations {arguments.steps} --memory {arguments.memory}"
    header = ("devices", "minutes", "times as fast as one", "of the devices at work")
    return f"""## A cluster on paper

{JOBS[arguments.set].data} with `{options}`: {len(lengths)} jobs, whose lengths come from steps and tiles timed on one
core: {told}. Nothing shortens the longest path, {shortest:.0f} minutes: {", then ".join(path)}.

{table(header, rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--data", type=Path, help="folder of the public sets; none: no simulation")
    parser.add_argument("--set", default="openkbp")
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        costs = cost_of_a_job(work)
        runs = small_runs(work, [int(each) for each in given.workers.split(",")])
        paper = simulated(given, work / "paper") if given.data else ""
    command = public_command([f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])
    text = f"""# What more machines are worth

- command: `python {command}`
- machine: {machine()}
- commit: {commit()}

## Through Parsl, on this machine

Four trainings of {STEPS} steps and their validations on synthetic data, prepared before; each worker has one core.

{table(("jobs by", "seconds of `train`", "times as fast as without Parsl"), runs)}

{table(("what a job costs", "s"), costs)}

{paper}"""
    write_results("scaling", text, given.results)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
