"""Jobs through a real Slurm of two nodes, whose daemons these tests start on loopback: Debian's slurm-wlm.

Marked `slurm`. Where its programs are missing, or its daemons do not start, the tests are skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from quick_runs import (  # noqa: F401 - used by the runs here
    narrow,
    no_trials,
    one_probe,
)
from test_cluster import (  # noqa: F401 - undisturbed is a fixture
    TRAINED,
    attempts,
    autounet_status,
    command,
    ended,
    require_equal,
    training,
    undisturbed,
    wait_for,
)

from autounet.schema.run import RunRecord
from autounet.store.run_folder import RunFolder
from autounet.workflow.job_state import JobRun, job_folder, read_attempts

pytest.importorskip("parsl", reason="needs the extra cluster")
pytestmark = pytest.mark.slurm

NODES = ("one", "two")
CONFIGURATION = """ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MailProg=/bin/true
KillWait=30
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} RealMemory=8000
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} RealMemory=8000
PartitionName=main Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in found]
    for each in found:
        each.close()
    return ports


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a Slurm that runs, which `SLURM_CONF` names."""
    daemons = {name: program(name) for name in ("slurmctld", "slurmd", "sbatch")}
    if missing := [name for name, path in daemons.items() if path is None]:
        pytest.skip(f"{', '.join(missing)} not found: install Debian's slurm-wlm")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", *NODES):
        (folder / name).mkdir()
    file = folder / "slurm.conf"
    host, cores = socket.gethostname().partition(".")[0], os.cpu_count()
    file.write_text(CONFIGURATION.format(host=host, user="root", folder=folder, ports=free_ports(3), cores=cores))
    running = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(file))
        try:
            for words in (["slurmctld"], *(["slurmd", "-N", name] for name in NODES)):
                path = daemons[words[0]]
                assert path is not None
                with (folder / "start.log").open("a") as log:
                    running.append(subprocess.Popen([path, "-D", "-f", str(file), *words[1:]], stdout=log, stderr=log))
            require_idle(folder)
            yield folder
        finally:
            with suppress(OSError, subprocess.CalledProcessError):
                slurm("scancel", "--user=root")
            left = list(started_with(file))
            for process in running:
                process.terminate()
            alive = psutil.wait_procs(left, timeout=20)[1]
            for each in alive:
                each.kill()
            for process in running:
                process.wait()


def started_with(file: Path) -> Iterator[psutil.Process]:
    """The daemons, and the processes that they start for each job, which outlive them."""
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.info["name"].startswith("slurm") and process.environ().get("SLURM_CONF") == str(file):
                yield process


def require_idle(folder: Path) -> None:
    """Until both nodes wait for work, or skip."""
    until, told = time.monotonic() + 40, ""
    while time.monotonic() < until:
        with suppress(subprocess.CalledProcessError):
            told = slurm("sinfo", "--noheader", "--format=%T %D")
            if told.split() == ["idle", str(len(NODES))]:
                return
        time.sleep(0.5)
    logs = "\n".join(each.read_text()[-500:] for each in folder.glob("*.log"))
    pytest.skip(f"Slurm's daemons did not come up: {told or 'no answer'}\n{logs}")


@pytest.fixture
def whole(nodes: Path) -> Iterator[None]:
    """Both nodes take jobs, and none is left of what went before."""
    with suppress(subprocess.CalledProcessError):
        slurm("scancel", "--user=root")
    for name in NODES:
        with suppress(subprocess.CalledProcessError):  # it is as it should be
            slurm("scontrol", "update", f"nodename={name}", "state=resume")
    require_idle(nodes)
    yield
    slurm("scancel", "--user=root")


@pytest.fixture
def toml(undisturbed: Path, tmp_path: Path) -> Path:  # noqa: F811
    file = tmp_path / "slurm.toml"
    file.write_text(
        f'provider = "slurm"\naddress = "127.0.0.1"\npartition = "main"\nwalltime = "20m"\nmemory = "3GB"\nblocks = 2\n'
        f'folder = "{undisturbed / "engine"}"\n'
    )
    return file


def blocks() -> list[str]:
    return slurm("squeue", "--noheader", "--states=running", "--format=%i").split()


def block_of(run: JobRun) -> str:
    """Slurm's job in which an attempt goes on."""
    return psutil.Process(min(run.processes)).environ()["SLURM_JOB_ID"]


def test_a_run_by_sbatch_is_that_of_one_process(undisturbed: Path, whole: None, toml: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    errors = ended(command(undisturbed, out, toml))
    assert "jobs go to slurm" in errors
    assert set(attempts(out).values()) == {0}
    require_equal(out, undisturbed / "alone")
    wait_until_given_back()


def wait_until_given_back() -> None:
    """Blocks end with the command, at most when their last signs of life are over."""
    until = time.monotonic() + 60
    while blocks():
        assert time.monotonic() < until, blocks()
        time.sleep(0.5)


def test_a_block_that_is_cancelled_costs_one_more_attempt(
    undisturbed: Path,  # noqa: F811
    whole: None,
    toml: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = command(undisturbed, out, toml)
    run = wait_for(lambda: training(out), process)
    slurm("scancel", block_of(run))
    errors = ended(process)
    assert f"{TRAINED}: did not come to its end" in errors
    tried = read_attempts(job_folder(out, TRAINED))
    assert sum(attempt.counted for attempt in tried) <= 1
    assert not any("loss of manager" in attempt.reason for attempt in tried), "nothing is given to a block that ends"
    require_equal(out, undisturbed / "alone")


def test_a_drained_node_gets_no_more_and_one_that_goes_down_loses_its_jobs(
    undisturbed: Path,  # noqa: F811
    whole: None,
    toml: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    toml.write_text(toml.read_text().replace("blocks = 2", "blocks = 1"))
    process = command(undisturbed, out, toml)
    run = wait_for(lambda: training(out), process)
    place = slurm("squeue", "--noheader", f"--jobs={block_of(run)}", "--format=%N").strip()
    slurm("scontrol", "update", f"nodename={place}", "state=drain", "reason=test")
    time.sleep(1)
    assert all(map(psutil.pid_exists, run.processes)), "what runs goes on"
    slurm("scontrol", "update", f"nodename={place}", "state=down", "reason=test")
    after = wait_for(lambda: (found := training(out)) and found.attempt != run.attempt and found, process)
    other = slurm("squeue", "--noheader", f"--jobs={block_of(after)}", "--format=%N").strip()
    assert {place, other} == set(NODES)
    ended(process)
    assert len(read_attempts(job_folder(out, TRAINED))) == 1
    require_equal(out, undisturbed / "alone")


def test_a_training_longer_than_the_walltime_saves_its_state_and_goes_on(
    undisturbed: Path,  # noqa: F811
    whole: None,
    toml: Path,
    tmp_path: Path,
) -> None:
    """Slurm says so a minute before: of a block of two minutes one is left."""
    out = tmp_path / "out"
    toml.write_text(toml.read_text().replace('"20m"', '"2m"'))
    process = command(undisturbed, out, toml, "--folds", "0", "--time", "4m", "--iterations", "1000000")
    errors = ended(process, 1500)  # each new block waits for the one before to be gone
    assert any(not attempt.counted for attempt in read_attempts(job_folder(out, TRAINED)))
    record = RunRecord.load(RunFolder(out).fold("3d_fullres", 0).record)
    assert any("continued at step" in event for event in record.events), errors
    assert {job["state"] for job in autounet_status(out)["jobs"]} == {"done"}
