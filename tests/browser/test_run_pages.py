"""Every artifact that a real run of the pipeline publishes, opened in both UIs of Prefect.

It takes minutes: ``make browser`` asks for it (``MRALIGN_BROWSER_RUN``), other runs of the tests open an artifact of
each kind only (:mod:`test_prefect_ui`).
"""

import os
import re
from typing import Any

import pytest

from tests.page_artifacts import check_artifacts
from tests.pocket_store import SMALL, copy_store
from tests.prefect_server import serve

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (make browser)")
expect = playwright.expect
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not os.environ.get("MRALIGN_BROWSER_RUN"), reason="takes minutes: make browser runs it"),
]
SERVER = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false"}
PREFECTS_OWN = (".ico", ".svg", "/api/task_runs/filter")
"""What Prefect's own pages ask for in vain: pictures that its bundles lack, the task run of an artifact of none."""
FEWEST = 15
"""Artifacts that a run of the pipeline publishes at the least."""


@pytest.fixture(scope="module")
def served(tmp_path_factory, browser):
    with serve(tmp_path_factory.mktemp("served"), SERVER) as started:
        yield started


def form_of(root):
    """The form of a small run on a store."""
    form: dict[str, Any] = {"preset": "pocket", "storage_root": str(root)}
    for dotted, value in SMALL.items():
        section, _, field = dotted.partition(".")
        form.setdefault(section, {})[field] = value
    return form


@pytest.fixture(scope="module")
def artifacts(served, pocket_store, tmp_path_factory):
    """Those of a run of the pipeline, and of a look at its versions."""
    root = copy_store(pocket_store, tmp_path_factory.mktemp("store") / "store")
    found = []
    for name in ("mr-align/pipeline", "compare/tool-compare"):
        run = served.submit(name, {"config": form_of(root)}).raise_for_status().json()["id"]
        assert served.wait_for(run)["state_type"] == "COMPLETED"
        found += served.filter("artifacts", artifacts={"flow_run_id": {"any_": [run]}})
    check_artifacts(found)
    return found


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_artifact_of_a_run_is_shown_without_an_error_or_a_request_elsewhere(
    served, artifacts, watched_page, version
):
    assert len(artifacts) >= FEWEST
    site = str(served.api.base_url).partition("/api")[0]
    with watched_page(own=served.api.base_url.netloc.decode(), viewport={"width": 1400, "height": 1000}) as watched:
        page = watched.page
        page.goto(served.server.link())
        expect(page.get_by_role("link", name="Deployments").first).to_be_visible()
        page.context.add_cookies([{"name": "prefect_ui_version", "value": version, "url": site}])
        for artifact in artifacts:
            page.goto(f"{site}{'/v2' if version == 'v2' else ''}/artifacts/artifact/{artifact['id']}")
            expect(page.get_by_text(artifact["description"]).first).to_be_visible()
            if artifact["type"] == "image":
                picture = page.locator("img[src^='data:image/png']").first
                expect(picture).to_be_visible()
                assert picture.evaluate("image => image.naturalWidth") > 50, artifact["key"]
        errors = [line for line in watched.errors if not re.search("status of (404|422|503)", line)]
        failures = [line for line in watched.failures if not line.endswith(PREFECTS_OWN) and line[:3] != "503"]
        assert not errors and not watched.elsewhere and not failures
