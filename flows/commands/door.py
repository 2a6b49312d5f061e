"""The Prefect server of this project behind a door: ``python -m flows.commands.door``.

Prefect's server answers whoever reaches its port, and web pages do reach it: a page of any origin by a plain request, a
page whose host name is made to point here by what then looks like its own origin. Who can talk to it can deploy a flow,
and so run any command as this user. Therefore it listens on loopback only, and

- the door refuses requests to another host name, of another origin, and of pages of other sites;
- Prefect asks for the token of :mod:`flows.commands.secret`, in each request and on each websocket, and the door itself
  for what it shows of a store, figures and the workbench (:mod:`mralign_core.workbench`);
- browsers are told to ask no other host for anything and to show the UI in no frame.

The token is kept in the browser's ``localStorage``, as Prefect's own UI has it, which belongs to host and port: a
cookie would go to every port of this machine, whoever listens there, and along with requests of other pages.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import hmac
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from html import escape
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

from flows.commands.secret import (
    HOST,
    SERVE_HOME,
    door_folder,
    installation_secret,
    past_proxies,
    proof_of,
    token_of,
    write_private,
)
from mralign_core.errors import UserError
from mralign_core.reporting.server_paths import ARTIFACTS_PREFIX, IDENTITY_PATH, VIEW_API_PREFIX, VIEW_PREFIX

if TYPE_CHECKING:
    import uvicorn

    from mralign_core.reporting.shown_files import ShownFile

EXTRA_HOSTS = "MRALIGN_SERVE_HOSTS"
"""Environment variable: other names, with their ports, that the server is reached at on purpose, such as the near end
of a tunnel or a proxy; separated by commas."""
ENTER_PATH = "/mralign/enter"
SCRIPT_PATH = "/mralign/enter.js"
TOKEN_PATH = "/mralign/token"
"""Says whether a browser's token is right."""
VIEW_SCRIPT_PATH = "/mralign/view.js"
VIEW_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; frame-src blob:; img-src blob: data:; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SHOWN_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Of what a run has written."""
CLOSED_PATHS = {"/docs", "/redoc", "/docs/oauth2-redirect", "/openapi.json"}
"""FastAPI's pages about the API: they load their scripts from foreign hosts and ask for no token."""
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'",  # the graph of a run draws by code that it makes up
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
CSP = b"content-security-policy"
HEADERS = [
    (CSP, POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
SHUTDOWN_TIMEOUT_S = 5
PARENT_POLL_S = 0.5
TOKEN_TIMEOUT_S = 10.0
POLICY_VIOLATION = 1008
"""What a websocket is closed with."""
CHALLENGE = re.compile(r"[0-9a-f]{32}")
ANALYTICS_KEY = re.compile(r"`[0-9a-f]{32}`")
PICTURE = re.compile(rb'"logo_url":\s*"[^"]*"')
NO_PICTURE = b'"logo_url":"data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"'
"""An empty one: the UI leaves out what has none."""
ARTIFACTS_PATH = "/api/artifacts/filter"
PICTURE_PATHS = ("/api/block_", "/api/collections/")
"""Where the API names pictures on foreign hosts, which the UI would show."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(NamedTuple):
    """Why a request does not get in."""

    status: HTTPStatus
    reason: str


class Door:
    """An ASGI application in front of Prefect's.

    Args:
        app: Prefect's.
        port: where it listens.
        secret: the installation's.
        start: what the server drew when it started.
        extra_hosts: further ``host:port`` it may be reached at.
    """

    def __init__(self, app: App, port: int, secret: bytes, start: str, extra_hosts: Sequence[str] = ()) -> None:
        self._app = app
        self._port = port
        self._secret = secret
        self._start = start
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}", *extra_hosts}
        self._origins = set(origins(port, extra_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse or pass on one request, websocket or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if scope["type"] == "websocket":
            if refusal or "prefect" not in scope["subprotocols"]:
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            else:
                await self._let_websocket_in(scope, receive, send)
            return
        send = _with_headers(send)
        if refusal:
            await _reply(send, refusal.status, "text/plain", refusal.reason + "\n")
        elif scope["path"] == IDENTITY_PATH:
            await self._prove_identity(scope, send)
        elif scope["path"] == SCRIPT_PATH:
            await _reply(send, HTTPStatus.OK, "text/javascript", ENTER_SCRIPT)
        elif scope["path"] == TOKEN_PATH:
            await (_welcome if self._has_token(scope) else _ask_for_token)(send)
        elif _is_navigation(scope) and self._is_localhost(scope):
            # Another user may listen at the IPv6 address of the same name, and would share its localStorage.
            await _redirect(send, f"http://{HOST}:{self._port}{_target(scope)}")
        elif scope["path"] == VIEW_SCRIPT_PATH:
            await _reply(send, HTTPStatus.OK, "text/javascript", VIEW_SCRIPT)
        elif scope["path"] == ENTER_PATH or (_is_navigation(scope) and not self._has_entered(scope)):
            await self._show_entrance(send)
        elif scope["path"].startswith(VIEW_API_PREFIX) and not self._has_token(scope):
            await _ask_for_token(send)
        elif scope["path"].startswith(VIEW_PREFIX):
            await (await asyncio.to_thread(_workbench))(scope, receive, send)
        elif scope["path"].startswith(ARTIFACTS_PREFIX):
            if scope["method"] not in ("GET", "HEAD"):
                await _reply(send, HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "this can only be read\n")
            elif _is_navigation(scope):
                await _reply(send, HTTPStatus.OK, "text/html", VIEW_PAGE, policy=VIEW_POLICY)
            else:
                await self._show_artifact(scope, send)
        elif scope["path"] == ARTIFACTS_PATH and _header(scope, b"sec-fetch-site"):
            await self._app(scope, await _last_updated_first(scope, receive), send)
        elif scope["path"].startswith(PICTURE_PATHS) and _header(scope, b"sec-fetch-site"):
            scope["headers"] = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
            await self._app(scope, receive, _without_pictures(send))
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        hosts, page_origins = _header(scope, b"host"), _header(scope, b"origin")
        if not scope["path"].startswith("/"):  # such as http://elsewhere/api, as proxies are asked
            return Refusal(HTTPStatus.BAD_REQUEST, "this is not a proxy: ask for a path")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return Refusal(HTTPStatus.MISDIRECTED_REQUEST, f"this server is {HOST}:{self._port}, not another host")
        if page_origins and (len(page_origins) > 1 or page_origins[0] not in self._origins):
            return Refusal(HTTPStatus.FORBIDDEN, "pages of other origins may not use this server")
        # Browsers send no Origin with some requests, but say whose page asks. Following a link to the UI is all right.
        site = _header(scope, b"sec-fetch-site")
        is_foreign = bool(site and set(site) - {"same-origin", "none"})
        if is_foreign and (not _is_visit(scope) or scope["path"].startswith((ARTIFACTS_PREFIX, VIEW_PREFIX))):
            return Refusal(HTTPStatus.FORBIDDEN, "pages of other sites may not use this server")
        if scope["path"] in CLOSED_PATHS:
            return Refusal(HTTPStatus.NOT_FOUND, "the API's schema is at /api/openapi.json, for who has the token")
        return None

    def _is_localhost(self, scope: Scope) -> bool:
        return _header(scope, b"host")[0].lower() == f"localhost:{self._port}"

    async def _let_websocket_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hear the token before Prefect does, which takes a hundred sockets at most, also of those that say nothing."""
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "prefect"})
        try:
            first = await asyncio.wait_for(receive(), TOKEN_TIMEOUT_S)
            token = json.loads(first.get("text") or "null")["token"]
            is_right = hmac.compare_digest(str(token).encode(), token_of(self._secret, self._start).encode())
        except (TimeoutError, ValueError, TypeError, KeyError, RecursionError):
            is_right = False
        if not is_right:
            with contextlib.suppress(OSError):
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        heard = iter([{"type": "websocket.connect"}, first])

        async def receive_again() -> MutableMapping[str, Any]:
            return next(heard, None) or await receive()

        async def send_on(message: MutableMapping[str, Any]) -> None:
            if message["type"] != "websocket.accept":
                await send(message)

        await self._app(scope, receive_again, send_on)

    async def _show_artifact(self, scope: Scope, send: Send) -> None:
        """Give out a page or a figure of the store, to a script of ours that sends the token."""
        if not self._has_token(scope):
            await _ask_for_token(send)
            return
        try:
            path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
            shown = await asyncio.to_thread(_read_shown, path, query)
        except (UserError, OSError, ValueError) as error:
            await _reply(send, HTTPStatus.NOT_FOUND, "text/plain", f"{error}\n")
            return
        await _reply(send, HTTPStatus.OK, shown.media_type, shown.content, policy=SHOWN_POLICY)

    def _has_token(self, scope: Scope) -> bool:
        given = _header(scope, b"authorization")
        token = base64.b64encode(token_of(self._secret, self._start).encode()).decode()
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), f"Basic {token}".encode())

    async def _prove_identity(self, scope: Scope, send: Send) -> None:
        """Answer a challenge, so that clients know whom they send the token to (:func:`.secret.recognise`)."""
        challenge = parse_qs(scope["query_string"].decode("ascii", errors="replace")).get("challenge", [""])[0]
        if not CHALLENGE.fullmatch(challenge):
            await _reply(send, HTTPStatus.BAD_REQUEST, "text/plain", "challenge: 32 hexadecimal digits\n")
            return
        address = "{}:{}".format(*scope["server"])
        proof = proof_of(self._secret, challenge, self._start, address)
        await _reply(send, HTTPStatus.OK, "application/json", json.dumps({"start": self._start, "proof": proof}))

    def _has_entered(self, scope: Scope) -> bool:
        """Whether this browser was given the token of this start. A hint and no secret: Prefect asks for the token."""
        for header in _header(scope, b"cookie"):
            try:
                cookie = SimpleCookie(header).get(f"mralign_{self._port}")
            except CookieError:
                continue
            if cookie and cookie.value == self._start:
                return True
        return False

    async def _show_entrance(self, send: Send) -> None:
        page = ENTER_PAGE.format(start=escape(self._start), port=self._port, script=SCRIPT_PATH)
        await _reply(send, HTTPStatus.OK, "text/html", page)


