"""The door of a real Prefect server, attacked over real sockets."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from flows.commands import door
from flows.commands.secret import installation_secret
from tests.door_server import CHECKOUT, auth_of, behind_door, wait_until_recognised
from tests.prefect_server import QUICK_SERVER

NOBODY = 65534
CREATE_FLOW = json.dumps({"name": "attack"})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("door")


@pytest.fixture(scope="module")
def started(home):
    with behind_door(home, {**QUICK_SERVER, door.EXTRA_HOSTS: "tunnel.example:8443"}) as (server, process):
        yield server, process
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert not list((home / "door").glob("*.toml"))


@pytest.fixture(scope="module")
def own(started):
    return started[0]


@pytest.fixture(scope="module")
def process(started):
    return started[1]


@pytest.fixture(scope="module")
def port(own):
    return urlsplit(own.api_url).port


@pytest.fixture(scope="module")
def token(own):
    return base64.b64encode(own.token.encode()).decode()


def ask(port, head, body=""):
    """Status and headers of the reply to a request sent as it stands; status 0 where the connection is just closed.

    A server that has heard enough closes it, and what it has not read of the request makes a reset of that.
    """
    lines = [line.format(port=port) for line in head]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        reply = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall("\r\n".join([*lines, "Connection: close", "", body]).encode("latin-1"))
            while chunk := connection.recv(65536):
                reply += chunk
    headers, _, text = reply.decode("latin-1").partition("\r\n\r\n")
    return int(headers.split()[1]) if headers else 0, headers.lower(), text


def flows_named_attack(own):
    auth = auth_of(own)
    reply = httpx.post(f"{own.api_url}/flows/filter", json={"flows": {"name": {"any_": ["attack"]}}}, auth=auth)
    assert reply.is_success
    return reply.json()


pytestmark = pytest.mark.server


class TestWithTheToken:
    """What only the host name or the origin gives away, though the token is right, is refused nevertheless."""

    @pytest.mark.parametrize(
        "hosts",
        [
            ["evil.example:{port}"],
            ["evil.example"],
            ["localhost.evil.example:{port}"],
            ["127.0.0.1.evil.example:{port}"],
            ["127.0.0.1:{port}.evil.example"],
            ["evil.example:{port}@127.0.0.1:{port}"],
            ["127.0.0.1:{port}@evil.example"],
            ["127.0.0.1:{port}#evil.example"],
            ["127.0.0.1:{port}/evil.example"],
            ["127.0.0.1:{port} evil.example"],
            ["127.0.0.1:{port},evil.example"],
            ["127.0.0.1"],
            ["127.0.0.1:80"],
            ["127.0.0.1:0{port}"],
            ["localhost.:{port}"],
            ["127.1:{port}"],
            ["2130706433:{port}"],
            ["0x7f000001:{port}"],
            ["127.0.0.2:{port}"],
            ["0.0.0.0:{port}"],
            ["[::1]:{port}"],
            ["[::ffff:127.0.0.1]:{port}"],
            ["tunnel.example"],
            ["tunnel.example:{port}"],
            [""],
            [],
            ["127.0.0.1:{port}", "evil.example:{port}"],
            ["evil.example:{port}", "127.0.0.1:{port}"],
            ["127.0.0.1:{port}", "127.0.0.1:{port}"],
        ],
    )
    @pytest.mark.parametrize("version", ["1.1", "1.0"])
    def test_another_host_name_is_refused(self, own, port, token, hosts, version):
        for path in ("/api/flows/filter", "/api/health", "/", "/mralign/identity?challenge=" + "0" * 32):
            head = [f"POST {path} HTTP/{version}", *(f"Host: {host}" for host in hosts)]
            status, headers, _ = ask(port, [*head, f"Authorization: Basic {token}"], "{}")
            assert status in (400, 421), headers

    @pytest.mark.parametrize(
        "target",
        ["http://evil.example/api/admin/version", "http://127.0.0.1:{port}/api/admin/version", "evil.example:80", "*"],
    )
    @pytest.mark.parametrize("method", ["GET", "OPTIONS", "CONNECT"])
    def test_it_is_no_proxy(self, own, port, token, target, method):
        head = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1:{port}", f"Authorization: Basic {token}"]
        assert ask(port, head)[0] in (0, 400)

    @pytest.mark.parametrize(
        "origin",
        [
            "http://evil.example",
            "https://127.0.0.1:{port}",
            "http://127.0.0.1",
            "http://127.0.0.1:1{port}",
            "http://127.0.0.1:{port}.evil.example",
            "http://localhost.evil.example:{port}",
            "http://[::1]:{port}",
            "http://tunnel.example",
            "null",
            "file://",
            "chrome-extension://abcdefghijklmnop",
            "",
        ],
    )
    def test_another_origin_is_refused(self, own, port, token, origin):
        heads = {
            "simple": ["POST /api/flows/ HTTP/1.1", "Content-Type: text/plain"],
            "no cors": ["GET /api/admin/version HTTP/1.1"],
            "json": ["POST /api/flows/ HTTP/1.1", "Content-Type: application/json", f"Authorization: Basic {token}"],
            "preflight": [
                "OPTIONS /api/flows/ HTTP/1.1",
                "Access-Control-Request-Method: POST",
                "Access-Control-Request-Headers: authorization,content-type",
            ],
            "ui": ["GET /ui-settings HTTP/1.1"],
        }
        for kind, head in heads.items():
            body = CREATE_FLOW if head[0].startswith("POST") else ""
            status, headers, _ = ask(port, [*head, "Host: 127.0.0.1:{port}", f"Origin: {origin}"], body)
            assert status == 403, (kind, headers)
            assert "access-control-allow" not in headers
        assert not flows_named_attack(own)

    @pytest.mark.parametrize("site", ["cross-site", "same-site", "cross-origin", ""])
    def test_a_page_of_another_site_is_refused_even_without_an_origin(self, own, port, token, site):
        head = ["Host: 127.0.0.1:{port}", f"Sec-Fetch-Site: {site}", f"Authorization: Basic {token}"]
        navigation = ["Sec-Fetch-Mode: navigate"]
        assert ask(port, ["GET /api/admin/version HTTP/1.1", *head])[0] == 403
        assert ask(port, ["POST /api/flows/ HTTP/1.1", *head, *navigation, "Sec-Fetch-Dest: document"], "{}")[0] == 403
        assert ask(port, ["GET / HTTP/1.1", *head, *navigation, "Sec-Fetch-Dest: iframe"])[0] == 403
        assert ask(port, ["GET / HTTP/1.1", *head, "Sec-Fetch-Dest: script"])[0] == 403
        # A link to the UI may be followed; no token comes along with that.
        assert ask(port, ["GET / HTTP/1.1", *head, *navigation, "Sec-Fetch-Dest: document"])[0] == 200

    def test_own_hosts_and_origins_are_welcome(self, own, port, token):
        for host, scheme in [
            ("127.0.0.1:{port}", "http"),
            ("LOCALHOST:{port}", "http"),
            ("tunnel.example:8443", "https"),
        ]:
            of_page = [f"Origin: {scheme}://{host.lower()}", "Sec-Fetch-Site: same-origin"]
            for more in ([], of_page):
                head = ["GET /api/admin/version HTTP/1.1", f"Host: {host}", f"Authorization: Basic {token}", *more]
                status, headers, _ = ask(port, head)
                assert status == 200, headers


class TestWithoutTheToken:
    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Basic",
            "Basic !",
            "Basic " + base64.b64encode(b"mralign:").decode(),
            "Basic " + base64.b64encode(b"mralign:" + b"0" * 64).decode(),
            "Basic " + base64.b64encode("mralign:é".encode()).decode(),
            "Bearer x",
        ],
    )
    def test_the_api_is_closed(self, own, port, authorization):
        head = ["Host: 127.0.0.1:{port}", *([] if authorization is None else [f"Authorization: {authorization}"])]
        for line in (
            "POST /api/flows/",
            "GET /api/admin/settings",
            "GET /api/admin/version",
            "GET //api/admin/version",
            "GET /api//admin/version",
            "GET /api/health/../admin/version",
            "GET /api/health%2f..%2fadmin/version",
            "GET /API/admin/version",
            "GET /api/openapi.json",
            "GET /api/docs",
            "GET /openapi.json",
            "GET /docs",
            "GET /redoc",
        ):
            status, headers, text = ask(port, [f"{line} HTTP/1.1", *head], CREATE_FLOW if "POST" in line else "")
            assert status in (401, 404, 500) or "<!doctype html>" in text.lower(), (line, headers)
            assert "3.8" not in text and "openapi" not in text.lower().replace("/api/openapi.json", ""), line
        assert not flows_named_attack(own)

    def test_the_secret_itself_is_not_what_is_asked_for(self, own, home, port):
        secret = installation_secret(home).hex()
        for text in (secret, f"mralign:{secret}"):
            basic = base64.b64encode(text.encode()).decode()
            head = ["GET /api/admin/version HTTP/1.1", "Host: 127.0.0.1:{port}", f"Authorization: Basic {basic}"]
            assert ask(port, head)[0] == 401

    def test_a_browser_is_told_what_to_do(self, own, port):
        for path in ("/", "/runs", "/v2/dashboard", "/mralign/enter"):
            status, _, text = ask(port, [f"GET {path} HTTP/1.1", "Host: 127.0.0.1:{port}", "Accept: text/html"])
            assert status == 200
            assert "mralign ui" in text and "make serve" in text

    def test_no_reply_may_be_framed_or_load_from_elsewhere(self, own, port, token):
        for path in ("/", "/mralign/enter", "/mralign/enter.js", "/ui-settings", "/api/health", "/api/flows/filter"):
            _, headers, _ = ask(port, [f"GET {path} HTTP/1.1", "Host: 127.0.0.1:{port}"])
            for expected in (
                "default-src 'self'",
                "frame-ancestors 'none'",
                "x-content-type-options: nosniff",
                "referrer-policy: no-referrer",
            ):
                assert expected in headers, path
            assert "unsafe-inline" not in headers.partition("script-src")[2].partition(";")[0]
            assert "http" not in headers.partition("content-security-policy:")[2].partition("\r\n")[0]

    def test_a_browser_is_led_to_the_address_that_nobody_else_listens_at(self, own, port):
        for path in ("/runs?page=2", "/mralign/enter", "//evil.example/x"):
            head = [f"GET {path} HTTP/1.1", "Host: localhost:{port}", "Accept: text/html"]
            status, headers, _ = ask(port, head)
            assert status == 307
            assert f"location: http://127.0.0.1:{port}{path}\r\n" in headers

    def test_a_challenge_is_of_one_form(self, own, port):
        for challenge in ("", "x" * 32, "0" * 31, "0" * 100_000, "0" * 32 + "%00token"):
            head = [f"GET /mralign/identity?challenge={challenge} HTTP/1.1", "Host: 127.0.0.1:{port}"]
            assert ask(port, head)[0] in (0, 400)


SOCKETS = ["/api/events/in", "/api/events/out", "/api/logs/out", "/api/task_runs/subscriptions/scheduled"]


def open_socket(port, path, *, token=None, origin=None, host=None, subprotocols=("prefect",)):
    """What the server's first message says, after Prefect's greeting with this token."""
    headers = {"Host": host.format(port=port)} if host else {}
    with connect(
        f"ws://127.0.0.1:{port}{path}",
        origin=origin and origin.format(port=port),
        additional_headers=headers,
        subprotocols=list(subprotocols) or None,
        proxy=None,
    ) as websocket:
        websocket.send(json.dumps({"type": "auth", "token": token}))
        return json.loads(websocket.recv(timeout=30))


@pytest.mark.parametrize("path", [*SOCKETS, "/api/work_pools/cpu/workers/connect"])
class TestWebsockets:
    def test_another_origin_is_refused_before_it_says_a_word(self, own, port, path):
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1:{port}.evil.example"):
            with pytest.raises(InvalidStatus) as refused:
                open_socket(port, path, token=own.token, origin=origin)
            assert refused.value.response.status_code == 403

    def test_another_host_is_refused(self, own, port, path):
        # The client adds its own Host as well where it is given one, which is refused for being two.
        for host in ("evil.example:{port}", "[::1]:{port}"):
            head = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
            handshake = ["Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==", "Sec-WebSocket-Protocol: prefect"]
            lines = [*head, *handshake, "Connection: Upgrade", "", ""]
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall("\r\n".join(lines).format(port=port).encode())
                assert b" 403 " in connection.recv(65536).splitlines()[0]

    def test_no_token_or_a_wrong_one_is_refused(self, own, port, path):
        for wrong in (None, "", "mralign:" + "0" * 64):
            with pytest.raises(ConnectionClosed):
                open_socket(port, path, token=wrong)
        with pytest.raises((ConnectionClosed, InvalidStatus)):
            open_socket(port, path, subprotocols=())

    def test_the_token_opens_it(self, own, port, path):
        for origin in (None, "http://127.0.0.1:{port}", "http://localhost:{port}"):
            assert open_socket(port, path, token=own.token, origin=origin) == {"type": "auth_success"}


def test_sockets_that_say_nothing_do_not_keep_others_out(own, port):
    url = f"ws://127.0.0.1:{port}/api/events/in"
    with contextlib.ExitStack() as silent:
        for _ in range(120):  # Prefect on SQLite works on a hundred requests at once
            silent.enter_context(connect(url, subprotocols=[Subprotocol("prefect")], proxy=None, close_timeout=0))
        assert httpx.get(f"{own.api_url}/health", timeout=8).json() is True
        assert open_socket(port, "/api/events/in", token=own.token) == {"type": "auth_success"}


AS_NOBODY = """
import os, socket
"loads the codec".encode("idna")
os.setgroups([]), os.setgid({nobody}), os.setuid({nobody})
for path in {paths!r}:
    try:
        open(path, "rb").read(1)
        print("read", path)
    except OSError:
        pass
