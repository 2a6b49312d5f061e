"""The Prefect UI as its user works with it: start, watch, cancel, retry, keep parameters, read artifacts.

Elements are found by what a user reads: labels, roles and texts.
"""

import re
import time

import pytest

from tests.prefect_server import serve

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (make browser)")
expect = playwright.expect
pytestmark = pytest.mark.server
# Cancelling goes through the stream of events, so that one must be on; no schedule of a test shall start a run.
SERVER = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false"}
CANCEL_S = 15
"""What a cancel may take until the page says so."""
START_MS = 240_000
"""What a worker may take until a run is running, on a machine that does other things too."""
TRIES, BUSY_S = 6, 10
ARTIFACTS = {
    "a-table": ("table", '[{"step": "questions", "kept": 60}]'),
    "a-page": ("markdown", "# A page\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"),
    "a-picture": (
        "image",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    ),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory, browser):  # started only where there is a browser
    with serve(tmp_path_factory.mktemp("served"), SERVER) as started:
        yield started


@pytest.fixture
def ui(served, watched_page):
    """The UI, entered by the link that ``make serve`` prints."""
    with watched_page(own=served.api.base_url.netloc.decode(), viewport={"width": 1400, "height": 1000}) as watched:
        watched.page.goto(served.server.link())
        expect(watched.page.get_by_role("link", name="Deployments").first).to_be_visible()
        watched.site = str(served.api.base_url).partition("/api")[0]
        yield watched


@pytest.fixture(scope="module")
def run_id(served, tmp_path_factory):
    """A run of the smallest deployment that takes minutes, to be cancelled."""
    parameters = served.deployment("prepare/stage-prepare")["parameters"]
    parameters["config"]["storage_root"] = str(tmp_path_factory.mktemp("store"))
    reply = served.submit("prepare/stage-prepare", parameters)
    assert reply.is_success, reply.text
    return reply.json()["id"]


def open_deployment(ui, served, name, suffix=""):
    ui.page.goto(f"{ui.site}/v2/deployments/deployment/{served.deployment(name)['id']}{suffix}")


def state(ui, name):
    """The badge of a run's page that says which state it is in."""
    return ui.page.get_by_role("main").get_by_text(name, exact=True).first


def faults(ui):
    """What the console says, but for a busy SQLite (503) and the icons of runs, which Prefect lacks (404)."""
    missing = [failure for failure in ui.failures if failure.startswith("404 ")]
    excused = "status of (404|503)" if all(each.endswith((".ico", ".svg")) for each in missing) else "status of 503"
    return [line for line in ui.errors if not re.search(excused, line)]


def press_until(button, is_done):
    """Press a button, and as a user would once more where the server was too busy (503) to do it."""
    for _ in range(TRIES):
        button.click()
        deadline = time.monotonic() + BUSY_S
        while time.monotonic() < deadline:
            if is_done():
                return
            button.page.wait_for_timeout(500)
    raise AssertionError(f"{button} was pressed {TRIES} times, and nothing came of it")


def choose(ui, item):
    """Choose from the menu of the page."""
    ui.page.get_by_role("button", name="Open menu").first.click()
    ui.page.get_by_role("menuitem", name=item).click()


def confirm(ui, button):
    ui.page.get_by_role("alertdialog").or_(ui.page.get_by_role("dialog")).get_by_role(
        "button", name=button
    ).last.click()


def test_the_link_lets_in_and_leaves_no_token_in_the_address(ui, served):
    assert served.server.token not in ui.page.url and not ui.elsewhere and not faults(ui)


def test_every_deployment_is_listed(ui, served):
    ui.page.goto(f"{ui.site}/v2/deployments?limit=100")
    main = ui.page.get_by_role("main")
    for name in {entry["name"] for entry in served.filter("deployments")}:
        main.get_by_role("textbox", name="Search deployments").fill(name)
        expect(main.get_by_role("link", name=name, exact=True).first).to_be_visible()
    assert (ui.elsewhere, faults(ui)) == ([], []), ui.failures