def origins(port: int, extra_hosts: Sequence[str] = ()) -> list[str]:
    """The origins whose pages may use a server on a port, and on other hosts that it is reached at."""
    own = [f"http://{HOST}:{port}", f"http://localhost:{port}"]
    return own + [f"{scheme}://{host}" for host in extra_hosts for scheme in ("http", "https")]


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _is_navigation(scope: Scope) -> bool:
    """Whether a browser asks for a page to show."""
    if scope["method"] not in ("GET", "HEAD") or scope["path"].startswith("/api/"):
        return False
    return _header(scope, b"sec-fetch-mode") == ["navigate"] or "text/html" in ",".join(_header(scope, b"accept"))


def _is_visit(scope: Scope) -> bool:
    """Whether a browser follows a link, and shows the page by itself, in no frame of another."""
    is_navigation = _header(scope, b"sec-fetch-mode") == ["navigate"]
    return (
        scope["type"] == "http"
        and scope["method"] == "GET"
        and is_navigation
        and _header(scope, b"sec-fetch-dest") == ["document"]
    )


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = message.get("headers", [])
            has_policy = any(name == CSP for name, _ in own)
            message["headers"] = [*own, *(each for each in HEADERS if not (has_policy and each[0] == CSP))]
        await send(message)

    return send_with_headers


