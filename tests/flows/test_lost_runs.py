"""Automations on a server with its triggers on: they fire, also when they are set up again."""

import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Failed, Running

from deployments.bootstrap import crash_lost_runs, create_automation
from deployments.keeping import Record
from deployments.notify import find_block, notifications
from flows.weekly_retrain import weekly_retrain
from mralign_core.errors import ConfigError
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


class Inbox:
    """A web hook: keeps what is posted to it."""

    def __init__(self):
        received = self.received = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def wait_for(self, text, seconds=60):
        deadline = time.monotonic() + seconds
        while not any(text in each for each in self.received) and time.monotonic() < deadline:
            time.sleep(0.3)
        return [each for each in self.received if text in each]


def test_what_a_retraining_came_to_arrives_at_a_web_hook_that_a_user_filled_in(client, tmp_path):
    inbox = Inbox()
    hook = CustomWebhookNotificationBlock(name="ops", url=inbox.url, json_data={"text": "{{subject}}: {{body}}"})
    hook.save("ops", overwrite=True)
    with pytest.raises(ConfigError, match=r"no block 'custom-webhook/other'"):
        find_block(client, "custom-webhook/other")
    for automation in notifications(find_block(client, "custom-webhook/ops")):
        create_automation(client, automation, Record(tmp_path))
    deployment = client.create_deployment(client.create_flow(weekly_retrain), "weekly-retrain", "flows:weekly_retrain")
    run = client.create_flow_run_from_deployment(deployment, state=Running())
    time.sleep(3)  # the automations are known to the service that looks for them
    resource = {"prefect.resource.id": "mralign.retraining.weekly", "prefect.resource.name": "weekly"}
    for what, told in (("promoted", True), ("nothing-new", False)):
        emit_event(f"mralign.retraining.{what}", resource=resource, payload={"message": f"{what} in the words of it"})
        assert bool(inbox.wait_for(f"{what} in the words", 60 if told else 3)) == told
    client.set_flow_run_state(run.id, Failed())
    assert inbox.wait_for("failed")
