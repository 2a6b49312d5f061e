"""A real Prefect server in a process of its own, for flows that run in the test's process or in one it starts.

Use it from a conftest with ``from tests.prefect_api import prefect_api, prefect_url``.
"""

import contextlib
import os
import subprocess
import sys
import time

import httpx
import pytest

from tests.seaweedfs import free_ports

START_TIMEOUT_S = 180
# The server records runs and artifacts, and does nothing of its own accord.
QUIET = [f"SERVICES_{name}" for name in ("SCHEDULER", "LATE_RUNS", "TRIGGERS", "FOREMAN", "CANCELLATION_CLEANUP")]
SERVER = {f"PREFECT_SERVER_{name}_ENABLED": "false" for name in [*QUIET, "EVENTS_STREAM_OUT", "ANALYTICS", "UI"]}


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory):
    """The API of a server that lives as long as the test session."""
    with server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@contextlib.contextmanager
def server(home, **services):
    """A server in a process of its own; gives the URL of its API.

    Args:
        home: its PREFECT_HOME.
        services: of the server, "true" for those to run.
    """
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}/api"
    chosen = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": value for name, value in services.items()}
    env = {**os.environ, **SERVER, **chosen, "PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(url, process, home / "log")
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture
def prefect_api(prefect_url, monkeypatch):
    """Flows of this test, and of processes it starts, report to the server; gives its URL."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")
    with reporting_to(prefect_url):
        yield prefect_url


@contextlib.contextmanager
def reporting_to(url):
    """Point flows of this process at a server, without what only long runs need."""
    from prefect import settings

    quick = {
        settings.PREFECT_API_URL: url,
        settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        settings.PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with settings.temporary_settings(quick):
        yield


def _wait_until_healthy(url, process, log):
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the Prefect server did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.3)