async def _last_updated_first(scope: Scope, receive: Receive) -> Receive:
    """For browsers: artifacts in the order of their updates, where the UI asks for that of their random ids.

    What a run has just told is first, and so, at its end, its page.
    """
    body, is_whole = b"", False
    while not is_whole:
        message = await receive()
        body += message.get("body", b"")
        is_whole = not message.get("more_body")
    with contextlib.suppress(ValueError, RecursionError):
        asked = json.loads(body)
        if isinstance(asked, dict) and asked.get("sort", "ID_DESC") == "ID_DESC":
            body = json.dumps({**asked, "sort": "UPDATED_DESC"}).encode()
    kept = [header for header in scope["headers"] if header[0] not in (b"content-length", b"transfer-encoding")]
    scope["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
    changed = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_changed() -> MutableMapping[str, Any]:
        return next(changed, None) or await receive()

    return receive_changed


def _without_pictures(send: Send) -> Send:
    """For browsers: block types with an empty picture in place of one on a foreign host."""
    start: MutableMapping[str, Any] = {}
    body = b""

    async def send_without_pictures(message: MutableMapping[str, Any]) -> None:
        nonlocal body
        if message["type"] == "http.response.start":
            start.update(message)
            return
        body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = PICTURE.sub(NO_PICTURE, body)
        kept = [header for header in start["headers"] if header[0] != b"content-length"]
        await send({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

    return send_without_pictures


def _target(scope: Scope) -> str:
    query = scope["query_string"].decode("latin-1")
    return scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")


async def _redirect(send: Send, url: str) -> None:
    headers = [(b"location", url.encode("latin-1")), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": int(HTTPStatus.TEMPORARY_REDIRECT), "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _reply(send: Send, status: HTTPStatus, kind: str, content: str | bytes, *, policy: str = "") -> None:
    body = content.encode() if isinstance(content, str) else content
    kind = f"{kind}; charset=utf-8" if isinstance(content, str) else kind
    headers = [
        *([(CSP, policy.encode())] if policy else []),
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})


@functools.cache
def _workbench() -> App:
    from mralign_core.workbench.app import make_app  # imports the libraries of the store, and DuckDB

    return make_app()


async def _welcome(send: Send) -> None:
    await _reply(send, HTTPStatus.OK, "text/plain", "this is the token of the server\n")


async def _ask_for_token(send: Send) -> None:
    await _reply(send, HTTPStatus.UNAUTHORIZED, "text/plain", "this needs the token of the server\n")


def _read_shown(path: str, query: str) -> ShownFile:
    from mralign_core.reporting.shown_files import read_shown  # imports the libraries of the store

    return read_shown(path, query)


VIEW_PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>MR-ALIGN</title>
<link rel="icon" href="data:,">
<style>
html, body, iframe {{ margin: 0; height: 100%; width: 100%; border: 0; display: block }}
img {{ max-width: 100% }}
pre {{ font: 14px/1.5 monospace; margin: 1em; white-space: pre-wrap }}
</style>
<body><p role="status">Loading.</p><script src="{VIEW_SCRIPT_PATH}"></script></body>
</html>
"""
VIEW_SCRIPT = """"use strict";
// A page that a run has written is shown in a frame that can run no script and send nothing to the server.
async function show() {
  const token = localStorage.getItem("prefect-password");
  const reply = await fetch(location.href, { headers: { Authorization: `Basic ${token}` }, cache: "no-store" });
  const kind = reply.headers.get("content-type") ?? "", content = await reply.blob();
  if (!reply.ok || kind.startsWith("text/plain")) return shown("pre", { textContent: await content.text() });
  const address = URL.createObjectURL(content);
  if (kind.startsWith("image/")) return shown("img", { src: address, alt: document.title });
  const frame = document.createElement("iframe");
  // Of this origin, so that its links can be seen to; it can still run no script, send no form and lead nowhere.
  frame.sandbox = "allow-same-origin";
  frame.addEventListener("load", () => link(frame.contentDocument));
  return shown(frame, { src: address, title: document.title });
}

// What a report counts leads to the cases behind it, in the workbench; only from here, as there is none behind a file.
function link(page) {
  const artifact = location.pathname.slice("ARTIFACTS_PREFIX".length).split("/").slice(0, -1).join("/");
  for (const anchor of page.querySelectorAll("a[data-cases]")) {
    const [view, asked] = anchor.dataset.cases.split("?");
    const about = new URLSearchParams([...new URLSearchParams(location.search), ["run", artifact]]);
    const address = `${location.origin}VIEW_PREFIX${view}?${about}&${asked}`;
    anchor.setAttribute("href", address);
    if (anchor.ownerSVGElement) anchor.setAttribute("tabindex", "-1"); // thousands; the workbench has them as a table
    anchor.addEventListener("click", (event) => {
      event.preventDefault();
      if (event.ctrlKey || event.metaKey) open(address);
      else location.assign(address);
    });
  }
}

function shown(what, values) {
  const element = typeof what === "string" ? document.createElement(what) : what;
  document.body.replaceChildren(Object.assign(element, values));
}

document.title = location.pathname.split("/").pop();
show().catch((error) => shown("pre", { textContent: String(error) }));
""".replace("ARTIFACTS_PREFIX", ARTIFACTS_PREFIX).replace("VIEW_PREFIX", VIEW_PREFIX)


ENTER_PAGE = """<!doctype html>
<html lang="en" data-start="{start}" data-port="{port}">
<meta charset="utf-8">
<title>MR-ALIGN</title>
<link rel="icon" href="data:,">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40em; margin: 4em auto; padding: 0 1em }}
input {{ font: inherit; width: 100%; box-sizing: border-box; margin: .5em 0 }}
output {{ color: #b00020 }}
</style>
<h1>Who is asking?</h1>
<p>Only the user who started this server may use it. Open the link that it printed; that of <code>make serve</code> is
printed again, in the folder of the project, by <code>.venv/bin/mralign ui</code>.</p>
<form><label>Or paste that link here: <input type="password" autocomplete="off" autofocus></label>
<button>Enter</button></form>
<p><output></output></p>
<noscript>The UI needs JavaScript.</noscript>
<script src="{script}"></script>
</html>
"""
ENTER_SCRIPT = """"use strict";
// Prefect's UI looks here for what it is to send.
const KEY = "prefect-password";
const { start, port } = document.documentElement.dataset;

async function enter(token) {
  const reply = await fetch("TOKEN_PATH", { headers: { Authorization: `Basic ${token}` } });
  if (!reply.ok) return false;
  localStorage.setItem(KEY, token);
  document.cookie = `mralign_${port}=${start}; path=/; SameSite=Strict`;
  if (location.pathname === "ENTER_PATH") location.replace("/");
  else location.reload();
  return true;
}

async function enterWith(text) {
  const token = text.trim().split("#").pop();
  if (!(await enter(btoa(token)))) {
    document.querySelector("output").textContent =
      "That is not the link of this server: each start of the server makes a new one.";
  }
}

const given = location.hash.slice(1);
history.replaceState(null, "", location.pathname + location.search); // leaves the token out of the address bar
const kept = localStorage.getItem(KEY);
if (given) enterWith(given);
else if (kept) enter(kept);
document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  enterWith(document.querySelector("input").value);
});
""".replace("ENTER_PATH", ENTER_PATH).replace("TOKEN_PATH", TOKEN_PATH)


def module(port: int, *, embedded: bool = False) -> list[str]:
    """Arguments of ``python -m`` that start a server behind its door.

    Args:
        port: where to listen.
        embedded: without UI and services, as Prefect starts one for a single program.
    """
    return ["flows.commands.door", "--port", str(port), *(["--embedded"] if embedded else [])]


def settings(home: Path, port: int, token: str, extra_hosts: Sequence[str] = ()) -> dict[str, str]:
    """Variables of Prefect's settings for a server behind its door.

    Args:
        home: ``PREFECT_HOME``.
        port: where it listens.
        token: what it asks for.
        extra_hosts: see :class:`Door`.
    """
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_AUTH_STRING": token,
        "PREFECT_API_AUTH_STRING": token,
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_UI_API_URL": "/api",  # of the origin that the page is from
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins(port, extra_hosts)),
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
        # In memory, Prefect's own default, a restart forgets who has a place at a limit, and it is never free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        **QUIET,
        **past_proxies(),
    }


QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",  # Prefect would start one that has no door
    "DO_NOT_TRACK": "1",
}
"""Nothing leaves the machine."""
WITHOUT_BLOCKS = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",  # else it looks for them all the same
}
"""For a server without a UI to fill blocks in at: to look for their types it imports every package of Prefect's that is
installed, which takes seconds."""
PATIENT = {"PREFECT_API_REQUEST_TIMEOUT": "180"}
"""For clients of a server that may wait a minute and a half for its database before it replies (:mod:`.busy`)."""


def build(home: Path, port: int, *, embedded: bool) -> tuple[Door, str]:
    """Prefect's application behind its door, and the token it asks for. Prefect must not have been imported.

    Args:
        home: ``PREFECT_HOME``.
        port: where it will listen.
        embedded: see :func:`module`.
    """
    secret, start = installation_secret(home), secrets.token_hex(16)
    token = token_of(secret, start)
    extra_hosts = [host.strip().lower() for host in os.environ.get(EXTRA_HOSTS, "").split(",") if host.strip()]
    os.environ.update(settings(home, port, token, extra_hosts))
    if embedded:
        os.environ.update(WITHOUT_BLOCKS)
    from prefect.server.api import collections
    from prefect.server.api.server import create_app

    from flows.commands.busy import ask_again_when_busy, write_in_turns

    # Prefect asks GitHub for its newest list of blocks and workers, and takes its own when there is no answer.
    collections.KNOWN_VIEWS.update(dict.fromkeys(collections.KNOWN_VIEWS, ""))
    write_in_turns()
    app = ask_again_when_busy(create_app(ephemeral=embedded, final=True))
    for script in (home / "ui" / "v2" / "assets").glob("*.js"):
        _without_analytics(script)
    return Door(app, port, secret, start, extra_hosts), token


def _without_analytics(script: Path) -> None:
    """Take the key out of the UI's analytics, which ask their host for settings even where they are switched off."""
    text = script.read_text(encoding="utf-8")
    if "amplitude.com" in text:
        script.write_text(ANALYTICS_KEY.sub("``", text), encoding="utf-8")


def serve(home: Path, port: int, *, embedded: bool) -> None:
    """Serve until a signal ends it.

    Args:
        home: ``PREFECT_HOME``.
        port: where to listen.
        embedded: see :func:`module`.

    Raises:
        OSError: something else listens there.
    """
    parent = os.getppid()  # before the slow imports: a parent that ends meanwhile must be missed
    os.umask(0o077)  # the database and the logs hold parameters of runs
    with listening(port) as listener:  # before the slow imports: nobody else can take it now
        port = listener.getsockname()[1]
        door, token = build(home, port, embedded=embedded)
        from prefect.settings import get_current_settings

        of_server = get_current_settings().server
        server = server_behind(
            door,
            log_level="error" if embedded else of_server.logging_level.lower(),
            timeout_keep_alive=of_server.api.keepalive_timeout,
            ws_ping_interval=of_server.api.websocket_ping_interval,
            ws_ping_timeout=of_server.api.websocket_ping_timeout,
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        )
        if embedded:
            threading.Thread(target=_end_with_parent, args=(server, parent), daemon=True).start()
        with contextlib.nullcontext() if embedded else _profile(home, port, token):
            server.run(sockets=[listener])


def server_behind(door: Door, **settings: Any) -> uvicorn.Server:
    """A server that hands the door what it needs to judge a request by.

    Args:
        door: what it serves.
        settings: others of uvicorn's.
    """
    import uvicorn

    # h11 tells whether a proxy's form of request was used.
    config = uvicorn.Config(door, http="h11", proxy_headers=False, server_header=False, **settings)
    return uvicorn.Server(config)


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket on a port of loopback; on any that is free for 0.

    Raises:
        OSError: something else listens there.
    """
    with socket.create_server((HOST, port)) as listener:
        # asyncio does so for sockets that it makes; without it every reply waits 40 ms for an acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


def _end_with_parent(server: uvicorn.Server, parent: int) -> None:
    """End the server when the program that started it is gone, also when that was killed."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    server.should_exit = True


def profile_path(home: Path, port: int) -> Path:
    """The Prefect profile of a running server: ``PREFECT_PROFILES_PATH`` for Prefect's own command line."""
    return door_folder(home) / f"{port}.toml"


@contextlib.contextmanager
def _profile(home: Path, port: int, token: str) -> Iterator[None]:
    path = profile_path(home, port)
    values = {"PREFECT_API_URL": f"http://{HOST}:{port}/api", "PREFECT_API_AUTH_STRING": token}
    lines = ['active = "mralign"', "[profiles.mralign]", *(f'{name} = "{value}"' for name, value in values.items())]
    write_private(path, "\n".join(lines) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.door", description="Prefect's server behind a door."
    )
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--embedded", action="store_true", help="without UI and services, for one program")
    chosen = parser.parse_args(arguments)
    home = Path(os.environ.get("PREFECT_HOME") or SERVE_HOME).resolve()
    signal.signal(signal.SIGTERM, _interrupt)  # uvicorn ends by the signal itself, which would leave the profile behind
    try:
        serve(home, chosen.port, embedded=chosen.embedded)
    except KeyboardInterrupt:
        return 0
    except (OSError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