for pid in {pids!r}:
    try:
        print("environment", pid, len(open(f"/proc/{{pid}}/environ").read(9)))
    except OSError:
        pass
    print("cmdline", open(f"/proc/{{pid}}/cmdline").read().replace(chr(0), " "))
with socket.create_connection(("127.0.0.1", {port})) as connection:
    connection.sendall(b"GET /api/admin/version HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n\\r\\n")
    print(connection.recv(4096).split()[1].decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_of_this_machine_reads_nothing_and_is_not_let_in(own, home, port, process):
    private = [home / "door" / "secret", door.profile_path(home, port), home / "prefect.db"]
    assert all(path.exists() for path in private)
    pids = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    outsider = home / "outside.py"
    outsider.write_text(AS_NOBODY.format(nobody=NOBODY, paths=list(map(str, private)), pids=pids, port=port))
    # The test's folders are closed to others as well: it is the files' own modes that must keep them out.
    opened = [folder for folder in [home, *home.parents] if folder != Path("/") and folder.stat().st_uid == 0]
    modes = {folder: folder.stat().st_mode & 0o7777 for folder in opened}
    try:
        for folder in opened:
            folder.chmod(modes[folder] | 0o055)
        told = subprocess.run([sys.executable, str(outsider)], capture_output=True, text=True, check=False)
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[-1] == "401"
    assert not [line for line in lines if line.startswith(("read", "environment"))]
    secret = installation_secret(home).hex()
    assert all(own.token not in line and secret not in line for line in lines)


def test_it_listens_on_loopback_only(own, process):
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert set(listening) == {"127.0.0.1"}


def test_no_reply_waits_for_an_acknowledgement(own):
    with httpx.Client() as client:
        seconds = [client.get(f"{own.api_url}/health").elapsed.total_seconds() for _ in range(300)]
    assert min(seconds) < 0.03


def listen(address, port, option):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind((address, port))
        other.listen()


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_nobody_can_take_the_port_beside_it(own, port, address, option):
    with pytest.raises(OSError, match="in use"):
        listen(address, port, option)


def test_prefects_command_line_is_let_in_by_the_profile(own, home, port):
    profile = door.profile_path(home, port)
    assert profile.stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(profile.read_text())["profiles"]["mralign"]["PREFECT_API_URL"] == own.api_url
    command = [sys.executable, "-m", "prefect", "work-pool", "ls"]
    env = {**os.environ, "HOME": str(home), "PREFECT_PROFILES_PATH": str(profile), "NO_COLOR": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No work pools found" in done.stdout
    del env["PREFECT_PROFILES_PATH"]
    bare = {"PREFECT_HOME": str(home / "elsewhere"), "PREFECT_API_URL": own.api_url}
    without = subprocess.run(command, env={**env, **bare}, capture_output=True, text=True, check=False)
    assert without.returncode != 0
    assert "401" in without.stdout + without.stderr


def test_a_start_has_a_token_of_its_own(own, home):
    with behind_door(home, QUICK_SERVER) as (second, _):
        assert second.token != own.token
        assert httpx.get(f"{second.api_url}/admin/version", auth=auth_of(own)).status_code == 401


STARTER = """
import sys, time
from flows.commands.embedded import start_embedded_server
from flows.commands.server import _own_server
print(start_embedded_server(_own_server).api_url, flush=True)
time.sleep(600)
"""


class TestEmbedded:
    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
    def test_it_has_the_same_door_and_ends_with_its_program(self, tmp_path, end):
        env = {**os.environ, "PREFECT_HOME": str(tmp_path)}
        env.pop("PREFECT_API_URL", None)
        program = subprocess.Popen(
            [sys.executable, "-c", STARTER], cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, text=True
        )
        try:
            assert program.stdout
            url = program.stdout.readline().strip()
            port = int(url.split(":")[2].split("/")[0])
            family = psutil.Process(program.pid).children(recursive=True)
            listening = {c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
            assert listening == {("127.0.0.1", port)}
            own = wait_until_recognised(url, tmp_path, program)
            assert httpx.get(f"{url}/admin/version").status_code == 401
            auth = auth_of(own)
            assert httpx.get(f"{url}/admin/version", auth=auth).status_code == 200
            assert httpx.get(f"{url}/health", headers={"Host": "evil.example"}).status_code == 421
            assert httpx.post(f"{url}/flows/", headers={"Origin": "http://evil.example"}, auth=auth).status_code == 403
        finally:
            program.send_signal(end)
            program.wait(timeout=30)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive

    def test_it_ends_though_its_program_is_gone_before_it_serves(self, tmp_path):
        script = (
            "import os, socket, sys, time\nfrom flows.commands.embedded import _free_port, _start\n"
            "port = _free_port()\nprint(_start(port).pid, file=sys.stderr, flush=True)\n"
            "while socket.socket().connect_ex(('127.0.0.1', port)): time.sleep(0.02)\n"
            "os._exit(0)  # it listens, and is busy with its imports\n"
        )
        env = {**os.environ, **QUICK_SERVER, "PREFECT_HOME": str(tmp_path)}
        env.pop("PREFECT_API_URL", None)
        said = tmp_path / "said"
        with said.open("wb") as output:
            subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, env=env, stderr=output, check=True)
        server = psutil.Process(int(said.read_text().split()[0]))
        assert server.status() != psutil.STATUS_ZOMBIE
        assert ends_within(server, seconds=90)


def ends_within(process, seconds):
    """Whether a process that nobody may bury ends in time; if not, it is ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.2)
    process.kill()
    return False
