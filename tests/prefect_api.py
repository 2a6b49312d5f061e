"""A real Prefect server behind its door, for flows that run in the test's process or in one that it starts.

Its fixtures are those of ``tests/conftest.py``.
"""

import contextlib

import pytest

from flows.commands.door import WITHOUT_BLOCKS
from flows.commands.secret import OwnServer
from tests.door_server import auth_of, behind_door
from tests.page_artifacts import all_artifacts, check_artifacts

STARTED: dict[str, OwnServer] = {}
# The server records runs and artifacts, and does nothing of its own accord.
QUIET = [f"SERVICES_{name}" for name in ("SCHEDULER", "LATE_RUNS", "TRIGGERS", "FOREMAN", "CANCELLATION_CLEANUP")]
SERVER = {f"PREFECT_SERVER_{name}_ENABLED": "false" for name in [*QUIET, "EVENTS_STREAM_OUT", "ANALYTICS", "UI"]}
SERVER |= WITHOUT_BLOCKS


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory):
    """The API of a server that lives as long as the test session; at its end, all that flows published is looked at."""
    with server(tmp_path_factory.mktemp("prefect")) as url:
        yield url
        check_artifacts(all_artifacts(url, auth_for(url)))


@contextlib.contextmanager
def server(home, **services):
    """A server in a process of its own; gives the URL of its API.

    Args:
        home: its PREFECT_HOME.
        services: of the server, "true" for those to run.
    """
    chosen = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": value for name, value in services.items()}
    with behind_door(home, {**SERVER, **chosen}) as (own, _):
        STARTED[own.api_url] = own
        yield own.api_url


@pytest.fixture
def prefect_api(prefect_url, monkeypatch):
    """Flows of this test, and of processes it starts, report to the server; gives its URL."""
    for name, value in environment_for(prefect_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")
    with reporting_to(prefect_url):
        yield prefect_url


def environment_for(url):
    """What a process needs in its environment to report there."""
    return STARTED[url].environment()


def auth_for(url):
    """What lets a request in."""
    return auth_of(STARTED[url])


@contextlib.contextmanager
def reporting_to(url):
    """Point flows of this process at a server, without what only long runs need.

    Prefect keeps one sender of events a process, bound to the server of the first event: it is ended on both sides.
    """
    from prefect import settings
    from prefect.events.worker import EventsWorker

    quick = {
        settings.PREFECT_API_URL: url,
        settings.PREFECT_API_AUTH_STRING: STARTED[url].token,
        settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        settings.PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with settings.temporary_settings(quick):
        EventsWorker.drain_all(at_exit=False)
        yield
        EventsWorker.drain_all(at_exit=False)
