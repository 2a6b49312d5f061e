"""Annotators' servers that misbehave in one way each, and keep their own account of what they would bill.

``run_all`` annotates a few traces against each of them, and puts what our ledger says beside what the server did. What
must hold for every row: the ledger has at least what was billed, and what was billed is within the ceiling.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from mralign_core.annotation.annotate import annotate_traces
from mralign_core.config import AnnotateConfig
from mralign_core.label_sets import PAPER_LABEL_SET
from mralign_core.llm.client import LLMClient
from mralign_core.llm.ledger import Ledger
from tests.chat_server import label_all
from tests.kept_replies import MemoryReplyStore

INPUT_USD, OUTPUT_USD = 2e-6, 10e-6
"""Price of a token."""
MAX_TOKENS = 256
CEILING_USD = 0.05
MODELS = ("openai/first", "openai/second", "openai/judge")
AMPLE_USD = 10.0
COMMON_HEADERS = {"Content-Type": "application/json", "Connection": "close"}
SEGMENTS = ("I recall the date.", "Wait, let me check.", "So it is Galen.")


class Call:
    """One request on its connection, and the means to answer it badly."""

    def __init__(self, server: FaultServer, connection: socket.socket, request: dict[str, Any], number: int) -> None:
        self.server, self.connection, self.request, self.number = server, connection, request, number

    @property
    def prompt_tokens(self) -> int:
        """As many as the least thrifty tokenizer would make."""
        return sum(len(message["content"].encode()) for message in self.request["messages"])

    def bill(self, completion_tokens: int = MAX_TOKENS) -> dict[str, int]:
        """Do the work; its usage."""
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": completion_tokens}
        with self.server.lock:
            self.server.billed_usd += self.prompt_tokens * INPUT_USD + completion_tokens * OUTPUT_USD
        return counts | {"total_tokens": sum(counts.values())}

    def body(self, **fields: Any) -> dict[str, Any]:
        """A good reply, billed, with fields in place of its own."""
        return label_all(self.request).body | {"usage": self.bill(120)} | fields

    def message(self, **fields: Any) -> dict[str, Any]:
        """A good reply with fields in place of its message's."""
        body = self.body()
        body["choices"][0]["message"] |= fields
        return body

    def send(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.raw(_head(status, {"Content-Length": str(len(data))} | (headers or {})) + data)

    def raw(self, data: bytes) -> None:
        """Write bytes."""
        self.connection.sendall(data)

    def reset(self) -> None:
        """Break the connection off."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


Behaviour = Callable[[Call], None]


class FaultServer:
    """Answers each request by one behaviour; those that ``is_spared`` get a good reply.

    ``billed_usd`` is what the work came to, ``num_requests`` how often it was asked.
    """

    def __init__(self, behaviour: Behaviour, is_spared: Callable[[Call], bool] = lambda call: False) -> None:
        self.behaviour, self.is_spared = behaviour, is_spared
        self.lock = threading.Lock()
        self.billed_usd, self.num_requests, self.keys_elsewhere = 0.0, 0, 0
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    server._answer(self.connection, self.rfile)

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.daemon_threads, self._server.request_queue_size = True, 64
        self._server.server_bind()
        self._server.server_activate()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, connection: socket.socket, lines: Any) -> None:
        first = lines.readline()
        if not first.strip():
            return
        headers = {}
        while line := lines.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        content = lines.read(int(headers.get("content-length", 0)))
        if not first.startswith(b"POST") or b"/chat/completions" not in first:
            connection.sendall(_head(404, {"Content-Length": "0"}))
            return
        with self.lock:
            self.num_requests += 1
            number = self.num_requests - 1
        call = Call(self, connection, json.loads(content), number)
        if self.is_spared(call):
            call.send(call.body())
        else:
            self.behaviour(call)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [
        f"HTTP/1.1 {status} X",
        *(f"{n}: {v}" for n, v in (COMMON_HEADERS | headers).items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


BEHAVIOURS: dict[str, Behaviour] = {}


def _behaviour(name: str) -> Callable[[Behaviour], Behaviour]:
    def register(act: Behaviour) -> Behaviour:
        BEHAVIOURS[name] = act
        return act

    return register


def _after_work(act: Behaviour) -> Behaviour:
    """The same, after the work was done and billed."""

    def act_after(call: Call) -> None:
        call.bill()
        act(call)

    return act_after


def _answers(make: Callable[[Call], Any], status: int = 200, headers: dict[str, str] | None = None) -> Behaviour:
    return lambda call: call.send(make(call), status, headers)


def _bytes(data: bytes, status: int = 200) -> Behaviour:
    """Does the work, and answers with these bytes."""

    def act(call: Call) -> None:
        call.bill()
        call.send(data, status)

    return act


def _error(status: int, message: str = "scripted fault", headers: dict[str, str] | None = None) -> Behaviour:
    return _answers(lambda call: {"error": {"message": message}}, status, headers)


def _body(**fields: Any) -> Behaviour:
    return _answers(lambda call: call.body(**fields))


def _message(**fields: Any) -> Behaviour:
    return _answers(lambda call: call.message(**fields))


def _usage(**counts: Any) -> Behaviour:
    return _body(usage=counts)


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


# The reply is lost, and the work was done.
BEHAVIOURS["reset-before"] = Call.reset
BEHAVIOURS["reset-after-work"] = _after_work(Call.reset)
BEHAVIOURS["closed-after-work"] = _after_work(lambda call: None)
BEHAVIOURS["head-only"] = _after_work(lambda call: call.raw(_head(200, {"Content-Length": "999"})))
BEHAVIOURS["half-head"] = _after_work(lambda call: call.raw(b"HTTP/1.1 200 OK\r\nContent-Le"))
BEHAVIOURS["garbled-head"] = _after_work(lambda call: call.raw(b"\x00\xff\x12 hello\r\n\r\n"))
BEHAVIOURS["silence"] = _after_work(lambda call: time.sleep(4))
for _status in (408, 409, 499, 500, 501, 502, 503, 504, 529):
    BEHAVIOURS[f"{_status}-after-work"] = _after_work(_error(_status))
BEHAVIOURS["503-retry-after-a-year"] = _error(503, headers={"Retry-After": "31536000"})
BEHAVIOURS["500-without-a-body"] = _bytes(b"", 500)
BEHAVIOURS["500-html"] = _bytes(b"<html>" * 100, 500)
BEHAVIOURS["400-with-a-usage"] = _answers(lambda call: call.body() | {"error": {"message": "too bad"}}, 400)
BEHAVIOURS["204"] = _bytes(b"", 204)

# The reply can't be read.
BEHAVIOURS["empty-body"] = _bytes(b"")
BEHAVIOURS["not-json"] = _bytes(b"<html>It works!</html>")
BEHAVIOURS["a-list"] = _bytes(b"[1, 2]")
BEHAVIOURS["a-string"] = _bytes(b'"hello"')
BEHAVIOURS["null"] = _bytes(b"null")
BEHAVIOURS["nested-100000-deep"] = _bytes(_nested(100_000))
BEHAVIOURS["error-object-in-200"] = _bytes(b'{"error": {"message": "overloaded", "code": 503}}')
BEHAVIOURS["error-string-in-200"] = _bytes(b'{"error": "overloaded"}')
BEHAVIOURS["sse"] = _bytes(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n')
BEHAVIOURS["50-mb"] = _bytes(b'{"x": "' + b"y" * 50_000_000 + b'"}')
BEHAVIOURS["redirect-elsewhere"] = _after_work(
    _answers(lambda call: {}, 307, {"Location": "http://localhost:1/v1/chat/completions"})
)


@_behaviour("redirect-to-itself")
def _redirect_to_itself(call: Call) -> None:
    call.bill()
    call.send({}, 307, {"Location": f"{call.server.url}/chat/completions"})


@_behaviour("half-a-body")
def _half_a_body(call: Call) -> None:
    data = json.dumps(call.body()).encode()
    call.raw(_head(200, {"Content-Length": str(len(data))}) + data[: len(data) // 2])


@_behaviour("chunks-cut-off")
def _chunks_cut_off(call: Call) -> None:
    data = json.dumps(call.body()).encode()
    call.raw(_head(200, {"Transfer-Encoding": "chunked"}) + f"{len(data):x}\r\n".encode() + data[:50])


@_behaviour("bad-chunk-size")
def _bad_chunk_size(call: Call) -> None:
    call.bill()
    call.raw(_head(200, {"Transfer-Encoding": "chunked"}) + b"zz\r\nhello")


@_behaviour("drips-for-ever")
def _drips_for_ever(call: Call) -> None:
    call.bill()
    call.raw(_head(200, {"Content-Length": "100000"}))
    for _ in range(40):
        call.raw(b" ")
        time.sleep(0.1)


@_behaviour("endless")
def _endless(call: Call) -> None:
    call.bill()
    call.raw(_head(200, {"Transfer-Encoding": "chunked"}))
    for _ in range(2_000):
        call.raw(b"10000\r\n" + b" " * 65_536 + b"\r\n")


@_behaviour("gzip-bomb")
def _gzip_bomb(call: Call) -> None:
    call.bill()
    call.send(BOMB, headers={"Content-Encoding": "gzip"})


BOMB = gzip.compress(bytes(200_000_000), 1)


@_behaviour("gzip-unasked")
def _gzip_unasked(call: Call) -> None:
    call.send(gzip.compress(json.dumps(call.body()).encode()), headers={"Content-Encoding": "gzip"})


@_behaviour("unknown-encoding")
def _unknown_encoding(call: Call) -> None:
    call.send(json.dumps(call.body()).encode(), headers={"Content-Encoding": "zstd"})


@_behaviour("not-the-gzip-it-says")
def _not_the_gzip_it_says(call: Call) -> None:
    call.send(json.dumps(call.body()).encode(), headers={"Content-Encoding": "gzip"})


@_behaviour("huge-headers")
def _huge_headers(call: Call) -> None:
    call.send(call.body(), headers={f"X-{number}": "y" * 8000 for number in range(2_000)})


@_behaviour("two-lengths")
def _two_lengths(call: Call) -> None:
    data = json.dumps(call.body()).encode()
    call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n" + data)


# The reply is there, and its form is odd.
_PARTS = [{"type": "text", "text": "a"}]
_ODD_FIELDS: dict[str, dict[str, Any]] = {
    "choices-null": {"choices": None},
    "choices-empty": {"choices": []},
    "choices-of-strings": {"choices": ["hello"]},
    "choices-a-dict": {"choices": {"0": {}}},
    "message-null": {"choices": [{"index": 0, "finish_reason": "stop", "message": None}]},
    "choice-without-message": {"choices": [{"index": 0}]},
    "odd-types-everywhere": {"id": 3, "created": "now", "model": None, "object": [], "service_tier": {}},
    "no-model-no-id": {"id": None, "created": None, "model": None},
}
for _name, _fields in _ODD_FIELDS.items():
    BEHAVIOURS[_name] = _body(**_fields)
_ODD_MESSAGES: dict[str, dict[str, Any]] = {
    "content-null": {"content": None},
    "content-null-with-reasoning": {"content": None, "reasoning_content": "I think so."},
    "content-a-number": {"content": 7},
    "content-parts-of-images": {"content": [{"type": "image_url", "image_url": {}}]},
    "half-a-surrogate": {"content": "half \ud83d"},
    "tool-calls-of-strings": {"tool_calls": ["x"]},
    "reasoning-a-list": {"reasoning_content": [1], "reasoning": {"a": 1}},
}
for _name, _fields in _ODD_MESSAGES.items():
    BEHAVIOURS[_name] = _message(**_fields)


@_behaviour("content-in-parts")
def _content_in_parts(call: Call) -> None:
    body = call.body()
    text = body["choices"][0]["message"]["content"]
    body["choices"][0]["message"]["content"] = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    call.send(body)


@_behaviour("content-an-object")
def _content_an_object(call: Call) -> None:
    body = call.body()
    message = body["choices"][0]["message"]
    message["content"] = json.loads(message["content"])
    call.send(body)


@_behaviour("bad-byte")
def _bad_byte(call: Call) -> None:
    call.send(json.dumps(call.body(system_fingerprint="@")).encode().replace(b"@", b"\xff"))


@_behaviour("byte-order-mark")
def _byte_order_mark(call: Call) -> None:
    call.send(b"\xef\xbb\xbf" + json.dumps(call.body()).encode())


@_behaviour("extra-nested-900-deep")
def _extra_nested(call: Call) -> None:
    call.send(json.dumps(call.body(extra="@")).encode().replace(b'"@"', _nested(900)))


@_behaviour("nan-and-huge-numbers")
def _nan(call: Call) -> None:
    call.send(json.dumps(call.body(a=float("nan"), b="@")).encode().replace(b'"@"', b"9" * 5000))


# The usage is odd.
BEHAVIOURS["usage-missing"] = _answers(lambda call: _without(call.body(), "usage"))
BEHAVIOURS["usage-null"] = _answers(lambda call: call.body(usage=None))
BEHAVIOURS["usage-empty"] = _usage()
BEHAVIOURS["usage-words"] = _usage(prompt_tokens="many", completion_tokens="some", total_tokens="lots")
BEHAVIOURS["usage-negative"] = _usage(prompt_tokens=-5, completion_tokens=-5, total_tokens=-10)
BEHAVIOURS["usage-of-1e15"] = _usage(prompt_tokens=10**15, completion_tokens=10**15, total_tokens=2 * 10**15)
BEHAVIOURS["usage-of-infinity"] = _usage(prompt_tokens=float("inf"), completion_tokens=float("nan"))
BEHAVIOURS["usage-of-lists"] = _usage(prompt_tokens=[1], completion_tokens={}, prompt_tokens_details="x")
BEHAVIOURS["usage-without-completion"] = _usage(prompt_tokens=50)
BEHAVIOURS["usage-all-zero"] = _usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)

# Nothing was done.
for _status in (400, 401, 402, 403, 404, 405, 410, 413, 415, 422, 429, 451):
    BEHAVIOURS[f"{_status}"] = _error(_status)
BEHAVIOURS["429-retry-after-odd"] = _error(429, headers={"Retry-After": "soon"})
BEHAVIOURS["400-too-long"] = _error(400, "The decoder prompt (length 17772) is longer than the maximum model length")
BEHAVIOURS["401-that-echoes-the-key"] = _answers(
    lambda call: {"error": {"message": "Incorrect API key provided: sk-secret-of-the-test"}}, 401
)


def _without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


SOMETIMES = tuple(name for name in BEHAVIOURS if name not in ("silence", "drips-for-ever"))
"""Behaviours that are tried on one request in three too; the others take seconds each time."""


class Row(NamedTuple):
    """What annotating a few traces against one server came to."""

    behaviour: str
    requests: int
    billed_usd: float
    committed_usd: float
    ceiling_usd: float
    labelled: int
    failed: int
    stopped: str
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether the ledger has all that was billed, and the ceiling was held."""
        slack = 1e-9
        return self.billed_usd <= self.committed_usd + slack and self.billed_usd <= self.ceiling_usd + slack


def names() -> list[str]:
    """All scripted servers; ``name/3`` misbehaves on every third request, and answers the others."""
    return [*BEHAVIOURS, *(f"{name}/3" for name in SOMETIMES)]


def run_all(chosen: list[str] | None = None, *, num_traces: int = 6) -> Iterator[Row]:
    """Annotate against each of the chosen servers, or all."""
    for name in chosen if chosen is not None else names():
        yield run_one(name, num_traces=num_traces)


def run_one(name: str, *, num_traces: int = 6, ceiling_usd: float | None = None) -> Row:
    """Annotate a few traces against one server, with a ceiling that is low where it always misbehaves."""
    base, _, third = name.partition("/")
    ceiling_usd = ceiling_usd or (AMPLE_USD if third else CEILING_USD)
    server = FaultServer(BEHAVIOURS[base], lambda call: bool(third) and call.number % 3 != 2)
    ledger = Ledger(ceiling_usd=ceiling_usd)
    started = time.monotonic()
    labelled = failed = 0
    stopped = ""
    try:
        client = LLMClient(MemoryReplyStore(), concurrency=4, ledger=ledger, first_pause_s=0.01)
        result = annotate_traces(
            _candidates(num_traces), _section(server), seed=0, label_set=PAPER_LABEL_SET, client=client
        )
        labelled, failed = result.annotations["trace_id"].nunique(), result.failures["trace_id"].nunique()
    except Exception as error:
        stopped = f"{type(error).__name__}: {error}"
    finally:
        server.close()
    seconds = time.monotonic() - started
    return Row(
        name,
        server.num_requests,
        server.billed_usd,
        ledger.committed_usd,
        ceiling_usd,
        labelled,
        failed,
        stopped,
        seconds,
    )


def _section(server: FaultServer) -> AnnotateConfig:
    where = {
        "api_base": server.url,
        "max_output_tokens": MAX_TOKENS,
        "input_usd_per_million": INPUT_USD * 1e6,
        "output_usd_per_million": OUTPUT_USD * 1e6,
        "timeout_s": 1.0,
        "max_attempts": 2,
        "max_retry_after_s": 0.1,
    }
    roles = zip(("annotator_a", "annotator_b", "adjudicator"), MODELS, strict=True)
    return AnnotateConfig(**{role: {"model": model} | where for role, model in roles}, concurrency=4)


def _candidates(num_traces: int) -> pd.DataFrame:
    completion, segments = "<think>", []
    for text in SEGMENTS:
        start = len(completion)
        segments.append({"start": start, "end": start + len(text), "token_start": 0, "token_end": 1})
        completion += text + "\n\n"
    rows = [
        {
            "trace_id": f"t{number}",
            "question": f"Who wrote book {number}?",
            "answers": ["Galen"],
            "completion": completion + "</think>",
            "segments": segments,
        }
        for number in range(num_traces)
    ]
    return pd.DataFrame(rows)
