"""A proxy of real HTTP connections that stands before a real server, such as the S3 server of ``tests.seaweedfs``, and
spoils some of what passes: by rate from a seed, one by one as a test says, or all of it for some seconds.

Example::

    with FaultyS3(s3_server.endpoint_url, seed=1, rates=dict.fromkeys(PASSING, 0.01)) as proxy:
        section = StorageConfig(root=s3_root, endpoint_url=proxy.url)
        ...                              # of 100 requests, about 8 go wrong, each in another way
        proxy.script("PUT", "503", "")   # the next PUT fails, the one after it goes well whatever the rates
        proxy.outage(3.0)                # connections are refused, and cut, for 3 s from now; returns at once
        proxy.over()                     # or until now
    assert proxy.num_faults["reset"]

Kinds of fault, each of one request:

``refuse``    the connection is reset before the server sees the request
``lose``      the server does the work, and the connection is reset before the reply
``reset``     the connection is reset in the middle of the reply's body
``truncate``  half of the reply's body comes, its headers promise all of it, and the connection is closed
``shorten``   half of the reply's body comes, and its headers promise no more
``empty``     no body comes, and the headers promise none
``hang``      the server does the work, and nothing comes for ``hang_s``
``slow``      all is well, ``latency_s`` later
``SlowDown``  status 503 with S3's code SlowDown
``500``       or another number: this status, and the server does not see the request
``403:Code``  the same, with this code of S3
"""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter, defaultdict, deque
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer

PASSING = ("refuse", "lose", "reset", "truncate", "shorten", "empty", "slow", "SlowDown", "500")
"""Kinds that a patient client outlives within a second or two; ``hang`` takes as long as its time-out."""
ERROR = "<Error><Code>{}</Code><Message>made up by the proxy</Message></Error>"


class FaultyS3(BaseServer):
    """A proxy on a port of its own, from the beginning of a ``with`` to its end.

    Args:
        target: URL of the server behind it.
        seed: of the faults that come by rate; the same requests in the same order meet the same ones.
        rates: kind of fault → share of the requests that meet it.
        methods: only requests by these meet faults by rate; all when empty.
        hang_s: how long a request hangs.
        latency_s: how late a slow reply comes.
    """

    def __init__(self, target, *, seed=0, rates=None, methods=(), hang_s=3600.0, latency_s=0.5):
        super().__init__(("127.0.0.1", 0), _Forwarder)
        self.target = target.removeprefix("http://")
        self.rates, self.methods, self.hang_s, self.latency_s = dict(rates or {}), methods, hang_s, latency_s
        self.num_faults: Counter[str] = Counter()
        self.num_requests: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._scripts = defaultdict(deque)
        self._lock = threading.Lock()
        self._open = set()
        self._closing = threading.Event()
        self._refuse_until = 0.0
        # Keeps the port while nothing listens on it: connections are refused, by the system itself.
        self._holder = _bound(0)
        self._port = self._holder.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self):
        self._listening = threading.Event()
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(self, *_):
        self._closing.set()
        self._thread.join()
        self._reset_all()
        self._holder.close()

    def script(self, method, *kinds):
        """What the next requests by a method (``*`` for any) meet, one after another; ``""`` is no fault."""
        with self._lock:
            self._scripts[method].extend(kinds)

    def scripted_no_more(self):
        """Forget what of it is still to come."""
        with self._lock:
            self._scripts.clear()

    def scripted(self, method):
        """What of it is still to come."""
        return list(self._scripts[method])

    def outage(self, seconds):
        """Refuse connections, and cut those that are open, for so many seconds from now."""
        self._refuse_until = time.monotonic() + seconds

    def over(self):
        """End an outage."""
        self._refuse_until = 0.0

    def is_out(self):
        return time.monotonic() < self._refuse_until

    def next_fault(self, method):
        with self._lock:
            self.num_requests[method] += 1
            if script := self._scripts.get(method) or self._scripts.get("*"):
                kind = script.popleft()
            elif self.methods and method not in self.methods:
                kind = ""
            else:
                draw, kind = self._random.random(), ""
                for name, rate in self.rates.items():
                    draw -= rate
                    if draw < 0:
                        kind = name
                        break
            if kind:
                self.num_faults[kind] += 1
            return kind

    def sleep(self, seconds):
        self._closing.wait(seconds)

    def _serve(self):
        while not self._closing.is_set():
            if self.is_out():
                self._reset_all()
                self.sleep(0.01)
                continue
            with _bound(self._port) as listener:
                listener.listen(128)
                listener.settimeout(0.01)
                self._listening.set()
                while not self._closing.is_set() and not self.is_out():
                    with contextlib.suppress(TimeoutError):
                        self._start(listener.accept())

    def _start(self, accepted):
        connection, address = accepted
        connection.settimeout(None)
        with self._lock:
            self._open.add(connection)
        threading.Thread(target=self._handle, args=(connection, address), daemon=True).start()

    def _handle(self, connection, address):
        try:
            with contextlib.suppress(OSError, ValueError):
                _Forwarder(connection, address, self)
        finally:
            with self._lock:
                self._open.discard(connection)
            with contextlib.suppress(OSError):
                connection.close()

    def _reset_all(self):
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that serves it, which closes it


class _Forwarder(BaseHTTPRequestHandler):
    server: FaultyS3
    protocol_version = "HTTP/1.1"

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault(self.command)
        if fault == "refuse":
            self.cut()
        elif fault == "SlowDown":
            self.answer(503, ERROR.format("SlowDown").encode())
        elif fault[:3].isdigit():
            status, _, code = fault.partition(":")
            self.answer(int(status), ERROR.format(code or "Fault").encode())
        else:
            self.pass_on(fault, *self.ask(body))

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

    def ask(self, body):
        upstream = http.client.HTTPConnection(self.server.target, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            reply = upstream.getresponse()
            return reply.status, reply.read(), reply.getheaders()
        finally:
            upstream.close()

    def pass_on(self, fault, status, content, headers):
        if fault == "lose":
            self.cut()
        elif fault == "hang":
            self.server.sleep(self.server.hang_s)
            self.cut()
        elif fault in ("reset", "truncate"):
            self.answer(status, content[: len(content) // 2], headers, promised=len(content))
            self.close_connection = True
            if fault == "reset":
                self.cut()
        elif fault in ("shorten", "empty"):
            self.answer(status, content[: len(content) // 2 if fault == "shorten" else 0], headers)
        else:
            if fault == "slow":
                self.server.sleep(self.server.latency_s)
            self.answer(status, content, headers)

    def answer(self, status, content, headers=(), promised=None):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = len(content) if promised is None else promised
        if self.command == "HEAD":
            length = dict(headers).get("Content-Length", length)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def cut(self):
        self.close_connection = True
        reset(self.connection)

    def log_message(self, *args):
        pass


def reset(connection):
    """Close a connection as a host does that has forgotten it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()


def _bound(port):
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound
