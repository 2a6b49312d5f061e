"""Pages and figures of a store, shown by the server of ``make serve``: read-only, to who has the token, on S3 too."""

import base64
import doctest
import io
import time
from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from mralign_core.config import StorageConfig
from mralign_core.errors import ArtifactError, StorageError
from mralign_core.reporting import shown_files, store_addresses
from mralign_core.reporting.provenance import MADE
from mralign_core.reporting.server_paths import ARTIFACTS_PREFIX
from mralign_core.reporting.shown_files import address_of, read_shown
from mralign_core.storage import ArtifactStore
from tests.chromium import CHROMIUM, chromium
from tests.door_server import auth_of, behind_door
from tests.prefect_server import QUICK_SERVER

PAGE = """<!doctype html><title>A report</title><a href="#end">to the end</a><h1>Report of a test</h1>
<script>document.body.textContent = "a script ran"</script><img src="https://pictures.example/x.png">
<p style="margin-top: 200em" id="end">The end.</p>"""
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def publish(storage, folder, stage="report"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(PAGE)
    (folder / "forest.png").write_bytes(PIXEL)
    (folder / "notes.bin").write_bytes(b"x")
    return ArtifactStore(storage).publish(stage, "of-a-test", folder, parents=[], fingerprint={})


def ask(address, **options):
    """The first reply waits for the libraries of the store to be imported."""
    return httpx.get(address, timeout=60, **options)


def split(address):
    path, _, query = address.partition("?")
    return path, query


def test_doctests():
    for module in (shown_files, store_addresses):
        assert doctest.testmod(module).failed == 0


def test_a_page_and_a_figure_are_read_from_a_folder_and_from_s3(section, tmp_path):
    ref = publish(section, tmp_path / "made")
    assert read_shown(*split(address_of(section, ref, "report.html"))) == ("text/html; charset=utf-8", PAGE.encode())
    assert read_shown(*split(address_of(section, ref, "forest.png"))) == ("image/png", PIXEL)


def test_a_report_is_shown_with_what_its_manifest_says_of_its_making(tmp_path):
    folder, storage = tmp_path / "made", StorageConfig(root=str(tmp_path / "store"))
    folder.mkdir()
    (folder / "report.html").write_text(f"<main>{MADE}</main>")
    ref = ArtifactStore(storage).publish("report", "of-a-test", folder, parents=[], fingerprint={})
    page = read_shown(*split(address_of(storage, ref, "report.html"))).content.decode()
    assert f"{datetime.now(UTC):%Y-%m-%d}" in page and "torch" in page
    assert MADE not in page


class TestRefused:
    @pytest.fixture
    def storage(self, tmp_path):
        (tmp_path / "secret.html").write_text("secret")
        return StorageConfig(root=str(tmp_path / "store"))

    def test_other_artifacts_and_other_files(self, storage, tmp_path):
        for stage, name in (("adapter", "report.html"), ("report", "notes.bin"), ("report", "absent.html")):
            address = address_of(storage, publish(storage, tmp_path / "made", stage), name)
            with pytest.raises(ArtifactError):
                read_shown(*split(address))

    @pytest.mark.parametrize("dots", ["..", "%2e%2e", "..%2f..", "%252e%252e"])
    def test_ways_out_of_the_store(self, storage, tmp_path, dots):
        path, query = split(address_of(storage, publish(storage, tmp_path / "made"), "report.html"))
        folder = path.removesuffix("/report.html")
        ways = [
            f"{folder}/{dots}/report.html",
            f"{folder}/{dots}/{dots}/secret.html",
            f"{ARTIFACTS_PREFIX}report/{dots}/{dots}/x.html",
        ]
        ways += [
            f"{folder}/{quote(str(tmp_path / 'secret.html'), safe='')}",
            f"{folder}//report.html",
            f"{folder}/report.html/",
        ]
        for way in ways:
            with pytest.raises(ArtifactError):
                read_shown(way, query)

    def test_a_file_that_was_put_beside_an_artifact_is_not_of_it(self, storage, tmp_path):
        ref = publish(storage, tmp_path / "made")
        (tmp_path / "store" / ref.path / "data" / "other.html").write_text("other")
        with pytest.raises(ArtifactError, match=r"has no file 'other.html'"):
            read_shown(*split(address_of(storage, ref, "other.html")))

    def test_an_s3_server_that_this_one_was_not_told_of_gets_no_signed_request(self, storage, tmp_path, monkeypatch):
        path, _ = split(address_of(storage, publish(storage, tmp_path / "made"), "report.html"))
        query = "store=s3%3A%2F%2Fbucket%2Fx&endpoint=http%3A%2F%2Fs3.invalid%3A9"
        with pytest.raises(ArtifactError, match=r"AWS_ENDPOINT_URL_S3=http://s3\.invalid:9"):
            read_shown(path, query)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.invalid:9")
        monkeypatch.setattr(store_addresses, "PATIENCE_S", 0.1)
        with pytest.raises(StorageError, match=r"s3\.invalid"):
            read_shown(path, query)

    def test_a_store_that_is_none(self, storage, tmp_path):
        path, _ = split(address_of(storage, publish(storage, tmp_path / "made"), "report.html"))
        for query in ("", "store=a&store=b", "store=ftp%3A%2F%2Fhost%2Fx", f"store={quote(str(tmp_path / 'nothing'))}"):
            with pytest.raises(ArtifactError):
                read_shown(path, query)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with behind_door(tmp_path_factory.mktemp("door"), QUICK_SERVER) as (server, _):
        yield server


@pytest.fixture(scope="module")
def address(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    storage = StorageConfig(root=str(folder / "store"))
    return server.api_url.removesuffix("/api") + address_of(storage, publish(storage, folder / "made"), "report.html")


@pytest.mark.server
class TestServed:
    def test_nothing_is_given_out_without_the_token(self, server, address):
        assert ask(address).status_code == 401
        assert ask(address, headers={"Authorization": "Basic eDp5"}).status_code == 401
        shown = ask(address, auth=auth_of(server))
        assert (shown.status_code, shown.text) == (200, PAGE)
        assert shown.headers.get_list("content-security-policy") == [
            "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        ]
        assert shown.headers["x-content-type-options"] == "nosniff"

    def test_a_page_of_another_site_can_not_even_link_to_it(self, address):
        visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert ask(address, headers=visit).status_code == 403

    def test_it_is_read_only(self, server, address):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert httpx.request(method, address, auth=auth_of(server), timeout=60).status_code == 405

    def test_what_is_not_there_is_told(self, server, address):
        absent = ask(address.replace("report.html", "absent.html"), auth=auth_of(server))
        assert absent.status_code == 404 and "has no file 'absent.html'" in absent.text

    @pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
    def test_a_browser_shows_it_and_runs_nothing_of_it(self, server, address, tmp_path):
        with chromium(tmp_path, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") as page:
            page.open(address)
            page.wait_for_text("Who is asking?")
            page.open(server.link())
            page.open(address)
            deadline = time.monotonic() + 60
            while page.evaluate("document.querySelector('iframe')?.sandbox.value") is None:
                assert time.monotonic() < deadline, page.text()
                page.settle(0.5)
            # No scripts, forms or ways out; its own origin lets the page around it see to its links.
            assert page.evaluate("document.querySelector('iframe').sandbox.value") == "allow-same-origin"
            while page.evaluate("document.querySelector('iframe').contentDocument.readyState") != "complete":
                assert time.monotonic() < deadline
                page.settle(0.5)
            heading = "document.querySelector('iframe').contentDocument.querySelector('h1')?.textContent"
            assert page.evaluate(heading) == "Report of a test", "its script replaces the page where it runs"
            assert page.evaluate("document.title") == "report.html"
            assert page.evaluate("document.querySelector('iframe').src.slice(0, 5)") == "blob:"
            drawn = base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"])
            with Image.open(io.BytesIO(drawn)) as picture:
                assert len(set(picture.convert("L").tobytes())) > 10, "the page is seen"
            assert page.kept_in == ["https://pictures.example/x.png"]
            assert not [
                url for url in page.requests if not url.startswith((server.api_url[:17], "blob:", "data:", "about:"))
            ]

    def test_a_browser_gets_what_was_updated_last_first_and_others_what_they_ask_for(self, server):
        auth, url = auth_of(server), f"{server.api_url}/artifacts/"
        made = [
            httpx.post(url, json={"key": key, "type": "markdown", "data": key}, auth=auth, timeout=60).json()["id"]
            for key in ("run", "draws", "yield")
        ]
        assert httpx.patch(f"{url}{made[0]}", json={"data": "the end"}, auth=auth, timeout=60).is_success

        def keys(headers):
            query = {"sort": "ID_DESC", "artifacts": {"id": {"any_": made}}}
            reply = httpx.post(f"{url}filter", json=query, auth=auth, headers=headers, timeout=60)
            return [artifact["id"] for artifact in reply.raise_for_status().json()]

        assert keys({"Sec-Fetch-Site": "same-origin"}) == [made[0], made[2], made[1]]
        assert keys({}) == sorted(made, reverse=True)
