"""A hub over HTTP: the few routes that huggingface_hub and datasets need to pin and load a data set, or pin a model."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest


class HubServer:
    """Repositories by ``kind/owner/name`` (kind ``datasets`` or ``models``), each a list of commits; the last is main.

    ``visits`` are the methods and paths that were asked for.
    """

    def __init__(self):
        self.repositories, self.visits = {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, with_body=False)

            def do_GET(self):
                hub.answer(self)

            def do_POST(self):
                self.sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def push(self, repository, files):
        """A new commit, the newest; returns its SHA."""
        commits = self.repositories.setdefault(repository, [])
        sha = hashlib.sha1(json.dumps([repository, len(commits)]).encode()).hexdigest()
        commits.append((sha, {name: text.encode() for name, text in files.items()}))
        return sha

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request, with_body=True):
        path = unquote(urlsplit(request.path).path).strip("/")
        self.visits.append(f"{request.command} /{path}")
        body, headers = self._found(path.split("/"), request)
        request.send_response(200 if body is not None else 404)
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {"error": "none"}).encode()
        if body is None:
            is_known = any(name.partition("/")[2] in path for name in self.repositories)
            missing = "RevisionNotFound" if path.startswith("api/") else "EntryNotFound"
            headers = {"X-Error-Code": missing if is_known else "RepoNotFound"}
        for name, value in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
            request.send_header(name, str(value))
        request.end_headers()
        if with_body:
            request.wfile.write(data)

    def _found(self, parts, request):
        if parts[0] == "api":
            return self._described(parts[1], "/".join(parts[2:4]), parts[4:], request), {}
        kind = "datasets" if parts[0] == "datasets" else "models"
        rest = parts[1:] if kind == "datasets" else parts
        sha, files = self._commit(f"{kind}/{'/'.join(rest[:2])}", rest[3] if len(rest) > 3 else "main")
        data = files.get("/".join(rest[4:])) if files else None
        return data, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data or b"").hexdigest()}"'}

    def _commit(self, repository, revision):
        commits = self.repositories.get(repository, [])
        found = [one for one in commits if revision in ("main", one[0])]
        return found[-1] if found else ("", None)

    def _described(self, kind, name, rest, request):
        revision = rest[1] if len(rest) > 1 else "main"
        sha, files = self._commit(f"{kind}/{name}", revision)
        if files is None:
            return None
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        if rest[:1] == ["tree"]:
            return list(_tree(entries, "/".join(rest[2:]), is_recursive="recursive=true" in request.path.lower()))
        if rest[:1] == ["paths-info"]:
            wanted = request.sent.decode()
            return [one for one in entries if one["path"] in unquote(wanted.replace("+", " "))]
        return {
            "id": name,
            "sha": sha,
            "siblings": [{"rfilename": path} for path in files],
            "tags": [],
            "private": False,
        }


def _tree(entries, folder, is_recursive):
    """The files and folders of a folder."""
    prefix, folders = f"{folder}/" if folder else "", set()
    for one in entries:
        if one["path"].startswith(prefix):
            inside, _, deeper = one["path"].removeprefix(prefix).partition("/")
            if deeper and inside not in folders:
                folders.add(inside)
                yield {"type": "directory", "path": prefix + inside, "size": 0, "oid": "0" * 40}
            if not deeper or is_recursive:
                yield one


@pytest.fixture
def hub_server(monkeypatch, tmp_path):
    """A hub that this process takes for the hub, with caches of its own."""
    import datasets
    from huggingface_hub import constants

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with contextlib.closing(server):
        yield server
