"""The UI in a real browser: it lets its user in, asks no other host for anything, and other pages can't use it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest

from tests.chromium import CHROMIUM, chromium
from tests.door_server import auth_of, behind_door
from tests.prefect_server import QUICK_SERVER

pytestmark = [
    pytest.mark.soak,
    pytest.mark.server,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"),
]
# Nothing but this machine exists for the browser, so a page that asks elsewhere is seen and gets nothing.
ALONE = "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
PAGES = [
    ("/dashboard", "Flow Runs"),
    ("/runs", "a-flow"),
    ("/flows", "a-flow"),
    ("/deployments", "a-deployment"),
    ("/deployments/deployment/{deployment}", "a-deployment"),
    ("/runs/flow-run/{run}", "a-run"),
    ("/work-pools", "a-pool"),
    ("/work-pools/create", "Docker"),
    ("/work-pools/work-pool/a-pool", "a-pool"),
    ("/blocks", "Blocks"),
    ("/blocks/catalog", "Slack Webhook"),
    ("/blocks/catalog/slack-webhook", "Slack"),
    ("/variables", "Variables"),
    ("/automations", "Automations"),
    ("/automations/create", "Trigger"),
    ("/events", "Event"),
    ("/concurrency-limits", "Concurrency"),
    ("/settings", "3.8"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with behind_door(tmp_path_factory.mktemp("door"), QUICK_SERVER) as (server, _):
        yield server


@pytest.fixture(scope="module")
def api(server):
    with httpx.Client(base_url=server.api_url, auth=auth_of(server), timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def things(api):
    """One of each that the UI shows."""

    def create(path, **body):
        reply = api.post(path, json=body)
        assert reply.is_success, reply.text
        return reply.json()["id"]

    flow = create("/flows/", name="a-flow")
    create("/work_pools/", name="a-pool", type="process", base_job_template={})
    deployment = create("/deployments/", name="a-deployment", flow_id=flow, work_pool_name="a-pool")
    run = create("/flow_runs/", name="a-run", flow_id=flow, state={"type": "COMPLETED"})
    picture = "![elsewhere](https://pictures.example/x.png) <img src='https://pictures.example/y.png'>"
    create("/artifacts/", key="a-note", type="markdown", data=picture, flow_run_id=run)
    return {"deployment": deployment, "run": run}


@pytest.fixture
def page(tmp_path):
    with chromium(tmp_path, ALONE) as page:
        yield page


def site(server):
    return server.api_url.removesuffix("/api")


def elsewhere(page, server):
    own = urlsplit(server.api_url).netloc
    return [url for url in page.requests if not url.startswith(("data:", "blob:")) and urlsplit(url).netloc != own]


def enter(page, server, version):
    page.open(server.link(), settle_s=0)
    page.wait_for_text("Dashboard")
    page.evaluate(f"document.cookie = 'prefect_ui_version={version}; path=/'")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_ui_works_and_asks_no_other_host_for_anything(page, server, things, version):
    enter(page, server, version)
    assert server.token not in page.evaluate("location.href")
    for path, shows in PAGES:
        page.open(site(server) + ("/v2" if version == "v2" else "") + path.format(**things), settle_s=0)
        page.wait_for_text(shows)
        page.settle(0.5)
    assert not elsewhere(page, server)
    # Prefect's bundles miss some pictures of their own.
    missing = [failure for failure in page.failures if not failure[1].endswith((".ico", ".svg"))]
    assert not missing
    errors = [line for line in page.console if "status of 404" not in line]
    assert not errors


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_a_run_wrote_can_not_make_the_ui_ask_elsewhere(page, server, things, version):
    enter(page, server, version)
    page.open(site(server) + ("/v2" if version == "v2" else "") + "/artifacts/key/a-note")
    loaded = page.evaluate(
        "[...document.images].filter(picture => picture.naturalWidth && !picture.src.startsWith("
        "location.origin) && !picture.src.startsWith('data:')).length"
    )
    assert loaded == 0
    reached = page.evaluate("fetch('https://pictures.example/').then(() => 'reached', error => 'refused')")
    assert reached == "refused"
    assert any("Content Security Policy" in line for line in page.console)


def test_a_browser_without_the_token_is_shown_what_to_do_and_may_paste_the_link(page, server):
    page.open(site(server) + "/runs", settle_s=0)
    page.wait_for_text("mralign ui")
    paste = "document.querySelector('input').value = {!r}; document.querySelector('form').requestSubmit()"
    page.evaluate(paste.format(server.link().replace("mralign:", "mralign:0")))
    page.wait_for_text("not the link of this server")
    page.evaluate(paste.format(server.link()))
    page.wait_for_text("Runs")
    assert page.evaluate("location.pathname").endswith("/runs")


ATTACK = """
async (base, token) => {
  const auth = token ? {Authorization: `Basic ${btoa(token)}`} : {};
  const outcome = (promise) => promise.then((r) => `${r.type} ${r.status}`, () => "refused");
  const flow = JSON.stringify({name: "from-a-page"});
  const socket = new Promise((done) => {
    const s = new WebSocket(base.replace("http", "ws") + "/api/events/in", ["prefect"]);
    s.onopen = () => done("open");
    s.onerror = () => done("refused");
  });
  return {
    simple: await outcome(fetch(`${base}/api/flows/`, {method: "POST", body: flow, credentials: "include"})),
    json: await outcome(fetch(`${base}/api/flows/`, {method: "POST", body: flow,
      headers: {"Content-Type": "application/json", ...auth}})),
    read: await outcome(fetch(`${base}/api/admin/version`, {headers: auth})),
    health: await outcome(fetch(`${base}/api/health`)),
    form: await outcome(fetch(`${base}/api/flows/`, {method: "POST", mode: "no-cors", body: flow})),
    socket: await socket,
  };
}
"""


class Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>elsewhere</title><body>elsewhere</body>")

    def log_message(self, *_):
        pass


@pytest.fixture
def other_port():
    other = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    yield other.server_port
    other.shutdown()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost"])
@pytest.mark.parametrize("with_token", [False, True])
def test_a_page_of_another_origin_can_do_nothing(page, server, api, other_port, host, with_token):
    enter(page, server, "v2")
    page.open(f"http://{host}:{other_port}/", settle_s=0)
    page.wait_for_text("elsewhere")
    token = server.token if with_token else ""
    outcomes = page.evaluate(f"({ATTACK})({site(server)!r}, {token!r})")
    opaque = outcomes.pop("form")  # the page is not told: the server's data are asked below
    assert opaque.startswith(("opaque", "refused"))
    assert set(outcomes.values()) == {"refused"}, outcomes
    assert not api.post("/flows/filter", json={"flows": {"name": {"any_": ["from-a-page"]}}}).json()


def test_the_ui_is_shown_in_no_frame(page, server, other_port):
    enter(page, server, "v2")
    page.open(f"http://127.0.0.1:{other_port}/", settle_s=0)
    page.wait_for_text("elsewhere")
    script = f"""new Promise((done) => {{
        const frame = document.createElement("iframe");
        frame.onload = () => done(frame.contentDocument === null ? "another origin's" : frame.contentDocument.title);
        frame.src = {site(server)!r};
        document.body.append(frame);
    }})"""
    page.evaluate(script)
    page.wait_for_failure(403, site(server) + "/")


def test_a_rebound_host_name_is_refused(page, server):
    port = urlsplit(server.api_url).port
    page.open(f"http://evil.example:{port}/", settle_s=0)
    page.wait_for_failure(421, f"http://evil.example:{port}/")
    status = "fetch('/api/health').then((reply) => reply.status)"
    assert page.evaluate(status) == 421


def test_no_cookie_carries_the_token(page, server):
    enter(page, server, "v2")
    cookies = page.call("Network.getCookies", urls=[site(server)])["cookies"]
    assert all(server.token.split(":")[1] not in cookie["value"] for cookie in cookies)
