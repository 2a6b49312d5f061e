"""A real Chromium, driven over its debugging protocol; Debian's package ``chromium`` is enough."""

import itertools
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
QUIET = [
    "--headless=new",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-port=0",
]
START_TIMEOUT_S = 60


class ProtocolError(Exception):
    """What a browser could not do, as where a page went away meanwhile."""


class Page:
    """A tab: what it asked for, what its pages' policy kept it from asking, and what its console said."""

    def __init__(self, websocket):
        self._websocket = websocket
        self._numbers = itertools.count()
        self.requests = []
        self.kept_in = []
        self._urls = {}
        self.failures = []
        self.console = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self._numbers)
        self._websocket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._websocket.recv(timeout=60))
            if message.get("id") == number:
                if "error" in message:
                    raise ProtocolError(message["error"])
                return message["result"]
            self._note(message)

    def open(self, url, settle_s=2.5):
        """Go there, and wait until the page has asked for nothing for a while."""
        self.call("Page.navigate", url=url)
        self.settle(settle_s)

    def settle(self, quiet_s=2.5, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        quiet_until = time.monotonic() + quiet_s
        while time.monotonic() < min(deadline, quiet_until):
            try:
                self._note(json.loads(self._websocket.recv(timeout=0.2)))
                quiet_until = time.monotonic() + quiet_s
            except TimeoutError:
                continue

    def evaluate(self, script):
        """The value of a script, which may be a promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self):
        """What it shows; "" while it has no body yet, or gives way to another page."""
        try:
            return self.evaluate("document.body?.innerText") or ""
        except ProtocolError:
            return ""

    def wait_for_text(self, text, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while text not in (found := self.text()):
            assert time.monotonic() < deadline, f"no {text!r} in: {found}"
            self.settle(0.3, 0.5)

    def wait_for_failure(self, status, url, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while (status, url) not in self.failures:
            assert time.monotonic() < deadline, f"no {status} of {url} in: {self.failures}"
            self.settle(0.1, 0.2)

    def _note(self, message):
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
                self._urls[params["requestId"]] = params["request"]["url"]
            case "Network.loadingFailed" if params.get("blockedReason") == "csp":
                self.requests.remove(self._urls[params["requestId"]])  # it was not sent
                self.kept_in.append(self._urls[params["requestId"]])
            case "Network.webSocketCreated":
                self.requests.append(params["url"])
            case "Network.responseReceived" if params["response"]["status"] >= 400:
                self.failures.append((params["response"]["status"], params["response"]["url"]))
            case "Runtime.exceptionThrown":
                self.console.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.console.append(" ".join(str(value.get("value", value)) for value in params["args"]))


@contextmanager
def chromium(folder, *options):
    """A browser of its own profile in the folder; gives a tab."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [CHROMIUM, *QUIET, *sandbox, *options, f"--user-data-dir={folder}", "about:blank"]
    with (folder / "chromium.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            with connect(_tab(_address(folder / "chromium.log", process)), max_size=None, proxy=None) as websocket:
                yield Page(websocket)
        except ConnectionClosed as error:
            raise RuntimeError((folder / "chromium.log").read_text()) from error
        finally:
            process.kill()
            process.wait()


def _address(log, process):
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (found := re.search(r"DevTools listening on ws://([\d.]+:\d+)/", log.read_text())):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found[1]


def _tab(address):
    import httpx

    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        tabs = httpx.get(f"http://{address}/json/list", trust_env=False, timeout=START_TIMEOUT_S).json()
        if found := [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]:
            return found[0]
        assert time.monotonic() < deadline, "the browser opened no page"
        time.sleep(0.1)
