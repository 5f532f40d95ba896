"""Parsl's configuration of each provider: what it requests, and how a block begins."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ..schema.cluster import PREFIX, ClusterOptions

HEARTBEAT_SECONDS = 5
"""between signs of life of blocks and of workers"""
LOST_SECONDS = 60
"""without one, after which a block counts as lost"""
LINGER_SECONDS = 600
"""that a block goes on with its jobs after the command has ended without saying so"""
PORTS = (20000, 60000)
"""among which free ones are drawn, so that several commands can go on on one machine"""
WARN_SECONDS = 60
"""before the end of its time at which Slurm tells a block; saving the state takes a few of them"""
POD_SECONDS = 10
"""between two looks whether pods are there"""
NOT_FOUND = 404
WALLTIME = 3600.0


def parsl_executor(options: ClusterOptions) -> Any:
    from parsl import HighThroughputExecutor
    from parsl.jobs.error_handlers import windowed_error_handler

    python = shlex.quote(options.python or sys.executable)
    here = [sys.executable, "-P", "-m", "autounet.workflow.cluster_job"]
    # of a pod the first process alone is asked to end
    first = "exec " if options.provider == "kubernetes" else ""
    return HighThroughputExecutor(
        label="autounet",
        provider=_provider(options),
        # a block that fails, as for want of memory, is no end; three in a row are
        block_error_handler=windowed_error_handler,
        address=options.address or "127.0.0.1",
        encrypted=True,
        cores_per_worker=1e-3,  # how many there are is said by the next one, whatever cores a node shows
        max_workers_per_node=options.jobs_per_block,
        available_accelerators=_gpus(options),
        worker_port_range=PORTS,
        interchange_port_range=PORTS,
        heartbeat_period=HEARTBEAT_SECONDS,
        heartbeat_threshold=LOST_SECONDS,
        interchange_launch_cmd=[*here, "interchange", str(os.getpid())],
        launch_cmd=f"{first}{python} -P -m autounet.workflow.cluster_job block {MANAGER}",
    )


MANAGER = (
    "{debug} {max_workers_per_node} -a {addresses} -p {prefetch_capacity} -c {cores_per_worker} -m {mem_per_worker} "
    "--poll {poll_period} --port={worker_port} --cert_dir {cert_dir} --logdir={logdir} --logconf={logconf} "
    "--block_id={{block_id}} --hb_period={heartbeat_period} {address_probe_timeout_string} "
    f"--hb_threshold={LINGER_SECONDS} "
    "--drain_period={drain_period} --cpu-affinity {cpu_affinity} {enable_mpi_mode} --mpi-launcher={mpi_launcher} "
    "--available-accelerators {accelerators}"
)
"""arguments of Parsl's process_worker_pool, which Parsl fills in; all but --hb_threshold are its own default"""


def _gpus(options: ClusterOptions) -> Sequence[str]:
    """What CUDA_VISIBLE_DEVICES is for each job of a block; none where jobs use no GPU.

    A block with one job leaves to the scheduler which GPUs it sees.
    """
    if options.jobs_per_block == 1:
        return ()
    count = options.gpus
    jobs = range(options.jobs_per_block if count else 0)
    return [",".join(str(count * job + gpu) for gpu in range(count)) for job in jobs]


def _provider(options: ClusterOptions) -> Any:
    from parsl.launchers import SimpleLauncher, SrunLauncher
    from parsl.providers import LocalProvider, LSFProvider, PBSProProvider, SlurmProvider

    jobs, cores = options.jobs_per_block, options.cores * options.jobs_per_block
    memory = None if options.memory is None else math.ceil(options.memory * jobs / 1024**3)
    gpus = options.gpus * jobs
    # what asks a block to end is for its jobs, see `cluster_job`
    ignored = [] if options.provider == "kubernetes" else ["trap '' TERM USR1"]
    begin = "\n".join([*ignored, *options.before])
    common: dict[str, Any] = {"init_blocks": 1, "min_blocks": 0, "max_blocks": options.blocks, "nodes_per_block": 1}
    if options.provider == "local":
        return LocalProvider(**common, launcher=SimpleLauncher(), worker_init=begin)
    if options.provider == "kubernetes":
        room = f"{memory or 4 * jobs}Gi"
        limits: dict[str, Any] = {"extra_limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
        return pods()(
            image=options.image or "", namespace=options.namespace, worker_init=begin, init_cpu=cores, max_cpu=cores,
            init_mem=room, max_mem=room, persistent_volumes=list(options.volumes.items()), **common, **limits,
        )  # fmt: skip
    lines = [f"{PREFIX[options.provider]}{line}" for line in options.options]
    common |= {"worker_init": begin, "walltime": _clock_time(options.walltime or WALLTIME)}
    if options.provider == "slurm":
        return SlurmProvider(
            **common, partition=options.partition, account=options.account, cores_per_node=cores, mem_per_node=memory,
            gpus_per_node=gpus or None, exclusive=False, launcher=SrunLauncher(overrides=f"--cpus-per-task={cores}"),
            scheduler_options="\n".join([f"#SBATCH --signal=USR1@{WARN_SECONDS}", *lines]), cmd_timeout=60,
        )  # fmt: skip
    if options.provider == "pbspro":
        select = ":".join([*([f"mem={memory}gb"] if memory else []), *([f"ngpus={gpus}"] if gpus else [])])
        return PBSProProvider(
            **common, queue=options.partition, account=options.account, cpus_per_node=cores, select_options=select,
            scheduler_options="\n".join(lines), launcher=SimpleLauncher(),
        )  # fmt: skip
    resources = [*([f"#BSUB -M {memory}GB"] if memory else []), *([f"#BSUB -gpu num={gpus}"] if gpus else [])]
    return LSFProvider(
        **common, queue=options.partition, project=options.account, cores_per_node=cores, cores_per_block=cores,
        scheduler_options="\n".join([*resources, *lines]), launcher=SimpleLauncher(),
    )  # fmt: skip


def pods() -> Any:
    """Parsl's provider of pods, which knows that a pod may have been taken away: evicted, or deleted with its node.

    Parsl 2026.10 would count it as running for ever, so that no other takes its place, and fail to delete it.
    """
    from kubernetes.client.exceptions import ApiException
    from parsl.jobs.states import JobState, JobStatus
    from parsl.providers import KubernetesProvider

    class Pods(KubernetesProvider):  # type: ignore[misc]
        status_polling_interval = POD_SECONDS

        def _status(self) -> None:
            super()._status()
            for pod in self.resources.values():
                if not pod["status"].terminal and not self._is_there(pod["pod_name"]):
                    pod["status"] = JobStatus(JobState.CANCELLED)

        def _is_there(self, name: str) -> bool:
            try:
                self.kube_client.read_namespaced_pod(name=name, namespace=self.namespace)
            except ApiException as error:
                return bool(error.status != NOT_FOUND)
            return True

        def _delete_pod(self, pod_name: str) -> None:
            try:
                super()._delete_pod(pod_name)
            except ApiException as error:
                if error.status != NOT_FOUND:
                    raise

    return Pods


def _clock_time(seconds: float) -> str:
    """12:00:00, as schedulers take it."""
    whole = math.ceil(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
