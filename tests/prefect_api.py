"""A real Prefect server behind its door, for flows that run in the test's process or in one that it starts.

Use it from a conftest with ``from tests.prefect_api import prefect_api, prefect_url``.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from flows import door
from flows.secret import recognise
from tests.seaweedfs import free_ports

START_TIMEOUT_S = 180
CHECKOUT = Path(__file__).resolve().parent.parent
STARTED = {}
# The server records runs and artifacts, and does nothing of its own accord.
QUIET = [f"SERVICES_{name}" for name in ("SCHEDULER", "LATE_RUNS", "TRIGGERS", "FOREMAN", "CANCELLATION_CLEANUP")]
SERVER = {f"PREFECT_SERVER_{name}_ENABLED": "false" for name in [*QUIET, "EVENTS_STREAM_OUT", "ANALYTICS", "UI"]}


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory):
    """The API of a server that lives as long as the test session."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_ports(1)[0]
    env = {**os.environ, **SERVER, "PREFECT_HOME": str(home)}
    command = [sys.executable, "-m", *door.module(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            server = _wait_until_up(home, port, process)
            STARTED[server.api_url] = server
            yield server.api_url
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture
def prefect_api(prefect_url, monkeypatch):
    """Flows of this test, and of processes it starts, report to the server; gives its URL."""
    for name, value in STARTED[prefect_url].environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")
    with reporting_to(prefect_url):
        yield prefect_url


def auth_for(url):
    """What lets a request in."""
    return httpx.BasicAuth(*STARTED[url].token.split(":"))


@contextlib.contextmanager
def reporting_to(url):
    """Point flows of this process at a server, without what only long runs need."""
    from prefect import settings

    quick = {
        settings.PREFECT_API_URL: url,
        settings.PREFECT_API_AUTH_STRING: STARTED[url].token,
        settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        settings.PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with settings.temporary_settings(quick):
        yield


def _wait_until_up(home, port, process):
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        if server := recognise(f"http://127.0.0.1:{port}/api", [home]):
            return server
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the Prefect server did not start:\n{(home / 'log').read_text(errors='replace')[-3000:]}")
        time.sleep(0.3)
