"""The automation that finds lost runs, on a server with its triggers on: it fires, also when it is set up again."""

import time
from datetime import timedelta

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Running

from deployments.bootstrap import crash_lost_runs, create_automation
from deployments.keeping import Record
from tests.prefect_api import reporting_to, server

pytestmark = pytest.mark.server
WITHIN = timedelta(seconds=12)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    home = tmp_path_factory.mktemp("prefect")
    with server(home, TRIGGERS="true") as url, reporting_to(url), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def set_up(client, tmp_path):
    return lambda **fields: create_automation(
        client, crash_lost_runs(WITHIN).model_copy(update=fields), Record(tmp_path)
    )


@flow
def silent():
    """A run of it is begun by hand, and has no process."""


def begin(client):
    run = client.create_flow_run(silent, state=Running())
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    for _ in range(3):  # events are sent aside, and one may be lost where the sender is slow to connect
        emit_event("prefect.flow-run.heartbeat", resource=resource)
        time.sleep(1.5)
    return run.id


def wait_until_final(client, run_id, seconds=180):
    deadline = time.monotonic() + seconds
    while not (state := client.read_flow_run(run_id).state).is_final() and time.monotonic() < deadline:
        time.sleep(0.5)
    return state


def test_a_run_that_falls_silent_is_marked_though_the_automation_is_set_up_again_meanwhile(client, set_up):
    set_up()
    run_id = begin(client)
    set_up()
    state = wait_until_final(client, run_id)
    assert state.is_crashed(), state
    assert state.message == f"No heartbeat for {WITHIN}: its host is lost."


def test_what_a_user_changed_of_it_is_kept_and_said_and_a_new_default_arrives(client, set_up, capsys):
    set_up()
    (before,) = client.read_automations_by_name("mr-align: crash lost runs")
    client.pause_automation(before.id)
    set_up(description="new words")
    (after,) = client.read_automations_by_name("mr-align: crash lost runs")
    assert (after.id, after.enabled, after.description) == (before.id, False, "new words")
    assert capsys.readouterr().out == "kept your enabled of automation mr-align: crash lost runs\n"
