"""A real Chromium for end-to-end tests, driven by Playwright: ``make browser``. Where there is none, tests skip."""

import contextlib
import os
from urllib.parse import urlsplit

import pytest

from tests.chromium import CHROMIUM

PATIENCE_MS = 60_000
"""A machine that runs the tests beside other things is slow; nothing here is about speed but a cancel."""


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (make browser)")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    playwright.expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as driver:
        # Debian's Chromium: Playwright's own would be fetched from another host. Root has no sandbox.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Watched:
    """A page, with what its console said and whom it asked; requests to other hosts are noted and get nothing.

    Args:
        page: Playwright's.
        own: the ``host:port`` that it may ask; empty for a page from a file.
    """

    def __init__(self, page, own=""):
        self.page = page
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.failures: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", self._note_failure)
        page.on("request", lambda request: self._note(request.url, own))
        page.on("websocket", lambda socket: self._note(socket.url, own))
        page.route(lambda url: not _is_own(url, own), lambda route: route.abort())

    def _note(self, url, own):
        if not _is_own(url, own):
            self.elsewhere.append(url)

    def _note_failure(self, reply):
        if reply.status >= 400:
            self.failures.append(f"{reply.status} {reply.url}")


def _is_own(url, own):
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob") or (parts.netloc == own if own else parts.scheme == "file")


@pytest.fixture
def watched_page(browser):
    """Open a page of its own context: ``with watched_page(own, **options) as watched``."""

    @contextlib.contextmanager
    def opened(own="", **options):
        context = browser.new_context(**options)
        try:
            yield Watched(context.new_page(), own)
        finally:
            context.close()

    return opened
