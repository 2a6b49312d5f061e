"""A real HTTP server that speaks OpenAI's files and batches protocol, and misbehaves on request."""

import contextlib
import email
import email.policy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from itertools import count
from typing import Any

from chat_server import PatientServer, says

CALLS = ("upload", "create", "list", "retrieve", "download", "cancel", "chat")


class Fault:
    """What one call gets in place of its answer: an HTTP error, silence, or a closed connection.

    ``after`` lets the server do the work first, so that only the answer is lost.
    """

    def __init__(self, status=500, headers=None, *, hang_s=0.0, reset=False, body=None, after=False):
        self.status, self.headers, self.hang_s, self.reset, self.after = status, headers or {}, hang_s, reset, after
        self.body = json.dumps({"error": {"message": "scripted fault"}}) if body is None else body


def line_of(custom_id, body, status=200):
    """A line of an output or error file."""
    response = {"status_code": status, "request_id": "req-1", "body": body}
    return {"id": f"line-{custom_id}", "custom_id": custom_id, "response": response, "error": None}


class BatchServer:
    """Runs each batch for ``polls`` polls; what a request gets is ``answer(request body, how often it came)``.

    An answer is a chat completion, an HTTP status with a message, or None for a request that is never run. ``ends``
    are the last statuses of the batches in order of creation (the last one repeats), ``spoil`` changes the text of an
    output file, ``faults[call]`` are the first outcomes of a call, None for a proper one.
    """

    def __init__(self):
        self.files, self.batches, self.calls, self.uploads = {}, {}, [], []
        self.faults: dict[str, list[Any]] = {call: [] for call in CALLS}
        self.polls = 2
        self.ends, self.problems = ["completed"], []
        self.answer = lambda body, number: says("hello").body
        self.spoil = lambda text, number: text
        self.times: dict[str, list[float]] = {call: [] for call in CALLS}
        self.direct = []
        self.can_list = True
        self._downloads, self._ids, self._lock = count(), count(1), threading.Lock()
        self._server = PatientServer(("127.0.0.1", 0), self._handler())
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.root}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    @property
    def submitted(self):
        """The lines of every batch that was made, in order."""
        return [line for batch in self.batches.values() for line in self.lines(batch["input_file_id"])]

    def lines(self, file_id):
        return [json.loads(line) for line in self.files[file_id].split(b"\n") if line]

    def end(self, status="completed"):
        """Bring all batches under way to their end."""
        with self._lock:
            for batch in self.batches.values():
                if batch["status"] in ("validating", "in_progress"):
                    self._finish(batch, status)

    def upload(self, headers, content):
        head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        form = email.message_from_bytes(head + content, policy=email.policy.HTTP)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
        assert parts["purpose"].get_content().strip() == "batch"
        file_id = self._put(parts["file"].get_payload(decode=True))
        self.uploads.append(file_id)
        return {
            "id": file_id,
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "f",
            "purpose": "batch",
            "status": "processed",
        }

    def create(self, request):
        lines = self.lines(request["input_file_id"])
        ids = [line["custom_id"] for line in lines]
        assert len(set(ids)) == len(ids) and all(line["url"] == request["endpoint"] for line in lines)
        batch_id = f"batch-{next(self._ids)}"
        self.batches[batch_id] = {
            "id": batch_id,
            "object": "batch",
            "endpoint": request["endpoint"],
            "completion_window": request["completion_window"],
            "input_file_id": request["input_file_id"],
            "metadata": request.get("metadata"),
            "created_at": int(time.time()),
            "status": "validating",
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "polls": 0,
        }
        return self.batches[batch_id]

    def list_batches(self, after, limit):
        known = list(reversed(self.batches.values()))
        start = next((place + 1 for place, batch in enumerate(known) if batch["id"] == after), 0)
        page = known[start : start + limit]
        return {"object": "list", "data": page, "has_more": start + limit < len(known)}

    def retrieve(self, batch_id):
        batch = self.batches[batch_id]
        batch["polls"] += 1
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress" and batch["polls"] > self.polls:
            number = list(self.batches).index(batch_id)
            self._finish(batch, self.ends[min(number, len(self.ends) - 1)])
        return batch

    def _finish(self, batch, status):
        batch["status"] = status
        if status == "failed" and self.problems:
            batch["errors"] = {"object": "list", "data": self.problems}
            return
        done, failed = [], []
        for line in self.lines(batch["input_file_id"]):
            times = sum(other["custom_id"] == line["custom_id"] for other in self.submitted)
            answer = self.answer(line["body"], times - 1)
            if isinstance(answer, dict):
                done.append(line_of(line["custom_id"], answer))
            elif answer is None:
                error = {"code": f"batch_{status}", "message": "This request could not be executed."}
                failed.append({"id": "x", "custom_id": line["custom_id"], "response": None, "error": error})
            else:
                code, message = answer
                failed.append(line_of(line["custom_id"], {"error": {"message": message}}, code))
        batch["request_counts"] |= {"completed": len(done), "failed": len(failed)}
        for name, lines in (("output_file_id", done), ("error_file_id", failed)):
            if lines:
                batch[name] = self._put("".join(json.dumps(line) + "\n" for line in lines).encode())

    def _put(self, content):
        file_id = f"file-{next(self._ids)}"
        self.files[file_id] = content
        return file_id

    def _respond(self, call, act):
        """Status, headers and body of a call; None closes the connection."""
        with self._lock:
            self.calls.append(call)
            self.times[call].append(time.monotonic())
            fault = self.faults[call].pop(0) if self.faults[call] else None
            answer = act() if fault is None or fault.after else None
        if fault is None:
            return 200, {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        time.sleep(fault.hang_s)
        return None if fault.reset else (fault.status, fault.headers, fault.body.encode())

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self, call, act):
                response = server._respond(call, act)
                if response is None:
                    self.close_connection = True
                    return
                status, headers, body = response
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    for name, value in ({"Content-Type": "application/json"} | headers).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def parts(self):
                """The path after ``/v1`` (or Azure's ``/openai``), and the query."""
                path, _, query = self.path.partition("?")
                path = path.removeprefix("/v1").removeprefix("/openai").strip("/")
                return path.split("/"), dict(pair.split("=") for pair in query.split("&") if pair)

            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"] or 0))
                path, _ = self.parts()
                if path == ["files"]:
                    self.answer("upload", lambda: server.upload(self.headers, content))
                elif path == ["batches"]:
                    self.answer("create", lambda: server.create(json.loads(content)))
                elif path[-1] == "cancel":
                    self.answer("cancel", lambda: server._finish(server.batches[path[1]], "cancelled"))
                elif path[-2:] == ["chat", "completions"]:
                    server.direct.append(json.loads(content))
                    self.answer("chat", lambda: server.answer(json.loads(content), 0))
                else:
                    self.send_error(404)

            def do_GET(self):
                path, query = self.parts()
                if path == ["batches"] and server.can_list:
                    after, limit = query.get("after"), int(query.get("limit", 20))
                    self.answer("list", lambda: server.list_batches(after, limit))
                elif path[0] == "batches" and path[-1] in server.batches:
                    self.answer("retrieve", lambda: server.retrieve(path[1]))
                elif path[0] == "files" and path[-1] == "content":
                    self.answer("download", lambda: self.spoiled(server.files[path[1]]))
                else:
                    self.send_error(404)

            def spoiled(self, content):
                return server.spoil(content.decode(), next(server._downloads)).encode()

        return Handler