def test_a_run_is_started_from_the_form_with_what_was_typed(ui, served, tmp_path):
    open_deployment(ui, served, "prepare/stage-prepare")
    ui.page.get_by_role("button", name="Run", exact=True).click()
    ui.page.get_by_role("menuitem", name="Custom run").click()
    ui.page.get_by_label(re.compile("^Run Name", re.I)).fill("typed-name")
    ui.page.get_by_label(re.compile("^Seed")).first.fill("7")
    ui.page.get_by_label(re.compile("^Storage root")).first.fill(str(tmp_path))
    named = {"name": {"any_": ["typed-name"]}}
    press_until(ui.page.get_by_role("button", name="Submit"), lambda: served.filter("flow_runs", flow_runs=named))
    (started,) = served.filter("flow_runs", flow_runs=named)
    assert started["parameters"]["config"]["seed"] == 7
    assert started["parameters"]["config"]["storage_root"] == str(tmp_path)
    served.api.delete(f"/flow_runs/{started['id']}")
    assert (ui.elsewhere, faults(ui)) == ([], []), ui.failures


def test_a_run_is_watched_cancelled_and_retried(ui, served, run_id):
    ui.page.goto(f"{ui.site}/v2/runs/flow-run/{run_id}")
    expect(state(ui, "Running")).to_be_visible(timeout=START_MS)
    expect(ui.page.get_by_text("Beginning flow run").first).to_be_visible()  # its log, without reloading
    cancel(ui)
    choose(ui, re.compile("^Retry"))
    confirm(ui, re.compile("Retry"))
    expect(state(ui, "Running")).to_be_visible(timeout=START_MS)
    assert served.api.get(f"/flow_runs/{run_id}").json()["run_count"] == 2
    cancel(ui)
    assert (ui.elsewhere, faults(ui)) == ([], []), ui.failures


def cancel(ui):
    choose(ui, "Cancel")
    began = time.monotonic()
    confirm(ui, re.compile("Cancel"))
    expect(state(ui, "Cancelled")).to_be_visible()
    seconds = time.monotonic() - began
    print(f"cancelled after {seconds:.1f} s")  # noqa: T201
    assert seconds < CANCEL_S


def test_parameters_that_are_edited_are_kept(ui, served):
    open_deployment(ui, served, "prepare/stage-prepare", "/edit")
    ui.page.get_by_label(re.compile("^Seed")).first.fill("11")

    def kept_seed():
        return served.deployment("prepare/stage-prepare")["parameters"]["config"].get("seed")

    press_until(ui.page.get_by_role("button", name="Save"), lambda: kept_seed() == 11)
    open_deployment(ui, served, "prepare/stage-prepare", "/edit")
    expect(ui.page.get_by_label(re.compile("^Seed")).first).to_have_value("11")
    assert (ui.elsewhere, faults(ui)) == ([], []), ui.failures


def test_the_weekly_schedule_is_switched_on_and_off(ui, served):
    name = "mr-align/weekly-retrain"
    open_deployment(ui, served, name)
    switch = ui.page.get_by_role("complementary").get_by_role("switch").first

    def is_active():
        (schedule,) = served.deployment(name)["schedules"]
        return schedule["active"]

    for is_on in (True, False):
        expect(switch).to_be_checked(checked=not is_on)
        press_until(switch, lambda is_on=is_on: is_active() is is_on)
        expect(switch).to_be_checked(checked=is_on)
    assert (ui.elsewhere, faults(ui)) == ([], []), ui.failures


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("key", ARTIFACTS)
def test_an_artifact_of_each_kind_is_shown_without_an_error_or_a_request_elsewhere(ui, served, run_id, version, key):
    kind, data = ARTIFACTS[key]
    body = {"key": key, "type": kind, "data": data, "description": f"about {key}", "flow_run_id": run_id}
    reply = served.api.post("/artifacts/", json=body)
    assert reply.is_success, reply.text
    ui.page.context.add_cookies([{"name": "prefect_ui_version", "value": version, "url": ui.site}])
    ui.page.goto(f"{ui.site}{'/v2' if version == 'v2' else ''}/artifacts/artifact/{reply.json()['id']}")
    expect(ui.page.get_by_text(f"about {key}").first).to_be_visible()
    # Prefect's bundles miss some pictures of their own, and V2 asks for the task run of an artifact that is of none.
    assert not [line for line in faults(ui) if not re.search("status of (404|422)", line)] and not ui.elsewhere
    assert not [failure for failure in ui.failures if not failure.endswith((".ico", ".svg", "/api/task_runs/filter"))]
