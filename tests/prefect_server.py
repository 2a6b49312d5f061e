"""A real Prefect server with deployments and workers for tests: ``python -m deployments.serve`` in a temporary home.

Use it from a conftest with ``from tests.prefect_server import served``.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from flows.commands.door import WITHOUT_BLOCKS
from flows.commands.secret import OwnServer
from tests.door_server import auth_of, wait_until_recognised
from tests.ports import free_port
from tests.prefect_database import put_database

CHECKOUT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 300
NETWORK_LOG = "network.log"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# Services that no test looks at; they halve what a server costs.
QUICK_SERVER = {
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    **WITHOUT_BLOCKS,
}


class PatientTransport(httpx.HTTPTransport):
    """Asks again after a 503, as Prefect's own client does: SQLite answers so while another writer holds it."""

    def handle_request(self, request):
        for _ in range(40):
            reply = super().handle_request(request)
            if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return reply
            reply.close()
            time.sleep(0.5)
        return reply


class Served(NamedTuple):
    """What ``deployments.serve`` started, and its API."""

    process: subprocess.Popen
    api: httpx.Client
    env: dict
    server: OwnServer
    home: Path

    def deployment(self, name):
        return self._json(self.api.get(f"/deployments/name/{name}"))

    def submit(self, name, parameters):
        """The reply to what the UI's form sends."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.api.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", json=body)

    def wait_for(self, run_id, types=FINAL, timeout_s=800):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            run = self._json(self.api.get(f"/flow_runs/{run_id}"))
            if run["state_type"] in types | FINAL:
                return run
            time.sleep(0.5)
        raise TimeoutError(f"run {run['name']} is still {run['state_name']} after {timeout_s} s")

    def filter(self, what, **query):
        return self._json(self.api.post(f"/{what}/filter", json=query))

    def foreign_connections(self):
        """Whom its processes have talked to, other than this machine."""
        watched = self.home / NETWORK_LOG
        return watched.read_text().splitlines() if watched.exists() else []

    def family(self):
        """The serving process and all its descendants."""
        head = psutil.Process(self.process.pid)
        return [head, *head.children(recursive=True)]

    @staticmethod
    def _json(reply):
        assert reply.is_success, reply.text
        return reply.json()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("prefect")) as started:
        yield started


def state_in(home, run_id):
    """The type of state that the records of a server that is gone show for a run."""
    with closing(sqlite3.connect(Path(home, "prefect.db"))) as records:
        (found,) = records.execute("select state_type from flow_run where id = ?", [str(run_id)]).fetchone()
    return found


@contextmanager
def serve(home, settings=QUICK_SERVER):
    """``make serve`` on a home of its own, stopped after the ``with``.

    Args:
        home: its PREFECT_HOME.
        settings: of the server, beside those of ``make serve``.
    """
    put_database(home)
    port = free_port()
    env = {**os.environ, **settings, **watched(home), "PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "deployments.serve", "--port", str(port)]
    output = home / "serve.log"
    with output.open("w") as log:
        process = subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_serving(process, output)
            server = wait_until_recognised(f"http://127.0.0.1:{port}/api", home, process, output)
            with httpx.Client(
                base_url=server.api_url, auth=auth_of(server), timeout=60, transport=PatientTransport()
            ) as api:
                yield Served(process, api, {**env, **server.environment()}, server, home)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=90)


def watched(home):
    """Variables with which Python processes write down whom they talk to; the log is ``NETWORK_LOG`` in the folder."""
    path = [str(CHECKOUT / "tests" / "network_watch"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "NETWORK_WATCH": str(home / NETWORK_LOG)}


def _wait_until_serving(process, output):
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Serving." not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, f"not serving after {START_TIMEOUT_S} s: {output.read_text()}"
        time.sleep(0.5)
