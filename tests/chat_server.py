"""A real HTTP server that speaks the OpenAI chat protocol and misbehaves on request."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mralign_core.annotation.prompts import read_payload


class Turn:
    """One HTTP response; ``body`` may be a text that is not JSON."""

    def __init__(self, body, status=200, headers=None, delay_s=0.0):
        self.body, self.status, self.headers, self.delay_s = body, status, headers or {}, delay_s
        self.cut_after, self.drip_s = None, 0.0


def says(content, finish_reason="stop", **fields):
    """A chat completion with this content."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content},
    }
    return Turn(
        {
            "id": "chat-1",
            "object": "chat.completion",
            "created": 1,
            "model": "scripted",
            "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
        | fields
    )


def thinks(thinking, content, finish_reason="stop", *, field="reasoning_content", prompt_ids=None, token_ids=None):
    """A chat completion of a reasoning model, its thinking in a field of its own; token ids as vLLM gives them."""
    turn = says(content, finish_reason)
    if thinking is not None:
        turn.body["choices"][0]["message"][field] = thinking
    if token_ids is not None:
        turn.body["prompt_token_ids"] = prompt_ids
        turn.body["choices"][0]["token_ids"] = token_ids
    return turn


def fails(status, message="scripted fault", headers=None):
    return Turn({"error": {"message": message}}, status, headers)


def steps(*labelled, overall=8):
    """The JSON text of a reply; each argument is (segments, {label: confidence})."""
    return json.dumps(
        {
            "steps": [
                {
                    "thinking_step": list(segments),
                    "labels": [{"label": name, "confidence": sure} for name, sure in labels.items()],
                }
                for segments, labels in labelled
            ],
            "overall_confidence": overall,
        }
    )


def role_of(request):
    """Who is asked: the last part of the model's name."""
    return request["model"].rpartition("/")[2]


def label_all(request, label="retrieval", confidence=9):
    """A valid reply that gives all asked steps one label."""
    payload = read_payload(request["messages"])
    segments = [[segment["index"]] for segment in payload["segments"]]
    asked = [step["thinking_step"] for step in payload.get("disputed", [])] or segments
    return says(steps(*[(step, {label: confidence}) for step in asked]))


def hangs_up(after=0):
    """Announce a whole reply, send so many bytes of it, and close the connection."""
    turn = says("hello")
    turn.cut_after = after
    return turn


def drips(turn, seconds):
    """Send a reply a byte at a time, over so many seconds."""
    turn.drip_s = seconds
    return turn


class PatientServer(ThreadingHTTPServer):
    """Keeps clients waiting, where a busy machine lets it accept none for a while; the usual queue drops the sixth."""

    daemon_threads = True
    request_queue_size = 128


class ChatServer:
    """Answers each request with ``script(request, number)``, a :class:`Turn`, and remembers the requests.

    ``pages`` are what it says of itself, by path; ``visits`` are the paths that were asked for, with their headers.
    ``calls`` are what it does besides, by path: functions of a request's body. Who lacks its ``key`` gets a 401.
    """

    def __init__(self, port=0, key=""):
        self.key = key
        self.requests, self.headers, self.times = [], [], []
        self.pages, self.visits, self.calls = {}, [], {}
        self.play(says("hello"))
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._server = PatientServer(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self.serving = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.serving.start()

    def play(self, *turns):
        """Answer with these turns in order; the last one repeats."""
        self.script = lambda request, number: turns[min(number, len(turns) - 1)]

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _enter(self, request, headers):
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return len(self.requests) - 1

    def is_locked(self, connection):
        """Whether a request has not the key that it should have."""
        return bool(self.key) and connection.headers.get("Authorization") != f"Bearer {self.key}"

    def _send(self, connection, turn, data):
        if turn.cut_after is not None:
            connection.wfile.write(data[: turn.cut_after])
            connection.close_connection = True
        elif turn.drip_s:
            for place in range(len(data)):
                connection.wfile.write(data[place : place + 1])
                connection.wfile.flush()
                time.sleep(turn.drip_s / len(data))
        else:
            connection.wfile.write(data)

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                server.visits.append((self.path, dict(self.headers)))
                page = server.pages.get(self.path)
                body = json.dumps(page).encode()
                self.send_response(401 if server.is_locked(self) else 404 if page is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if server.is_locked(self):
                    turn = fails(401, "Unauthorized")
                elif self.path in server.calls:
                    turn = server.calls[self.path](request)
                else:
                    turn = server.script(request, server._enter(request, dict(self.headers)))
                    time.sleep(turn.delay_s)
                    with server._lock:
                        server._at_once -= 1
                body = turn.body if isinstance(turn.body, str) else json.dumps(turn.body)
                self.send_response(turn.status)
                for name, value in turn.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    server._send(self, turn, body.encode())

        return Handler
