import json
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flows.commands.export_data import export_data, find_data
from mralign_core.exporting.data_set import Licences
from mralign_core.exporting.trainer_formats import ROW_FORMATS
from tests.exported_run import awkward_run

NOTHING_STATED = Licences("", {})


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    """A run of awkward traces, up to its weights."""
    return awkward_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="package")
def exports(run, tmp_path_factory):
    """The run in every format: format → folder."""
    folder = tmp_path_factory.mktemp("exports")
    source = find_data(run.config, {}, "")
    for name in ROW_FORMATS:
        export_data(run.config, source, folder / name, name, NOTHING_STATED, lambda done, total: None)
    return {name: folder / name for name in ROW_FORMATS}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Data sets are read into a cache of the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


class UploadServer:
    """The routes of a hub that an upload needs: ``made`` is the repository asked for, ``files`` what it got."""

    def __init__(self):
        self.made, self.files = None, {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                answer = server.answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                data = json.dumps(answer).encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path, sent):
        if path == "/api/repos/create":
            self.made = json.loads(sent)
            return {"url": f"{self.url}/datasets/me/my-traces"}
        if "/preupload/" in path:
            asked = json.loads(sent)["files"]
            return {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = b64decode(line["value"]["content"])
        address = f"{self.url}/datasets/me/my-traces/commit/1"
        return {"success": True, "commitOid": "1", "commitUrl": address, "hookOutput": ""}


@pytest.fixture
def upload_server(monkeypatch):
    """A hub that this process uploads to."""
    server = UploadServer()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    yield server
    server.http.shutdown()
    server.http.server_close()
