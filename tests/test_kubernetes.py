"""Jobs as pods, which a stand-in for Kubernetes' API server starts as processes of this machine.

It takes the requests of Kubernetes' own client, and does with a pod what a node does: its command is a process that
alone is told to end (SIGTERM), and after the grace period it is killed with all that it has started.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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
    command,
    ended,
    require_equal,
    training,
    undisturbed,
    wait_for,
)

from autounet.workflow.cluster_blocks import pods
from autounet.workflow.job_state import JobRun, job_folder, read_attempts

pytest.importorskip("parsl", reason="needs the extra cluster")
pytest.importorskip("kubernetes", reason="needs Kubernetes' client")

GRACE = 30.0
"""seconds, as Kubernetes gives unless told otherwise"""
PODS = "/api/v1/namespaces/radiology/pods"
CONFIG = """apiVersion: v1
kind: Config
current-context: test
clusters: [{{name: test, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: test, user: {{}}}}]
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
"""


class Pod:
    """What a node makes of a pod: one process, in a session of its own."""

    def __init__(self, body: dict[str, Any]) -> None:
        (container,) = body["spec"]["containers"]
        self.body, words = body, [*container["command"], *container["args"]]
        self.process = subprocess.Popen(words, start_new_session=True)

    def told(self) -> dict[str, Any]:
        code = self.process.poll()
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        return {**self.body, "status": {"phase": phase}}

    def end(self, grace: float) -> None:
        """As the node does when the pod is deleted."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == self.process.pid:
                    process.kill()
        self.process.wait()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.pods: dict[str, Pod] = {}
        self.all: list[Pod] = []


class Requests(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        assert self.path.partition("?")[0] == PODS, self.path
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", name), name
        self.server.pods[name] = Pod(body)
        self.server.all.append(self.server.pods[name])
        self.answer(201, self.server.pods[name].told())

    def do_GET(self) -> None:
        pod = self.server.pods.get(self.path.removeprefix(f"{PODS}/"))
        self.answer(*((404, {"kind": "Status", "code": 404}) if pod is None else (200, pod.told())))

    def do_DELETE(self) -> None:
        pod = self.server.pods.pop(self.path.partition("?")[0].removeprefix(f"{PODS}/"), None)
        if pod is None:
            self.answer(404, {"kind": "Status", "code": 404})
            return
        self.answer(200, pod.told())
        threading.Thread(target=pod.end, args=(GRACE,), daemon=True).start()

    def answer(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        file = tmp_path / "kubeconfig"
        file.write_text(CONFIG.format(port=running.server_port))
        monkeypatch.setenv("KUBECONFIG", str(file))  # of commands; in this process it was read with the module
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
        yield running
        for pod in running.all:
            pod.end(0)
        running.shutdown()


@pytest.fixture
def toml(undisturbed: Path, tmp_path: Path) -> Path:  # noqa: F811
    file = tmp_path / "kubernetes.toml"
    file.write_text(
        'provider = "kubernetes"\naddress = "127.0.0.1"\nnamespace = "radiology"\nimage = "registry/autounet:1"\n'
        'memory = "3GB"\nblocks = 2\nbefore = ["export AUTOUNET_WAS_HERE=1"]\n'
        f'folder = "{undisturbed / "engine"}"\n[volumes]\nresearch = "{undisturbed}"\n'
    )
    return file


def pod_of(server: Server, run: JobRun) -> tuple[str, Pod]:
    """That in which an attempt goes on."""
    session = os.getsid(min(run.processes))
    return next((name, pod) for name, pod in server.pods.items() if pod.process.pid == session)


def test_a_pod_that_is_taken_away_makes_room_for_another(server: Server) -> None:
    from parsl.jobs.states import JobState

    provider = pods()(namespace="radiology", image="none", init_blocks=1, max_blocks=2)
    first, second = (provider.submit("exec sleep 600", 1) for _ in range(2))
    assert [each.state for each in provider.status([first, second])] == [JobState.RUNNING] * 2
    server.pods.pop(provider.resources[first]["pod_name"]).end(0)
    assert [each.state for each in provider.status([first, second])] == [JobState.CANCELLED, JobState.RUNNING]
    assert provider.cancel([first, second]) == [True, True]
    assert not server.pods
    server.shutdown()
    server.server_close()
    with pytest.raises(Exception, match="refused"):  # no server is not a pod that has gone
        provider.cancel([first])


@pytest.mark.slow
def test_a_run_in_pods_is_that_of_one_process(
    undisturbed: Path,  # noqa: F811
    server: Server,
    toml: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = command(undisturbed, out, toml)
    run = wait_for(lambda: training(out), process)
    assert psutil.Process(min(run.processes)).environ()["AUTOUNET_WAS_HERE"] == "1"
    assert "jobs go to kubernetes" in ended(process)
    assert set(attempts(out).values()) == {0}
    require_equal(out, undisturbed / "alone")
    assert not server.pods, "they are given back"
    assert len(server.all) == 2
    for pod in server.all:
        (container,) = pod.body["spec"]["containers"]
        assert container["image"] == "registry/autounet:1"
        assert container["resources"]["limits"] == {"cpu": "1", "memory": "3Gi"}
        assert container["volumeMounts"] == [{"mountPath": str(undisturbed), "name": "research"}]
        (volume,) = pod.body["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == "research"


@pytest.mark.slow
def test_a_pod_that_fails_is_replaced(
    undisturbed: Path,  # noqa: F811
    server: Server,
    toml: Path,
    tmp_path: Path,
) -> None:
    """The only one, killed with all in it, as for want of memory."""
    out = tmp_path / "out"
    toml.write_text(toml.read_text().replace("blocks = 2", "blocks = 1"))
    process = command(undisturbed, out, toml)
    _, pod = pod_of(server, wait_for(lambda: training(out), process))
    pod.process.kill()
    pod.end(0)
    assert f"{TRAINED}: did not come to its end" in ended(process, 600)
    assert len(server.all) == 2
    require_equal(out, undisturbed / "alone")


@pytest.mark.slow
def test_a_pod_that_is_evicted_saves_the_state_of_its_training(
    undisturbed: Path,  # noqa: F811
    server: Server,
    toml: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = command(undisturbed, out, toml)
    name, pod = pod_of(server, wait_for(lambda: training(out), process))
    del server.pods[name]
    began = time.monotonic()
    pod.end(GRACE)
    assert time.monotonic() - began < GRACE, "it has ended by itself"
    assert pod.process.returncode in (0, -signal.SIGTERM)
    errors = ended(process, 600)
    assert f"{TRAINED}: did not come to its end" in errors
    assert sum(attempt.counted for attempt in read_attempts(job_folder(out, TRAINED))) <= 1
    require_equal(out, undisturbed / "alone")
