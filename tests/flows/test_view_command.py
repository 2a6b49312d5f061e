"""``mralign view``: a workbench of this user's alone, without a Prefect server."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import httpx
import pytest
from typer.testing import CliRunner

from flows.commands.cli import app
from flows.commands.secret import token_of
from flows.commands.view import PortTakenError
from mralign_core.errors import ArtifactError
from tests.door_server import CHECKOUT
from tests.ports import free_port
from tests.simulated_run import NAME, simulated_store
from tests.workbench_server import SECRET, START, serving_workbench

TOKEN = {"Authorization": f"Basic {base64.b64encode(token_of(SECRET, START).encode()).decode()}"}
NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("view"), 6)


@pytest.fixture(scope="module")
def workbench(storage):
    with serving_workbench(storage, NAME) as served:
        yield served


def get(address, **headers):
    return httpx.get(address, headers=headers, trust_env=False, timeout=60)


class TestDoor:
    def test_data_needs_the_token_and_pages_hold_none(self, workbench):
        for given in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": TOKEN["Authorization"] + "x"}):
            reply = get(workbench.at("api/traces"), **given)
            assert (reply.status_code, reply.text) == (401, "this needs the token of the server\n")
        assert get(workbench.at("api/traces"), **TOKEN).json()["total"] == 6
        script = get(workbench.site + "/mralign/view/static/workbench.js")
        assert script.status_code == 200 and script.headers["cross-origin-resource-policy"] == "same-origin"

    def test_a_browser_that_has_not_entered_sees_the_entrance(self, workbench):
        assert "Who is asking?" in get(workbench.at("traces"), **NAVIGATION).text
        for given, status in (({}, 401), (TOKEN, 200)):
            assert get(workbench.site + "/mralign/token", **given).status_code == status

    def test_other_hosts_origins_and_sites_are_refused(self, workbench):
        address = workbench.at("api/traces")
        assert get(address, **TOKEN, Host="evil.example").status_code == 421
        assert get(address, **TOKEN, Origin="http://evil.example").status_code == 403
        assert get(address, **TOKEN, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403

    def test_a_page_of_another_site_can_not_even_link_to_it(self, workbench):
        for view in ("", "traces", "no-such"):
            assert get(workbench.at(view), **NAVIGATION, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert get(workbench.at("traces"), **NAVIGATION, **{"Sec-Fetch-Site": "none"}).status_code == 200

    def test_beside_the_workbench_there_is_nothing(self, workbench):
        root = get(workbench.site + "/")
        assert root.status_code == 307 and root.headers["location"] == workbench.start
        assert get(workbench.site + "/api/flows/filter", **TOKEN).status_code == 404


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))


def options(storage, *more):
    return ["view", "--set", f"storage.root={storage.root}", *more]


def test_it_prints_a_link_that_works_until_it_is_stopped(storage, home):
    port = free_port()
    asked = options(storage, "--set", f"name={NAME}", "--port", str(port))
    command = [sys.executable, "-m", "flows.commands.cli", *asked]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout
        try:
            assert process.stdout
            assert NAME in process.stdout.readline()
            (link,) = re.findall(r"http://\S+", process.stdout.readline())
            token = base64.b64encode(urlsplit(link).fragment.encode()).decode()
            api = link.replace("/mralign/view/?", "/mralign/view/api/traces?").partition("#")[0]
            assert get(api, Authorization=f"Basic {token}").json()["total"] == 6
            again = CliRunner().invoke(app, asked)
            assert again.exit_code == 0 and link in again.output and "already there" in again.output
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)
    with pytest.raises(httpx.ConnectError):
        get(api)


def test_what_there_is_not_is_said_before_anything_is_served(storage, home):
    done = CliRunner().invoke(app, options(storage, "--run", "nothing"))
    assert isinstance(done.exception, ArtifactError) and f"have runs: {NAME}" in str(done.exception)


def test_a_port_that_is_taken_is_an_error_that_says_so(storage, home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, options(storage, "--set", f"name={NAME}", "--port", str(port)))
    assert isinstance(done.exception, PortTakenError) and f"port {port}" in str(done.exception)
