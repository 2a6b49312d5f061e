"""A real Prefect server behind its door, for flows that run in the test's process or in one that it starts.

Use it from a conftest with ``from tests.prefect_api import prefect_api, prefect_url``.
"""

import contextlib

import pytest

from tests.door_server import auth_of, behind_door

STARTED = {}
# The server records runs and artifacts, and does nothing of its own accord.
QUIET = [f"SERVICES_{name}" for name in ("SCHEDULER", "LATE_RUNS", "TRIGGERS", "FOREMAN", "CANCELLATION_CLEANUP")]
SERVER = {f"PREFECT_SERVER_{name}_ENABLED": "false" for name in [*QUIET, "EVENTS_STREAM_OUT", "ANALYTICS", "UI"]}


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory):
    """The API of a server that lives as long as the test session."""
    with behind_door(tmp_path_factory.mktemp("prefect"), SERVER) as (server, _):
        STARTED[server.api_url] = server
        yield server.api_url


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
    return auth_of(STARTED[url])


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
